"""Text to integers and back: what a tokenizer is, and the one that takes each character for a token.

To add another, write a class that does what `Tokenizer` says (in a file of its own, or here), and give it a line in
`TOKENIZERS`. Nothing else in jaxgpt knows a tokenizer by name.
"""

import difflib
import json
import reprlib
import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np

from jaxgpt.errors import UserError
from jaxgpt.files import reason, shown, write_atomically


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

    @classmethod
    def train(cls, text: str) -> Self:
        """The tokenizer for a text. Raises `UserError` if it can't be made from that."""
        ...

    def encode(self, text: str) -> np.ndarray:
        """`text` -> tokens (T,), of an integer type. Raises `UserError` for what it can't encode."""
        ...

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Tokens (T,) -> text, so that `decode(encode(text)) == text`. Raises `UserError` for what is no token."""
        ...

    def decoder(self) -> Decoder:
        """A new decoder that takes the tokens piece by piece: its texts joined are `decode` of all of them."""
        ...

    def save(self, path: str | Path) -> None:
        """Write it whole to `path`, as a JSON object whose "kind" is `kind`."""
        ...

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The tokenizer that was saved as `content`. Raises `UserError` that says what is wrong with that."""
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
    def train(cls, text: str) -> Self:
        """The tokenizer of the characters in `text`, as in nanoGPT and the lecture it comes from."""
        return cls(_sorted_characters(text))

    @property
    def vocab_size(self) -> int:
        """How many different characters there are."""
        return len(self.characters)

    @property
    def start(self) -> str:
        """A line break, or the first character where there is none."""
        return "\n" if "\n" in self.characters else self.characters[0]

    def encode(self, text: str) -> np.ndarray:
        """`text` of T characters -> tokens (T,), uint16, or int32 if the vocabulary does not fit in that.

        Raises `UserError` that names the characters which the vocabulary lacks.
        """
        known, points = _code_points(self.characters), _code_points(text)
        places = np.zeros(sys.maxunicode + 1, np.uint16 if self.vocab_size <= 2**16 else np.int32)
        places[known] = np.arange(self.vocab_size)
        tokens = places[points]
        unknown = known[tokens] != points  # characters without a place have token 0
        if unknown.any():
            raise UserError(self._unknown_message(text, [chr(point) for point in np.unique(points[unknown])]))
        return tokens

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Tokens (T,), any integers -> the text of T characters.

        Raises `UserError` for a token outside the vocabulary.
        """
        tokens = np.asarray(tokens, dtype=np.int64)
        outside = tokens[(tokens < 0) | (tokens >= self.vocab_size)]
        if outside.size:
            raise UserError(
                f"token {outside[0]} is outside the vocabulary of {self.vocab_size}: "
                "decode with the tokenizer that the model was trained with"
            )
        return _code_points(self.characters)[tokens].tobytes().decode("utf-32-le", "surrogatepass")

    def decoder(self) -> "CharDecoder":
        """A decoder that keeps nothing back: each token is a character."""
        return CharDecoder(self)

    def save(self, path: str | Path) -> None:
        """Write the tokenizer to `path` as JSON that a person can read. Raises `OSError` if that fails."""
        content = json.dumps({"kind": self.kind, "characters": self.characters}, ensure_ascii=False)
        write_atomically(path, content.encode("utf-8", "surrogatepass"))

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The tokenizer with `content["characters"]`. Raises `UserError` if those are no characters in order."""
        characters = content.get("characters")
        if not isinstance(characters, str):
            raise UserError(f"its characters are {reprlib.repr(characters)}, not a text")
        return cls(characters)

    def _unknown_message(self, text: str, unknown: list[str]) -> str:
        not_utf8 = [ord(c) - 0xDC00 for c in unknown if "\udc80" <= c <= "\udcff"]  # as Python reads such bytes
        if not_utf8:
            return f"the text is not UTF-8 (it has the byte 0x{not_utf8[0]:02x}): convert it to UTF-8"
        named = ", ".join(ascii(c) if unicodedata.combining(c) else repr(c) for c in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        lacking = f"the training text did not contain {named}{more}"
        one, two = unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)
        for form, other, how in (("NFC", one, "one character"), ("NFD", two, "two characters")):
            if set(other) <= set(self.characters):
                return f"{lacking}, but it has it as {how} ({form}): use unicodedata.normalize({form!r}, text)"
        return f"{lacking}: leave that out, or train on a text that has it"


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


TOKENIZERS: dict[str, type[Tokenizer]] = {"char": CharTokenizer}


def train_tokenizer(kind: str, text: str) -> Tokenizer:
    """The tokenizer of a kind for a text.

    Args:
        kind: a name in `TOKENIZERS`.
        text: the text that is to be trained on.

    Raises:
        UserError: for a name that is not there, or a text that the tokenizer can't be made from.
    """
    return _named(kind).train(text)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer, of whatever kind, that `save` wrote.

    Raises:
        UserError: if the file can't be read, or holds no tokenizer.
    """
    try:
        content = json.loads(Path(path).read_bytes())
        if not isinstance(content, dict) or not isinstance(content.get("kind"), str):
            raise UserError('it is no JSON object with a "kind"')
        return _named(content["kind"]).from_json(content)
    except OSError as problem:
        raise UserError(f"cannot read the tokenizer {shown(path)} ({reason(problem)})") from problem
    except UserError as problem:
        raise UserError(f"{shown(path)} is not a tokenizer: {problem}") from problem
    except ValueError as problem:
        raise UserError(f"{shown(path)} is not a tokenizer: it is not JSON ({reason(problem)})") from problem
    except RecursionError as problem:
        raise UserError(f"{shown(path)} is not a tokenizer: it is nested too deeply") from problem


def _named(kind: str) -> type[Tokenizer]:
    if kind not in TOKENIZERS:
        close = difflib.get_close_matches(kind, TOKENIZERS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there is {', '.join(map(repr, TOKENIZERS))}"
        raise UserError(f"there is no tokenizer of kind {reprlib.repr(kind)}: {hint}")
    return TOKENIZERS[kind]


def _sorted_characters(text: str) -> str:
    return "".join(sorted(set(text)))


def _code_points(text: str) -> np.ndarray:
    """The Unicode code point of each character; half a surrogate pair counts as a character, as in `str`."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
