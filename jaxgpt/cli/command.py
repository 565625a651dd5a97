"""A command from its arguments to its exit code; what goes wrong on the way is told in one line."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from jaxgpt.cli import flags, process
from jaxgpt.cli.flags import Groups
from jaxgpt.errors import UserError
from jaxgpt.files import reason, shown
from jaxgpt.training.signals import Interrupted

WRONG_PATHS = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG)
LONGEST_CAUSE = 120  # characters
ADVICE = {
    **dict.fromkeys(WRONG_PATHS, "choose another path"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "choose a place that you may write to"),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room there, or choose another place"),
}


def run_command(
    command: Callable[[dict[str, Any]], None],
    groups: Groups,
    arguments: list[str] | None,
    positional: str | None = None,
) -> int:
    """Runs a command and returns its exit code: 2 for a mistake of the user's, 1 for a failure of the machine's,
    128 + n for signal n.

    Args:
        command: takes the flags that are given, by name.
        groups: the flags that there are, under the headings of --help.
        arguments: None takes those that this process was started with.
        positional: as in `flags.read`.
    """
    known = [flag for group in groups.values() for flag in group]
    process.prepare()
    try:
        command(flags.read(sys.argv[1:] if arguments is None else arguments, known, positional))
        sys.stdout.flush()
        code, message = 0, ""
    except UserError as error:
        code, message = 2, f"error: {error}\n"
    except Interrupted as stop:
        code, message = 128 + stop.signal_number, f"{stop}\n"
    except KeyboardInterrupt:
        code, message = 130, ""
    except BrokenPipeError:  # whoever read the output has seen enough, as in `sample.py | head`
        code, message = 0, ""
    except OSError as error:
        code, message = (2 if error.errno in WRONG_PATHS else 1), f"error: {advised(error)}\n"
    except (RuntimeError, MemoryError) as error:
        code, message = 1, f"error: {_failure(error)}\n"
    say(flags.spoken(message, known), sys.stderr)
    say("", sys.stdout)
    process.end_with(code)
    return code


def say(text: str, stream: TextIO) -> None:
    """Writes `text`, and all that waits to be written; nothing where nobody reads the stream any more. Python would
    end with an error for that: what comes after goes to the null device."""
    try:
        stream.write(text)
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def program(name: str) -> str:
    """How people call the command `name` here: from a checkout, or where jaxgpt is installed."""
    if Path(sys.argv[0]).name.startswith("jaxgpt-"):
        return f"jaxgpt-{name}"
    return f"python {name}.py" if name in ("train", "sample") else f"python -m jaxgpt.{name}"


def advised(error: OSError) -> str:
    """What is wrong, where, and what to do about it."""
    path = f"{shown(error.filename)}: " if isinstance(error.filename, str) else ""
    advice = f" ({ADVICE[error.errno]})" if error.errno in ADVICE else ""
    return f"{path}{reason(error)}{advice}"


def _failure(error: Exception) -> str:
    """One line for a failure that is no fault of the code's; raises all others again."""
    import jax

    from jaxgpt.device import processes
    from jaxgpt.training.loop import Diverged  # not before it is needed: a wrong flag is told without JAX

    if isinstance(error, Diverged):
        return str(error)
    if processes.several() and isinstance(error, jax.errors.JaxRuntimeError):
        why = reason(error)[:LONGEST_CAUSE]
        return f"this run's processes have lost each other: start all of them again, to go on with it ({why})"
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "out of memory: try a smaller `batch_size`, more `micro_batches`, or a smaller model"
    raise error
