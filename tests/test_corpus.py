"""`data` names one text, whatever the names and wherever it is read from, or the message says what to change."""

import errno
import gzip
import io
import json
import os
import pwd
import sys
import threading
import tracemalloc
from pathlib import Path

import pytest
import zstandard

from jaxgpt.data import corpus, formats, tiny_shakespeare
from jaxgpt.errors import UserError

ODD_NAMES = [
    "a[1].txt",
    "[ab]*?.txt",
    "*.txt",
    "my text.txt",
    "$HOME_$.txt",
    "100 %s %d.txt",
    'it\'s "it".txt',
    "-x.txt",
    "~$x.txt",
    "текст 文字.txt",
    "line\nbreak.txt",
    "\x1b[31mred.txt",
    os.fsdecode(b"caf\xe9.txt"),
]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The current folder: empty, and with a name that would be a pattern."""
    folder = tmp_path / "[2026] proj"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write(**texts: str) -> None:
    """Writes files; `a_txt="A"` is the file a.txt."""
    for name, text in texts.items():
        Path(name.replace("_", ".")).write_text(text, "utf-8")


def message(data) -> str:
    """The one line, not too long and without control characters, that `load` fails with."""
    with pytest.raises(UserError) as caught:
        corpus.load(data)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
    return str(caught.value)


# files, folders, patterns


def test_tiny_shakespeare_is_called_by_name(here, monkeypatch):
    monkeypatch.setattr(tiny_shakespeare, "load", lambda: "First Citizen:\n")
    write(tinyshakespeare="a file")
    assert corpus.load("tinyshakespeare") == "First Citizen:\n"
    assert corpus.load("./tinyshakespeare") == "a file"


def test_a_file_is_named_by_a_string_or_a_path(here):
    Path("a.md").write_bytes(b"\xef\xbb\xbfna\xc3\xafve\r\ntwo\n")
    assert corpus.load("a.md") == corpus.load(Path("a.md")) == corpus.load(str(here / "a.md")) == "naïve\ntwo\n"


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_any_name_works_from_anywhere(here, monkeypatch, name):
    write(a_txt="not this", b_txt="nor this")
    Path(name).write_text("this")
    data = corpus.absolute(name)
    assert corpus.load(name) == "this"
    monkeypatch.chdir("/")
    assert corpus.load(data) == "this"
    Path(here, name).write_text("")
    assert "there is no text in" in message(data)


def test_a_folder_is_read_in_sorted_order_without_what_is_not_text(here):
    Path("b/.git").mkdir(parents=True)
    texts = {"c.txt": "fourth", "B.TXT": "first", "a.txt": "second", "b/z.txt": "third"}
    others = {"a.md": "", "._a.txt": "\0\5\26\7", ".hidden.txt": "", "b/.git/x.txt": ""}
    for name, text in {**texts, **others}.items():
        Path(name).write_text(text)
    assert corpus.load(".") == "first\nsecond\nthird\nfourth"


def test_linked_folders_are_read_once(here):
    for folder in ("books/a", "books/b", "elsewhere"):
        Path(folder).mkdir(parents=True)
    Path("elsewhere/a.txt").write_text("once")
    Path("books/a/link").symlink_to(here / "elsewhere")
    Path("books/a/circle").symlink_to(here / "books")
    Path("books/b/circle").symlink_to(here / "books" / "a")
    Path("linked").symlink_to("books")
    assert corpus.load("linked") == "once"


def test_a_pattern_is_read_as_shells_do(here, monkeypatch):
    Path("sub").mkdir()
    write(b_txt="B", a_txt="A", c_md="C", **{"_d_txt": "hidden"})
    Path("sub/x.txt").write_text("X")
    for pattern, text in {"*.txt": "A\nB", "[!a].*": "B\nC", "*/*.txt": "X", "?ub": "X"}.items():
        assert corpus.load(pattern) == text
    data = corpus.absolute("*.txt")
    monkeypatch.chdir("/")
    assert corpus.load(data) == "A\nB"


def test_several_are_joined_in_the_order_given(here, monkeypatch):
    monkeypatch.setattr(tiny_shakespeare, "load", lambda: "S")
    Path("sub").mkdir()
    write(b_txt="B", a_txt="A")
    Path("sub/x.txt").write_text("X")
    assert corpus.load(("b.txt", "tinyshakespeare", "sub", Path("a.txt"))) == "B\nS\nX\nA"
    assert corpus.load(["a.txt"]) == "A"


def test_paths_become_absolute_and_links_stay(here, monkeypatch):
    monkeypatch.setenv("HOME", "/home/will")
    Path("link").symlink_to("elsewhere")
    data = ("tinyshakespeare", "-", "~/a.txt", "link/../a.txt", "*.txt", "/b")
    absolute = ("tinyshakespeare", "-", "/home/will/a.txt", f"{here}/link/../a.txt", f"{here}/*.txt", "/b")
    assert corpus.absolute(data) == corpus.absolute(absolute) == absolute
    assert corpus.absolute(Path("a")) == f"{here}/a"


# documents


def test_each_file_and_each_json_line_is_a_document(here):
    write(a_txt="A\n", c_md="C")
    Path("b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "B1"}\n{"text": "B2\\n"}\n'))
    Path("d.txt.zst").write_bytes(zstandard.compress("naïve".encode("utf-16")))
    assert list(corpus.documents(".")) == ["A\n", "B1", "B2\n", "naïve"]
    assert list(corpus.documents(["c.md", "a.txt"])) == ["C", "A\n"]
    assert corpus.load(".") == "A\n\nB1\nB2\n\nnaïve"


def test_the_field_of_json_lines_is_chosen(here):
    Path("a.jsonl").write_text('{"title": "T", "body": "B"}')
    assert corpus.load("a.jsonl", text_field="body") == "B"
    assert message("a.jsonl").startswith("a.jsonl:1 has no field 'text' (its fields: 'title', 'body')")


def test_json_lines_without_a_word_are_no_text(here):
    Path("a.jsonl").write_text('{"text": " "}\n{"text": ""}')
    assert "there is no text in a.jsonl" in message("a.jsonl")


def test_a_long_document_comes_in_pieces_as_it_is_read(here, monkeypatch):
    monkeypatch.setattr(corpus, "PIECE", 1000)
    monkeypatch.setattr(corpus, "CHUNK", 300)
    monkeypatch.setattr(formats, "HEAD", 300)
    text = "".join(map(str, range(2000)))
    write(a_txt=text, b_txt="short")
    Path("c.jsonl").write_text(json.dumps({"text": text}))
    read: list[int] = []
    pieces = corpus.pieces(("a.txt", "b.txt", "c.jsonl"), on_read=read.append)
    first = next(pieces)
    assert sum(read) < 2000
    pieces = [first, *pieces]
    assert [len(piece.text) for piece in pieces] == [1000] * 6 + [890, 5] + [1000] * 6 + [890]
    assert [i for i, piece in enumerate(pieces) if piece.last] == [6, 7, 14]
    assert "".join(piece.text for piece in pieces) == f"{text}short{text}"
    assert sum(read) == corpus.n_bytes(("a.txt", "b.txt", "c.jsonl"))


def test_memory_does_not_grow_with_the_text(here):
    with Path("a.txt").open("w") as file:
        for i in range(40):
            file.write(f"{i}: to be or not to be\n" * 50_000)
    tracemalloc.start()
    assert sum(len(piece.text) for piece in corpus.pieces("a.txt")) == Path("a.txt").stat().st_size > 40e6
    assert tracemalloc.get_traced_memory()[1] < 15e6
    tracemalloc.stop()


# pipes and devices


@pytest.mark.parametrize("data", ["-", "/dev/stdin", ("-", "a.txt")], ids=str)
def test_standard_input_is_read(here, monkeypatch, data):
    write(a_txt="A")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("né\r\n".encode())))
    assert corpus.load(data) == ("né\n\nA" if isinstance(data, tuple) else "né\n")


def test_a_terminal_or_nothing_as_standard_input_is_not_waited_for(monkeypatch):
    ours, theirs = os.openpty()
    with open(theirs) as terminal, open(ours):
        for stdin in (terminal, None):
            monkeypatch.setattr(sys, "stdin", stdin)
            assert "nothing is piped into standard input" in message("-")


def test_a_pipe_is_read_to_its_end(here):
    os.mkfifo("pipe")
    writer = threading.Thread(target=Path("pipe").write_text, args=("through a pipe",))
    writer.start()
    assert corpus.load("pipe") == "through a pipe"
    writer.join()
    end, start = os.pipe()  # as a shell gives it for <(zcat text.gz)
    os.write(start, b"text")
    os.close(start)
    assert corpus.load(f"/dev/fd/{end}") == "text"
    os.close(end)


def test_a_device_is_not_read():
    assert "/dev/zero is no file, folder or pipe" in message("/dev/zero")


# mistakes


@pytest.mark.parametrize("data", ["tinyshakespear", "no/such.txt", "a.txt/b", "a\0b", "{a,b}.txt"])
def test_what_is_not_there_is_told_with_what_could_be(here, data):
    write(a_txt="A")
    assert message(data).startswith(f"no file or folder is called {ascii(data)[1:-1]}: set `data` to a text file")
    assert message(("a.txt", data)) == message(data)


def test_a_pattern_that_nothing_fits(here):
    write(a_txt="A")
    assert message("*.text").startswith("no file or folder fits the pattern *.text:")


@pytest.mark.parametrize("address", ["https://example.org/a.txt", "http://a", "s3://bucket/a"])
def test_an_address_is_to_be_downloaded(here, address):
    assert f"({address}): download it first" in message(address)


@pytest.mark.parametrize("data", ["", (), ("",), None, 7, {"a": 1}, ("a", 7)], ids=repr)
def test_what_is_no_path_at_all(data):
    assert "`data` is a path, or several of them, not " in message(data)


def test_a_home_that_nobody_has(here, monkeypatch):
    assert "no home folder ~nobody-of-that-name for `data`" in message("~nobody-of-that-name/file.txt")

    def unknown(_):
        raise KeyError("no such user, as in a container")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert "no home folder ~ for `data`: write the whole path" in message("~/file.txt")


def test_a_link_that_leads_nowhere(here):
    Path("link.txt").symlink_to("gone.txt")
    Path("circle.txt").symlink_to("circle.txt")
    assert "link.txt is a link to gone.txt, which is not there" in message("link.txt")
    assert "circle.txt is a link to circle.txt" in message(".")  # the first of the folder


@pytest.mark.parametrize("content", ["", " \n\t\n", "\ufeff"])
def test_nothing_but_white_space_is_no_text(here, content):
    write(a_txt=content, b_txt=content)
    assert "there is no text in a.txt: " in message("a.txt")
    assert "there is no text in a.txt and 1 more: " in message(("a.txt", "b.txt"))


def test_the_file_that_is_no_text_is_named(here):
    Path("sub").mkdir()
    write(a_txt="good")
    Path("sub/b.txt").write_bytes(b"\xef\xbb\xbfcaf\xe9 au lait")
    Path("sub/c.gz").write_bytes(gzip.compress(b"caf\xe9"))
    assert message(".").startswith("sub/b.txt is not UTF-8 text at byte 6")
    assert message("sub/*.gz").startswith("sub/c.gz is not UTF-8 text at byte 3")


def test_a_folder_without_text_files(here):
    Path("sub").mkdir()
    write(notes_md="text, but not in a .txt file")
    assert "sub has no .txt or .jsonl files" in message("sub")


def denied(path, *_):
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


@pytest.mark.parametrize("where, what", [(Path, "open"), (os, "scandir"), (os, "lstat")])
def test_what_may_not_be_read(here, monkeypatch, where, what):
    Path("secret").mkdir()
    Path("secret/a.txt").write_text("secret")
    name = "secret/a.txt" if what == "open" else "secret"
    with monkeypatch.context() as patch:
        patch.setattr(where, what, denied)
        said = message("secret")
    assert said == f"cannot read {name} (Permission denied): set `data` to what can be read"


def test_a_name_of_ten_million_characters_is_cut():
    assert "aaa" in message("a" * 10**7)


# for people


def test_data_is_described_in_a_few_words(here):
    described = {
        "tinyshakespeare": "tinyshakespeare",
        "-": "standard input",
        "my novel.txt": "my novel.txt",
        corpus.absolute("sub/a.txt"): "sub/a.txt",
        corpus.absolute("./-"): "./-",
        corpus.absolute("./tinyshakespeare"): "./tinyshakespeare",
        "/elsewhere/a.txt": "/elsewhere/a.txt",
        corpus.absolute(("a.txt", "b.txt", "-")): "a.txt and 2 more",
        ("a.txt",): "a.txt",
    }
    assert {data: corpus.describe(data) for data in described} == described


def test_what_is_odd_about_a_text_is_remarked(here):
    assert corpus.remark("tinyshakespeare", "First Citizen:\n") is None
    assert corpus.remark(("a.txt", "b.txt"), "text") is None
    csv = "b.csv looks like CSV: it is trained on as it is, markup included"
    assert corpus.remark(corpus.absolute(("a.txt", "b.csv", "c.json")), "text") == csv
    assert "standard input looks like HTML" in (corpus.remark("-", "<html>") or "")
    os.mkfifo("pipe")
    for data in ("-", "pipe"):
        assert "to resume this run, `data` must name it again" in (corpus.remark(data, "text") or "")
