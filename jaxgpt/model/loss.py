"""The loss of a model's predictions, cross-entropy; where the vocabulary is large, of some tokens at a time.

GPT-2 has 50,257 logits a token: those of 4 x 1024 tokens, with what their softmax and its gradient need beside them,
would take more memory than the model. So the head and the loss go through the tokens in parts, and what is kept of a
part is its loss, and the gradients of that. (Wijmans et al. 2024, https://arxiv.org/abs/2411.09009, go further.)

Shapes: B sequences, T tokens, C channels, V the vocabulary, n tokens of a part.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

PART_LOGITS = 2**25  # of one part: 128 MiB in float32

# From the head's weights and (..., C) to logits (..., V).
Head = Callable[[Any, jax.Array], jax.Array]


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Each target's loss in nats: (..., V) and (...) to (...)."""
    # The target's logit by comparing, not by indexing: the gradient of that is an array of the logits' size once more.
    chosen = jnp.where(targets[..., None] == jnp.arange(logits.shape[-1]), logits, 0).sum(-1)
    return jax.nn.logsumexp(logits, axis=-1) - chosen


def soft_cross_entropy(logits: jax.Array, probabilities: jax.Array) -> jax.Array:
    """The loss in nats against a whole distribution: (..., V) both to (...)."""
    return jax.nn.logsumexp(logits, axis=-1) - (probabilities * logits).sum(-1)


def token_losses(head: Head, weights: Any, x: jax.Array, targets: jax.Array, vocab_size: int) -> jax.Array:
    """Each target's loss, (B, T), from what the head reads, `x` (B, T, C)."""
    n = _part(targets.size, vocab_size)
    if n == targets.size:
        return cross_entropy(head(weights, x), targets)
    parts = x.reshape(-1, n, x.shape[-1]), targets.reshape(-1, n)
    return jax.lax.map(lambda part: cross_entropy(head(weights, part[0]), part[1]), parts).reshape(targets.shape)


def mean_loss(head: Head, weights: Any, x: jax.Array, targets: jax.Array, vocab_size: int) -> jax.Array:
    """The mean of `token_losses`, with a gradient that never holds the logits of all tokens either."""
    n = _part(targets.size, vocab_size)
    if n == targets.size:
        return cross_entropy(head(weights, x), targets).mean()
    return _mean_in_parts(head, weights, x.reshape(-1, n, x.shape[-1]), targets.reshape(-1, n))


def _part(tokens: int, vocab_size: int) -> int:
    """The largest equal share of the tokens that has few enough logits."""
    parts = (n for n in range(1, tokens + 1) if tokens % n == 0)
    return next(tokens // n for n in parts if tokens // n * vocab_size <= PART_LOGITS or n == tokens)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mean_in_parts(head, weights, x, targets):
    """Of `x` (N, n, C) and `targets` (N, n)."""
    sums = jax.lax.map(lambda part: cross_entropy(head(weights, part[0]), part[1]).sum(), (x, targets))
    return sums.sum() / targets.size


def _mean_forward(head, weights, x, targets):
    """The gradients of a part are computed beside its loss, while its logits are there: later they would have to be
    computed again."""

    def loss(weights, x, targets):
        return cross_entropy(head(weights, x), targets).sum() / (targets.size * parts)

    def add(total, part):
        value, (d_weights, dx) = jax.value_and_grad(loss, argnums=(0, 1))(weights, *part)
        return jax.tree.map(lambda a, b: a + b.astype(jnp.float32), total, (value, d_weights)), dx

    parts = len(x)
    zeros = jnp.float32(0), jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights)
    (mean, d_weights), dx = jax.lax.scan(add, zeros, (x, targets))
    return mean, (jax.tree.map(lambda d, w: d.astype(w.dtype), d_weights, weights), dx)


def _mean_backward(head, gradients, g):
    d_weights, dx = jax.tree.map(lambda d: (d * g).astype(d.dtype), gradients)
    return d_weights, dx, None


_mean_in_parts.defvjp(_mean_forward, _mean_backward)
