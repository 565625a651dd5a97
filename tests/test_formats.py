"""Bytes become text in any Unicode encoding; what is no text is named, and what is more than text is noticed."""

import bz2
import codecs
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import tarfile
import zipfile

import numpy as np
import pytest
import zstandard

from jaxgpt.data import formats
from jaxgpt.errors import UserError

ENCODINGS = ("utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be")
TEXTS = {
    "English": "What is it?\nIt is, it is I, my lord.\n" * 20,
    "Russian": "Мой дядя самых честных правил,\nКогда не в шутку занемог,\n" * 20,
    "Hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में\n" * 20,
    "Thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ\n" * 20,
    "Chinese": "人人生而自由,在尊严和权利上一律平等。\n" * 20,
}


def text_of(content: bytes, name: str = "book.txt", size: int = 2**20) -> str:
    """The text in a file of this content, which is read so many bytes at a time."""
    return "".join(formats.texts((content[i : i + size] for i in range(0, len(content), size)), name))


def rows_of(content: str, field: str = "text", name: str = "a.jsonl") -> list[str]:
    """The documents of JSON lines, of which a few characters come at a time."""
    return list(formats.json_lines((content[i : i + 7] for i in range(0, len(content), 7)), field, name))


def message(content: bytes, **how) -> str:
    """The one line that a file with this content is refused with."""
    with pytest.raises(UserError) as caught:
        text_of(content, **how)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("book.txt ")
    return str(caught.value)


def test_marks_go_and_line_ends_are_the_same_everywhere():
    assert text_of(b"\xef\xbb\xbfna\xc3\xafve\r\ntwo\rthree\n") == "naïve\ntwo\nthree\n"
    assert text_of(b"") == text_of(codecs.BOM_UTF8) == ""


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_utf_16_and_32_are_read_by_their_mark(encoding):
    content = "\ufeffnaïve 文 🎭\r\ntwo\n".encode(encoding)
    assert text_of(content) == "naïve 文 🎭\ntwo\n"


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_utf_16_and_32_without_a_mark_are_refused(encoding, text):
    assert "convert it to UTF-8" in message(text.encode(encoding))


def test_utf_16_and_numbers_that_would_pass_for_utf_8_are_noticed():
    for content in (TEXTS["English"].encode("utf-16-le"), np.arange(65, dtype=np.uint16).tobytes()):
        assert content.decode()
        assert "UTF-16" in message(content)


@pytest.mark.parametrize(
    "text",
    ["ab\0c", "\0", "one\0two\0" + TEXTS["English"], "\0".join(TEXTS["English"].split()), "\0" * 3 + "a" * 5000],
    ids=["one in four", "one", "two", "a list", "at the head"],
)
def test_a_text_may_have_zeros(text):
    assert text_of(text.encode()) == text


def test_what_is_not_utf_8_is_told_with_the_place():
    assert "is not UTF-8 text at byte 3" in message("café au lait".encode("latin-1"))
    assert "is not UTF-16 text at byte 4" in message(codecs.BOM_UTF16_LE + b"a\0b")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_text_is_the_same_however_many_bytes_come_at_a_time(encoding, size, monkeypatch):
    monkeypatch.setattr(formats, "HEAD", 6)
    text = "\r\nnaïve 文 🎭\r\n\rtwo\n\n" * 3
    assert text_of(text.encode(encoding), size=size) == text.replace("\r\n", "\n").replace("\r", "\n")
    broken = (text + "a").encode(encoding) + b"\xff"
    place = len(broken) - 1
    assert f"text at byte {place}:" in message(broken, size=size)


# Packed


def zstd(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)  # as the command does


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
@pytest.mark.parametrize("size", [1, 100, 2**20])
def test_a_packed_file_is_unpacked_whatever_it_is_called(pack, size):
    text = "naïve 文 🎭\r\n" * 1000
    packed = pack(text.encode("utf-16"))
    assert text_of(packed, size=size) == text.replace("\r", "")
    parts = pack(b"one\n") + pack(b"") + pack(b"two\n")  # as from `cat a.gz b.gz`
    assert text_of(parts, size=size) == "one\ntwo\n"
    assert text_of(gzip.compress(b"text") + bytes(500), size=size) == "text"  # as tapes are filled up


@pytest.mark.parametrize("pack", [gzip.compress, zstd])
def test_a_packed_file_that_is_damaged_or_cut_off_is_no_text(pack):
    packed = pack("".join(map(str, range(10_000))).encode())
    assert "book.txt is cut off" in message(packed[:-5])
    assert "book.txt is cut off" in message(packed[:20])
    assert "book.txt is damaged" in message(packed[:50] + bytes(50) + packed[100:])
    assert "book.txt is damaged" in message(packed + b"something else")


# JSON lines


def test_each_line_is_a_document():
    rows = [{"text": "one\r\ntwo\rthree", "id": 1}, {"id": 2, "text": ""}, {"text": "naïve 🎭\u2028 \x85"}]
    lines = "\n\n".join(map(json.dumps, rows)) + "\n \n"
    assert rows_of(lines) == ["one\ntwo\nthree", "", "naïve 🎭\u2028 \x85"]
    assert rows_of(lines.rstrip()) == rows_of(lines)
    assert rows_of('{"body": "text"}', "body") == ["text"]
    assert rows_of("") == []


def test_half_a_character_becomes_the_sign_for_that():
    assert rows_of(r'{"text": "a\ud83cb \ud83c\udfad"}') == ["a\ufffdb 🎭"]


@pytest.mark.parametrize(
    "line, said",
    [
        ('{"title": "x", "body": 1}', "a.jsonl:3 has no field 'text' (its fields: 'title', 'body'): choose another"),
        ("{}", "a.jsonl:3 has no field 'text' (its fields: none): choose another `text_field`"),
        ('{"text": ["a"]}', "a.jsonl:3 has no text in its field 'text', but ['a']: choose another `text_field`"),
        ('{"text": null}', "a.jsonl:3 has no text in its field 'text', but None"),
        ("[1, 2]", "a.jsonl:3 is [1, 2], and no JSON object"),
        ('{"text": "cut o', "a.jsonl:3 is not JSON (Unterminated string"),
        ("[" * 100_000, "a.jsonl:3 is not JSON"),
        ("{" + ", ".join(f'"{i:030}": 0' for i in range(999)) + "}", "a.jsonl:3 has no field 'text'"),
        ('{"text": ' + str([0] * 999) + "}", "a.jsonl:3 has no text in its field"),
    ],
)
def test_a_line_without_a_text_is_named(line, said):
    with pytest.raises(UserError) as caught:
        rows_of('{"text": "a"}\n\n' + line + '\n{"text": "b"}')
    assert str(caught.value).startswith(said)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_json_lines_and_texts_are_told_by_their_names():
    assert all(map(formats.is_json_lines, ["a.jsonl", "A.JSONL.GZ", "a.jsonl.zst"]))
    assert not any(map(formats.is_json_lines, ["a.json", "a.txt", "jsonl", "a.jsonl.txt"]))
    assert all(map(formats.is_text, ["a.txt", "a.TXT.gz", "a.txt.zst", "a.jsonl.gz"]))
    assert not any(map(formats.is_text, ["a.md", "a.gz", "a.txt.bak", "txt"]))


# What is no text


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("word/document.xml", "text")
    return file.getvalue()


def tarred() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return file.getvalue()


def numpy_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(9))
    return file.getvalue()


def database() -> bytes:
    connection = sqlite3.connect(":memory:")
    connection.execute("create table texts (text)")
    return connection.serialize()


@pytest.mark.parametrize(
    "content, kind, advice",
    [
        (bz2.compress(b"text"), "a bzip2 file", "unpack it first, or pipe its text into `data` -"),
        (lzma.compress(b"text"), "an xz file", "unpack"),
        (tarred(), "an archive", "unpack"),
        (gzip.compress(tarred()), "an archive", "unpack"),
        (zipped(), "a zip archive", "save its text"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF", "save its text"),
        (b"%PDF-1.1\nplain ASCII", "a PDF", "save its text"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a picture", "choose a text file"),
        (numpy_array(), "a NumPy array", "choose a text file"),
        (pickle.dumps({"a": 1}), "a Python pickle", "choose a text file"),
        (b'\n\1\0\0\0\0\0\0{"weight":{"dtype":"F32"', "a safetensors file", "choose a text file"),
        (database(), "a database", "save its text"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_text_is_named_with_what_to_do(content, kind, advice):
    said = message(content)
    assert f"is {kind}" in said
    assert advice in said


@pytest.mark.parametrize(
    "name, text, kind",
    [
        ("data.csv", "a,b\n1,2\n", "CSV"),
        ("DATA.JSON", "", "JSON"),
        ("data.csv.gz", "a,b\n1,2\n", "CSV"),
        ("data.jsonl", "Once upon a time", None),
        ("a.txt", ' {"text": "Hello"}', "JSON"),
        ("a.txt", '[\n  {\n "text": "Hello"}]', "JSON"),
        ("a.txt", "\n<!DOCTYPE html>\n<p>", "HTML"),
        ("-", '<?xml version="1.0"?>', "XML"),
        ("a.txt", "[Enter two Gentlemen]", None),
        ("a.txt", '{"Hello"}, said he', None),
        ("json", "text", None),
        ("a.txt", "", None),
    ],
)
def test_markup_is_noticed(name, text, kind):
    assert formats.markup(name, text) == kind


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_a_packed_file_that_would_fill_the_memory_is_refused_while_it_is_unpacked(pack, monkeypatch):
    monkeypatch.setattr(formats, "ALWAYS_FINE", 2**20)
    bomb = pack(b"a" * 2**23)
    unpacked = formats.texts([bomb] * 8, "bomb.txt")
    with pytest.raises(UserError, match=r"bomb\.txt becomes more than 200 times as large, as no text does"):
        for text in unpacked:
            assert len(text) <= 2**21
    small = "a line that is there again and again\n" * 10_000
    assert "".join(formats.texts([pack(small.encode())], "small.txt")) == small
