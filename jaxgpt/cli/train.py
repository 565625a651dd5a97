"""The command `train.py`: trains a GPT, or goes on with a run."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxgpt import config as configs
from jaxgpt import presets
from jaxgpt.cli import flags, process
from jaxgpt.cli.command import advised, program, run_command, say
from jaxgpt.cli.flags import Flag
from jaxgpt.config import TrainConfig
from jaxgpt.errors import UserError
from jaxgpt.files import quoted
from jaxgpt.training.signals import Interrupted, StopRequest

if TYPE_CHECKING:
    from jaxgpt.runs.folder import RunFolder
    from jaxgpt.runs.run import Run

ABOUT = """usage: {program} [--preset NAME] [--n-layer N ...]  or  {program} --from gpt2 --data my.txt  or  {program}
--resume [PATH]

Train a GPT, and leave it in a folder below runs/. Ctrl-C stops it and saves; `resume` goes on.

Presets: {presets}. The defaults below, in brackets, are those of {preset}."""

RUN_FLAGS = [
    Flag("out", Path, None, "Folder to make for the run; by default runs/PRESET, or the next free name."),
    Flag(
        "resume",
        flags.SWITCH,
        None,
        "Go on with the run in PATH, by default with the newest one (of the `preset`, if given). `max_steps` may be "
        "another then, `data` another place of the same text, and `mesh`, `micro_batches` and `remat` others; all else "
        "stays as it was.",
    ),
    Flag(
        "distributed",
        flags.SWITCH,
        None,
        "Train together with other processes, on this machine or on others: as SLURM, Open MPI, Kubernetes or a TPU "
        "pod has started them, or as said here: the address of process 0, how many there are, and which one this is, "
        "from 0.",
    ),
    flags.HELP,
]


def main(arguments: list[str] | None = None) -> int:
    """Runs the command, and returns its exit code."""
    return run_command(_train, _groups(), arguments)


def _groups() -> flags.Groups:
    """Every field of a config is a flag, and the run has two more."""
    model, fields = configs.MODEL_FIELDS, configs.fields()
    run = [fields[name] for name in ("preset", "init_from", "data", "text_field", "tokenizer")]
    return {
        "run": run + RUN_FLAGS,
        "model": [field for field in fields.values() if field.name in model],
        "training": [field for field in fields.values() if field.name not in model and field not in run],
    }


def _train(given: dict[str, Any]) -> None:
    out, resume = given.pop("out", None), given.pop("resume", None)
    distributed = given.pop("distributed", None)
    if given.pop("help", False):
        preset = presets.preset(given.get("preset", "speedrun"))
        about = ABOUT.format(program=program("train"), presets=", ".join(presets.PRESETS), preset=preset.preset)
        print(flags.page(about, _groups(), configs.flat(preset)))
        return
    if distributed:
        with process.uninterrupted():
            process.setup("" if distributed is True else str(distributed))
    if resume:
        _resume(out if resume is True else resume, out, given)
    elif given.get("init_from"):
        _finetune(given, out)
    else:
        _begin(configs.validate(configs.override(_recipe(given), **given)), out)


def _recipe(given: dict[str, Any]) -> TrainConfig:
    """The preset that is given, or the one for this machine."""
    if "preset" in given:
        return presets.preset(given["preset"])
    with process.uninterrupted():
        process.setup()
        from jaxgpt.device import backend  # as below, not before it is needed: most mistakes are told without JAX

    return presets.preset(backend.default_preset())


def _finetune(given: dict[str, Any], out: Path | None) -> None:
    """Begins a run from weights, with the training of a preset if one is given."""
    training = presets.preset(given["preset"]) if "preset" in given else None
    configs.override(TrainConfig(), **given)  # a wrong value is told before the weights are read
    with process.uninterrupted():
        process.setup()
        from jaxgpt.runs.pretrained import load_pretrained
        from jaxgpt.training.finetune import recipe

    source = load_pretrained(given.pop("init_from"))
    _begin(configs.validate(configs.override(recipe(source, training), **given)), out, source)


def _begin(config: TrainConfig, out: Path | None, source: "Run | None" = None) -> None:
    with process.uninterrupted():
        process.setup()
        from jaxgpt.runs import folder as folders
        from jaxgpt.training.train import train

    folder = folders.new(out, config.preset)
    _finish(lambda stop: train(config, out=folder.path, stop=stop, source=source), folder)


def _resume(path: Path | None, out: Path | None, given: dict[str, Any]) -> None:
    """Goes on with the run in `path`, or with the newest one; `out` is the older way to name it."""
    if out not in (None, path):
        raise UserError("`resume` and `out` name two runs: leave out one")
    if "preset" in given:
        presets.preset(given["preset"])  # a wrong name is told
    with process.uninterrupted():
        process.setup()
        from jaxgpt.runs.folder import RunFolder, newest
        from jaxgpt.training.train import resume

    folder = newest(given.get("preset")) if path is None else RunFolder(path)
    _finish(lambda stop: resume(folder.path, stop=stop, **given), folder)


def _finish(train: Callable[[StopRequest], Any], folder: "RunFolder") -> None:
    """Trains the run in `folder` to its end, or until it is asked to stop, and says what to type next."""
    resume = f"{program('train')} --resume {quoted(folder.path)}"
    try:
        train(StopRequest(exit_on_second_ctrl_c=True))
    except Interrupted as stop:
        if not folder.has_checkpoint():
            raise
        raise Interrupted(f"{stop}. To go on:\n\n    {resume}", stop.signal_number) from stop
    except OSError as error:
        if not folder.has_checkpoint():
            raise
        raise OSError(f"{advised(error)}. The last checkpoint stands; to go on, then: {resume}") from error
    from jaxgpt.device import processes  # not before it is needed: most mistakes are told without JAX

    if processes.is_first():
        name = quoted(folder.path)
        say(f"    {program('sample')} --run {name} --tokens 500\n    {program('inside')} {name}\n", sys.stdout)
