"""Text to integers and back, one character a token."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxgpt.errors import UserError


@dataclass(frozen=True)
class CharTokenizer:
    """A character's token is its place in `characters`, which are distinct and sorted.

    `CharTokenizer.train(text)` finds the characters. Raises `UserError` if there are none, or if they
    are not distinct and sorted. Two tokenizers with the same characters are equal.
    """

    characters: str

    def __post_init__(self):
        if not self.characters or self.characters != _sorted_characters(self.characters):
            raise UserError(
                "the characters of a tokenizer are distinct, sorted and at least one: "
                "use CharTokenizer.train(text) with a text that is not empty"
            )

    @classmethod
    def train(cls, text: str) -> "CharTokenizer":
        """The tokenizer of the characters in `text`, as in nanoGPT and the lecture it comes from."""
        return cls(_sorted_characters(text))

    @property
    def vocab_size(self) -> int:
        """How many tokens there are; they run from 0 to `vocab_size - 1`."""
        return len(self.characters)

    @property
    def start(self) -> str:
        """A text to start from when nobody gives one: a line break, or the first character where there is none."""
        return "\n" if "\n" in self.characters else self.characters[0]

    def encode(self, text: str) -> np.ndarray:
        """`text` of T characters -> tokens (T,), uint16, or int32 if the vocabulary does not fit in that.

        Raises `UserError` that names the characters which the vocabulary lacks.
        """
        known, points = _code_points(self.characters), _code_points(text)
        tokens = np.searchsorted(known, points)
        # past the last known character, searchsorted gives vocab_size, which is no token
        tokens = np.minimum(tokens, self.vocab_size - 1)
        unknown = known[tokens] != points
        if unknown.any():
            raise UserError(_unknown_message(np.unique(points[unknown])))
        return tokens.astype(np.uint16 if self.vocab_size <= 2**16 else np.int32)

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

    def save(self, path: str | Path) -> None:
        """Write the tokenizer to `path` as JSON."""
        content = json.dumps({"kind": "char", "characters": self.characters}, ensure_ascii=False)
        Path(path).write_bytes(content.encode("utf-8", "surrogatepass"))

    @classmethod
    def load(cls, path: str | Path) -> "CharTokenizer":
        """The tokenizer that `save` wrote.

        Raises `UserError` if the file cannot be read, is damaged, or holds another kind of tokenizer.
        """
        try:
            content = json.loads(Path(path).read_bytes().decode("utf-8", "surrogatepass"))
            kind = content["kind"]
            if kind == "char":
                return cls(content["characters"])
        except OSError as problem:
            raise UserError(
                f"cannot read a tokenizer at {path} ({problem.strerror}): pass one that was saved"
            ) from problem
        except (ValueError, TypeError, KeyError) as problem:
            raise UserError(f"{path} is not a tokenizer, or damaged: save it again") from problem
        raise UserError(f"{path} holds a tokenizer of kind {kind!r}: pass one of kind 'char'")


def _sorted_characters(text: str) -> str:
    return "".join(sorted(set(text)))


def _code_points(text: str) -> np.ndarray:
    """The Unicode code point of each character; half a surrogate pair counts as a character, as in `str`."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _unknown_message(code_points: np.ndarray) -> str:
    named = ", ".join(repr(chr(point)) for point in code_points[:5])
    more = f" and {len(code_points) - 5} more" if len(code_points) > 5 else ""
    return f"the training text did not contain {named}{more}: leave that out, or train on a text that has it"
