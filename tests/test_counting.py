"""The n-gram model: that it is Kneser-Ney's, and a distribution whatever it is asked."""

from collections import Counter, defaultdict

import numpy as np
import pytest

from jaxgpt.counting import Counts, HeldOut
from jaxgpt.errors import UserError

V, ORDER = 30, 3
TEXT = np.minimum(np.random.default_rng(0).geometric(0.15, 2000) - 1, V - 2)  # the last token never comes
COUNTS = Counts(TEXT, ORDER, V)


def slowly(text, order, vocab_size, context, token, left_out=range(0)) -> float:
    """Chen and Goodman's equations, n-gram by n-gram; `context` has the nearest token last. What ends at a place of
    `left_out` does not count."""
    ends = (end for end in range(order, len(text) + 1) if end - 1 not in left_out)
    grams = Counter(tuple(text[end - order : end]) for end in ends)
    p = 1 / vocab_size
    for length in range(1, min(order, len(context) + 1) + 1):
        longer, counts = set(grams), dict(grams)
        for shorter in range(order - 1, length - 1, -1):  # continuation counts: what stands before, once each
            before = defaultdict(set)
            for gram in longer:
                before[gram[1:]].add(gram[0])
            counts, longer = {gram: len(found) for gram, found in before.items()}, set(before)
            assert all(len(gram) == shorter for gram in longer)
        n = [sum(count == k for count in counts.values()) for k in range(5)]
        discount = [0, 0.5, 0.75, 0.75]
        if 0 not in n[1:]:
            y = n[1] / (n[1] + 2 * n[2])
            discount = [0, 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
        own = {g: c for g, c in counts.items() if g[:-1] == tuple(context[len(context) - length + 1 :])}
        if not own:
            continue
        total = sum(own.values())
        taken = sum(discount[min(count, 3)] for count in own.values())
        count = own.get((*context[len(context) - length + 1 :], token), 0)
        p = (count - discount[min(count, 3)]) / total + taken / total * p
    return p


@pytest.mark.parametrize("context", [(), (0,), (1, 2), (3, 3), (4, 0), (2, 1, 0)])
def test_probabilities_are_kneser_neys_and_sum_to_one(context):
    found = COUNTS.probabilities(np.tile(context, (V, 1)).astype(int).reshape(V, -1), np.arange(V))
    expected = [slowly(TEXT, ORDER, V, context, token) for token in range(V)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(found.sum(), 1)
    assert (found > 0).all()


def test_losses_are_of_each_token_after_all_that_came_before_it():
    text = np.array([0, 4, 1, 2, 0, 0])
    expected = [-np.log(slowly(TEXT, ORDER, V, tuple(text[:i]), text[i])) for i in range(1, len(text))]
    np.testing.assert_allclose(COUNTS.losses(text), expected)


def test_a_longer_memory_predicts_better_what_repeats():
    text = np.tile([0, 1, 2, 0, 2, 1, 1], 60)
    losses = [Counts(text, order, 3).losses(text).mean() for order in (1, 2, 3, 4)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.1


def test_what_is_written_is_a_function_of_the_seed_and_begins_after_the_prompt():
    text = np.tile([0, 1, 2, 3], 100)
    counts = Counts(text, 3, 4)
    np.testing.assert_array_equal(counts.generate(np.array([0, 1]), 8, seed=1)[:2], [2, 3])
    np.testing.assert_array_equal(COUNTS.generate(np.array([0]), 50, 7), COUNTS.generate(np.array([0]), 50, 7))
    assert (COUNTS.generate(np.array([0]), 50, 7) != COUNTS.generate(np.array([0]), 50, 8)).any()


@pytest.mark.parametrize(
    ("order", "text", "told"),
    [(0, TEXT, "`order` is from 1 to"), (40, TEXT, "not 40"), (3, TEXT[:2], "has no n-grams")],
)
def test_an_order_that_cannot_be_counted_is_told(order, text, told):
    with pytest.raises(UserError, match=told):
        Counts(text, order, V)


@pytest.mark.parametrize("place", [0, 1, 150, 199, 200, 1234, 1999])
def test_a_place_is_judged_by_what_ends_in_the_other_tenths(place):
    held_out = HeldOut(TEXT, V, ORDER)
    text = [0, 0, *TEXT]  # as if the first token came before
    tenth = place // 200
    left_out = range(2 + 200 * tenth, 2 + 200 * (tenth + 1))
    context = tuple(text[place : place + 2])
    expected = [slowly(text, ORDER, V, context, token, left_out) for token in range(V)]
    table = held_out.table()
    assert table.shape == held_out.shape
    np.testing.assert_allclose(table[held_out.rows[place]], expected, rtol=1e-5)


def test_what_a_text_says_but_once_is_not_known_from_itself():
    text = np.concatenate([TEXT, [V - 1, 3, V - 1]])  # the only places with the last token
    held_out = HeldOut(text, V, ORDER)
    assert held_out.table()[held_out.rows[-1], V - 1] < 2 / V
