"""What counting alone reaches: the next token by how often each came after the last few, in the text trained on; and
what it can teach a model that learns that text.

Interpolated Kneser-Ney smoothing with three discounts an order: Chen and Goodman 1999, "An empirical study of smoothing
techniques for language modeling", section 3. Order 2 looks at one token, as the ladder's `bigram` does: that learns by
gradient what is counted here.

Shapes: N tokens of a text, M places that are predicted, G different n-grams, K different contexts, V the vocabulary.
"""

from typing import NamedTuple

import numpy as np

from jaxgpt.errors import UserError

LARGEST = 2**63  # an n-gram is one number in base V, which has to be below
PARTS = 10  # of a text, each of which is judged by the others


class Grams(NamedTuple):
    """What is known of all n-grams of one length. The last digit of a number is the next token, the one before it the
    token before that, and so on."""

    numbers: np.ndarray
    """(G,) int64, sorted: the n-grams."""
    shares: np.ndarray
    """(G,) the share of its context that each has after the discount."""
    contexts: np.ndarray
    """(K,) int64, sorted: the n-grams without their last digit."""
    rest: np.ndarray
    """(K,) the share of each context that is left for the next lower order."""


class Counts:
    """A language model of n-grams up to the length `order`, counted in `tokens` (N,) of a vocabulary of V.

    Raises:
        UserError: for an order that is not positive, or too long for the vocabulary, or a text that is shorter.
    """

    def __init__(self, tokens: np.ndarray, order: int, vocab_size: int):
        most = int(np.log(LARGEST) / np.log(max(2, vocab_size)))
        if not 1 <= order <= most:
            raise UserError(f"the `order` is from 1 to {most} for {vocab_size:,} different tokens, not {order}")
        if len(tokens) < order:
            raise UserError(f"a text of {len(tokens)} tokens has no n-grams of {order}")
        self.order, self.vocab_size = order, vocab_size
        self._tables = _tables(*np.unique(_longest(tokens, order, vocab_size), return_counts=True), order, vocab_size)

    def probabilities(self, contexts: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """How likely each of `tokens` (M,) is after its row of `contexts` (M, C), the nearest last, -1 where there is
        none: (M,) float64."""
        p = np.full(len(tokens), 1 / self.vocab_size)
        context, digit, whole = np.zeros(len(tokens), np.int64), 1, np.full(len(tokens), True)
        for n, table in enumerate(self._tables):
            if n > contexts.shape[1]:
                break
            if n > 0:
                context, digit = context + digit * contexts[:, -n], digit * self.vocab_size
                whole = whole & (contexts[:, -n] >= 0)
            known, place = _find(table.contexts, context)
            seen, gram = _find(table.numbers, context * self.vocab_size + tokens)
            longer = np.where(seen, table.shares[gram], 0) + table.rest[place] * p
            p = np.where(known & whole, longer, p)
        return p

    def losses(self, tokens: np.ndarray) -> np.ndarray:
        """Of each token but the first of a text (N,), in nats: (N - 1,)."""
        tokens = np.asarray(tokens, np.int64)
        width = max(1, self.order - 1)
        padded = np.concatenate([np.full(width, -1), tokens])
        contexts = np.lib.stride_tricks.sliding_window_view(padded, width)[1:-1]
        return -np.log(self.probabilities(contexts, tokens[1:]))

    def generate(self, prompt: np.ndarray, tokens: int, seed: int = 0) -> np.ndarray:
        """The next `tokens` tokens after `prompt` (P,): (tokens,)."""
        rng, text, every = np.random.default_rng(seed), [int(token) for token in prompt], np.arange(self.vocab_size)
        for _ in range(tokens):
            context = np.asarray(text[max(0, len(text) - self.order + 1) :], np.int64)
            p = self.probabilities(np.tile(context, (self.vocab_size, 1)), every)
            text.append(int(rng.choice(every, p=p / p.sum())))
        return np.asarray(text[len(prompt) :])


class HeldOut:
    """What the counts of the rest of a text predict at each of its places: targets for a model that learns that text.

    The text is cut into `PARTS`, and a part is judged by the n-grams that end in the others: by those that end in the
    part itself, every place would look certain. Places of a part with the same context share a row of the table.

    Args:
        tokens: (N,) the text.
        vocab_size: V, small, as the table has a column for each token.
        order: length of the n-grams.
    """

    def __init__(self, tokens: np.ndarray, vocab_size: int, order: int = 6):
        self.order, self.vocab_size = order, vocab_size
        padded = np.concatenate([np.zeros(order - 1, np.int64), tokens])  # at the start, as if token 0 came before
        self._grams = _longest(padded, order, vocab_size)  # (N,)
        self._part = np.arange(len(tokens)) * PARTS // len(tokens)
        contexts = self._part * vocab_size ** (order - 1) + self._grams // vocab_size
        self._contexts, rows = np.unique(contexts, return_inverse=True)
        self.rows: np.ndarray = rows.astype(np.int32)
        """(N,) where in the table the prediction of each token is."""
        self.shape = (len(self._contexts), vocab_size)
        """(R, V) of the table, known before it is there."""

    def table(self) -> np.ndarray:
        """The probability of each next token, (R, V) float32."""
        grams, index = np.unique(self._grams, return_inverse=True)
        counts, found = np.bincount(index), []
        part_of_row, contexts = np.divmod(self._contexts, self.vocab_size ** (self.order - 1))
        for part in range(PARTS):
            others = counts - np.bincount(index[self._part == part], minlength=len(grams))
            tables = _tables(grams[others > 0], others[others > 0], self.order, self.vocab_size)
            found.append(_distributions(tables, contexts[part_of_row == part], self.vocab_size))
        return np.concatenate(found)


def _longest(tokens: np.ndarray, order: int, vocab_size: int) -> np.ndarray:
    """The n-gram that ends at each token of a text (N,) but the first few: (N - order + 1,) int64."""
    tokens = np.asarray(tokens, np.int64)
    grams = np.lib.stride_tricks.sliding_window_view(tokens, order)
    return grams @ (vocab_size ** np.arange(order - 1, -1, -1, dtype=np.int64))


def _tables(numbers: np.ndarray, counts: np.ndarray, order: int, vocab_size: int) -> list[Grams]:
    """What is known of the n-grams of every length from 1 to `order`, from the longest (G,) and their counts (G,).

    Of the longest, the counts say how often each occurs; of the others, after how many different tokens: "Francisco" is
    frequent, but after one word alone.
    """
    found = [(numbers, counts)]
    for length in range(order - 1, 0, -1):
        found.append(np.unique(found[-1][0] % vocab_size**length, return_counts=True))
    return [_table(*counted, vocab_size) for counted in found[::-1]]


def _distributions(tables: list[Grams], contexts: np.ndarray, vocab_size: int) -> np.ndarray:
    """The probability of every next token after each of the `contexts` (K,), sorted, of as many tokens as `tables` has
    lengths beyond the first: (K, V) float32."""
    *shorter, table = tables
    if shorter:
        ends, place = np.unique(contexts % vocab_size ** (len(shorter) - 1), return_inverse=True)
        p = _distributions(shorter, ends, vocab_size)[place]
    else:
        p = np.full((len(contexts), vocab_size), 1 / vocab_size, np.float32)
    known, place = _find(table.contexts, contexts)
    p *= np.where(known, table.rest[place], 1).astype(np.float32)[:, None]
    wanted, row = _find(contexts, table.numbers // vocab_size)
    p[row[wanted], table.numbers[wanted] % vocab_size] += table.shares[wanted].astype(np.float32)
    return p


def _table(numbers: np.ndarray, counts: np.ndarray, vocab_size: int) -> Grams:
    contexts, place = np.unique(numbers // vocab_size, return_inverse=True)
    totals = np.bincount(place, counts)
    discounts = _discounts(counts)[np.minimum(counts, 3)]
    return Grams(numbers, (counts - discounts) / totals[place], contexts, np.bincount(place, discounts) / totals)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """What is taken from counts of 0, 1, 2, and 3 or more: (4,)."""
    n = np.bincount(np.minimum(counts, 5), minlength=6)[1:5]  # how many counts are 1, 2, 3, 4
    if (n == 0).any():  # of a text too short to tell
        return np.array([0, 0.5, 0.75, 0.75])
    y = n[0] / (n[0] + 2 * n[1])
    return np.array([0, *(k - (k + 1) * y * n[k] / n[k - 1] for k in (1, 2, 3))])


def _find(values: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of `wanted` (M,) are among the sorted `values`, and where."""
    place = np.minimum(np.searchsorted(values, wanted), len(values) - 1)
    return values[place] == wanted, place
