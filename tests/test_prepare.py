"""`python -m jaxgpt.prepare` leaves the same files however often it was stopped, and says what it made."""

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from jaxgpt import prepare as command
from jaxgpt.data import corpus, encoding
from jaxgpt.errors import UserError
from jaxgpt.prepare import prepare, verify

FILES = ["manifest.json", "tokenizer.json", "train.bin", "val.bin"]


@pytest.fixture
def here(text, tmp_path, monkeypatch) -> Path:
    """The current folder, with texts, of which little is encoded at a time."""
    monkeypatch.chdir(tmp_path)
    Path("texts").mkdir()
    Path("texts/a.txt").write_text(text)
    lines = "\n".join(json.dumps({"text": text[i::50]}) for i in range(50))
    Path("texts/b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    monkeypatch.setattr(encoding, "BATCH", 500)
    monkeypatch.setattr(corpus, "PIECE", 400)
    monkeypatch.setattr(command, "SAVE_EVERY", 3)
    return tmp_path


def contents(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != ".lock"}


def message(*arguments, **options) -> str:
    """The one line that `prepare` fails with."""
    with pytest.raises(UserError) as caught:
        prepare(*arguments, quiet=True, **options)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("tokenizer, size", [("bpe", 300), ("bytes", 0), ("char", 0)])
def test_the_files_hold_all_tokens_and_the_manifest_tells_of_them(tokenizer, size, here, text):
    manifest = prepare("texts", "out", tokenizer, size, quiet=True)
    assert sorted(contents("out")) == FILES
    assert json.loads(Path("out/manifest.json").read_text()) == manifest == verify("out")
    train, val = (np.fromfile(f"out/{name}.bin", "<u2") for name in ("train", "val"))
    used = command.load_tokenizer("out/tokenizer.json")
    assert len(train) == int(0.9 * (len(train) + len(val)))
    separator = "\n" if used.end_of_text is None else "<|endoftext|>"
    documents = [text, *(text[i::50] for i in range(50))]
    assert used.decode(np.concatenate([train, val])) == separator.join(documents)
    assert (manifest["documents"], manifest["characters"]) == (51, 2 * len(text))
    assert [source["path"] for source in manifest["job"]["sources"]] == [
        str(here / "texts" / name) for name in ("a.txt", "b.jsonl.gz")
    ]


def test_more_tokens_than_two_bytes_can_tell_have_four(here):
    Path("many.txt").write_text("".join(map(chr, range(0x10000, 0x10000 + 2**16 + 1))))
    assert prepare("many.txt", "out", "char", quiet=True)["dtype"] == "uint32"
    assert np.fromfile("out/val.bin", "<u4")[-1] == 2**16
    verify("out")


def stop_at(monkeypatch, where: object, name: str, call: int) -> None:
    """Ends the program, as it were, before the call of that number."""
    real, calls = getattr(where, name), []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(where, name, stopping)


STEPS = [(command, "_save", n) for n in (1, 2, 5)]
STEPS += [(command, name, 1) for name in ("train_tokenizer", "_split", "_finished", "write_atomically")]
STEPS += [(os, name, n) for name, n in (("truncate", 1), ("fsync", 2), ("fsync", 9))]
STEPS += [(command.shutil, "copyfileobj", 1), (command.token_files, "checksums", 1)]


@pytest.mark.parametrize("where, name, call", STEPS, ids=str)
def test_a_call_that_was_stopped_anywhere_is_gone_on_with_to_the_same_bytes(where, name, call, here, monkeypatch):
    prepare("texts", "whole", "bpe", 300, quiet=True)
    with monkeypatch.context() as patch:
        stop_at(patch, where, name, call)
        with pytest.raises(KeyboardInterrupt):
            prepare("texts", "out", "bpe", 300, quiet=True)
    assert "manifest.json" not in contents("out")
    prepare("texts", "out", "bpe", 300, quiet=True)
    assert contents("out") == contents("whole")


def test_a_call_that_was_stopped_between_two_files_does_not_cut_the_text_off_twice(here, monkeypatch):
    prepare("texts", "whole", "bytes", quiet=True)
    truncate = os.truncate

    def stopping(*arguments):
        truncate(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "truncate", stopping)
        with pytest.raises(KeyboardInterrupt):
            prepare("texts", "out", "bytes", quiet=True)
    prepare("texts", "out", "bytes", quiet=True)
    assert contents("out") == contents("whole")


def test_what_was_written_after_the_last_note_of_it_is_written_again(here, monkeypatch):
    prepare("texts", "whole", "bytes", quiet=True)
    with monkeypatch.context() as patch:
        stop_at(patch, command, "_save", 5)
        with pytest.raises(KeyboardInterrupt):
            prepare("texts", "out", "bytes", quiet=True)
    with Path("out/tokens.part").open("ab") as file:
        file.write(b"garbage")
    prepare("texts", "out", "bytes", quiet=True)
    assert contents("out") == contents("whole")


def test_the_part_that_is_done_is_not_encoded_again(here, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, command, "_save", 5)
        with pytest.raises(KeyboardInterrupt):
            prepare("texts", "out", "bytes", quiet=True)
    done = json.loads(Path("out/progress.json").read_text())["batches"]
    encoded = []
    encode = encoding._encode
    monkeypatch.setattr(encoding, "_encode", lambda *arguments: encoded.append(1) or encode(*arguments))
    prepare("texts", "out", "bytes", quiet=True)
    rest = len(encoded)
    prepare("texts", "whole", "bytes", quiet=True)
    assert (done, rest) == (9, len(encoded) - rest - 9)


@pytest.mark.slow
def test_a_process_that_is_killed_is_gone_on_with_to_the_same_bytes(text, tmp_path):
    (tmp_path / "a.txt").write_text(text * 2000)
    run = [sys.executable, "-m", "jaxgpt.prepare", "--data", "a.txt", "--tokenizer", "bpe", "--vocab-size", "300"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen([*run, "--to", "out"], cwd=tmp_path, env=environment)
    state = tmp_path / "out" / "progress.json"
    while process.poll() is None and not (state.exists() and json.loads(state.read_bytes())["batches"]):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    for to in ("out", "whole"):
        subprocess.run([*run, "--to", to], cwd=tmp_path, env=environment, check=True)
    for name in ("train.bin", "val.bin", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# What is refused


def test_a_folder_is_not_overwritten(here):
    Path("full").mkdir()
    Path("full/a.txt").write_text("mine")
    assert "full exists and is not overwritten: choose another `to`" in message("texts", "full", "bytes")
    assert "full/a.txt cannot be made" in message("texts", "full/a.txt", "bytes")
    prepare("texts", "out", "bytes", quiet=True)
    before = contents("out")
    assert prepare("texts", "out", "bytes", quiet=True) == verify("out")
    assert "out was begun with other `tokenizer`: choose another `to`" in message("texts", "out", "char")
    assert "out was begun with other texts and `val_share`" in message("texts/a.txt", "out", "bytes", val_share=0.5)
    assert contents("out") == before


def test_texts_that_have_changed_since_are_noticed(here, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, command, "_save", 5)
        with pytest.raises(KeyboardInterrupt):
            prepare("texts", "out", "bytes", quiet=True)
    os.utime("texts/a.txt", ns=(0, 0))
    assert "out was begun with other texts" in message("texts", "out", "bytes")
    Path("out/progress.json").write_text("{")
    assert "out has a damaged progress.json" in message("texts", "out", "bytes")


def test_after_a_mistake_the_right_command_works_in_the_same_folder(here):
    assert "has no field 'body'" in message("texts/b.jsonl.gz", "out", "char", text_field="body")
    assert "no tokenizer of kind 'chars'" in message("texts", "out", "chars")
    prepare("texts", "out", "char", quiet=True)
    verify("out")


def test_what_can_be_read_only_once_is_refused(here):
    os.mkfifo("pipe")
    for data in ("-", "pipe"):
        assert "a text from a pipe can be read only once: save it to a file first" in message(data, "out")
    assert not Path("out").exists()


def test_a_folder_is_prepared_by_one_at_a_time(here):
    Path("out").mkdir()
    with FileLock("out/.lock"):
        assert "out is being prepared by another process" in message("texts", "out", "bytes")


def test_a_share_for_validation_is_a_share(here):
    for share in (0, 1, -1):
        assert f"`val_share` must be above 0 and below 1, not {share}" in message("texts", "out", val_share=share)


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
def test_a_file_that_is_damaged_does_not_pass_for_what_was_made(name, here):
    prepare("texts", "out", "bytes", quiet=True)
    path = Path("out", name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"^out/{name} is not what manifest\.json says: copy it again, or"):
        verify("out")
    with pytest.raises(UserError, match=r"^texts has no manifest\.json"):
        verify("texts")


# The command


def test_the_command_says_what_it_made_and_how_to_train_on_it(here, capsys):
    assert command.main(["--data", "texts", "--to", "out", "--tokenizer", "bytes"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"text  51 documents, [\d,]+ characters\n", told)
    assert re.search(r"tokens  [\d,]+ \(bytes, 256 different ones, uint16\): [\d,]+ to train on, [\d,]+ to val", told)
    assert "(the last 10 %)" in told
    assert "python train.py --data out\n" in told
    assert command.main(["--verify", "out"]) == 0
    assert "the files are what the manifest says" in capsys.readouterr().out
    assert command.main(["--data", "texts", "--to", "out", "--tokenizer", "bytes"]) == 0
    assert "out is prepared already" in capsys.readouterr().out


def test_mistakes_are_told_in_the_words_of_the_command(here, capsys):
    for arguments, said in {
        (): "--data is missing: --help explains it",
        ("--data", "texts"): "--to is missing: --help explains it",
        ("--data", "none", "--to", "out"): "no file or folder is called none",
        ("--data", "texts", "--to", "texts"): "texts exists and is not overwritten: choose another --to",
        ("--verify", "texts"): "texts has no manifest.json",
    }.items():
        assert command.main(list(arguments)) == 2
        assert f"error: {said}" in capsys.readouterr().err


def test_ctrl_c_says_that_the_same_command_goes_on(here, capsys, monkeypatch):
    stop_at(monkeypatch, command, "_save", 3)
    assert command.main(["--data", "texts", "--to", "out", "--tokenizer", "bytes"]) == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err


def test_a_text_that_is_refused_leaves_nothing_behind(here):
    Path("bad.jsonl").write_text('{"text": "good"}\n{"text": 3}\n')
    assert "bad.jsonl:2 has no text" in message("bad.jsonl", "out", "char")
    assert not Path("out").exists()
    Path("out").mkdir()
    assert "choose another `text_field`" in message("bad.jsonl", "out", "bytes")
    assert list(contents("out")) == []
