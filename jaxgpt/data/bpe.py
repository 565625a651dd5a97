"""Tokens made of bytes: each byte by itself, or byte pairs merged as in GPT-2 (https://arxiv.org/abs/1508.07909).

`tokenizers` learns which to merge. tiktoken encodes: it is faster, and gives up Python's lock, so that a long text is
encoded on all cores at once.
"""

import codecs
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import tiktoken
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from jaxgpt.data import gpt2_vocabulary, tokenizer_json
from jaxgpt.data.tokenizer_json import BYTES, GPT2_PATTERN, ByteLevel, Merge, read
from jaxgpt.data.vocabulary import check_size, checked, not_utf8, several, token_type
from jaxgpt.device.backend import cores
from jaxgpt.errors import UserError
from jaxgpt.files import reason, write_atomically

END_OF_TEXT = "<|endoftext|>"
ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]")  # what others call it
VOCAB_SIZE = 4096  # that is learnt where nobody says how many
LEARNT_FROM = 2**26  # characters
PART = 2**20  # characters that a thread encodes at once

# tiktoken's way to write GPT-2's pattern, which cuts the same and is faster
FAST_GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
# A pre-token of GPT-2's begins at a space or line break after anything else than white space.
BEGINNING = re.compile(r"\S(?=[ \n])")
# A long run of white space but for its last character, which is a pre-token's beginning. Python's \s is a bit more.
WHITE = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
LONG_SPACE = re.compile(f"[{WHITE}]{{100000,}}(?=[{WHITE}][^{WHITE}])")
# What is learnt from is cut here, too: `tokenizers` takes the square of a pre-token's length.
LONG_RUN = re.compile(r"\S{1000}|\s{1000}")


class ByteDecoder:
    """An incremental decoder: bytes that are not a whole character yet wait for the next tokens."""

    def __init__(self, vocab: Sequence[bytes]):
        self._vocab = vocab
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """The next tokens (T,) -> the text that is certain by now and was not given before."""
        return self._utf8.decode(_joined(tokens, self._vocab))

    def flush(self) -> str:
        """The rest of the text: a replacement character if a character is not whole."""
        return self._utf8.decode(b"", final=True)


@dataclass(frozen=True)
class BytesTokenizer:
    """A token is a byte of the text in UTF-8, and has its value."""

    kind: ClassVar[str] = "bytes"
    unit: ClassVar[str] = "byte"

    @classmethod
    def train(cls, texts: str | Iterable[str], vocab_size: int = 0) -> Self:
        """The tokenizer, which is the same for all texts. Raises `UserError` for another `vocab_size` than 256."""
        check_size(vocab_size, 256, "there are 256 bytes")
        return cls()

    @property
    def vocab_size(self) -> int:
        """256."""
        return 256

    @property
    def start(self) -> str:
        """A line break."""
        return "\n"

    @property
    def end_of_text(self) -> None:
        """None: every byte may be in a text."""

    def encode(self, text: str) -> np.ndarray:
        """`text` -> tokens (T,), uint16. Raises `UserError` for a text that is not UTF-8."""
        try:
            return np.frombuffer(text.encode(), np.uint8).astype(np.uint16)
        except UnicodeEncodeError as problem:
            raise not_utf8(text[problem.start]) from problem

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Tokens (T,) -> text, with U+FFFD for bytes that are not UTF-8. Raises `UserError` for what is no token."""
        return checked(tokens, 256).astype(np.uint8).tobytes().decode(errors="replace")

    def decoder(self) -> ByteDecoder:
        """A decoder that takes the tokens piece by piece."""
        return ByteDecoder(_BYTE_VALUES)

    def boundary(self, text: str) -> int:
        """All of `text`: each character has bytes of its own."""
        return len(text)

    def save(self, path: str | Path) -> None:
        """Write the tokenizer to `path` as a tokenizer.json. Raises `OSError` if that fails."""
        _save(ByteLevel(_BYTE_VALUES, (), (), ""), path)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self | None:
        """The tokenizer, if a tokenizer.json is of this kind."""
        if tokenizer_json.read_merges(content) != []:
            return None
        return cls() if tokenizer_json.read_byte_level(content) == (_BYTE_VALUES, (), (), "") else None


@dataclass(frozen=True)
class BPETokenizer:
    """Byte pairs. `BPETokenizer.train(text)` learns them from a text.

    Tokenizers with the same fields are equal.
    """

    kind: ClassVar[str] = "bpe"
    unit: ClassVar[str] = "token"

    vocab: tuple[bytes, ...]
    """What each token stands for."""
    merges: tuple[Merge, ...]
    """Pairs of tokens that become one, the first before the others."""
    special: tuple[int, ...]
    """The tokens that no text encodes to."""
    pattern: str = GPT2_PATTERN
    """The regular expression of a pre-token; empty for a text in one piece."""

    @classmethod
    def from_merges(cls, merges: Sequence[Merge]) -> Self:
        """As GPT-2 numbers its tokens: the bytes, what the merges give, <|endoftext|>."""
        vocab = (*_GPT2_BYTES, *(left + right for left, right in merges), END_OF_TEXT.encode())
        return cls(vocab, tuple(merges), (len(vocab) - 1,))

    @classmethod
    def train(cls, texts: str | Iterable[str], vocab_size: int = 0) -> Self:
        """Learns byte pairs from texts: from the first 2^26 (67 million) characters of them.

        Args:
            texts: one, or several of which no token crosses two.
            vocab_size: how many tokens there shall be, with 256 bytes and <|endoftext|> among them. 0 means 4,096, or
                fewer if the texts have no more pairs that occur twice.

        Raises:
            UserError: if `vocab_size` is below 257, or above what the texts have.
        """
        most = vocab_size or VOCAB_SIZE
        if most < 257:
            raise UserError(f"`vocab_size` is {vocab_size}: set it to 257 at least, for 256 bytes and {END_OF_TEXT}")
        learner = tokenizers.Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=most - 1, min_frequency=2, initial_alphabet=alphabet, show_progress=False
        )
        learner.train_from_iterator(_beginning(several(texts)), trainer)
        merges = json.loads(learner.to_str())["model"]["merges"]
        tokenizer = cls.from_merges([(read(left), read(right)) for left, right in merges])
        if vocab_size > tokenizer.vocab_size:
            raise UserError(
                f"`vocab_size` is {vocab_size}, but this text gives {tokenizer.vocab_size} tokens: "
                "set it to that, or take more text"
            )
        return tokenizer

    @property
    def vocab_size(self) -> int:
        """How many tokens there are."""
        return len(self.vocab)

    @property
    def start(self) -> str:
        """A line break."""
        return "\n"

    @property
    def end_of_text(self) -> int | None:
        """The token between documents, <|endoftext|>; other people's vocabularies may have none."""
        special = {self.vocab[token].decode(): token for token in self.special}
        return next((special[name] for name in ENDS if name in special), None)

    def encode(self, text: str) -> np.ndarray:
        """`text` -> tokens (T,), uint16, or int32 if the vocabulary does not fit in that.

        What looks like a special token is text like any other. Raises `UserError` for a text that is not UTF-8.
        """
        parts = [*pairwise((0, *self._cuts(text), len(text)))]
        if len(parts) == 1:
            return self._encode(text)
        with ThreadPoolExecutor(cores()) as pool:
            return np.concatenate([*pool.map(lambda part: self._encode(text[slice(*part)]), parts)])

    def decode(self, tokens: Sequence[int] | np.ndarray) -> str:
        """Tokens (T,) -> text, with U+FFFD for bytes that are not UTF-8. Raises `UserError` for what is no token."""
        return _joined(tokens, self.vocab).decode(errors="replace")

    def decoder(self) -> ByteDecoder:
        """A decoder that takes the tokens piece by piece."""
        return ByteDecoder(self.vocab)

    def boundary(self, text: str) -> int:
        """The last place where a text that begins with `text` can be cut, whatever follows; 0 if there is none.

        It is before a space or a line break after something else; patterns other than GPT-2's have none.
        """
        if self.pattern == GPT2_PATTERN:
            for start in (max(0, len(text) - 2**16), 0):
                if places := [match.end() for match in BEGINNING.finditer(text, start)]:
                    return places[-1]
        return 0

    def save(self, path: str | Path) -> None:
        """Write the tokenizer to `path` as a tokenizer.json. Raises `OSError` if that fails."""
        _save(ByteLevel(self.vocab, self.merges, self.special, self.pattern), path)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self | None:
        """The tokenizer in a tokenizer.json, if that is a byte-level BPE. Raises `UserError` if it is damaged."""
        bpe = tokenizer_json.read_byte_level(content)
        if bpe is None:
            return None
        tokenizer = cls(*bpe)
        if bpe.pattern != GPT2_PATTERN:
            _ = tokenizer._encoding  # tell now what is wrong with the pattern
        return tokenizer

    def _cuts(self, text: str) -> Iterator[int]:
        """Places where the text can be cut, `PART` characters apart or a little more."""
        return _cuts(text, PART) if self.pattern == GPT2_PATTERN else iter(())

    def _encode(self, text: str) -> np.ndarray:
        try:
            ranks = self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError as problem:
            raise not_utf8(text[problem.start]) from problem
        except ValueError as problem:  # white space by the million, which is more than tiktoken's pattern can take in
            places = [match.end() for match in LONG_SPACE.finditer(text)] if self.pattern == GPT2_PATTERN else []
            if not places:
                raise UserError(f"the tokenizer's regular expression fails ({reason(problem)})") from problem
            return np.concatenate([self._encode(text[slice(*part)]) for part in pairwise((0, *places, len(text)))])
        tokens = self._tokens[ranks]
        if self.pattern != GPT2_PATTERN and self._lengths[tokens].sum() != len(text.encode()):
            raise UserError("the tokenizer's regular expression leaves out a part of the text")  # as tiktoken does, too
        return tokens

    @cached_property
    def _tokens(self) -> np.ndarray:
        """The token of each rank."""
        special = set(self.special)
        token = {entry: i for i, entry in enumerate(self.vocab) if i not in special}
        return np.array([token[entry] for entry in self._ranks], token_type(self.vocab_size))

    @cached_property
    def _lengths(self) -> np.ndarray:
        """Of each token, in bytes."""
        return np.array([*map(len, self.vocab)])

    @property
    def _ranks(self) -> dict[bytes, int]:
        """tiktoken's: bytes, and what the merges give in their order."""
        return {entry: i for i, entry in enumerate((*_GPT2_BYTES, *(left + right for left, right in self.merges)))}

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        pattern = FAST_GPT2_PATTERN if self.pattern == GPT2_PATTERN else self.pattern or r"(?s).+"
        special = {END_OF_TEXT: len(self.merges) + 256}  # without any, tiktoken looks for it at every character
        try:
            return tiktoken.Encoding("jaxgpt", pat_str=pattern, mergeable_ranks=self._ranks, special_tokens=special)
        except ValueError as problem:
            raise UserError(f"its regular expression is not understood ({reason(problem)})") from problem


class GPT2Tokenizer(BPETokenizer):
    """GPT-2's byte pairs, 50,257 tokens. `GPT2Tokenizer.train("")` fetches them where they are not at hand."""

    kind: ClassVar[str] = "gpt2"

    @classmethod
    def train(cls, texts: str | Iterable[str], vocab_size: int = 0) -> Self:
        """GPT-2's tokenizer, the same for all texts. Raises `UserError` if no source has it, or for a `vocab_size`."""
        tokenizer = cls.from_merges(gpt2_vocabulary.load())
        check_size(vocab_size, tokenizer.vocab_size, f"GPT-2 has {tokenizer.vocab_size} tokens")
        return tokenizer

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self | None:
        """The tokenizer, if a tokenizer.json has GPT-2's vocabulary."""
        merges = tokenizer_json.read_merges(content)
        if not merges or not gpt2_vocabulary.is_it(merges):
            return None
        tokenizer = super().from_json(content)
        return tokenizer if tokenizer and tokenizer == cls.from_merges(tokenizer.merges) else None


_BYTE_VALUES = tuple(bytes([byte]) for byte in range(256))
_GPT2_BYTES = tuple(bytes([byte]) for byte in BYTES)


def _joined(tokens: Sequence[int] | np.ndarray, vocab: Sequence[bytes]) -> bytes:
    tokens = checked(tokens, len(vocab))
    parts = (tokens[start : start + PART].tolist() for start in range(0, len(tokens), PART))  # lists take much memory
    return b"".join(b"".join(map(vocab.__getitem__, part)) for part in parts)


def _save(bpe: ByteLevel, path: str | Path) -> None:
    write_atomically(path, json.dumps(tokenizer_json.byte_level(bpe), ensure_ascii=False).encode())


def _cuts(text: str, apart: int) -> Iterator[int]:
    """Places where pre-tokens of GPT-2's pattern begin."""
    place = apart
    while match := BEGINNING.search(text, place):
        yield match.end()
        place = match.end() + apart


def _beginning(texts: Iterable[str]) -> Iterator[str]:
    """The first `LEARNT_FROM` characters in parts that are shared among threads."""
    left = LEARNT_FROM
    for text in texts:
        text = text[:left]
        for start, end in pairwise((0, *_cuts(text, 2**16), len(text))):
            places = (match.end() for match in LONG_RUN.finditer(text, start, end))
            yield from (text[slice(*part)] for part in pairwise((start, *places, end)))
        left -= len(text)
        if left <= 0:
            break
