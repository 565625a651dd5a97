"""From the bytes of a file to text, as a stream: packed files, JSON lines, any Unicode encoding, any newline.

And what a file is that holds no plain text, or more than plain text.
"""

import codecs
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import zstandard

from jaxgpt.errors import UserError
from jaxgpt.fields import shown
from jaxgpt.files import reason

UNPACK = "unpack it first, or pipe its text into `data` -"
SAVE_AS_TEXT = "save its text as a .txt file first"
CHOOSE = "choose a text file"

# How files begin that are not text, whatever they are called: no text begins like one of these.
SIGNATURES = {
    rb"\xfd7zXZ\x00": ("an xz file", UNPACK),
    rb"BZh[1-9]1AY&SY": ("a bzip2 file", UNPACK),
    rb"7z\xbc\xaf\x27\x1c|Rar!\x1a\x07|.{257}ustar(\x00|  \x00)": ("an archive", "unpack it first"),
    rb"PK\x03\x04": ("a zip archive, as .docx, .epub and .pt files are", f"unpack it, or {SAVE_AS_TEXT}"),
    rb"%PDF-": ("a PDF", SAVE_AS_TEXT),
    rb"\xd0\xcf\x11\xe0": ("an old Office document", SAVE_AS_TEXT),
    rb"\x89PNG|\xff\xd8\xff": ("a picture", CHOOSE),
    rb"\x93NUMPY": ("a NumPy array", CHOOSE),
    rb"\x80[\x02-\x05]": ("a Python pickle", CHOOSE),
    rb".{5}\x00\x00\x00\{": ("a safetensors file", CHOOSE),
    rb"SQLite format 3\x00|PAR1\x15|ARROW1\x00": ("a database", "save its text column as a .txt file first"),
}

# Files that are unpacked while they are read, by how they begin. Each new decompressor is for one part of a file.
PACKED: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(wbits=31),
    b"\x28\xb5\x2f\xfd": lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj(),
}
PACKED_SUFFIXES = (".gz", ".zst")
SLICE = 2**11  # bytes of a packed file that are unpacked at once, to 64 MiB at most
UNPACKED = 2**18  # bytes that go on from there at once
# No text unpacks to more than so many times its size, but a file that is made to fill a machine's memory does.
MOST_TIMES, ALWAYS_FINE = 200, 2**26
JSON_LINES = ".jsonl"
HEAD = 2**20  # bytes by which a file is judged
MOST_NAMED = 8  # fields that a message names

# The marks at the head of UTF-16 and UTF-32; the longer ones first, as one begins with a shorter one.
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

SUFFIXES = {
    ".csv": "CSV",
    ".tsv": "TSV",
    **dict.fromkeys((".json", ".ipynb"), "JSON"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), "HTML"),
    ".xml": "XML",
    ".rtf": "RTF",
}
OPENINGS = {
    r"<!doctype html|<html": "HTML",
    r"<\?xml": "XML",
    r"\{\\rtf": "RTF",
    r'\{\s*"[^"\n]*"\s*:|\[\s*\{\s*"': "JSON",
}


def texts(chunks: Iterable[bytes], name: str) -> Iterator[str]:
    """The text in a file, piece by piece, with "\\n" at the end of each line and without a byte order mark.

    Args:
        chunks: the bytes of the file, one piece after another: UTF-8, or UTF-16 or UTF-32 that begins with its mark;
            or these packed by gzip or Zstandard.
        name: what a message calls the file.

    Raises:
        UserError: for anything else; it says what the file is, as far as its bytes tell.
    """
    chunks = _unpacked(iter(chunks), name)
    head = _taken(chunks, HEAD)
    for beginning, (kind, advice) in SIGNATURES.items():
        if re.match(beginning, head, re.S):
            raise UserError(f"{name} is {kind}: {advice}")
    encoding = next((encoding for mark, encoding in MARKS.items() if head.startswith(mark)), "UTF-8")
    if encoding == "UTF-8" and _has_zeros_in_columns(head):
        raise UserError(
            f"{name} has zero bytes at every second or fourth place, as UTF-16 and UTF-32 do without their mark, "
            "or numbers: convert it to UTF-8"
        )
    pieces = _decoded(itertools.chain([head], chunks), encoding, name)
    yield next(pieces).removeprefix("\ufeff")
    yield from pieces


def json_lines(texts: Iterable[str], field: str, name: str) -> Iterator[str]:
    """The `field` of each line, which is a JSON object. Empty lines are passed over.

    Raises:
        UserError: for a line that is no object, or has no text in that field; it names the line.
    """
    for number, line in enumerate(_lines(texts), 1):
        if not line or line.isspace():
            continue
        where = f"{name}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise UserError(
                f"{where} is not JSON ({reason(problem)}): a .jsonl file has an object in each line"
            ) from problem
        if not isinstance(row, dict):
            raise UserError(f"{where} is {shown(row)}, and no JSON object: a .jsonl file has one in each line")
        if field not in row:
            names = ", ".join(map(repr, itertools.islice(row, MOST_NAMED))) or "none"
            raise UserError(f"{where} has no field {field!r} (its fields: {names}): choose another `text_field`")
        if not isinstance(row[field], str):
            raise UserError(
                f"{where} has no text in its field {field!r}, but {shown(row[field])}: choose another `text_field`"
            )
        yield _whole(row[field]).replace("\r\n", "\n").replace("\r", "\n")


def is_json_lines(name: str) -> bool:
    """Whether a file of this name has a JSON object in each line, packed or not."""
    return _unpacked_name(name).endswith(JSON_LINES)


def is_text(name: str) -> bool:
    """Whether a file of this name in a folder is taken for a text: .txt, .jsonl, and these packed."""
    return _unpacked_name(name).endswith((".txt", JSON_LINES))


def markup(name: str, text: str) -> str | None:
    """Which markup a text has, judged by the file's name or by how it begins; None if it looks like plain text."""
    suffix = re.search(r"\.\w+$", _unpacked_name(name))
    if suffix and suffix[0] in SUFFIXES:
        return SUFFIXES[suffix[0]]
    return next((kind for start, kind in OPENINGS.items() if re.match(start, text[:1000].lstrip(), re.I)), None)


def _unpacked_name(name: str) -> str:
    name = name.lower()
    return next((name.removesuffix(suffix) for suffix in PACKED_SUFFIXES if name.endswith(suffix)), name)


def _unpacked(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    head = _taken(chunks, 4)
    chunks = itertools.chain([head], chunks)
    new = next((new for beginning, new in PACKED.items() if head.startswith(beginning)), None)
    if new is None:
        return chunks
    unpacked = _unpack(chunks, new, name)
    return iter(lambda: _taken(unpacked, UNPACKED), b"")


def _unpack(chunks: Iterator[bytes], new: Callable[[], Any], name: str) -> Iterator[bytes]:
    """The content of a packed file, which may be several packed files in a row, in small pieces."""
    part, n_packed, n_unpacked = new(), 0, 0
    try:
        for chunk in _slices(chunks):
            n_packed += len(chunk)
            while chunk:
                if part.eof and not (chunk := chunk.lstrip(b"\0")):  # tapes are filled up with zeros
                    break
                part = new() if part.eof else part
                if content := part.decompress(chunk):
                    n_unpacked += len(content)
                    if n_unpacked > max(ALWAYS_FINE, MOST_TIMES * n_packed):
                        raise UserError(
                            f"{name} becomes more than {MOST_TIMES} times as large, as no text does: {CHOOSE}"
                        )
                    yield content
                chunk = part.unused_data
    except (zlib.error, zstandard.ZstdError) as problem:
        raise UserError(f"{name} is damaged ({reason(problem)}): pack it anew") from problem
    if not part.eof:
        raise UserError(f"{name} is cut off: it is packed, and its end is missing")


def _slices(chunks: Iterable[bytes]) -> Iterator[bytes]:
    return (chunk[start : start + SLICE] for chunk in chunks for start in range(0, len(chunk), SLICE))


def _decoded(chunks: Iterable[bytes], encoding: str, name: str) -> Iterator[str]:
    decoder: Any = codecs.getincrementaldecoder(encoding)()
    newlines = io.IncrementalNewlineDecoder(decoder, translate=True)
    done = 0  # bytes that were decoded
    try:
        for chunk in chunks:
            before = len(decoder.buffer)  # the beginning of a character
            yield newlines.decode(chunk)
            done += before + len(chunk) - len(decoder.buffer)
        yield newlines.decode(b"", final=True)
    except UnicodeDecodeError as problem:
        place = done + problem.start
        raise UserError(f"{name} is not {encoding} text at byte {place}: convert it to UTF-8") from problem


def _lines(texts: Iterable[str]) -> Iterator[str]:
    begun: list[str] = []
    for text in texts:
        first, *others = text.split("\n")
        begun.append(first)
        for line in others:
            yield "".join(begun)
            begun = [line]
    yield "".join(begun)


def _whole(text: str) -> str:
    """`text` with U+FFFD for each half of a surrogate pair, which JSON can have and UTF-8 can't."""
    if text.isascii():
        return text
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _taken(chunks: Iterator[bytes], size: int) -> bytes:
    """The first chunks, `size` bytes or more if there are so many."""
    taken, n = [], 0
    while n < size and (chunk := next(chunks, b"")):
        taken.append(chunk)
        n += len(chunk)
    return b"".join(taken)


def _has_zeros_in_columns(content: bytes) -> bool:
    """Whether a table of the bytes, four a row, has its zeros in some of the columns only.

    That makes UTF-16 and UTF-32, whose characters take two or four bytes each. A text in UTF-8 may have zeros,
    too, but then in all columns alike.
    """
    content = content[:HEAD]
    columns = [content[place::4].count(0) for place in range(4)]
    even, odd = columns[0] + columns[2], columns[1] + columns[3]
    enough = max(16, len(content) // 200)  # one in a hundred characters: a text has more spaces and line ends
    two_bytes = max(even, odd) >= enough and min(even, odd) < max(even, odd) / 10
    four_bytes = max(columns) >= enough and max(columns) > 0.9 * len(content) / 4  # no character needs all four
    return two_bytes or four_bytes
