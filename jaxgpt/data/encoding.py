"""Documents to tokens: piece by piece, over all cores, in order, with end-of-text between two documents."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from jaxgpt.data.corpus import Piece
from jaxgpt.data.tokenizer import Tokenizer
from jaxgpt.data.vocabulary import token_type
from jaxgpt.device.backend import cores

BATCH = 2**20  # characters that a thread encodes at a time, or one piece more

Batch = list[str | None]  # texts, and None for each place where a document ends and another one begins


class Encoded(NamedTuple):
    """The tokens of some pieces."""

    tokens: np.ndarray
    n_characters: int
    """Of their text."""


def encode(batches: Iterable[Batch], tokenizer: Tokenizer) -> Iterator[Encoded]:
    """The tokens of each batch, in order; a few batches are worked on at a time, and no more are held in memory.

    Raises:
        UserError: for what the tokenizer can't encode, and what `batches` raises.
    """
    n_threads = cores()
    with ThreadPoolExecutor(n_threads) as pool:
        pending: deque[Future[Encoded]] = deque()
        try:
            for batch in batches:
                pending.append(pool.submit(_encode, batch, tokenizer))
                if len(pending) > 2 * n_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def batches(pieces: Iterable[Piece], tokenizer: Tokenizer) -> Iterator[Batch]:
    """Documents in batches of a megabyte or so, which depend on nothing but the documents and the tokenizer. Where that
    has no end-of-text, a line break is in its place."""
    separator = "\n" if tokenizer.end_of_text is None else None
    batch: Batch = []
    size = 0
    for text in _separated(_whole_tokens(pieces, tokenizer), separator):
        batch.append(text)
        size += len(text or "")
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def joined(pieces: Iterable[Piece]) -> Iterator[str]:
    """The texts of the pieces, with a line break where a document ends and another one begins."""
    return (text for text in _separated(pieces, "\n") if text)


def _separated(pieces: Iterable[Piece], separator: str | None) -> Iterator[str | None]:
    ended = False
    for piece in pieces:
        if ended:
            yield separator
        if piece.text:
            yield piece.text
        ended = piece.last


def _whole_tokens(pieces: Iterable[Piece], tokenizer: Tokenizer) -> Iterator[Piece]:
    """The pieces, cut where no token reaches across."""
    rest = ""
    for text, last in pieces:
        text = rest + text
        n = len(text) if last else tokenizer.boundary(text)
        yield Piece(text[:n], last)
        rest = text[n:]


def _encode(batch: Batch, tokenizer: Tokenizer) -> Encoded:
    if tokenizer.end_of_text is None:
        batch = ["".join(text for text in batch if text)]  # one long text is encoded faster
    parts = [np.array([tokenizer.end_of_text]) if text is None else tokenizer.encode(text) for text in batch]
    tokens = np.concatenate(parts, dtype=np.dtype(token_type(tokenizer.vocab_size)), casting="unsafe")
    return Encoded(tokens, sum(len(text or "") for text in batch))
