"""A file is whole or as it was; names are shown and quoted harmlessly; there is always a folder for the cache."""

import ast
import errno
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from jaxgpt import files
from jaxgpt.files import literal, quoted, reason, shown, write_atomically
from jaxgpt.home import home

ODD_NAMES = [
    "[gpt] x",
    "a[1].txt",
    "my text.txt",
    "$HOME and $(date) `date`",
    "100 %s %d.txt",
    'it\'s "it"\\n',
    "-x.txt",
    "~",
    "*?!{a,b};|&<>#",
    "текст 文字 é.txt",
    "line\nbreak\r\t.txt",
    "\x1b[31mred\x07's \\x41.txt",
    os.fsdecode(b"caf\xe9.txt"),
    "\u202egnp.exe",
]


# write_atomically


def test_a_file_is_made_and_then_replaced(tmp_path):
    file = tmp_path / ("x" * 250 + ".json")  # nearly the longest name there is
    write_atomically(file, b"one")
    write_atomically(str(file), b"two")
    assert file.read_bytes() == b"two"
    assert os.listdir(tmp_path) == [file.name]


@pytest.mark.parametrize("problem", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch, step, problem):
    def fail(*_):
        raise problem

    file = tmp_path / "config.json"
    file.write_bytes(b"before")
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(problem)) as caught:
        write_atomically(file, b"after")
    assert file.read_bytes() == b"before"
    assert os.listdir(tmp_path) == [file.name]
    if isinstance(caught.value, OSError):
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(file))


def test_a_folder_that_is_not_there_is_told_by_the_files_own_name(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        write_atomically(tmp_path / "no" / "file", b"")
    assert caught.value.filename == str(tmp_path / "no" / "file")


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    write_atomically(tmp_path / "atomic", b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere/file")
    write_atomically(tmp_path / "link", b"content")
    assert (tmp_path / "elsewhere" / "file").read_bytes() == b"content"


# names


def test_a_path_is_shown_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "runs" / "cpu") == shown("runs/cpu") == "runs/cpu"
    assert shown(tmp_path.parent / "other") == str(tmp_path.parent / "other")


def test_a_path_is_shown_though_the_current_folder_is_gone(tmp_path, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert shown("/a/b") == "/a/b"
    assert quoted("/a b") == "'/a b'"


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_any_name_is_shown_on_one_line_that_can_be_printed(name):
    assert shown(name).isprintable()
    if name.isprintable():
        assert shown(name) == name


def test_a_long_name_is_cut_in_the_middle():
    name = shown("a" * 10**7 + ".txt")
    assert len(name) < 400
    assert name.startswith("aaa") and name.endswith("aaa.txt")


@pytest.mark.skipif(not shutil.which("bash"), reason="asks bash")
def test_a_shell_reads_a_quoted_name_as_the_same_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [quoted(tmp_path / name) for name in ODD_NAMES]
    assert all(word.isprintable() for word in words)
    out = subprocess.run(["bash", "-c", "printf '%s\\0' " + " ".join(words)], capture_output=True, check=True).stdout
    read = os.fsdecode(out).split("\0")[:-1]
    assert [os.path.normpath(name) for name in read] == ODD_NAMES
    assert not any(name.startswith(("-", "~")) for name in read)  # neither a flag nor somebody's home


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_python_reads_a_literal_name_as_the_same_path(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert literal(tmp_path / name).isprintable()
    assert os.path.normpath(ast.literal_eval(literal(tmp_path / name))) == name
    assert literal(tmp_path / "runs/x") == '"runs/x"'


def test_a_reason_is_one_line_without_the_path():
    assert reason(FileNotFoundError(errno.ENOENT, "No such file or directory", "/a/b")) == "No such file or directory"
    assert reason(ValueError("two\n  lines")) == "two lines"


# home


def test_home_is_the_users_to_choose(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/will")
    monkeypatch.delenv("JAXGPT_HOME", raising=False)
    assert home() == Path("/home/will/.cache/jaxgpt")
    monkeypatch.setenv("JAXGPT_HOME", "~/elsewhere")
    assert home() == Path("/home/will/elsewhere")
    monkeypatch.setenv("JAXGPT_HOME", "here")
    assert home() == tmp_path / "here"


def test_a_user_without_a_home_has_a_temporary_one(monkeypatch):
    def unknown(_):
        raise KeyError("no such user, as in a container")

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("JAXGPT_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert home().parent == Path(tempfile.gettempdir())


def test_what_is_no_file_of_a_moderate_size_is_not_read_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"12345678")
    monkeypatch.setattr(files, "LARGEST", 8)
    assert files.read_whole(path) == b"12345678"
    path.write_bytes(b"123456789")
    with pytest.raises(OSError, match="it has more than 0 MiB"):
        files.read_whole(path)
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(OSError, match="it is no file"):
            files.read_whole(name)
    with pytest.raises(IsADirectoryError):
        files.read_whole(tmp_path)


def test_a_reason_is_one_line_that_a_terminal_takes():
    assert reason(OSError(2, "not\nthere\x1b[2J", "x")) == "not there\\x1b[2J"
