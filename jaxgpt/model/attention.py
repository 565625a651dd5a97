"""Scaled dot-product attention: softmax(q k^T / sqrt(D)) v. Vaswani et al. 2017, https://arxiv.org/abs/1706.03762,
equation 1.

`causal_attention` is for training: it skips most of what the mask hides, and its gradient reads the scores, the largest
arrays of a training step, as seldom as it can. `cached_attention` is for sampling. Beside them, what changes queries,
keys and values before they meet.

Shapes: B sequences, T queries, S keys and values, H heads of D channels.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgpt.model.ops import dropout, product

QUERY_CHUNK = 128  # queries: shorter chunks compute less that is masked, longer ones copy keys and values less often


def cached_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Attention with sequences and heads in one axis, N = B H, as the cache has them.

    Args:
        q: (N, T, D).
        k, v: (N, S, D).
        mask: (T, S), true where query t may see key s.

    Returns:
        (N, T, D), in the type of `v`.
    """
    scores = jnp.einsum("ntd,nsd->nts", q, k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1).astype(v.dtype)
    return jnp.einsum("nts,nsd->ntd", weights, v)


def apply_rotary(x: jax.Array, positions: jax.Array, base: int) -> jax.Array:
    """Rotary embeddings: queries or keys (B, T, H, D), rotated by angles that grow with their positions (T,), so that
    the product of a query and a key depends on their distance alone.

    Channels are rotated in pairs, the first by one radian a position, the last by about one in `base` positions. Su et
    al. 2021, https://arxiv.org/abs/2104.09864, who take a base of 10,000; here it is `block_size`.
    """
    pairs = x.shape[-1] // 2
    angles = positions[:, None] * float(base) ** (-jnp.arange(pairs, dtype=jnp.float32) / pairs)  # (T, D / 2)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]  # (T, 1, D / 2)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def token_shift(x: jax.Array) -> jax.Array:
    """Values (N, T, ..., D) whose second half is that of the previous token; zeros for the first token.

    So attention to a token reads the one before it, too, in one layer instead of two. Peng et al. 2023,
    https://arxiv.org/abs/2305.13048, mix tokens in this way.
    """
    current, previous = jnp.split(x, 2, axis=-1)
    previous = jnp.pad(previous[:, :-1], [(0, 0), (1, 0)] + [(0, 0)] * (x.ndim - 2))
    return jnp.concatenate([current, previous], axis=-1)


def _heads_first(x):
    """(B, T, H, D) to (B, H, T, D), or back."""
    return x.swapaxes(1, 2)


def _exp_scores(q, k, mask):
    """The softmax before its division, (B, H, T, S), and the sums to divide by, (B, H, T, 1); in float32."""
    scores = product("bhtd,bhsd->bhts", q, k, jnp.float32)
    scores = scores / math.sqrt(q.shape[-1])  # by the head's width D: keeps the softmax from saturating
    scores = jnp.where(mask, scores, -jnp.inf)
    exp_scores = jnp.exp(scores - scores.max(-1, keepdims=True))
    return exp_scores, exp_scores.sum(-1, keepdims=True)


def _weighted_average(exp_scores, sums, v):
    """(B, T, H, D); the division comes last, where there is less to divide."""
    return _heads_first((product("bhts,bhsd->bhtd", exp_scores, v, jnp.float32) / sums).astype(v.dtype))


def causal_weights(q: jax.Array, k: jax.Array) -> jax.Array:
    """The weights of `causal_attention`: (B, T, H, D) both, to (B, H, T, T) in float32, where row t has those of what
    token t sees; they sum to 1. For looking at them: training never holds them all."""
    exp_scores, sums = _exp_scores(_heads_first(q), _heads_first(k), jnp.tri(q.shape[1], dtype=bool))
    return exp_scores / sums


class _Chunk(NamedTuple):
    """Queries `start` to `end`, which see keys 0 to `end` at most."""

    start: int
    end: int
    mask: jax.Array  # (T, S)
    key: jax.Array | None  # of its dropout


def _chunks(T: int, key: jax.Array | None) -> list[_Chunk]:
    chunks = []
    for i, start in enumerate(range(0, T, QUERY_CHUNK)):
        end = min(start + QUERY_CHUNK, T)
        mask = jnp.arange(end) <= jnp.arange(start, end)[:, None]
        chunks.append(_Chunk(start, end, mask, None if key is None else jax.random.fold_in(key, i)))
    return chunks


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array, rate: float = 0.0, key=None) -> jax.Array:
    """Attention of every token to itself and the tokens before it, with dropout of the weights at `rate`.

    Works on a chunk of queries at a time, each with the keys up to its end, so that many masked scores are never
    computed. q, k, v and the result are (B, T, H, D).
    """
    return _causal_attention_forward(q, k, v, rate, key)[0]


def _causal_attention_forward(q, k, v, rate, key):
    chunks = _chunks(q.shape[1], key)
    parts = [tuple(map(_heads_first, (q[:, c.start : c.end], k[:, : c.end], v[:, : c.end]))) for c in chunks]
    parts = jax.lax.optimization_barrier(parts)  # copied once, in this layout; XLA would rather transpose them twice
    ys, weights = [], []
    for c, (q, k, v) in zip(chunks, parts, strict=True):
        exp_scores, sums = _exp_scores(q, k, c.mask)
        exp_scores = exp_scores.astype(v.dtype)
        dropped = dropout(exp_scores, rate, c.key)
        ys.append(_weighted_average(dropped, sums, v))
        weights.append((exp_scores, dropped, sums))
    y = jnp.concatenate(ys, axis=1)  # (B, T, H, D)
    return y, (parts, weights, y, key)


def _causal_attention_backward(rate, residuals, g):
    parts, weights, y, key = residuals
    T, dtype, scale = y.shape[1], y.dtype, 1 / math.sqrt(y.shape[-1])
    chunks = _chunks(T, key)
    g = g / _heads_first(jnp.concatenate([sums for *_, sums in weights], axis=2))  # float32
    # The softmax's gradient needs the sum over all weights times their gradients. It is the output times its own
    # gradient (Dao et al. 2022, https://arxiv.org/abs/2205.14135, appendix B), which are far smaller than the weights.
    delta = _heads_first((g * y).sum(-1, keepdims=True))  # (B, H, T, 1)
    gs = jax.lax.optimization_barrier([_heads_first(g[:, c.start : c.end]).astype(dtype) for c in chunks])
    dqs: list[jax.Array] = []
    dk: Any = 0
    dv: Any = 0
    for c, (q, k, v), g, (exp_scores, dropped, _) in zip(chunks, parts, gs, weights, strict=True):
        d_weights = product("bhtd,bhsd->bhts", g, v, dtype).astype(jnp.float32)
        d_scores = exp_scores * (dropout(d_weights, rate, c.key) - delta[:, :, c.start : c.end]) * scale
        d_scores = d_scores.astype(dtype)
        dqs.append(product("bhts,bhsd->bhtd", d_scores, k, dtype))
        later_keys = ((0, 0), (0, 0), (0, T - c.end), (0, 0))
        dk += jnp.pad(product("bhts,bhtd->bhsd", d_scores, q, dtype).astype(jnp.float32), later_keys)
        dv += jnp.pad(product("bhts,bhtd->bhsd", dropped, g, dtype).astype(jnp.float32), later_keys)
    dq, dk, dv = (_heads_first(x.astype(dtype)) for x in (jnp.concatenate(dqs, axis=2), dk, dv))
    return dq, dk, dv, None


causal_attention.defvjp(_causal_attention_forward, _causal_attention_backward)
