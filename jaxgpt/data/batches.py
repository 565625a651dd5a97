"""Which text the model sees when: a batch is a function of the seed and the step, nothing else.

So there is no position in the data to save, and a resumed run reads on where it stopped.
"""

import jax
import jax.numpy as jnp
import numpy as np


def split(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first 90 % for training, the last 10 % for validation, as in the lecture."""
    n = int(0.9 * len(tokens))
    return tokens[:n], tokens[n:]


def random_windows(key: jax.Array, tokens: jax.Array, batch_size: int, block_size: int):
    """`batch_size` windows of the text from random places, with replacement, as in nanoGPT.

    Args:
        key: decides the places.
        tokens: (N,) the text, N > block_size.

    Returns:
        inputs and targets, both (B, T): targets are inputs one token later.
    """
    starts = jax.random.randint(key, (batch_size,), 0, tokens.shape[0] - block_size)
    return windows(tokens, starts, block_size)


def windows(tokens: jax.Array, starts: jax.Array, block_size: int):
    """The inputs and targets, both (B, T), of the windows that begin at `starts` (B,)."""
    text = tokens[starts[:, None] + jnp.arange(block_size + 1)].astype(jnp.int32)  # (B, T + 1)
    return text[:, :-1], text[:, 1:]


def fixed_windows(n_tokens: int, block_size: int, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Windows that lie end to end over a text, for evaluation: the same ones every time.

    Args:
        n_tokens: length of the text, above `block_size`.
        count: how many to take, evenly spread; None takes all, so that every token but the
            first is a target exactly once.

    Returns:
        starts (W,), and skips (W,): how many of a window's first targets do not count, because
        the window before has them already. Only the last window has such targets.
    """
    starts = np.arange(0, n_tokens - 1, block_size)
    last = n_tokens - 1 - block_size
    skips = np.maximum(starts - last, 0)
    starts = np.minimum(starts, last)
    if count is not None and count < len(starts):
        chosen = np.linspace(0, len(starts) - 1, count).round().astype(int)
        starts, skips = starts[chosen], skips[chosen]
    return starts.astype(np.int32), skips.astype(np.int32)
