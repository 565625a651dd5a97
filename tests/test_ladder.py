"""The rungs of the ladder: the logits of their formulas, as many weights as were published, and PyTorch's start."""

import math

import formulas
import jax
import numpy as np
import pytest
from models import TOKENS, by_path, changed, logits_of, noise, noisy

from jaxgpt.model import build
from jaxgpt.model.ladder import RUNGS
from jaxgpt.model.loss import cross_entropy
from jaxgpt.presets import preset


@pytest.mark.parametrize("name", RUNGS)
def test_a_rung_has_the_logits_of_its_formula(name):
    c = changed(architecture=name)
    weights = jax.tree.map(lambda p: np.asarray(p, np.float64), noise(c))
    expected = [formulas.rung(c, weights, text) for text in TOKENS]
    np.testing.assert_allclose(logits_of(noisy(c)), expected, rtol=1e-4, atol=1e-4)


def test_every_rung_adds_to_the_one_before():
    sizes = {name: build.n_params(preset(name, vocab_size=65).model) for name in RUNGS}
    assert sizes == {
        "bigram": 65 * 65,
        "head": 7_553,
        "multihead": 7_553,  # the same width in four heads
        "feedforward": 8_609,
        "blocks": 41_921,
        "layernorm": 42_369,
    }


@pytest.fixture(scope="module")
def fresh():
    return by_path(build.init_params(changed(architecture="layernorm", n_layer=1, vocab_size=64, n_embd=64), 0))


def test_weights_start_as_pytorchs(fresh):
    drawn = {path: np.asarray(value) for path, value in fresh.items() if "ln_" not in path}
    assert len({value.ravel()[0] for value in drawn.values()}) == len(drawn)  # no two alike
    for path, value in drawn.items():
        if path.endswith("embedding"):
            assert value.std() == pytest.approx(1, rel=0.1), path
        else:
            n_in = 256 if "c_proj" in path else 64
            assert np.abs(value).max() <= 1 / math.sqrt(n_in), path
            assert value.std() == pytest.approx(1 / math.sqrt(3 * n_in), rel=0.2), path
            assert abs(value.mean()) < 0.2 / math.sqrt(n_in), path
    for path in fresh.keys() - drawn.keys():
        assert (fresh[path] == (1 if path.endswith("scale") else 0)).all(), path


def test_a_fresh_table_is_worse_than_a_guess():
    # 4.68 in the lecture. Normal scores add half their variance to the logarithm of 65, on average.
    model = build.build(preset("bigram", vocab_size=65).model, 1337)
    x, y = np.random.default_rng(0).integers(0, 65, (2, 100, 8))
    assert cross_entropy(logits_of(model, x), y).mean() == pytest.approx(math.log(65) + 0.5, abs=0.05)
