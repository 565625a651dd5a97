"""Batches are a function of the seed and the step, on the device as on the host; evaluations read every token once."""

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


# Windows


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["NumPy", "JAX"])
def test_windows_begin_where_they_are_asked_to_and_targets_are_one_later(array):
    windows = batches.windows(array(TEXT, np.uint16), array([0, 7, 36]), 3)
    assert windows.dtype == np.uint16
    inputs, targets = batches.inputs_and_targets(jnp.asarray(windows))
    assert inputs.tolist() == [[100, 101, 102], [107, 108, 109], [136, 137, 138]]
    assert targets.tolist() == [[101, 102, 103], [108, 109, 110], [137, 138, 139]]
    assert inputs.dtype == targets.dtype == jnp.int32


def random_windows(key: jax.Array, tokens: jax.Array, batch_size: int, block_size: int) -> jax.Array:
    starts = batches.random_starts(key, len(tokens) - block_size, batch_size)
    return batches.windows(tokens, starts, block_size)


def test_random_windows_are_a_function_of_the_key():
    draw = jax.jit(random_windows, static_argnums=(2, 3))
    first, again = (draw(jax.random.key(0), TEXT, 8, 4) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first != draw(jax.random.key(1), TEXT, 8, 4)).any()


def test_random_windows_begin_everywhere_from_the_first_token_to_the_last_that_has_room():
    windows = random_windows(jax.random.key(0), TEXT, 2000, 8)
    np.testing.assert_array_equal(windows, windows[:, :1] + np.arange(9))
    assert set(windows[:, 0].tolist()) == set(range(100, 132))  # the window at 131 has 139 as its last target


def test_a_text_of_one_window_and_a_target_has_one_random_window():
    assert (random_windows(jax.random.key(0), TEXT[:9], 4, 8) == TEXT[:9]).all()


# From the host


@pytest.mark.parametrize(
    "seed, dtype, batch_size, block_size",
    [
        (1, np.uint16, 4, 8),
        (2**32 - 1, np.int32, 5, 1),
        (0, np.uint8, 1, 99),  # one token less than the text: a single window
        (1337, np.uint16, 12, 64),
    ],
)
@pytest.mark.parametrize("x64", [False, True])
def test_the_host_draws_the_batch_that_the_device_draws(seed, dtype, batch_size, block_size, x64, tmp_path):
    tokens = np.random.default_rng(0).integers(0, 200, 100).astype(dtype)
    tokens.tofile(tmp_path / "text.bin")
    mapped = np.memmap(tmp_path / "text.bin", dtype, "r")
    with jax.enable_x64(x64):
        text = jnp.asarray(tokens)

        @jax.jit
        def on_device(step):
            return random_windows(batches.step_keys(seed, step)[0], text, batch_size, block_size)

        for step in [*range(130), 10**6, 2**31 - 1]:
            expected = on_device(jnp.int32(step))
            for held in (tokens, mapped):
                batch = batches.host_batch(seed, step, held, batch_size, block_size)
                assert batch.dtype == expected.dtype == dtype
                np.testing.assert_array_equal(batch, expected)


class Places:
    """A text of any length, whose tokens tell their place."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: np.ndarray) -> np.ndarray:
        assert index.min() >= 0
        assert index.max() < self.length
        return index


FAR = 2**33 + 12_345


def starts(length: int, steps: int, seed: int = 1, batch_size: int = 64, block_size: int = 8) -> np.ndarray:
    """Where the windows of the first steps begin, (steps, B)."""
    drawn = [batches.host_batch(seed, step, Places(length), batch_size, block_size) for step in range(steps)]
    return np.stack(drawn)[:, :, 0]


@pytest.mark.parametrize("length", [FAR, 3 * 2**38], ids="{:,}".format)
def test_beyond_the_reach_of_an_int32_all_places_are_as_likely(length):
    shares = starts(length, 200) / length
    n = shares.size
    assert abs(shares.mean() - 0.5) < 5 / np.sqrt(12 * n)  # five standard deviations, here and below
    assert abs(np.corrcoef(shares[1:].ravel(), shares[:-1].ravel())[0, 1]) < 5 / np.sqrt(n)
    counts, _ = np.histogram(shares, 64, (0, 1))
    assert abs(((counts - n / 64) ** 2 / (n / 64)).sum() - 63) < 5 * np.sqrt(2 * 63)
    counts = np.bincount(starts(length, 200).ravel() % 64, minlength=64)
    assert abs(((counts - n / 64) ** 2 / (n / 64)).sum() - 63) < 5 * np.sqrt(2 * 63)


def test_beyond_the_reach_of_an_int32_a_batch_is_a_function_of_seed_and_step():
    first = starts(FAR, 400)
    assert len(np.unique(first)) > 0.999 * first.size
    assert not np.isin(starts(FAR, 10, seed=2), first).any()
    for step in (399, 0, 70, 399):  # in any order
        np.testing.assert_array_equal(batches.host_batch(1, step, Places(FAR), 64, 8)[:, 0], first[step])


@pytest.mark.parametrize("length", [2**31 - 1, 2**31 + 7, 2**31 + 8], ids="{:,}".format)
def test_on_both_sides_of_the_border_windows_lie_in_the_text(length):
    # Up to 2^31 - 1 windows the positions are drawn as a device does it; Places looks that they are inside.
    assert starts(length, 64).max() > 0.99 * length


def test_beyond_the_reach_of_an_int32_the_first_and_the_last_window_are_drawn_too(monkeypatch):
    monkeypatch.setattr(batches, "INT32", 0)  # as if a text of 40 tokens were too long
    drawn = starts(40, 100, seed=77)
    counts = np.bincount(drawn.ravel())
    assert len(counts) == 32
    assert abs(((counts - 200) ** 2 / 200).sum() - 31) < 5 * np.sqrt(2 * 31)


def test_a_file_of_more_tokens_than_an_int32_counts_is_read_where_the_windows_are(tmp_path):
    text = np.memmap(tmp_path / "text.bin", np.uint16, "w+", shape=(FAR,))  # a hole in the disk: zeros
    places = batches.host_batch(5, 3, Places(FAR), 6, 4)
    assert (places > 2**31).any()
    text[places] = np.arange(1, 31).reshape(6, 5)
    np.testing.assert_array_equal(batches.host_batch(5, 3, text, 6, 4), np.arange(1, 31).reshape(6, 5))


# Without replacement


def shuffled(n_tokens: int, block_size: int, first: int, count: int, seed: int = 1) -> np.ndarray:
    """Where the windows of `count` steps begin, each of a batch of one."""
    tokens = Places(n_tokens)
    steps = range(first, first + count)
    return np.stack([batches.host_batch(seed, step, tokens, 1, block_size, False)[0, 0] for step in steps])


@pytest.mark.parametrize(
    "n_tokens, block_size, count", [(1000, 8, 124), (9, 8, 1), (15, 8, 1), (17, 8, 1), (24, 8, 2), (40, 1, 39)]
)
def test_each_pass_has_every_window_once_in_another_order(n_tokens, block_size, count):
    passes = [shuffled(n_tokens, block_size, i * count, count) for i in range(20)]
    for starts in passes:
        assert (np.diff(np.sort(starts)) == block_size).all()  # end to end, none twice
        assert starts.min() < block_size
        assert starts.max() + block_size + 1 <= n_tokens
    if count > 2:
        assert len({starts.argsort().tobytes() for starts in passes}) == 20
    if block_size > 1 and n_tokens > block_size + 1:
        assert len({starts.min() for starts in passes}) > 3  # each pass cuts the text elsewhere


def test_batches_of_any_size_go_through_the_same_order():
    one_by_one = shuffled(1000, 8, 0, 300)
    for batch_size in (7, 50, 300):  # 124 windows a pass
        batch = [batches.host_batch(1, i, Places(1000), batch_size, 8, False)[:, 0] for i in range(300 // batch_size)]
        starts = np.concatenate(batch)
        np.testing.assert_array_equal(starts, one_by_one[: len(starts)])


def test_the_order_is_a_function_of_the_seed_and_the_step():
    np.testing.assert_array_equal(shuffled(1000, 8, 0, 130)[100:], shuffled(1000, 8, 100, 30))
    assert (shuffled(1000, 8, 0, 100) != shuffled(1000, 8, 0, 100, seed=2)).mean() > 0.9
    # Resumed runs of any machine and of any version of NumPy rely on these.
    assert shuffled(1000, 8, 0, 4).tolist() == [849, 217, 697, 161]


def test_every_order_is_as_likely():
    firsts = np.array([shuffled(24 + 8, 8, 3 * i, 3).argsort() for i in range(600)])  # 3 windows a pass
    _, counts = np.unique(firsts, axis=0, return_counts=True)
    assert len(counts) == 6
    assert ((counts - 100) ** 2 / 100).sum() < 5 + 5 * np.sqrt(2 * 5)


def test_an_order_of_an_endless_text_takes_no_memory_and_goes_everywhere():
    starts = shuffled(3 * 2**40, 1024, 2**31 - 500, 500) / 2**40
    assert np.histogram(starts, 3, (0, 3))[0].min() > 100
    assert len(np.unique(starts)) == 500


# For evaluation


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


def test_a_few_fixed_windows_of_an_endless_text_take_no_memory_to_find():
    starts, skips = batches.fixed_windows(2**50, 8, count=5)  # a list of all would be 2^50 bytes
    assert (starts[0], starts[-1]) == (0, 2**50 - 9)
    assert skips.tolist() == [0, 0, 0, 0, 1]
