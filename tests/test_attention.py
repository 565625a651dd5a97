"""Causal attention has the gradients of the plain formula, in as many chunks as there may be, with dropout too."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.model import attention, ops

T = 7
Q, K, V, G = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, T, 3, 4)), jnp.float32)
KEY = jax.random.key(1)


def plain(q, k, v, rate=0.0, key=None, queries=T):
    """Softmax, dropout, average, a chunk of queries after the other as they have keys of their own."""
    ys = []
    for i, start in enumerate(range(0, T, queries)):
        end = min(start + queries, T)
        scores = jnp.einsum("bthd,bshd->bhts", q[:, start:end], k[:, :end]) / math.sqrt(q.shape[-1])
        scores = jnp.where(jnp.tri(T, dtype=bool)[start:end, :end], scores, -jnp.inf)
        chunk_key = None if key is None else jax.random.fold_in(key, i)
        weights = ops.dropout(jax.nn.softmax(scores), rate, chunk_key)
        ys.append(jnp.einsum("bhts,bshd->bthd", weights, v[:, :end]))
    return jnp.concatenate(ys, axis=1)


def value_and_gradients(f, inputs=(Q, K, V), g=G):
    @jax.jit
    def both(inputs, g):
        y, pull = jax.vjp(f, *inputs)
        return y, *pull(g)

    return both(inputs, g)


@pytest.mark.parametrize("rate, key", [(0.0, None), (0.4, KEY)], ids=["whole", "with dropout"])
@pytest.mark.parametrize("queries", [3, T], ids="chunks of {}".format)
def test_causal_attention_has_the_gradients_of_the_formula(queries, rate, key, monkeypatch):
    monkeypatch.setattr(attention, "QUERIES", queries)
    ours = value_and_gradients(lambda q, k, v: attention.causal_attention(q, k, v, rate, key))
    theirs = value_and_gradients(lambda q, k, v: plain(q, k, v, rate, key, queries))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_in_half_precision_the_gradients_are_near(dtype, monkeypatch):
    monkeypatch.setattr(attention, "QUERIES", 3)
    half = [x.astype(dtype) for x in (Q, K, V, G)]
    exact = [x.astype(jnp.float32) for x in half]
    ours = value_and_gradients(attention.causal_attention, tuple(half[:3]), half[3])
    theirs = value_and_gradients(plain, tuple(exact[:3]), exact[3])
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.05 if dtype == "bfloat16" else 0.006)


def test_scores_beyond_float16_are_no_overflow():
    q = jnp.full((1, 2, 1, 64), 60.0, jnp.float16)  # times itself: 230,400
    y, pull = jax.vjp(attention.causal_attention, q, q, jnp.ones_like(q))
    assert y.ravel()[0] == 1
    assert all(jnp.isfinite(d).all() for d in pull(jnp.ones_like(q)))
