"""From the bytes of a file to text; and what a file is that holds no plain text, or more than plain text."""

import codecs
import re

from jaxgpt.errors import UserError

UNPACK = "unpack it first, or pipe its text into `data` -"
SAVE_AS_TEXT = "save its text as a .txt file first"
CHOOSE = "choose a text file"

# How files begin that are not text, whatever they are called: no text begins like one of these.
SIGNATURES = {
    rb"\x1f\x8b": ("a gzip file", UNPACK),
    rb"\x28\xb5\x2f\xfd": ("a Zstandard file", UNPACK),
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
    **dict.fromkeys((".json", ".jsonl", ".ipynb"), "JSON"),
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


def text_of(content: bytes, name: str) -> str:
    """The text in a file's `content`, with "\\n" at the end of each line and without a byte order mark.

    Args:
        content: UTF-8, or UTF-16 or UTF-32 that begins with its mark.
        name: what a message calls the file.

    Raises:
        UserError: for anything else; it says what the file is, as far as its bytes tell.
    """
    for beginning, (kind, advice) in SIGNATURES.items():
        if re.match(beginning, content, re.S):
            raise UserError(f"{name} is {kind}: {advice}")
    encoding = next((encoding for mark, encoding in MARKS.items() if content.startswith(mark)), "UTF-8")
    if encoding == "UTF-8" and _has_zeros_in_columns(content):
        raise UserError(
            f"{name} has zero bytes at every second or fourth place, as UTF-16 and UTF-32 do without their mark, "
            "or numbers: convert it to UTF-8"
        )
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as problem:
        raise UserError(f"{name} is not {encoding} text at byte {problem.start}: convert it to UTF-8") from problem
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def markup(name: str, text: str) -> str | None:
    """Which markup a text has, judged by the file's name or by how it begins; None if it looks like plain text."""
    suffix = re.search(r"\.\w+$", name.lower())
    if suffix and suffix[0] in SUFFIXES:
        return SUFFIXES[suffix[0]]
    return next((kind for start, kind in OPENINGS.items() if re.match(start, text[:1000].lstrip(), re.I)), None)


def _has_zeros_in_columns(content: bytes) -> bool:
    """Whether a table of the bytes, four a row, has its zeros in some of the columns only.

    That makes UTF-16 and UTF-32, whose characters take two or four bytes each. A text in UTF-8 may have zeros,
    too, but then in all columns alike.
    """
    content = content[: 2**20]
    columns = [content[place::4].count(0) for place in range(4)]
    even, odd = columns[0] + columns[2], columns[1] + columns[3]
    enough = max(16, len(content) // 200)  # one in a hundred characters: a text has more spaces and line ends
    two_bytes = max(even, odd) >= enough and min(even, odd) < max(even, odd) / 10
    four_bytes = max(columns) >= enough and max(columns) > 0.9 * len(content) / 4  # no character needs all four
    return two_bytes or four_bytes
