"""Files that are read and written whole or not at all, and their names as people read and type them."""

import contextlib
import errno
import os
import shlex
import stat
import uuid
from pathlib import Path

LARGEST = 2**27  # bytes of a file that is read whole: the largest tokenizer.json have a quarter of that
LONGEST = 300  # characters of a name in a message; the middle of a longer one is left out


def read_whole(path: str | Path, pipe: bool = False) -> bytes:
    """The content of a file that fits in memory by its nature, as JSON does, wherever it comes from.

    Args:
        pipe: whether it may come through a pipe, for which one may have to wait.

    Raises:
        OSError: for what is no file, such as a device, which may never end, or is larger than `LARGEST`.
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or (pipe and stat.S_ISFIFO(mode))):
        raise OSError(errno.EINVAL, "it is no file", str(path))
    with open(path, "rb") as file:  # of a folder, this says what is wrong
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise OSError(errno.EFBIG, f"it has more than {LARGEST // 2**20} MiB", str(path))
    return content


def write_atomically(path: str | Path, content: bytes) -> None:
    """Make `path` hold `content`; if that fails, or is interrupted, what was there before stays.

    Raises:
        OSError: with `path` as its filename.
    """
    path = os.path.realpath(path)  # a link is written through, as by open()
    # in the same folder, as only there a rename replaces in one step; short, as the name may use up all 255 bytes
    partial = os.path.join(os.path.dirname(path), f".{uuid.uuid4().hex}.part")
    try:
        with open(partial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as problem:
        raise OSError(problem.errno, problem.strerror, path) from problem
    finally:
        with contextlib.suppress(OSError):
            os.unlink(partial)


def sync(folder: Path, below: bool = True) -> None:
    """Waits until a folder, with all that lies `below` it, is on the disk, where a power cut leaves it.

    Raises:
        OSError: when the disk does not take it.
    """
    for path in [*folder.rglob("*"), folder] if below else [folder]:
        if os.name != "nt" or path.is_file():  # Windows opens no folders
            descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def shown(path: str | Path) -> str:
    """`path` for a message: relative to the current folder where it lies below it, on one line, never too long."""
    name = _relative(path)
    if len(name) > LONGEST:
        name = f"{name[: LONGEST // 2]}...{name[-LONGEST // 2 :]}"
    return _printable(name)


def quoted(path: str | Path) -> str:
    """`path` as one word of a shell command that people may copy, whatever is in its name."""
    name = _relative(path)
    if name.startswith(("-", "~")):
        name = f"./{name}"  # so that it is no flag, and nobody's home
    if name.isprintable():
        return shlex.quote(name)
    return "$'" + "".join(c if c.isprintable() and c not in "\\'" else _escaped(c) for c in name) + "'"


def literal(path: str | Path) -> str:
    """`path` as a string of a Python program that people may copy, whatever is in its name."""
    name = _relative(path)
    return f'"{name}"' if name.isprintable() and not set(name) & set('"\\') else repr(name)


def reason(problem: Exception) -> str:
    """What went wrong, on one line, without the path that an `OSError` repeats."""
    return _printable(" ".join(str(getattr(problem, "strerror", None) or problem).split()))


def _relative(path: str | Path) -> str:
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except (OSError, ValueError):  # the current folder is gone, or `path` is not below it
        return str(path)


def _printable(text: str) -> str:
    """Without control characters, and bytes that are not UTF-8, which no terminal takes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _escaped(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
