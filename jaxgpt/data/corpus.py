"""Which text `data` names: tiny Shakespeare, files, folders of files, patterns, or what comes through a pipe."""

import glob
import os
import re
import reprlib
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxgpt.data import formats, tiny_shakespeare
from jaxgpt.errors import UserError
from jaxgpt.files import reason, shown

TINY_SHAKESPEARE = "tinyshakespeare"
STDIN = ("-", "/dev/stdin")

Data = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def load(data: Data) -> str:
    """The text that `data` names.

    Args:
        data: one or more of the following, which are joined in the order given by a newline.

            - "tinyshakespeare", the corpus of Karpathy's lecture; it is fetched once and kept in `home()`.
            - A text file, in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; or a named pipe.
            - A folder: the .txt files in it and in its subfolders, in sorted order, without hidden ones.
            - A pattern such as "books/*.txt", as shells read it; a file that is called so goes before.
            - "-" for standard input.

    Returns:
        the text, where each line ends with "\\n".

    Raises:
        UserError: if something is missing, unreadable or not text, or if there is nothing but white space.
    """
    text = "\n".join(text for item in _items(absolute(data)) for text in _read(item))
    if not text or text.isspace():
        raise UserError(f"there is no text in {describe(data)}: set `data` to something to learn from")
    return text


def absolute(data: Data) -> str | tuple[str, ...]:
    """`data` for a run's config: with absolute paths, so that it names the same from any folder.

    Raises:
        UserError: for what can't be a path at all.
    """
    if isinstance(data, str | os.PathLike):
        return _absolute(data)
    if not isinstance(data, tuple | list) or not data:
        raise UserError(f"`data` is a path, or several of them, not {reprlib.repr(data)}")
    return tuple(map(_absolute, data))


def describe(data: Data) -> str:
    """`data` in a few words, for people: "my novel.txt", "a.txt and 2 more"."""
    first, *others = _items(data)
    name = "standard input" if first in STDIN else shown(first)
    if name != first and name in (TINY_SHAKESPEARE, *STDIN):
        name = f"./{name}"  # a file that is called so
    return f"{name} and {len(others)} more" if others else name


def remark(data: Data, text: str) -> str | None:
    """What people should know about a text that is read without complaint, in one line; None if there is nothing.

    Args:
        data: what was loaded.
        text: what `load` made of it.
    """
    items = _items(data)
    remarks = []
    for item in items:
        if kind := formats.markup(item, text):
            remarks.append(f"{describe(item)} looks like {kind}: it is trained on as it is, markup included")
            break
    if any(item in STDIN or Path(item).is_fifo() for item in items):
        remarks.append("a text from a pipe can be read only once: to resume this run, `data` must name it again")
    return "; ".join(remarks) or None


def _items(data: Data) -> tuple[str, ...]:
    return tuple(os.fspath(item) for item in ((data,) if isinstance(data, str | os.PathLike) else data))


def _absolute(item: str | os.PathLike[str]) -> str:
    if not isinstance(item, str | os.PathLike) or not os.fspath(item):
        raise UserError(f"`data` is a path, or several of them, not {reprlib.repr(item)}")
    name = os.fspath(item)
    if name == TINY_SHAKESPEARE or name in STDIN:
        return name
    if re.match(r"\w+://", name):
        raise UserError(f"`data` is an address ({shown(name)}): download it first, and set `data` to the file")
    path = os.path.expanduser(name)
    if path.startswith("~") and not os.path.lexists(path):
        raise UserError(f"there is no home folder {shown(path).split('/')[0]} for `data`: write the whole path")
    return str(Path(path).absolute())


def _read(item: str) -> list[str]:
    """The texts that one item of `data` names."""
    try:
        if item == TINY_SHAKESPEARE:
            return [tiny_shakespeare.load()]
        if item in STDIN:
            return [formats.text_of(_standard_input(), "standard input")]
        return [formats.text_of(_content(file), shown(file)) for file in _files(item)]
    except OSError as problem:
        name = shown(problem.filename or item)
        raise UserError(f"cannot read {name} ({reason(problem)}): set `data` to what can be read") from problem


def _standard_input() -> bytes:
    stdin = getattr(sys.stdin, "buffer", None)  # a program may have none
    if stdin is None or stdin.isatty():
        raise UserError("nothing is piped into standard input: pipe a text into it, or set `data` to a file")
    return stdin.read()


def _content(file: Path) -> bytes:
    if file.is_symlink() and not os.path.exists(file):
        raise UserError(f"{shown(file)} is a link to {shown(os.readlink(file))}, which is not there: mend the link")
    mode = os.stat(file).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise UserError(f"{shown(file)} is no file, folder or pipe: set `data` to one")  # a device may never end
    return file.read_bytes()


def _files(item: str) -> list[Path]:
    paths = [Path(item)] if _exists(item) else _matches(Path(item))
    if not paths:
        what = "fits the pattern" if glob.has_magic(shown(item)) else "is called"
        raise UserError(
            f"no file or folder {what} {shown(item)}: "
            f"set `data` to a text file, a folder of .txt files, or '{TINY_SHAKESPEARE}'"
        )
    return [file for path in paths for file in (_text_files(path) if path.is_dir() else [path])]


def _exists(path: str) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # the last for what no file can be called
        return False
    return True


def _matches(pattern: Path) -> list[Path]:
    """The paths that fit, sorted. Folders on the way that are there are no patterns, whatever their names."""
    folder = next(parent for parent in pattern.parents if os.path.isdir(parent))
    rest = str(pattern.relative_to(folder))
    return sorted(folder / found for found in glob.glob(rest, root_dir=folder))


def _text_files(folder: Path) -> list[Path]:
    def fail(problem: OSError):
        raise problem  # by default os.walk passes over what it cannot read

    files: list[Path] = []
    seen: set[str] = set()
    for where, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:  # links can lead in a circle
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        # hidden files are other programs' own: macOS keeps a ._a.txt beside each a.txt on a foreign disk
        files += [Path(where, name) for name in names if name.lower().endswith(".txt") and not name.startswith(".")]
    if not files:
        raise UserError(f"{shown(folder)} has no .txt files in it: set `data` to a folder that has, or to a text file")
    return sorted(files)
