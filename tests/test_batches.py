"""Batches are a function of the seed and the step, and evaluations read every token once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.data import batches

TEXT = jnp.arange(100, 140)  # N = 40, each token tells its place


@pytest.mark.parametrize("n", [100, 101, 109])
def test_the_first_nine_tenths_are_for_training_and_the_rest_for_validation(n):
    train, val = batches.split(np.arange(n))
    assert len(train) == n * 9 // 10
    assert np.concatenate([train, val]).tolist() == list(range(n))


def test_windows_begin_where_they_are_asked_to_and_targets_are_one_later():
    x, y = batches.windows(TEXT, jnp.array([0, 7, 36]), 3)
    assert x.tolist() == [[100, 101, 102], [107, 108, 109], [136, 137, 138]]
    assert y.tolist() == [[101, 102, 103], [108, 109, 110], [137, 138, 139]]


def test_windows_of_a_small_type_are_int32():
    x, y = batches.windows(TEXT.astype(jnp.uint16), jnp.array([0]), 3)
    assert x.dtype == y.dtype == jnp.int32


def test_random_windows_are_a_function_of_the_key():
    draw = jax.jit(batches.random_windows, static_argnums=(2, 3))
    first, again = (draw(jax.random.key(0), TEXT, 8, 4) for _ in range(2))
    other = draw(jax.random.key(1), TEXT, 8, 4)
    np.testing.assert_array_equal(first, again)
    assert (first[0] != other[0]).any()


def test_random_windows_are_consecutive_tokens_with_targets_one_later():
    x, y = batches.random_windows(jax.random.key(0), TEXT, 8, 4)
    assert x.shape == y.shape == (8, 4)
    np.testing.assert_array_equal(x, x[:, :1] + np.arange(4))
    np.testing.assert_array_equal(y, x + 1)


def test_random_windows_begin_everywhere_from_the_first_token_to_the_last_that_has_room():
    x, _ = batches.random_windows(jax.random.key(0), TEXT, 2000, 8)
    assert set(x[:, 0].tolist()) == set(range(100, 132))  # the window at 131 has 139 as its last target


def test_a_text_of_one_window_and_a_target_has_one_random_window():
    x, y = batches.random_windows(jax.random.key(0), TEXT[:9], 4, 8)
    assert (x == TEXT[:8]).all()
    assert (y == TEXT[1:9]).all()


@pytest.mark.parametrize("block_size", [1, 2, 7, 8])
@pytest.mark.parametrize("extra", [1, 2, 7, 8, 9, 16, 17, 30])
def test_every_token_but_the_first_is_a_target_exactly_once(block_size, extra):
    n = block_size + extra
    starts, skips = batches.fixed_windows(n, block_size)
    assert (starts >= 0).all()
    assert (starts + block_size + 1 <= n).all()
    targets = [start + 1 + i for start, skip in zip(starts, skips, strict=True) for i in range(skip, block_size)]
    assert sorted(targets) == list(range(1, n))


def test_only_the_last_window_has_targets_that_do_not_count():
    starts, skips = batches.fixed_windows(14, 4)
    assert starts.tolist() == [0, 4, 8, 9]
    assert skips.tolist() == [0, 0, 0, 3]


def test_a_few_fixed_windows_are_always_the_same_of_all_of_them():
    few, again = (np.stack(batches.fixed_windows(1003, 8, count=20)) for _ in range(2))
    every = {tuple(window) for window in np.stack(batches.fixed_windows(1003, 8)).T.tolist()}
    np.testing.assert_array_equal(few, again)
    assert len({tuple(window) for window in few.T.tolist()} & every) == 20


def test_a_few_fixed_windows_are_evenly_spread_from_first_to_last():
    starts, _ = batches.fixed_windows(1001, 8, count=20)  # of 125 windows
    assert (starts[0], starts[-1]) == (0, 992)
    gaps = np.diff(starts)
    assert gaps.max() - gaps.min() == 8


@pytest.mark.parametrize("count", [125, 126, 1000])
def test_asking_for_more_fixed_windows_than_there_are_gives_all(count):
    np.testing.assert_array_equal(batches.fixed_windows(1001, 8, count), batches.fixed_windows(1001, 8))
