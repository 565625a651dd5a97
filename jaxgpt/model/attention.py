"""Attention: each token's average of what it may see, weighted by likeness. Vaswani et al. 2017,
https://arxiv.org/abs/1706.03762, equation 1.

`attend` is the formula. `causal_attention` is the same for training: it never computes what lies in the future, and
its gradient reads the scores, the largest arrays of a training step, as seldom as it can.

Shapes: B sequences, T tokens that ask, S that are asked, H heads of D channels.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxgpt.model.ops import dropout, keep, product

QUERIES = 128  # in a chunk of causal attention: fewer compute less that is masked, more copy keys and values less often


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """Scaled dot-product attention.

    Args:
        q: (B, T, H, D) what each token asks.
        k, v: (B, S, H, D) what each token offers, and what it says.
        mask: (T, S) true where token t may see token s.

    Returns:
        (B, T, H, D), in the type of `v`.
    """
    q, k, v = map(_heads_first, (q, k, v))
    odds, total = _odds(q, k, mask)
    return _average(odds.astype(v.dtype), total, v)


def attend_cached(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
    """`attend` with a head of a sequence a row: q (N, T, D), k and v (N, S, D), to (N, T, D)."""
    scores = jnp.einsum("ntd,nsd->nts", q, k, preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1).astype(v.dtype)
    return jnp.einsum("nts,nsd->ntd", weights, v)


def rotate(x: jax.Array, places: jax.Array, block_size: int) -> jax.Array:
    """Queries or keys (B, T, H, D), each turned by an angle for its place (T,): their product then depends on how far
    apart they are, and on nothing else of where they stand.

    Channels are turned in pairs, the first by a radian a place, the last by about one a `block_size`. Su et al. 2021,
    https://arxiv.org/abs/2104.09864 (with a base of 10,000, which is for texts far longer than a block here).
    """
    pairs = x.shape[-1] // 2
    angles = places[:, None] * float(block_size) ** (-jnp.arange(pairs) / pairs)  # (T, D / 2)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]  # (T, 1, D / 2)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def shift(x: jax.Array) -> jax.Array:
    """Values (N, T, ..., D) whose second half is that of the token before; zeros for the first token.

    So who looks at a token sees what came before it, too, in one layer instead of two. Peng et al. 2023,
    https://arxiv.org/abs/2305.13048, mix tokens in this way.
    """
    own, before = jnp.split(x, 2, axis=-1)
    before = jnp.pad(before[:, :-1], [(0, 0), (1, 0)] + [(0, 0)] * (x.ndim - 2))
    return jnp.concatenate([own, before], axis=-1)


def _heads_first(x):
    """(B, T, H, D) to (B, H, T, D), or back."""
    return x.swapaxes(1, 2)


def _odds(q, k, mask):
    """The softmax of the scores before its division, (B, H, T, S), and what to divide by, (B, H, T, 1); in float32."""
    scores = product("bhtd,bhsd->bhts", q, k, jnp.float32)
    scores = scores / math.sqrt(q.shape[-1])  # by the head's width D: keeps the softmax from saturating
    scores = jnp.where(mask, scores, -jnp.inf)  # no weight at all on what may not be seen
    odds = jnp.exp(scores - scores.max(-1, keepdims=True))
    return odds, odds.sum(-1, keepdims=True)


def _average(odds, total, v):
    """(B, T, H, D); the division comes last, where there is less to divide."""
    return _heads_first((product("bhts,bhsd->bhtd", odds, v, jnp.float32) / total).astype(v.dtype))


class _Chunk(NamedTuple):
    """Some queries, and the keys that one of them may see."""

    start: int
    end: int
    mask: jax.Array  # (T, S)
    key: jax.Array | None  # of its dropout


def _chunks(T: int, key: jax.Array | None) -> list[_Chunk]:
    chunks = []
    for i, start in enumerate(range(0, T, QUERIES)):
        end = min(start + QUERIES, T)
        mask = jnp.arange(end) <= jnp.arange(start, end)[:, None]
        chunks.append(_Chunk(start, end, mask, None if key is None else jax.random.fold_in(key, i)))
    return chunks


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def causal_attention(q: jax.Array, k: jax.Array, v: jax.Array, rate: float = 0.0, key=None) -> jax.Array:
    """`attend` where token t may see tokens 0 to t, (B, T, H, D) all, with dropout of the weights: a chunk of queries
    at a time, each with the keys that one of them may see, so that many scores are never computed."""
    return _causal_attention_forward(q, k, v, rate, key)[0]


def _causal_attention_forward(q, k, v, rate, key):
    chunks = _chunks(q.shape[1], key)
    parts = [tuple(map(_heads_first, (q[:, c.start : c.end], k[:, : c.end], v[:, : c.end]))) for c in chunks]
    parts = keep(parts)  # copied once, in this layout; XLA would rather transpose them twice
    ys, weights = [], []
    for c, (q, k, v) in zip(chunks, parts, strict=True):
        odds, total = _odds(q, k, c.mask)
        odds = odds.astype(v.dtype)
        dropped = dropout(odds, rate, c.key)
        ys.append(_average(dropped, total, v))
        weights.append((odds, dropped, total))
    y = jnp.concatenate(ys, axis=1)  # (B, T, H, D)
    return y, (parts, weights, y, key)


def _causal_attention_backward(rate, kept, g):
    parts, weights, y, key = kept
    T, dtype, scale = y.shape[1], y.dtype, 1 / math.sqrt(y.shape[-1])
    chunks = _chunks(T, key)
    g = g / _heads_first(jnp.concatenate([total for *_, total in weights], axis=2))  # float32
    # The softmax's gradient needs the sum over all weights times their gradients. It is the output times its own
    # gradient (Dao et al. 2022, https://arxiv.org/abs/2205.14135, appendix B), which are far smaller than the weights.
    sums = _heads_first((g * y).sum(-1, keepdims=True))  # (B, H, T, 1)
    gs = keep([_heads_first(g[:, c.start : c.end]).astype(dtype) for c in chunks])
    dqs, dk, dv = [], 0, 0
    for c, (q, k, v), g, (odds, dropped, _) in zip(chunks, parts, gs, weights, strict=True):
        d_weights = product("bhtd,bhsd->bhts", g, v, dtype).astype(jnp.float32)
        d_scores = odds * (dropout(d_weights, rate, c.key) - sums[:, :, c.start : c.end]) * scale
        d_scores = d_scores.astype(dtype)
        dqs.append(product("bhts,bhsd->bhtd", d_scores, k, dtype))
        after = ((0, 0), (0, 0), (0, T - c.end), (0, 0))
        dk += jnp.pad(product("bhts,bhtd->bhsd", d_scores, q, dtype).astype(jnp.float32), after)
        dv += jnp.pad(product("bhts,bhtd->bhsd", dropped, g, dtype).astype(jnp.float32), after)
    dq, dk, dv = (_heads_first(x.astype(dtype)) for x in (jnp.concatenate(dqs, axis=2), dk, dv))
    return dq, dk, dv, None


causal_attention.defvjp(_causal_attention_forward, _causal_attention_backward)
