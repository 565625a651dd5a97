"""The loss in parts, for a large vocabulary, is the loss of all tokens at once, and so is its gradient."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.model import loss
from jaxgpt.model.gpt import attend, linear

B, T, C, V = 3, 8, 4, 11
RNG = np.random.default_rng(0)
X, TARGETS = RNG.normal(size=(B, T, C)).astype("f4"), RNG.integers(0, V, (B, T))
TABLE, BIAS = RNG.normal(size=(V, C)).astype("f4"), RNG.normal(size=V).astype("f4")
HEADS = {"tied": (attend, jnp.asarray(TABLE)), "untied": (linear, (jnp.asarray(TABLE.T), jnp.asarray(BIAS)))}


@pytest.fixture(autouse=True)
def parts_of_six_tokens(monkeypatch):
    monkeypatch.setattr(loss, "PART_LOGITS", 6 * V)


def losses_by_hand(bias) -> np.ndarray:
    """(B, T), in float64."""
    logits = X.astype("f8") @ TABLE.T + bias
    return np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, TARGETS[..., None], -1)[..., 0]


@pytest.mark.parametrize("name", HEADS)
def test_losses_and_their_mean_are_those_of_the_formula(name):
    expected = losses_by_hand(BIAS if name == "untied" else 0)
    np.testing.assert_allclose(loss.token_losses(*HEADS[name], X, TARGETS, V), expected, rtol=1e-5)
    np.testing.assert_allclose(loss.mean_loss(*HEADS[name], X, TARGETS, V), expected.mean(), rtol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_gradients_in_parts_are_those_of_the_whole_whatever_the_loss_is_multiplied_by(name):
    head, weights = HEADS[name]
    whole = jax.grad(lambda w, x: 8 * loss.cross_entropy(head(w, x), TARGETS).mean(), (0, 1))(weights, X)
    parts = jax.grad(lambda w, x: 8 * loss.mean_loss(head, w, x, TARGETS, V), (0, 1))(weights, X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), parts, whole)


def test_no_program_holds_the_logits_of_all_tokens():
    head, weights = HEADS["untied"]

    def most_at_once(function) -> int:
        shapes = re.findall(rf"f32\[([\d,]+),{V}\]", str(jax.make_jaxpr(function)(weights, X)))
        return max(math.prod(map(int, shape.split(","))) for shape in shapes)

    assert most_at_once(jax.grad(lambda w, x: loss.mean_loss(head, w, x, TARGETS, V))) == 6
    assert most_at_once(lambda w, x: loss.token_losses(head, w, x, TARGETS, V)) == 6


def test_gradients_of_half_precision_weights_are_summed_in_float32():
    head, weights = HEADS["tied"]
    half = weights.astype(jnp.bfloat16)
    whole = jax.grad(lambda w: loss.cross_entropy(head(w.astype(jnp.float32), X), TARGETS).mean())(weights)
    parts = jax.grad(lambda w: loss.mean_loss(head, w, X, TARGETS, V))(half)
    assert parts.dtype == jnp.bfloat16
    np.testing.assert_allclose(parts.astype("f4"), whole, atol=4e-3)
