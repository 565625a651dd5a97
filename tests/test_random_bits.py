"""Dropout's random bits, hashed from an index and a key, are as good as random: in rate, in every bit, and without a
trace of their neighbours, of other layers, of other steps or of other seeds.

The bounds are five standard deviations of what true randomness would give; the keys are fixed, so that a test that
passes once passes always.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.model.ops import dropout, random_bits

SHAPE = (8, 4, 64, 128)  # as attention's weights: (B, H, T, S)
N = np.prod(SHAPE)


def key(seed: int = 1337, step: int = 0, layer: int = 0) -> jax.Array:
    """As a run's: of the seed, the step, and a place in the model."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), step), 12)[layer]


def bits(*place: int, shape=SHAPE) -> np.ndarray:
    return np.asarray(random_bits(key(*place), shape))


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


PLACES = {"first": (1337, 0, 0), "late": (1337, 4999, 11), "other seed": (0, 1, 2)}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("rate", [0.01, 0.1, 0.2, 0.5, 0.9])
def test_the_share_dropped_is_the_rate(rate, place):
    dropped = np.asarray(dropout(jnp.ones(SHAPE), rate, key(*place)) == 0)
    assert abs(dropped.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / N)


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_every_bit_is_a_fair_coin(place):
    drawn = bits(*place)
    shares = np.array([(drawn >> bit & 1).mean() for bit in range(32)])
    assert abs(shares - 0.5).max() < 5 * 0.5 / np.sqrt(N)


@pytest.mark.parametrize("axis", range(4), ids=["sequence", "head", "query", "key"])
@pytest.mark.parametrize("distance", [1, 2, 3])
def test_a_place_tells_nothing_of_its_neighbours(axis, distance):
    drawn = bits() / 2**32
    one = np.take(drawn, range(distance, SHAPE[axis]), axis)
    other = np.take(drawn, range(SHAPE[axis] - distance), axis)
    assert abs(correlation(one, other)) < 5 / np.sqrt(one.size)


OTHERS = {
    "next step": (1337, 1, 0),
    "next layer": (1337, 0, 1),
    "next seed": (1338, 0, 0),
    "far step": (1337, 4096, 0),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_two_keys_share_nothing(other):
    mine, theirs = bits(), bits(*other)
    assert abs(correlation(mine, theirs)) < 5 / np.sqrt(N)
    assert abs((mine == theirs).mean() - 2.0**-32) < 1e-4
    same = np.array([((mine ^ theirs) >> bit & 1).mean() for bit in range(32)])  # bit by bit
    assert abs(same - 0.5).max() < 5 * 0.5 / np.sqrt(N)


def test_the_masks_of_many_steps_and_layers_share_nothing():
    masks = np.stack([bits(1337, step, layer, shape=(64, 256)).ravel() > 0.2 * 2**32 for step, layer in STEPS_LAYERS])
    between = np.corrcoef(masks)[np.triu_indices(len(masks), 1)]
    n = masks.shape[1]
    assert abs(between).max() < 5 / np.sqrt(n)
    assert between.std() == pytest.approx(1 / np.sqrt(n), rel=0.1)  # nor are they suspiciously even


STEPS_LAYERS = [(step, layer) for step in range(10) for layer in range(6)]


@pytest.mark.parametrize("axis", range(4), ids=["sequence", "head", "query", "key"])
def test_how_many_are_dropped_along_an_axis_varies_as_it_should(axis):
    counts = (bits() < 0.2 * 2**32).sum(axis)
    expected = SHAPE[axis] * 0.2 * 0.8
    assert counts.var() == pytest.approx(expected, rel=5 * np.sqrt(2 / counts.size) + 0.01)


def test_pairs_of_neighbours_fall_everywhere_alike():
    drawn = (bits() >> 28).reshape(-1, 2)  # the highest four bits of two neighbours: 256 kinds of pairs
    counts = np.bincount(drawn[:, 0] * 16 + drawn[:, 1], minlength=256)
    expected = len(drawn) / 256
    chi_square = ((counts - expected) ** 2 / expected).sum()  # 255 degrees of freedom
    assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)


def test_they_are_the_same_where_64_bit_types_are_switched_on():
    narrow = bits(shape=(64, 64))
    with jax.enable_x64(True):
        wide = bits(shape=(64, 64))
        dropped = dropout(jnp.ones((64, 64), jnp.float32), 0.2, key()) == 0
    assert wide.dtype == narrow.dtype
    np.testing.assert_array_equal(wide, narrow)
    np.testing.assert_array_equal(dropped, narrow < 0.2 * 2**32)


def test_no_key_gives_another_keys_bits_in_another_order():
    # Keys whose first words differ in the lowest 19 bits alone would do so if the index met nothing but that word.
    keys = jax.random.split(jax.random.key(0), 400)
    first = np.asarray(jax.vmap(lambda k: jax.random.bits(k, (2,)))(keys))[:, 0] >> 19
    pairs = [(i, j) for i in range(400) for j in range(i) if first[i] == first[j]]
    assert pairs
    for i, j in pairs:
        mine, theirs = (np.sort(np.asarray(random_bits(keys[k], (2**19,)))) for k in (i, j))
        assert (mine == theirs).mean() < 0.01
