"""The two commands: read the command line, call the library, say what went wrong in one line."""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import tyro

from jaxgpt import presets
from jaxgpt.config import ModelConfig, TrainConfig, validate
from jaxgpt.device import backend
from jaxgpt.errors import UserError
from jaxgpt.runs import run
from jaxgpt.training import loop as fit

TRAIN_HELP = f"""Train a GPT, and leave it in a folder below runs/.

Presets: {", ".join(presets.PRESETS)}. The defaults below are those of the chosen one."""


def train(arguments: list[str] | None = None) -> int:
    """`train.py`: returns the exit code."""
    return run_command(_train, arguments)


def sample(arguments: list[str] | None = None) -> int:
    """`sample.py`: returns the exit code."""
    return run_command(_sample, arguments)


def _train(arguments: list[str]) -> None:
    _check_types(arguments)
    first = _Parser()
    first.add_argument("--preset")
    first.add_argument("--out", type=Path)
    first.add_argument("--resume", action="store_true")
    chosen, _ = first.parse_known_args(arguments)

    # The defaults that --help shows, and that flags change, are those of the preset or of the run.
    if chosen.preset is not None:
        presets.preset(chosen.preset)  # a wrong name is told, here and for --resume
    if chosen.resume:
        path = chosen.out or run.newest(chosen.preset)
        start = run.read(path)[0]
    else:
        start = presets.preset(chosen.preset or backend.default_preset())

    def command(
        config: tyro.conf.OmitArgPrefixes[TrainConfig] = start,
        out: Path | None = None,
        resume: tyro.conf.FlagCreatePairsOff[bool] = False,
    ) -> tuple[TrainConfig, Path | None, bool]:
        """Train a GPT.

        Args:
            config: The run.
            out: Folder to make for the run, or to resume; by default runs/PRESET, or the next free name.
            resume: Go on with the run in --out, or with the newest one (of the --preset, if given).
        """
        return config, out, resume

    config, out, _ = tyro.cli(command, args=arguments, prog="train.py", description=TRAIN_HELP)
    if not chosen.resume:
        fit.train(config, out=out)
        return
    validate(config)
    changed = sorted(_flat(config).items() - _flat(start).items())
    if others := [name for name, _ in changed if name != "max_steps"]:
        raise UserError(f"--resume goes on with the run as it was: leave out {', '.join(others)}, or start a new run")
    fit.resume(path, max_steps=dict(changed).get("max_steps"))


class _Parser(argparse.ArgumentParser):
    """Looks for some flags and leaves the rest to tyro."""

    def __init__(self):
        super().__init__(add_help=False, allow_abbrev=False)

    def error(self, message: str):
        raise UserError(message)


def _check_types(arguments: list[str]) -> None:
    """Raises `UserError` with every flag whose value has the wrong type (tyro stops at the first)."""
    parser = _Parser()
    kinds = {f.name: f.type for f in (*fields(TrainConfig), *fields(ModelConfig)) if f.type not in (bool, ModelConfig)}
    for name in kinds:
        parser.add_argument(f"--{name.replace('_', '-')}", f"--{name}", dest=name)
    wrong = []
    for name, value in vars(parser.parse_known_args(arguments)[0]).items():
        if value is not None and (expected := _unlike(value, kinds[name])):
            wrong.append(f"--{name.replace('_', '-')} takes {expected}, not {value!r}")
    if wrong:
        raise UserError("; ".join(wrong))


def _unlike(value: str, kind: Any) -> str:
    """What `kind` expects, if `value` is not like that; otherwise nothing."""
    if get_origin(kind) is Literal:
        return "" if value in get_args(kind) else f"one of {', '.join(get_args(kind))}"
    try:
        kind(value)
    except ValueError:
        return "a whole number" if kind is int else "a number"
    return ""


def _flat(config: TrainConfig) -> dict[str, Any]:
    values = {**vars(config), **vars(config.model)}
    values.pop("model")
    return values


def _sample(arguments: list[str]) -> None:
    def command(
        run: Path | None = None,
        checkpoint: Literal["newest", "best"] = "newest",
        prompt: str | None = None,
        tokens: int = 500,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        samples: int = 1,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Write text with a trained GPT.

        Args:
            run: Folder of the run; by default the one below runs/ that was trained last.
            checkpoint: The newest one, or the best by its validation loss.
            prompt: Text to continue; by default a line break.
            tokens: Length of the new text, in tokens (characters); longer than the model's block_size is fine.
            temperature: Divides the logits: below 1 is bolder, above 1 wilder, 0 always takes the likeliest.
            top_k: Draw from the k likeliest tokens only; 0 for all.
            top_p: Draw from the likeliest tokens that together have this probability; 1 for all.
            min_p: Draw only tokens with this share of the likeliest one's probability; 0 for all.
            samples: How many texts to write.
            seed: The same seed gives the same text.
        """
        return locals()

    options = tyro.cli(command, args=arguments, prog="sample.py")
    trained = run.load(options.pop("run"), options.pop("checkpoint"))
    prompt = options["prompt"] or ""
    if options["samples"] == 1:
        pieces = trained.stream(**options)
        sys.stdout.write(prompt)
        for (text,) in pieces:
            sys.stdout.write(text)
            sys.stdout.flush()
        print()
    else:
        for i, text in enumerate(trained.samples(**options)):
            print(f"{'─' * 24} {i + 1}\n{text}")


def leave(code: int) -> None:
    """Ends the program. At once after a user's mistake: where that was a damaged checkpoint, Orbax's unfinished
    tasks would otherwise print tracebacks as Python shuts down."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code) if code == 2 else sys.exit(code)


def run_command(command: Callable[[list[str]], None], arguments: list[str] | None) -> int:
    """Runs `command` and returns the exit code; what the user can mend is told in one line."""
    try:
        command(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except fit.Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough, as in `sample.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (fit.Diverged, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
