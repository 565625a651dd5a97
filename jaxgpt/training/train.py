"""`train` begins a run, `resume` goes on with one; both return a `Run`."""

import contextlib
from collections.abc import Iterator
from os import PathLike
from typing import Any

from jaxgpt import config as configs
from jaxgpt.config import TrainConfig, override, validate
from jaxgpt.data import corpus
from jaxgpt.data import dataset as datasets
from jaxgpt.data.dataset import Dataset, ForeignText
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.device import processes
from jaxgpt.errors import UserError
from jaxgpt.files import literal
from jaxgpt.model import build
from jaxgpt.runs import folder as folders
from jaxgpt.runs.folder import RunFolder
from jaxgpt.runs.pretrained import load_pretrained
from jaxgpt.runs.progress import Progress
from jaxgpt.runs.report import Report, count
from jaxgpt.runs.run import MAY_CHANGE, Run
from jaxgpt.training.finetune import starting_params
from jaxgpt.training.loop import Loop, text_changed
from jaxgpt.training.signals import Interrupted, StopRequest

SOFT_TARGETS = 2**29  # numbers that their table may have, of four bytes each


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
        stop: who may ask the run to stop; None takes this process's signals (Ctrl-C, SIGTERM, a notebook's interrupt
            ...) for as long as it trains, and says at the end what to call next.
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
    if config.soft_targets and (why := _no_soft_targets(config, data)):
        _report(quiet).note(f"{why}\n")
        config = override(config, soft_targets=0.0)
    # Whatever is wrong with the devices is told before a file is written.
    loop = Loop(folder, config, data, quiet, stop)
    if processes.is_first():
        folder.create(config, data.tokenizer)
    with _lock(folder), _telling(folder, quiet, stop):
        return loop.from_scratch(params)


def resume(
    path: str | PathLike[str],
    *,
    quiet: bool = False,
    stop: StopRequest | None = None,
    **changes: Any,
) -> Run:
    """Goes on with an interrupted run, bit for bit as if it had never stopped.

    Args:
        path: the run's folder.
        quiet, stop: as in `train`.
        changes: fields of its config that are others from here on: `max_steps`, a new end, to train a finished run for
            longer (under a schedule that decays, the learning rate follows the new curve); `data`, where its text is
            now, which must be the same text; and `mesh`, `micro_batches`, `remat`, what computes the same updates on
            other devices, or with less memory. None leaves a field as it is.

    Raises:
        UserError, Interrupted, Diverged, OSError: as `train`; and UserError when the run has reached its end, its text
            or its config has changed, another field would, or somebody else is training it.
    """
    folder = RunFolder(path)
    was, tokenizer = folder.read()
    changes = {name: value for name, value in changes.items() if value is not None}
    if "data" in changes:
        changes["data"] = corpus.absolute(changes["data"])
    config = validate(override(was, **changes))
    before, after = configs.flat(was), configs.flat(config)
    if changed := [f"`{name}`" for name in changes if after[name] != before[name] and name not in MAY_CHANGE]:
        raise UserError(f"{folder} goes on as it was: leave out {', '.join(changed)}, or start a new run")
    if config.data == "-" and "data" not in changes:
        raise UserError(f"the text of {folder} came from standard input: pass it again, as `data`")
    try:
        loaded = _load(config, tokenizer, quiet)
    except ForeignText as error:  # something that the run has never seen
        raise UserError(f"{text_changed(config, folder)}, or {folder}/{folder.tokenizer.name} is damaged") from error
    _check_length(loaded, config.model.block_size)
    if config.soft_targets and (why := _no_soft_targets(config, loaded)):
        raise UserError(why)
    with _lock(folder), _telling(folder, quiet, stop):
        return Loop(folder, config, loaded, quiet, stop).from_checkpoint()


def _lock(folder: RunFolder) -> contextlib.AbstractContextManager[Any]:
    """Of the processes that train a run together, the first holds its lock."""
    return folder.lock() if processes.is_first() else contextlib.nullcontext()


@contextlib.contextmanager
def _telling(folder: RunFolder, quiet: bool, stop: StopRequest | None) -> Iterator[None]:
    """Says how to go on from Python; who passes a `stop`, as the commands do, has words of their own for that."""
    if stop is not None:
        yield
        return
    name = literal(folder.path)
    try:
        yield
    except Interrupted as asked:
        if not folder.has_checkpoint():
            raise
        words = f"{asked}. To go on:\n\n    run = jaxgpt.resume({name})"
        raise Interrupted(words, asked.signal_number) from None
    _report(quiet).note(f"    print(jaxgpt.load({name}).generate(tokens=500))\n")


def _report(quiet: bool) -> Report:
    return Report(quiet or not processes.is_first())


def _load(config: TrainConfig, tokenizer: Tokenizer | None, quiet: bool) -> Dataset:
    with _report(quiet) as report:
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


def _no_soft_targets(config: TrainConfig, data: Dataset) -> str:
    """Why a run can have none, or nothing. Their table has up to a row for each token of the text, and a column for
    each of the vocabulary."""
    size = len(data.train) * data.tokenizer.vocab_size
    reasons = {
        "they are for characters and bytes": data.tokenizer.kind not in ("char", "bytes"),
        "they do not go with `remat`": config.remat,
        f"they might take {4 * size / 1e9:.1f} GB for this text": size > SOFT_TARGETS,
    }
    return next((f"no soft targets: {why}" for why, true in reasons.items() if true), "")
