"""Text to integers and back: what a tokenizer is, and the one that takes each character for a token.

To add another, write a class that does what `Tokenizer` says in a file of its own, as `bpe.py` does, and give it a line
in `TOKENIZERS`. Nothing else in jaxgpt knows a tokenizer by name.
"""

import difflib
import json
import reprlib
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from jaxgpt.data import tokenizer_json
from jaxgpt.data.bpe import END_OF_TEXT, BPETokenizer, BytesTokenizer, GPT2Tokenizer
from jaxgpt.data.vocabulary import check_size, checked, not_utf8, several, token_type
from jaxgpt.errors import UserError
from jaxgpt.files import read_whole, reason, shown, write_atomically


class Decoder(Protocol):
    """Tokens to text while they are being written, for one text: a token alone may be a part of a character."""

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The next tokens (T,) -> the text that is certain by now and was not given before."""
        ...

    def flush(self) -> str:
        """The rest of the text, when no more tokens come."""
        ...


class Tokenizer(Protocol):
    """Text to tokens, the integers from 0 to `vocab_size - 1`, and back. It never changes."""

    kind: ClassVar[str]
    """Its name in `TOKENIZERS`."""
    unit: ClassVar[str]
    """What one token is, for people, in the singular: "character"."""

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        ...

    @property
    def start(self) -> str:
        """The text to start from when nobody gives one; it encodes to one token at least."""
        ...

    @property
    def end_of_text(self) -> int | None:
        """The token between documents, on which writing stops; no text encodes to it. None if there is none."""
        ...

    @classmethod
    def train(cls, texts: str | Iterable[str], vocab_size: int = 0) -> Self:
        """The tokenizer for one text or several.

        Args:
            texts: what it shall encode.
            vocab_size: how many tokens it shall have; 0 means as many as it takes.

        Raises:
            UserError: if it can't be made from that, or can't have that many.
        """
        ...

    def encode(self, text: str) -> np.ndarray:
        """`text` -> tokens (T,), of an integer type. Raises `UserError` for what it can't encode.

        What looks like a special token, such as <|endoftext|>, is text like any other.
        """
        ...

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Tokens (T,) -> text, so that `decode(encode(text)) == text`. Raises `UserError` for what is no token."""
        ...

    def decoder(self) -> Decoder:
        """A new decoder that takes the tokens piece by piece: its texts joined are `decode` of all of them."""
        ...

    def boundary(self, text: str) -> int:
        """The last place n where a text that begins with `text` can be cut, whatever follows; 0 if there is none.

        The tokens of the two parts are those of the whole, so that a long text can be encoded while it is read.
        """
        ...

    def save(self, path: str | Path) -> None:
        """Write it whole to `path`, as a tokenizer.json that the library `tokenizers` reads, with the same tokens."""
        ...

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self | None:
        """The tokenizer that was saved as `content`, or None if that is of another kind.

        Raises `UserError` that says what is wrong with `content`.
        """
        ...


@dataclass(frozen=True)
class CharTokenizer:
    """A character's token is its place in `characters`, which are distinct and sorted.

    `CharTokenizer.train(text)` finds the characters. Raises `UserError` if there are none, or if they
    are not distinct and sorted. Two tokenizers with the same characters are equal.
    """

    kind: ClassVar[str] = "char"
    unit: ClassVar[str] = "character"

    characters: str

    def __post_init__(self):
        if not self.characters or self.characters != _sorted_characters(self.characters):
            raise UserError("the characters of a tokenizer must be distinct, sorted and at least one")

    @classmethod
    def train(cls, texts: str | Iterable[str], vocab_size: int = 0) -> Self:
        """The tokenizer of the characters in `texts`, as in nanoGPT and the lecture it comes from.

        Raises `UserError` for a `vocab_size` that is not the number of different characters.
        """
        tokenizer = cls("".join(sorted(set().union(*several(texts)))))
        check_size(vocab_size, tokenizer.vocab_size, f"the text has {tokenizer.vocab_size} different characters")
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """How many different characters there are."""
        return len(self.characters)

    @property
    def start(self) -> str:
        """A line break, or the first character where there is none."""
        return "\n" if "\n" in self.characters else self.characters[0]

    @property
    def end_of_text(self) -> None:
        """None: every character may be in a text."""

    def encode(self, text: str) -> np.ndarray:
        """`text` of T characters -> tokens (T,), uint16, or int32 if the vocabulary does not fit in that.

        Raises `UserError` that names the characters which the vocabulary lacks.
        """
        known, points = _code_points(self.characters), _code_points(text)
        places = np.zeros(sys.maxunicode + 1, token_type(self.vocab_size))
        places[known] = np.arange(self.vocab_size)
        tokens = places[points]
        unknown = known[tokens] != points  # characters without a place have token 0
        if unknown.any():
            raise self._unknown(text, [chr(point) for point in np.unique(points[unknown])])
        return tokens

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Tokens (T,), any integers -> the text of T characters.

        Raises `UserError` for a token outside the vocabulary.
        """
        points = _code_points(self.characters)[checked(tokens, self.vocab_size)]
        return points.tobytes().decode("utf-32-le", "surrogatepass")

    def decoder(self) -> "CharDecoder":
        """A decoder that keeps nothing back: each token is a character."""
        return CharDecoder(self)

    def boundary(self, text: str) -> int:
        """All of `text`: each character is a token."""
        return len(text)

    def save(self, path: str | Path) -> None:
        """Write the tokenizer to `path`, as a tokenizer.json whose words are characters. Raises `OSError`."""
        content = json.dumps(tokenizer_json.characters(self.characters), ensure_ascii=False)
        write_atomically(path, content.encode("utf-8", "surrogatepass"))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self | None:
        """The tokenizer in a tokenizer.json of single characters, or in a file as older runs have it.

        Raises `UserError` if the characters are not distinct and sorted.
        """
        if content.get("kind") != cls.kind:
            characters = tokenizer_json.read_characters(content)
            return None if characters is None else cls(characters)
        characters = content.get("characters")
        if not isinstance(characters, str):
            raise UserError(f"its characters are {reprlib.repr(characters)}, not a text")
        return cls(characters)

    def _unknown(self, text: str, unknown: list[str]) -> UserError:
        bytes_not_utf8 = [c for c in unknown if "\udc80" <= c <= "\udcff"]  # as Python reads them
        if bytes_not_utf8:
            return not_utf8(bytes_not_utf8[0])
        named = ", ".join(ascii(c) if unicodedata.combining(c) else repr(c) for c in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        lacking = f"the training text did not contain {named}{more}"
        one, two = unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)
        for form, other, how in (("NFC", one, "one character"), ("NFD", two, "two characters")):
            if set(other) <= set(self.characters):
                return UserError(
                    f"{lacking}, but it has it as {how} ({form}): use unicodedata.normalize({form!r}, text)"
                )
        return UserError(f"{lacking}: leave that out, or train on a text that has it")


@dataclass(frozen=True)
class CharDecoder:
    """The incremental decoder of a `CharTokenizer`."""

    tokenizer: CharTokenizer

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Tokens (T,) -> their T characters."""
        return self.tokenizer.decode(tokens)

    def flush(self) -> str:
        """Nothing: no character was kept back."""
        return ""


TOKENIZERS: dict[str, type[Tokenizer]] = {
    kind.kind: kind for kind in (CharTokenizer, BytesTokenizer, GPT2Tokenizer, BPETokenizer)
}


def train_tokenizer(kind: str, texts: str | Iterable[str], vocab_size: int = 0) -> Tokenizer:
    """The tokenizer of a kind for a text.

    Args:
        kind: a name in `TOKENIZERS`.
        texts: the text that is to be trained on, or several.
        vocab_size: how many tokens it shall have; 0 means as many as it takes.

    Raises:
        UserError: for a name that is not there, or a text that the tokenizer can't be made from.
    """
    if kind not in TOKENIZERS:
        close = difflib.get_close_matches(kind, TOKENIZERS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there is {', '.join(map(repr, TOKENIZERS))}"
        raise UserError(f"there is no tokenizer of kind {reprlib.repr(kind)}: {hint}")
    return TOKENIZERS[kind].train(texts, vocab_size)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer, of whatever kind, that `save` wrote; or a tokenizer.json that others made for a model like GPT-2.

    Raises:
        UserError: if the file can't be read, or holds no tokenizer.
    """
    with _told(path):
        return _from_json(json.loads(read_whole(path)))


def load_folder(folder: str | Path) -> Tokenizer | None:
    """The tokenizer in a folder in Hugging Face's layout: tokenizer.json, or else vocab.json and merges.txt.

    Returns:
        the tokenizer; None if the folder has no such files.

    Raises:
        UserError: if a file can't be read, is damaged, or asks for what jaxgpt does not do.
    """
    whole, vocab, merges = (Path(folder, name) for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if whole.exists():
        return load_tokenizer(whole)
    if not (vocab.exists() and merges.exists()):
        return None
    with _told(vocab):
        ids = json.loads(read_whole(vocab))
    with _told(folder):
        lines = tokenizer_json.merges_of(read_whole(merges).decode("utf-8", "replace").replace("\r\n", "\n"))
        return _from_json(tokenizer_json.content_of(ids, lines, END_OF_TEXT))


def _from_json(content: Any) -> Tokenizer:
    if not isinstance(content, dict):
        raise UserError("it is no JSON object")
    for kind in TOKENIZERS.values():
        if (tokenizer := kind.from_json(content)) is not None:
            return tokenizer
    raise UserError("its model is neither of characters nor a byte-level BPE")


@contextmanager
def _told(path: str | Path) -> Iterator[None]:
    """Whatever is wrong with a file becomes a `UserError` that names it."""
    try:
        yield
    except OSError as problem:
        raise UserError(f"cannot read the tokenizer {shown(path)} ({reason(problem)})") from problem
    except UserError as problem:
        raise UserError(f"{shown(path)} is not a tokenizer: {problem}") from problem
    except ValueError as problem:
        raise UserError(f"{shown(path)} is not a tokenizer: it is not JSON ({reason(problem)})") from problem
    except RecursionError as problem:
        raise UserError(f"{shown(path)} is not a tokenizer: it is nested too deeply") from problem


def _sorted_characters(text: str) -> str:
    return "".join(sorted(set(text)))


def _code_points(text: str) -> np.ndarray:
    """The Unicode code point of each character; half a surrogate pair counts as a character, as in `str`."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
