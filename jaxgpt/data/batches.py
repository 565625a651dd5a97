"""Which text the model sees when: a batch is a function of the seed and the step, nothing else.

So there is no position in the data to save, and a resumed run reads on where it stopped. A batch is drawn on the device
from a text that is there (`random_windows`), or on the host from a text of any length (`host_batch`): the same one.

Shapes: N tokens of text, B windows of T + 1 tokens: the inputs and, one token later, the targets.
"""

from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgpt.fields import INT32

STEPS_AT_ONCE = 64  # whose positions the host draws together


def split(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first 90 % for training, the last 10 % for validation, as in the lecture."""
    n = int(0.9 * len(tokens))
    return tokens[:n], tokens[n:]


def step_keys(seed: int, step: Any) -> tuple[jax.Array, jax.Array]:
    """The keys of a step: of its batch and of its dropout."""
    batch_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return batch_key, dropout_key


def random_windows(key: jax.Array, tokens: jax.Array, batch_size: int, block_size: int) -> jax.Array:
    """`batch_size` windows (B, T + 1) of the text `tokens` (N,) from random positions, with replacement, as in nanoGPT.

    T < N, and N at most 2^31.
    """
    return windows(tokens, _random_starts(key, tokens.shape[0] - block_size, batch_size), block_size)


def windows(tokens: Any, starts: Any, block_size: int) -> Any:
    """The windows (B, T + 1) that begin at `starts` (B,); of NumPy's arrays or JAX's, in the type of `tokens`."""
    return tokens[starts[:, None] + np.arange(block_size + 1, dtype=np.int32)]


def inputs_and_targets(windows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(..., T + 1) tokens of any integer type to inputs and targets, (..., T) int32 both."""
    windows = windows.astype(jnp.int32)
    return windows[..., :-1], windows[..., 1:]


def host_batch(seed: int, step: int, tokens: np.ndarray, batch_size: int, block_size: int) -> np.ndarray:
    """The windows (B, T + 1) that `random_windows` draws in a step; `tokens` (N,) may be mapped from a file.

    Beyond 2^31 tokens, where no device draws, the positions are two words of random bits, modulo their number.
    """
    starts = _host_starts(seed, step // STEPS_AT_ONCE, len(tokens) - block_size, batch_size)
    return np.asarray(windows(tokens, starts[step % STEPS_AT_ONCE], block_size))


def _random_starts(key: jax.Array, count: int, batch_size: int) -> jax.Array:
    """Positions (B,), from 0 to below `count`."""
    return jax.random.randint(key, (batch_size,), 0, count, jnp.int32)


@lru_cache(maxsize=4)
def _host_starts(seed: int, block: int, count: int, batch_size: int) -> np.ndarray:
    """The positions of the block's steps, (STEPS_AT_ONCE, B) int64, drawn on the CPU: an accelerator is busy."""
    with jax.default_device(_cpu()):
        steps = np.arange(STEPS_AT_ONCE, dtype=np.uint32) + np.uint32(block * STEPS_AT_ONCE)
        if count <= INT32:  # as many as the index of a device can name
            return np.asarray(_starts_of_steps(seed, steps, count, batch_size)).astype(np.int64)
        high, low = np.asarray(_words_of_steps(seed, steps, batch_size)).astype(np.uint64).swapaxes(0, 1)
    return ((high << np.uint64(32) | low) % np.uint64(count)).astype(np.int64)


def _cpu() -> jax.Device | None:
    """A CPU of JAX's, if `JAX_PLATFORMS` leaves it one."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


@partial(jax.jit, static_argnums=(0, 2, 3))
def _starts_of_steps(seed: int, steps: jax.Array, count: int, batch_size: int) -> jax.Array:
    return jax.vmap(lambda step: _random_starts(step_keys(seed, step)[0], count, batch_size))(steps)


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
