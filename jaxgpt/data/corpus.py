"""Which text `data` names: tiny Shakespeare, files, folders of files, patterns, or what comes through a pipe."""

import glob
import os
import re
import reprlib
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from jaxgpt.data import formats, tiny_shakespeare
from jaxgpt.errors import UserError
from jaxgpt.files import reason, shown

TINY_SHAKESPEARE = "tinyshakespeare"
STDIN = ("-", "/dev/stdin")

CHUNK = 2**18  # bytes that are read at once
PIECE = 2**20  # characters, the longest piece of a document

Data = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class Piece(NamedTuple):
    """A document, or a part of a long one."""

    text: str
    last: bool
    """Whether its document ends with it."""


def pieces(
    data: Data, text_field: str = "text", on_read: Callable[[int], object] = lambda n_bytes: None
) -> Iterator[Piece]:
    """The documents that `data` names, one after another, read as they are asked for, in pieces of a megabyte or so.

    Args:
        data: one or more of the following, in the order given.

            - "tinyshakespeare", the corpus of Karpathy's lecture; it is fetched once and kept in `home()`.
            - A text file, in UTF-8, or in UTF-16 or UTF-32 with a byte order mark: a document. Or a named pipe.
            - A .jsonl file: each line is a JSON object, and its `text_field` a document.
            - Either of these packed by gzip or Zstandard.
            - A folder: the .txt and .jsonl files in it and in its subfolders, packed (.gz, .zst) or not, in sorted
              order, without hidden ones.
            - A pattern such as "books/*.txt", as shells read it; a file that is called so goes before.
            - "-" for standard input.
        text_field: the field of JSON lines that has the text.
        on_read: is told the number of bytes that are read from a file, after each time.

    Returns:
        texts where each line ends with "\\n".

    Raises:
        UserError: if something is missing, unreadable or not text, or if there is nothing but white space.
    """
    empty = True
    for item in _items(absolute(data)):
        for piece in _read(item, text_field, on_read):
            empty = empty and (not piece.text or piece.text.isspace())
            yield piece
    if empty:
        raise UserError(f"there is no text in {describe(data)}: set `data` to something to learn from")


def documents(data: Data, text_field: str = "text") -> Iterator[str]:
    """The documents that `data` names, one after another; arguments and errors as of `pieces`."""
    parts = []
    for piece in pieces(data, text_field):
        parts.append(piece.text)
        if piece.last:
            yield "".join(parts)
            parts = []


def load(data: Data, text_field: str = "text") -> str:
    """The documents that `data` names, joined by a newline; arguments and errors as of `pieces`."""
    return "\n".join(documents(data, text_field))


def n_bytes(data: Data) -> int:
    """How many bytes there are to read, as far as that can be known beforehand: not of a pipe.

    Raises:
        UserError: if something is missing.
    """
    return sum(size for _, size, _ in sources(data))


def sources(data: Data) -> list[tuple[str, int, int]]:
    """Each file that `data` names, its size in bytes, and when it was changed, in nanoseconds.

    Raises:
        UserError: if something is missing.
    """
    found = []
    for item in _items(absolute(data)):
        if item == TINY_SHAKESPEARE or item in STDIN:
            found.append((item, 0, 0))
            continue
        for file in _files(item):
            status = os.stat(file)
            found.append((str(file), status.st_size, status.st_mtime_ns))
    return found


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
        text: its beginning.
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


def _read(item: str, text_field: str, on_read: Callable[[int], object]) -> Iterator[Piece]:
    """The pieces of one item of `data`."""
    try:
        if item == TINY_SHAKESPEARE:
            yield from _cut([tiny_shakespeare.load()])
        elif item in STDIN:
            yield from _cut(formats.texts(_chunks(_standard_input(), on_read), "standard input"))
        else:
            for path in _files(item):
                with _opened(path) as file:
                    texts = formats.texts(_chunks(file, on_read), shown(path))
                    if formats.is_json_lines(path.name):
                        for text in formats.json_lines(texts, text_field, shown(path)):
                            yield from _cut([text])
                    else:
                        yield from _cut(texts)
    except OSError as problem:
        name = shown(problem.filename or item)
        raise UserError(f"cannot read {name} ({reason(problem)}): set `data` to what can be read") from problem


def _chunks(file: IO[bytes], on_read: Callable[[int], object]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        on_read(len(chunk))
        yield chunk


def _cut(texts: Iterable[str]) -> Iterator[Piece]:
    """A document, which comes in parts of any length, in pieces that depend on nothing but the document."""
    rest = ""
    for text in texts:
        rest, start = rest + text, 0
        while len(rest) - start > PIECE:
            yield Piece(rest[start : start + PIECE], last=False)
            start += PIECE
        rest = rest[start:]
    yield Piece(rest, last=True)


def _standard_input() -> IO[bytes]:
    stdin = getattr(sys.stdin, "buffer", None)  # a program may have none
    if stdin is None or stdin.isatty():
        raise UserError("nothing is piped into standard input: pipe a text into it, or set `data` to a file")
    return stdin


def _opened(file: Path) -> IO[bytes]:
    if file.is_symlink() and not os.path.exists(file):
        raise UserError(f"{shown(file)} is a link to {shown(os.readlink(file))}, which is not there: mend the link")
    mode = os.stat(file).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise UserError(f"{shown(file)} is no file, folder or pipe: set `data` to one")  # a device may never end
    return file.open("rb")


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
        files += [Path(where, name) for name in names if formats.is_text(name) and not name.startswith(".")]
    if not files:
        raise UserError(
            f"{shown(folder)} has no .txt or .jsonl files in it: set `data` to a folder that has, or to a text file"
        )
    return sorted(files)
