"""`train` begins a run, `resume` goes on with one; both return a `Run`."""

from os import PathLike
from typing import Any

from jaxgpt.config import TrainConfig, override, validate
from jaxgpt.data import corpus
from jaxgpt.data import dataset as datasets
from jaxgpt.data.dataset import Dataset, ForeignText
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.errors import UserError
from jaxgpt.model import build
from jaxgpt.runs import folder as folders
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.pretrained import load_pretrained
from jaxgpt.runs.progress import Progress
from jaxgpt.runs.report import Report, count
from jaxgpt.runs.run import Run
from jaxgpt.training.finetune import starting_params
from jaxgpt.training.loop import Loop, text_changed
from jaxgpt.training.signals import StopRequest


def train(
    config: TrainConfig,
    *,
    out: str | PathLike[str] | None = None,
    quiet: bool = False,
    stop: StopRequest | None = None,
    source: Run | None = None,
) -> Run:
    """Trains a model, in a new folder: from scratch, or from the weights that `config.init_from` names.

    Args:
        config: the recipe, as from `jaxgpt.preset` or `jaxgpt.finetune`.
        out: the folder to make; None makes `runs/PRESET`, or the next free name after it.
        quiet: print nothing.
        stop: who may ask the run to stop; None takes this process's signals (Ctrl-C, SIGTERM ...) for as long as it
            trains.
        source: what `config.init_from` names, if it is loaded already.

    Raises:
        UserError: for a config that cannot be run, data that cannot be read, a folder that is taken.
        Interrupted: after a request to stop, when the run is saved.
        Diverged: when the gradient is not finite `loop.MAX_SKIPPED` times in a row.
        OSError: when a file cannot be written.
    """
    config = validate(config)
    build.architecture(config.model)
    folder = folders.new(out, config.preset)  # whatever is wrong with it is told before the text is fetched
    config = override(config, data=corpus.absolute(config.data))
    if config.init_from and source is None:
        source = load_pretrained(config.init_from)
    params = starting_params(config, source) if source else None
    data = _load(config, source.tokenizer if source else None, quiet)
    config = override(config, tokenizer=data.tokenizer.kind, vocab_size=data.tokenizer.vocab_size)
    _check_length(data, config.model.block_size)
    folder.create(config, data.tokenizer)
    with folder.lock():
        return Loop(folder, config, data, quiet, stop).from_scratch(params)


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
    try:
        loaded = _load(config, tokenizer, quiet)
    except ForeignText as error:  # something that the run has never seen
        raise UserError(text_changed(config, folder)) from error
    _check_length(loaded, config.model.block_size)
    with folder.lock():
        return Loop(folder, config, loaded, quiet, stop).from_checkpoint()


def _load(config: TrainConfig, tokenizer: Tokenizer | None, quiet: bool) -> Dataset:
    with Report(quiet) as report:
        return datasets.load(config, tokenizer, Progress(report, "encoding the text", "M characters"))


def _check_length(data: Dataset, block_size: int) -> None:
    """Each split must hold a window and the target of its last token."""
    shortest, use = min((len(data.val), "for validation"), (len(data.train), "to train on"))
    if shortest <= block_size:
        n = count(len(data.train) + len(data.val), data.tokenizer.unit)
        raise UserError(
            f"the text is too short: of its {n} {shortest:,} are {use}, and a window of `block_size` {block_size} "
            f"needs {block_size + 1:,}; take more text or a smaller `block_size`"
        )
