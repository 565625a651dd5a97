"""The GPT: the logits of its formula, its start, what each token may see, what every setting does, what is dropped."""

import dataclasses
import math

import formulas
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import CONFIG, MODERN, TOKENS, by_path, changed, decode, logits_of, noise, noisy
from programs import products

from jaxgpt.config import ModelConfig
from jaxgpt.device import precision
from jaxgpt.model import build, gpt
from jaxgpt.model.loss import cross_entropy

TEXT = TOKENS[0]

# The formula


def formula(c: ModelConfig, tokens: np.ndarray) -> np.ndarray:
    """What the model of `c` with `noise` for its weights makes of one sequence."""
    return formulas.gpt(c, jax.tree.map(lambda p: np.asarray(p, np.float64), noise(c)), tokens)


CASES = {
    "GPT-2": {},
    "modern": MODERN,
    "without biases": {"n_layer": 1, "bias": False, "activation": "relu", "n_head": 4},
    "of other sizes": {"n_layer": 1, "qkv_bias": False, "vocab_size": 12, "block_size": 9, "n_embd": 32},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_the_logits_are_those_of_the_formula(options):
    c = changed(**options)
    logits = logits_of(noisy(c))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, [formula(c, text) for text in TOKENS], rtol=1e-4, atol=1e-4)


def test_every_setting_is_part_of_the_formula():
    cases = {field: value for options in CASES.values() for field, value in options.items()}
    plain = formula(CONFIG, TEXT)
    # "architecture" has test_build.py, and for dropout see below. A new field needs a case, and its formula.
    assert set(cases) == {f.name for f in dataclasses.fields(ModelConfig)} - {"architecture", "dropout", "embd_dropout"}
    for field, value in cases.items():
        other = formula(changed(**{field: value}), TEXT)
        assert other.shape != plain.shape or np.abs(other - plain).max() > 1e-2, field


def test_biases_are_where_they_are_asked_for():
    with_all, without_qkv, without = (
        set(by_path(build.abstract_params(changed(tie_head=False, **options))))
        for options in ({}, {"qkv_bias": False}, {"bias": False})
    )
    assert with_all - without_qkv == {"h/0/attn/c_attn/bias", "h/1/attn/c_attn/bias"}
    assert not [path for path in without if "bias" in path]


def test_a_tied_head_is_the_token_embedding_and_an_untied_one_has_weights_of_its_own():
    tied, untied = (by_path(build.abstract_params(changed(n_layer=1, tie_head=tie))) for tie in (True, False))
    assert [path for path, p in tied.items() if 11 in p.shape] == ["wte/embedding"]
    assert {path: p.shape for path, p in untied.items() if 11 in p.shape} == {
        "wte/embedding": (11, 16),
        "lm_head/kernel": (16, 11),
        "lm_head/bias": (11,),
    }


# The start


@pytest.fixture(scope="module")
def fresh() -> gpt.GPT:
    return build.build(ModelConfig(vocab_size=64, block_size=64, n_layer=2, n_head=2, n_embd=64, tie_head=False), 0)


def test_a_fresh_model_knows_nothing(fresh):
    x, y = np.random.default_rng(0).integers(0, 64, (2, 8, 32))
    assert cross_entropy(logits_of(fresh, x), y).mean() == pytest.approx(math.log(64), abs=0.03)


def test_weights_start_as_gpt2s_and_no_two_matrices_alike(fresh):
    weights = {path: np.asarray(value) for path, value in by_path(build.params_of(fresh)).items()}
    for path, value in weights.items():
        if path.endswith("scale"):
            assert (value == 1).all(), path
        elif path.endswith("bias"):
            assert (value == 0).all(), path
        else:
            expected = 0.02 / 2 if "c_proj" in path else 0.02
            assert value.std() == pytest.approx(expected, rel=0.05), path
            assert abs(value.mean()) < 0.1 * expected, path
    firsts = [value[0, 0] for value in weights.values() if value.ndim == 2]
    assert len(set(firsts)) == len(firsts) == 3 + 2 * 4


# Number types


@pytest.mark.parametrize("tie_head, bias", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_matrix_products_run_in_the_type_of_the_weights_and_logits_are_float32(dtype, tie_head, bias):
    c = changed(n_layer=1, tie_head=tie_head, bias=bias)
    params = jax.eval_shape(lambda params: precision.cast(params, jnp.dtype(dtype)), build.abstract_params(c))
    program = jax.make_jaxpr(lambda params: build.merge(c, params)(TOKENS))(params)
    assert products(program.jaxpr) == {dtype}
    assert [logits.dtype for logits in program.out_avals] == [jnp.float32]


# What a token sees

CHANGED = np.stack([TEXT, *(np.where(np.arange(6) == t, (TEXT + 1) % 11, TEXT) for t in range(6))])
"""(7, 6): a text, and the same with one token changed, each in its turn."""


@pytest.mark.parametrize("options", [{}, MODERN], ids=["GPT-2", "modern"])
def test_a_token_depends_on_itself_and_those_before_it_and_on_none_after(options):
    logits = logits_of(noisy(changed(**options)), CHANGED)
    differ = np.abs(logits[1:] - logits[0]).max(axis=-1)  # (token changed, T)
    sees = np.triu(np.ones((6, 6), bool))
    assert (differ[sees] > 1e-3).all()
    assert (differ[~sees] < 1e-5).all()


def read_in_pieces(model: gpt.GPT, tokens: np.ndarray, lengths: tuple[int, ...]):
    """The logits of all tokens, read through the cache in pieces of these lengths; and the cache."""
    cache, parts, start = model.empty_cache(len(tokens)), [], 0
    for length in lengths:
        logits, cache = decode(model, tokens[:, start : start + length], cache)
        parts.append(logits)
        start += length
    return np.concatenate(parts, axis=1), cache


@pytest.mark.parametrize("options", [{}, MODERN], ids=["GPT-2", "modern"])
@pytest.mark.parametrize("lengths", [(6,), (1,) * 6, (2, 3, 1)], ids=["at once", "one by one", "in pieces"])
def test_reading_through_the_cache_gives_the_same_logits(lengths, options):
    model = noisy(changed(**options))
    logits, cache = read_in_pieces(model, CHANGED, lengths)
    assert cache.length == 6
    np.testing.assert_allclose(logits, logits_of(model, CHANGED), atol=1e-5)


@pytest.mark.parametrize("options", [{}, MODERN], ids=["GPT-2", "modern"])
def test_what_lies_in_the_cache_beyond_its_length_is_not_seen(options):
    model = noisy(changed(**options))
    _, cache = read_in_pieces(model, CHANGED[:, :2], (2,))
    k, v = jax.tree.map(lambda x: x.at[:, 2:].set(100.0), (cache.k, cache.v))
    third, other = (decode(model, CHANGED[:, 2:3], c)[0] for c in (cache, cache._replace(k=k, v=v)))
    np.testing.assert_array_equal(third, other)


def test_sequences_of_a_batch_do_not_see_each_other():
    other_first = np.stack([(TOKENS[0] + 1) % 11, TOKENS[1]])
    np.testing.assert_array_equal(logits_of(noisy(), other_first)[1], logits_of(noisy())[1])


# Dropout

RATES = [{"dropout": 0.5}, {"embd_dropout": 0.5}]


@pytest.mark.parametrize("rate", RATES, ids=["dropout", "embd_dropout"])
def test_a_model_drops_with_every_key_something_else(rate):
    model = noisy(changed(n_layer=1, **rate))
    first, other = (logits_of(model, key=jax.random.key(seed)) for seed in (0, 1))
    assert (first != other).any()


def test_a_model_without_a_key_drops_nothing():
    model = noisy(changed(n_layer=1, **RATES[0], **RATES[1]))
    np.testing.assert_array_equal(logits_of(model), logits_of(noisy(changed(n_layer=1))))


STREAM = np.random.default_rng(1).normal(size=(4, 64, 32)).astype(np.float32)


def outputs_of(part: type) -> tuple[np.ndarray, np.ndarray]:
    """What attention or the MLP makes of `STREAM` without dropout and with it."""

    @jax.jit
    def both():
        module = part(ModelConfig(block_size=64, n_head=2, n_embd=32, dropout=0.25), nnx.Rngs(0))
        return module(jnp.asarray(STREAM)), module(jnp.asarray(STREAM), key=jax.random.key(0))

    whole, dropped = (y[0] if isinstance(y, tuple) else y for y in both())
    return np.asarray(whole), np.asarray(dropped)


def test_the_mlp_drops_its_outputs_and_nothing_else():
    whole, dropped = outputs_of(gpt.MLP)
    kept = dropped != 0
    assert kept.mean() == pytest.approx(0.75, abs=0.02)
    np.testing.assert_allclose(dropped[kept], whole[kept] / 0.75, rtol=1e-4)


def test_attention_drops_its_outputs_and_its_weights():
    whole, dropped = outputs_of(gpt.CausalSelfAttention)
    kept = dropped != 0
    assert kept.mean() == pytest.approx(0.75, abs=0.02)
    assert np.abs(dropped[kept] / (whole[kept] / 0.75) - 1).mean() > 0.1


def test_each_layer_drops_something_else():
    # Two layers that add nothing but a constant each: 1 and 10. The head shows the stream as it is, normalised.
    config = changed(vocab_size=64, n_embd=64, dropout=0.5)
    params = jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), build.abstract_params(config))
    for layer, constant in ((0, 1.0), (1, 10.0)):
        params["h"][layer]["mlp"]["c_proj"]["bias"] += constant
    params["ln_f"]["scale"] += 1
    params["wte"]["embedding"] += np.eye(64, dtype=np.float32)
    model = build.merge(config, jax.tree.map(jnp.asarray, params))
    stream = logits_of(model, np.zeros((1, 1), np.int32), jax.random.key(0))[0, 0, 1:]
    levels = np.round((stream - stream.min()) / np.ptp(stream) * 11, 2)
    assert sorted(set(levels.tolist())) == [0, 1, 10, 11]  # kept: neither, the first, the second, both
