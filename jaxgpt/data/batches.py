"""Which text the model sees when: a batch is a function of the seed and the step, nothing else.

So there is no position in the data to save, and a resumed run reads on where it stopped. A batch is drawn on the device
from a text that is there (`random_starts`), or on the host from a text of any length (`host_batch`): the same one.
Without replacement the host says where its windows begin (`shuffled_starts`): each pass over the text has every window
once, in another order.

Shapes: N tokens of text, B windows of T + 1 tokens: the inputs and, one token later, the targets.
"""

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.data.token_files import TokenFile, Tokens
from jaxgpt.fields import INT32

STEPS_AT_ONCE = 64  # a block: the steps whose positions the host draws together
ROUNDS = 6  # of the cipher that shuffles


def split(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first 90 % for training, the last 10 % for validation, as in the lecture."""
    n = int(0.9 * len(tokens))
    return tokens[:n], tokens[n:]


def step_keys(seed: int, step: Any) -> tuple[jax.Array, jax.Array]:
    """The keys of a step: of its batch and of its dropout."""
    batch_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return batch_key, dropout_key


def random_starts(key: jax.Array, places: int, batch_size: int) -> jax.Array:
    """Where the windows of a batch begin, (B,): at random among the first `places` tokens, 2^31 at most, with
    replacement, as in nanoGPT. A text of N tokens has N - T places where a window of T + 1 can begin."""
    return jax.random.randint(key, (batch_size,), 0, places, jnp.int32)


def windows(tokens: Any, starts: Any, block_size: int) -> Any:
    """The windows (B, T + 1) that begin at `starts` (B,), in the type of `tokens`: NumPy's, JAX's, or in a file."""
    if isinstance(tokens, TokenFile):
        return tokens.windows(starts, block_size + 1)
    return tokens[starts[:, None] + np.arange(block_size + 1, dtype=np.int32)]


def inputs_and_targets(windows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(..., T + 1) tokens of any integer type to inputs and targets, (..., T) int32 both."""
    windows = windows.astype(jnp.int32)
    return windows[..., :-1], windows[..., 1:]


def host_batch(
    seed: int,
    step: int,
    tokens: Tokens,
    batch_size: int,
    block_size: int,
    replacement: bool = True,
    rows: slice = slice(None),
) -> np.ndarray:
    """The windows (B, T + 1) of a step, at `random_starts` or, without `replacement`, at `shuffled_starts`; `tokens`
    (N,) may be in a file. Of the batch, only some `rows` are read.

    Beyond 2^31 tokens, where no device draws, the positions are two words of random bits, modulo their number.
    """
    drawn = _host_starts if replacement else shuffled_starts
    n = len(tokens) - block_size
    starts = drawn(seed, step // STEPS_AT_ONCE, n, batch_size, block_size)[step % STEPS_AT_ONCE]
    return np.asarray(windows(tokens, starts[rows], block_size))


@lru_cache(maxsize=4)
def shuffled_starts(seed: int, block: int, places: int, batch_size: int, block_size: int) -> np.ndarray:
    """The positions of the block's steps, (STEPS_AT_ONCE, B) int64, drawn without replacement from `places` of them.

    A pass over the text has every window of `block_size` tokens once, end to end from a place below `block_size` on,
    which is drawn anew for each pass, as their order is. A batch that ends a pass begins the next.
    """
    count = max(1, places // block_size)  # windows a pass, wherever it begins
    firsts = min(block_size, places - (count - 1) * block_size)  # where it can begin
    number = np.arange(STEPS_AT_ONCE * batch_size) + block * STEPS_AT_ONCE * batch_size
    starts = np.empty_like(number)
    for one in range(number[0] // count, number[-1] // count + 1):
        *keys, first = np.random.SeedSequence((seed, one)).generate_state(ROUNDS + 1, np.uint64)
        of_this = number // count == one
        window = _permuted(number[of_this] % count, count, keys)
        starts[of_this] = int(first) % firsts + window * block_size
    return starts.reshape(STEPS_AT_ONCE, batch_size)


def _permuted(numbers: np.ndarray, count: int, keys: list[np.uint64]) -> np.ndarray:
    """Where a random permutation of the numbers below `count`, which `keys` choose, takes these.

    It is computed for each number by itself, by a Feistel cipher, so that no list of all is needed. The cipher permutes
    the numbers of an even number of bits; where it leads to `count` or above, it is applied again.
    """
    half = np.uint64(max(1, -(-(count - 1).bit_length() // 2)))
    low = np.uint64((1 << int(half)) - 1)
    x = numbers.astype(np.uint64)
    outside = np.ones(x.shape, bool)
    while outside.any():
        left, right = x[outside] >> half, x[outside] & low
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & low)
        x[outside] = left << half | right
        outside = x >= count
    return x.astype(np.int64)


def _mixed(x: np.ndarray) -> np.ndarray:
    """A hash of each number: the last step of the generator SplitMix64 (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=4)
def _host_starts(seed: int, block: int, places: int, batch_size: int, _) -> np.ndarray:
    """The positions of the block's steps, (STEPS_AT_ONCE, B) int64, drawn on the CPU: an accelerator is busy."""
    with jax.default_device(_cpu()):
        steps = np.arange(STEPS_AT_ONCE, dtype=np.uint32) + np.uint32(block * STEPS_AT_ONCE)
        if places <= INT32:  # as many as the index of a device can name
            return np.asarray(_starts_of_steps(seed, steps, places, batch_size)).astype(np.int64)
        high, low = np.asarray(_words_of_steps(seed, steps, batch_size)).astype(np.uint64).swapaxes(0, 1)
    return ((high << np.uint64(32) | low) % np.uint64(places)).astype(np.int64)


def _cpu() -> jax.Device | None:
    """A CPU of JAX's, if `JAX_PLATFORMS` leaves it one."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


@partial(jax.jit, static_argnums=(0, 2, 3))
def _starts_of_steps(seed: int, steps: jax.Array, places: int, batch_size: int) -> jax.Array:
    return jax.vmap(lambda step: random_starts(step_keys(seed, step)[0], places, batch_size))(steps)


@partial(jax.jit, static_argnums=(0, 2))
def _words_of_steps(seed: int, steps: jax.Array, batch_size: int) -> jax.Array:
    return jax.vmap(lambda step: jax.random.bits(step_keys(seed, step)[0], (2, batch_size), jnp.uint32))(steps)


def fixed_windows(n_tokens: int, block_size: int, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Windows that lie end to end over a text, for evaluation: the same ones every time.

    Args:
        n_tokens: length of the text, above `block_size`.
        count: how many to take, evenly spread; None takes all, so that every token but the
            first is a target exactly once.

    Returns:
        starts (W,) int64, and skips (W,) int32: how many of a window's first targets do not count, because
        the window before has them already. Only the last window has such targets.
    """
    windows = -(-(n_tokens - 1) // block_size)
    some = count is not None and count < windows
    chosen = np.linspace(0, windows - 1, count).round().astype(np.int64) if some else np.arange(windows)
    starts, last = chosen * block_size, n_tokens - 1 - block_size
    return np.minimum(starts, last), np.maximum(starts - last, 0).astype(np.int32)
