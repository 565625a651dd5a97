"""`train` begins a run, `resume` goes on with one; both return a `Run`."""

from os import PathLike
from typing import Any

import numpy as np

from jaxgpt.config import TrainConfig, override, validate
from jaxgpt.data import batches, corpus
from jaxgpt.data.tokenizer import train_tokenizer
from jaxgpt.errors import UserError
from jaxgpt.model import build
from jaxgpt.runs import folder as folders
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.report import count
from jaxgpt.runs.run import Run
from jaxgpt.training.loop import Loop, text_changed
from jaxgpt.training.signals import StopRequest


def train(
    config: TrainConfig,
    *,
    out: str | PathLike[str] | None = None,
    quiet: bool = False,
    stop: StopRequest | None = None,
) -> Run:
    """Trains a model from scratch, in a new folder.

    Args:
        config: the recipe, as from `jaxgpt.preset`.
        out: the folder to make; None makes `runs/PRESET`, or the next free name after it.
        quiet: print nothing.
        stop: who may ask the run to stop; None takes this process's signals (Ctrl-C, SIGTERM ...) for as long as it
            trains.

    Raises:
        UserError: for a config that cannot be run, data that cannot be read, a folder that is taken.
        Interrupted: after a request to stop, when the run is saved.
        Diverged: when the gradient is not finite `loop.MAX_SKIPPED` times in a row.
        OSError: when a file cannot be written.
    """
    config = validate(config)
    build.architecture(config.model)
    folder = folders.new(out, config.preset)  # whatever is wrong with it is told before the text is fetched
    data = corpus.absolute(config.data)
    text = corpus.load(data)
    tokenizer = train_tokenizer(config.tokenizer, text)
    tokens = tokenizer.encode(text)
    if config.model.vocab_size not in (0, tokenizer.vocab_size):
        raise UserError(
            f"`vocab_size` is {config.model.vocab_size}, but the text has {tokenizer.vocab_size} different "
            f"{tokenizer.unit}s: leave it out"
        )
    config = override(config, data=data, vocab_size=tokenizer.vocab_size)
    _check_length(tokens, config.model.block_size, tokenizer.unit)
    folder.create(config, tokenizer)
    with folder.lock():
        return Loop(folder, config, tokenizer, tokens, quiet, stop).from_scratch(corpus.remark(data, text))


def resume(
    path: str | PathLike[str],
    *,
    data: str | PathLike[str] | tuple[str, ...] | None = None,
    max_steps: int | None = None,
    quiet: bool = False,
    stop: StopRequest | None = None,
) -> Run:
    """Goes on with an interrupted run, bit for bit as if it had never stopped.

    Args:
        path: the run's folder.
        data: where its text is now, if it has moved; it must be the same text.
        max_steps: a new end, to train a finished run for longer; None keeps the run's own. Under a schedule
            that decays, the learning rate follows the new curve from here on.
        quiet, stop: as in `train`.

    Raises:
        UserError, Interrupted, Diverged, OSError: as `train`; and UserError when the run has reached its end, its text
            or its config has changed, or somebody else is training it.
    """
    folder = RunFolder(path)
    config, tokenizer = folder.read()
    changes: dict[str, Any] = {} if max_steps is None else {"max_steps": max_steps}
    changes |= {} if data is None else {"data": corpus.absolute(data)}
    config = validate(override(config, **changes))
    if config.data == "-" and data is None:
        raise UserError(f"the text of {folder} came from standard input: pass it again, as `data`")
    text = corpus.load(config.data)
    try:
        tokens = tokenizer.encode(text)
    except UserError as error:  # something that the run has never seen
        raise UserError(text_changed(config, folder)) from error
    _check_length(tokens, config.model.block_size, tokenizer.unit)
    with folder.lock():
        return Loop(folder, config, tokenizer, tokens, quiet, stop).from_checkpoint()


def _check_length(tokens: np.ndarray, block_size: int, unit: str) -> None:
    """The validation split, the smaller one, must hold a window and the target of its last token."""
    shortest = min(map(len, batches.split(tokens)))
    if shortest <= block_size:
        raise UserError(
            f"the text is too short: of its {count(len(tokens), unit)} {shortest:,} are for validation, and a "
            f"window of `block_size` {block_size} needs {block_size + 1:,}; take more text or a smaller `block_size`"
        )
