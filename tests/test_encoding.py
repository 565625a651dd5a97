"""Documents become tokens in pieces and in parallel, with the same tokens as if each were encoded at once."""

import threading

import numpy as np
import pytest

from jaxgpt.data import encoding
from jaxgpt.data.bpe import BPETokenizer, BytesTokenizer
from jaxgpt.data.corpus import Piece
from jaxgpt.data.tokenizer import CharTokenizer
from jaxgpt.errors import UserError

WORDS = "the night is young, and so are we; 'tis 2026 now:\n\n   it's naïve 文字 🎭 !?  \n"
BPE = BPETokenizer.train(WORDS * 50, 300)


def pieces(*documents: str, size: int = 10) -> list[Piece]:
    """The documents in pieces of `size` characters."""
    found = []
    for text in documents:
        parts = [text[i : i + size] for i in range(0, len(text), size)] or [""]
        found += [Piece(part, last=False) for part in parts[:-1]] + [Piece(parts[-1], last=True)]
    return found


def tokens_of(tokenizer, *documents: str, size: int = 10) -> np.ndarray:
    batches = encoding.batches(pieces(*documents, size=size), tokenizer)
    return np.concatenate([encoded.tokens for encoded in encoding.encode(batches, tokenizer)])


@pytest.mark.parametrize("batch", [1, 50, 10**6])
@pytest.mark.parametrize("size", [1, 7, 100])
def test_pieces_have_the_tokens_of_the_whole_with_end_of_text_between_documents(size, batch, monkeypatch):
    monkeypatch.setattr(encoding, "BATCH", batch)
    documents = [WORDS * 5, WORDS[:30], "", "one"]
    end = [BPE.end_of_text]
    whole = [BPE.encode(documents[0]), end, BPE.encode(documents[1]), end, end, BPE.encode("one")]
    found = tokens_of(BPE, *documents, size=size)
    np.testing.assert_array_equal(found, np.concatenate(whole))
    assert found.dtype == np.uint16


@pytest.mark.parametrize("tokenizer", [BytesTokenizer(), CharTokenizer.train(WORDS + "one")], ids=["bytes", "char"])
@pytest.mark.parametrize("batch", [1, 50, 10**6])
def test_without_an_end_of_text_a_line_break_is_between_documents(tokenizer, batch, monkeypatch):
    monkeypatch.setattr(encoding, "BATCH", batch)
    documents = [WORDS * 5, "one", "", "one"]
    assert tokenizer.decode(tokens_of(tokenizer, *documents)) == "\n".join(documents)
    assert "".join(encoding.joined(pieces(*documents))) == "\n".join(documents)


def test_tokens_have_the_smallest_type():
    many = CharTokenizer("".join(map(chr, range(0x10000, 0x10000 + 2**16 + 1))))
    assert tokens_of(many, many.characters[-1]).tolist() == [2**16]


def test_what_is_read_is_not_much_more_than_what_is_encoded(monkeypatch):
    monkeypatch.setattr(encoding, "BATCH", 10)
    read = []

    def endless():
        while True:
            read.append(1)
            yield Piece("to be, or ", last=False)

    tokens = encoding.encode(encoding.batches(endless(), BytesTokenizer()), BytesTokenizer())
    for _ in range(50):
        next(tokens)
    assert len(read) < 50 + 4 * encoding.cores() + 4
    tokens.close()


def test_pieces_are_encoded_side_by_side_and_stay_in_order(monkeypatch):
    monkeypatch.setattr(encoding, "BATCH", 1)
    monkeypatch.setattr(encoding, "cores", lambda: 2)
    together = threading.Barrier(2, timeout=20)

    class Waiting(BytesTokenizer):
        def encode(self, text: str) -> np.ndarray:
            together.wait()
            return super().encode(text)

    assert Waiting().decode(tokens_of(Waiting(), "abcdefgh", size=1)) == "abcdefgh"


def test_what_cannot_be_encoded_is_told_and_nothing_goes_on():
    before = threading.active_count()
    tokenizer = CharTokenizer("abc")
    with pytest.raises(UserError, match="did not contain 'x'"):
        tokens_of(tokenizer, "abc" * 10 + "x" + "abc" * 10)
    assert threading.active_count() == before
