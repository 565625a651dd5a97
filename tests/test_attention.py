"""Attention, in as many chunks as there may be, is its formula, and so are rotary embeddings and the token shift.

Values are held against plain loops in float64, gradients against those that JAX finds for the plain formula.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.model import attention, ops

T = 7
Q, K, V, G = np.random.default_rng(0).normal(size=(4, 2, T, 3, 4)).astype(np.float32)  # (B, T, H, D)
KEY = jax.random.key(1)


# Plain loops


def average(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """What one query (D,) gets of the keys and values (S, D) that it sees."""
    weights = [math.exp(sum(float(a) * float(b) for a, b in zip(q, key, strict=True)) / math.sqrt(len(q))) for key in k]
    return sum(weight / sum(weights) * value.astype(np.float64) for weight, value in zip(weights, v, strict=True))


def loops(q, k, v):
    """Causal attention."""
    y = np.zeros(q.shape)
    for b, t, h in np.ndindex(q.shape[:3]):
        y[b, t, h] = average(q[b, t, h], k[b, : t + 1, h], v[b, : t + 1, h])
    return y


def plain(q, k, v, rate=0.0, key=None, chunk=T):
    """The formula in JAX: softmax, dropout, average; the queries of a chunk have a key of their own."""
    ys = []
    for i, start in enumerate(range(0, T, chunk)):
        end = min(start + chunk, T)
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


@pytest.fixture(scope="module")
def expected() -> list[np.ndarray]:
    """Causal attention of Q, K and V, and its gradients."""
    return [loops(Q, K, V), *value_and_gradients(plain)[1:]]


@pytest.mark.parametrize("chunk", [1, 3, T], ids="chunks of {}".format)
def test_causal_attention_is_the_average_weighted_by_likeness_and_has_its_gradients(chunk, expected, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_CHUNK", chunk)
    for ours, theirs in zip(value_and_gradients(attention.causal_attention), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("chunk", [3, T], ids="chunks of {}".format)
def test_with_dropout_it_has_the_values_and_gradients_of_the_formula(chunk, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_CHUNK", chunk)
    ours = value_and_gradients(lambda q, k, v: attention.causal_attention(q, k, v, 0.4, KEY))
    theirs = value_and_gradients(lambda q, k, v: plain(q, k, v, 0.4, KEY, chunk))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_in_half_precision_the_gradients_are_near(dtype, monkeypatch):
    monkeypatch.setattr(attention, "QUERY_CHUNK", 3)
    half = [x.astype(dtype) for x in (Q, K, V, G)]
    exact = [x.astype(np.float32) for x in half]
    ours = value_and_gradients(attention.causal_attention, tuple(half[:3]), half[3])
    theirs = value_and_gradients(plain, tuple(exact[:3]), exact[3])
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a.astype(jnp.float32), b, atol=0.05 if dtype == "bfloat16" else 0.006)


def test_scores_beyond_float16_are_no_overflow():
    q = np.full((1, 2, 1, 64), 60.0, np.float16)  # times itself: 230,400
    y, *gradients = value_and_gradients(attention.causal_attention, (q, q, np.ones_like(q)), np.ones_like(q))
    assert y.ravel()[0] == 1
    assert all(np.isfinite(d).all() for d in gradients)


def test_every_chunk_of_queries_drops_something_else(monkeypatch):
    # Equal scores, and values that show by whom they were looked at: the output is the weights.
    monkeypatch.setattr(attention, "QUERY_CHUNK", 64)
    q, v = jnp.zeros((1, 128, 1, 128)), jnp.eye(128)[None, :, None]
    weights = np.asarray(jax.jit(lambda: attention.causal_attention(q, q, v, 0.5, KEY))())[0, :, 0]  # (T, S)
    seen = np.tri(128, dtype=bool)
    assert (weights[~seen] == 0).all()
    assert (weights[seen] > 0).mean() == pytest.approx(0.5, abs=0.03)
    first, second = weights[:64, :64], weights[64:]
    same_row = (first > 0) == (second[:, :64] > 0)
    assert same_row[seen[:64, :64]].mean() == pytest.approx(0.5, abs=0.05)
    same_place = (first.ravel() > 0) == (second.ravel()[: 64 * 64] > 0)  # where a hash of the index would repeat
    both = seen[:64, :64].ravel() & seen[64:].ravel()[: 64 * 64]
    assert same_place[both].mean() == pytest.approx(0.5, abs=0.05)


# Behind a cache


def test_cached_attention_is_the_average_over_what_the_mask_shows():
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(6, length, 4)).astype(np.float32) for length in (2, 7, 7))  # (N, T, D), (N, S, D)
    mask = np.arange(7) <= 3 + np.arange(2)[:, None]  # three tokens before the first query
    expected = np.zeros(q.shape)
    for n, t in np.ndindex(q.shape[:2]):
        expected[n, t] = average(q[n, t], k[n, mask[t]], v[n, mask[t]])
    np.testing.assert_allclose(jax.jit(attention.cached_attention)(q, k, v, mask), expected, atol=1e-5)


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "causal"])
def test_attention_to_half_precision_values_takes_its_softmax_in_float32(cached):
    q = np.full((1, 512, 4), 12.0, np.float16)
    k, v = q.copy(), np.zeros_like(q)
    k[0, 0] += 2**-7  # score 288.1875, no float16, against 288
    v[0, 0] = 1
    if cached:
        y = attention.cached_attention(q[:, -1:], k, v, np.ones((1, 512), bool))
    else:
        y = jax.jit(attention.causal_attention)(*(x[:, :, None] for x in (q, k, v)))
    assert y.dtype == np.float16
    expected = math.exp(0.1875) / (math.exp(0.1875) + 511)
    assert y.ravel()[-1] == pytest.approx(expected, rel=2e-3)


# Before queries, keys and values meet


def test_rotary_embeddings_turn_pairs_of_channels_by_their_position():
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 8)).astype(np.float32)  # (B, T, H, D)
    positions = np.array([0, 1, 2, 40, 63])
    turned = np.zeros(x.shape)
    for t, i in np.ndindex(5, 4):
        pair = (x[:, t, :, i] + 1j * x[:, t, :, i + 4]) * np.exp(1j * positions[t] / 64 ** (i / 4))
        turned[:, t, :, i], turned[:, t, :, i + 4] = pair.real, pair.imag
    np.testing.assert_allclose(attention.apply_rotary(x, positions, 64), turned, atol=1e-5)


def test_rotary_embeddings_tell_how_far_apart_tokens_are_and_nothing_else():
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
    queries, keys = (attention.apply_rotary(np.tile(x, (1, 64, 1, 1)), np.arange(64), 64)[0, :, 0] for x in (q, k))
    scores = np.asarray(queries) @ np.asarray(keys).T  # (T, T)
    for distance in range(-63, 64):
        along = np.diagonal(scores, distance)
        np.testing.assert_allclose(along, along[0], atol=1e-4)
    assert len(np.unique(np.round(scores[:, 0], 4))) == 64


def test_rotary_embeddings_give_back_the_type_they_got_and_turn_in_float32():
    x = np.ones((1, 2, 1, 2), np.float16)
    turned = attention.apply_rotary(x, np.array([0, 4099]), 8192)  # 4099 radians: in float16 it would be 4100
    assert turned.dtype == np.float16
    expected = np.exp(1j * 4099.0) * (1 + 1j)
    np.testing.assert_allclose(turned[0, 1, 0], [expected.real, expected.imag], atol=2e-3)


def test_half_of_a_shifted_value_is_that_of_the_token_before():
    values = np.arange(2 * 3 * 2 * 4.0).reshape(2, 3, 2, 4)  # (B, T, H, D)
    expected = values.copy()
    for b, t, h in np.ndindex(2, 3, 2):
        expected[b, t, h, 2:] = values[b, t - 1, h, 2:] if t else 0
    np.testing.assert_array_equal(attention.token_shift(jnp.asarray(values)), expected)
    np.testing.assert_array_equal(attention.token_shift(jnp.asarray(values[:, :, 0])), expected[:, :, 0])  # (N, T, D)
