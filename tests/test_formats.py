"""Bytes become text in any Unicode encoding; what is no text is named, and what is more than text is noticed."""

import bz2
import codecs
import gzip
import io
import lzma
import pickle
import sqlite3
import tarfile
import zipfile

import numpy as np
import pytest

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


def message(content: bytes) -> str:
    """The one line that a file with this content is refused with."""
    with pytest.raises(UserError) as caught:
        formats.text_of(content, "book.txt")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("book.txt ")
    return str(caught.value)


def test_marks_go_and_line_ends_are_the_same_everywhere():
    assert formats.text_of(b"\xef\xbb\xbfna\xc3\xafve\r\ntwo\rthree\n", "") == "naïve\ntwo\nthree\n"
    assert formats.text_of(b"", "") == formats.text_of(codecs.BOM_UTF8, "") == ""


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_utf_16_and_32_are_read_by_their_mark(encoding):
    content = "\ufeffnaïve 文 🎭\r\ntwo\n".encode(encoding)
    assert formats.text_of(content, "") == "naïve 文 🎭\ntwo\n"


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
    assert formats.text_of(text.encode(), "") == text


def test_what_is_not_utf_8_is_told_with_the_place():
    assert "is not UTF-8 text at byte 3" in message("café au lait".encode("latin-1"))
    assert "is not UTF-16 text at byte 4" in message(codecs.BOM_UTF16_LE + b"a\0b")


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
        (gzip.compress(b"text"), "a gzip file", "unpack it first, or pipe its text into `data` -"),
        (bz2.compress(b"text"), "a bzip2 file", "unpack"),
        (lzma.compress(b"text"), "an xz file", "unpack"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "a Zstandard file", "unpack"),
        (tarred(), "an archive", "unpack"),
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
        ("DATA.JSONL", "", "JSON"),
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
