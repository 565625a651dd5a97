"""The GPT: its shapes, its start, what each token may see, and what every setting does."""

import dataclasses
import math
from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from programs import products

from jaxgpt.config import ModelConfig, TrainConfig
from jaxgpt.device import precision
from jaxgpt.model import attention as attention_module
from jaxgpt.model import gpt as model
from jaxgpt.training import step as trainer

CONFIG = ModelConfig(vocab_size=11, block_size=6, n_layer=2, n_head=2, n_embd=16)
MODERN = dict(embd_norm=True, positions="rotary", qk_norm=True, value_shift=True, tie_head=False)
TOKENS = jnp.asarray(np.random.default_rng(7).integers(0, 11, (2, 6)), jnp.int32)


def changed(**changes) -> ModelConfig:
    return dataclasses.replace(CONFIG, **changes)


def lively(config: ModelConfig = CONFIG) -> model.GPT:
    """A model far from its quiet start: every weight is noise, biases and norms too."""
    shapes = jax.eval_shape(lambda: trainer.init_params(config, 0))
    rng = np.random.default_rng(0)
    return nnx.merge(
        trainer.graph(config), jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 0.4, p.shape), p.dtype), shapes)
    )


def logits_of(gpt: model.GPT, tokens=TOKENS, key=None) -> jax.Array:
    return _logits(*nnx.split(gpt), tokens, key)


@partial(jax.jit, static_argnums=0)
def _logits(graphdef, params, tokens, key):
    return nnx.merge(graphdef, params)(tokens, key)


def read_in_pieces(gpt: model.GPT, tokens: jax.Array, pieces: tuple[int, ...]):
    """The logits of all tokens, read through the cache in pieces of these lengths; and the cache."""
    cache, parts, start = gpt.empty_cache(len(tokens)), [], 0
    for length in pieces:
        logits, cache = gpt.decode(tokens[:, start : start + length], cache)
        parts.append(logits)
        start += length
    return jnp.concatenate(parts, axis=1), cache


def by_path(params) -> dict[str, jax.Array]:
    return {
        "/".join(str(key.key) for key in path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]
    }


# Shapes and the start


@pytest.mark.parametrize("T", [1, 5, 6])
def test_every_token_gets_a_score_for_every_next_token(T):
    logits = logits_of(lively(), TOKENS[:, :T])
    assert logits.shape == (2, T, 11)
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize("tie_head", [True, False])
def test_logits_are_float32_whatever_the_weights(tie_head):
    config = changed(tie_head=tie_head)
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), trainer.params_of(lively(config)))
    assert logits_of(nnx.merge(trainer.graph(config), half)).dtype == jnp.float32


def fresh(config: ModelConfig):
    return jax.jit(lambda: trainer.init_params(config, 0))()


def test_a_fresh_model_knows_nothing():
    config = ModelConfig(vocab_size=65, block_size=32, n_layer=2, n_head=2, n_embd=32)
    x, y = jnp.asarray(np.random.default_rng(0).integers(0, 65, (2, 8, 32)))
    logits = logits_of(nnx.merge(trainer.graph(config), fresh(config)), x)
    assert trainer.cross_entropy(logits, y).mean() == pytest.approx(math.log(65), abs=0.03)


def test_weights_start_as_gpt2s():
    config = ModelConfig(vocab_size=65, block_size=64, n_layer=3, n_head=2, n_embd=64, tie_head=False)
    for path, value in by_path(fresh(config)).items():
        if path.endswith("scale"):
            assert (value == 1).all(), path
        elif path.endswith("bias"):
            assert (value == 0).all(), path
        else:
            expected = 0.02 / math.sqrt(6) if "c_proj" in path else 0.02
            assert value.std() == pytest.approx(expected, rel=0.05), path
            assert abs(value.mean()) < 0.1 * expected, path


def test_no_two_matrices_start_alike():
    firsts = [value[0, 0].item() for value in by_path(fresh(changed(tie_head=False))).values() if value.ndim == 2]
    assert len(set(firsts)) == len(firsts) == 3 + 2 * 4


@pytest.mark.parametrize("tie_head, bias", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_matrix_products_run_in_the_type_of_the_weights(dtype, tie_head, bias):
    gpt = lively(changed(tie_head=tie_head, bias=bias))
    half = precision.cast(trainer.params_of(gpt), jnp.dtype(dtype))
    program = jax.make_jaxpr(lambda params: nnx.merge(trainer.graph(gpt.config), params)(TOKENS))(half)
    assert products(program.jaxpr) == {dtype}


# What a token sees


PIECES = {"at once": (6,), "one by one": (1,) * 6, "in pieces": (2, 3, 1)}


@pytest.mark.parametrize("pieces", [None, (6,), (2, 3, 1)], ids=["without cache", "at once", "in pieces"])
def test_a_token_depends_on_itself_and_those_before_it_and_on_none_after(pieces):
    # A position's embedding enters at that position only, so its gradient tells who looks there.
    params, tokens = trainer.params_of(lively()), TOKENS[:1]

    def losses(wpe):
        gpt = nnx.merge(trainer.graph(CONFIG), {**params, "wpe": {"embedding": wpe}})
        logits = gpt(tokens) if pieces is None else read_in_pieces(gpt, tokens, pieces)[0]
        return trainer.cross_entropy(logits, jnp.full_like(tokens, 3))[0]  # (T,)

    gradients = jax.jit(jax.jacrev(losses))(params["wpe"]["embedding"])  # (T, S, C)
    sees = np.abs(gradients).max(axis=-1)  # (T, S)
    assert (sees[np.tri(6, dtype=bool)] > 1e-4).all()
    assert (sees[~np.tri(6, dtype=bool)] == 0).all()


@pytest.mark.parametrize("pieces", [None, (6,), (2, 3, 1)], ids=["without cache", "at once", "in pieces"])
def test_no_token_of_a_modern_model_sees_what_comes_after_it(pieces):
    gpt = lively(changed(**MODERN))
    read = jax.jit(lambda tokens: gpt(tokens) if pieces is None else read_in_pieces(gpt, tokens, pieces)[0])
    for t in range(6):
        other = read(TOKENS.at[:, t].set((TOKENS[:, t] + 1) % 11))
        np.testing.assert_array_equal(other[:, :t], read(TOKENS)[:, :t])
        assert (np.abs(other - read(TOKENS))[:, t:].max(axis=(0, 2)) > 1e-4).all()


@pytest.mark.parametrize("options", [{"tie_head": False}, MODERN], ids=["GPT-2", "modern"])
@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
def test_reading_through_the_cache_gives_the_same_logits(pieces, options):
    gpt = lively(changed(**options))
    logits, cache = jax.jit(lambda: read_in_pieces(gpt, TOKENS, pieces))()
    assert cache.length == 6
    np.testing.assert_allclose(logits, logits_of(gpt), atol=1e-5)


@pytest.mark.parametrize("options", [{}, MODERN], ids=["GPT-2", "modern"])
def test_what_lies_in_the_cache_beyond_its_length_is_not_seen(options):
    gpt = lively(changed(**options))

    @jax.jit
    def fourth(rest):
        """The logits of the fourth token, with `rest` where the cache is not filled yet."""
        _, cache = gpt.decode(TOKENS[:, :3], gpt.empty_cache(2))
        k, v = jax.tree.map(lambda x: x.at[:, 3:].set(rest), (cache.k, cache.v))
        return gpt.decode(TOKENS[:, 3:4], cache._replace(k=k, v=v))[0]

    np.testing.assert_array_equal(fourth(100.0), fourth(0.0))


def test_sequences_of_a_batch_do_not_see_each_other():
    gpt = lively()
    other_first = TOKENS.at[0].set(TOKENS[0] - 1)
    np.testing.assert_array_equal(logits_of(gpt, other_first)[1], logits_of(gpt)[1])


# The parts against plain loops


def attention(q, k, v, mask):
    """The library's attention, without dropout; everything these two tests know of its signature."""
    return attention_module.attend(q, k, v, mask)


def slow_attention(q, k, v, mask):
    B, T, H, D = q.shape
    out = np.zeros(q.shape, np.float64)
    for b, t, h in np.ndindex(B, T, H):
        seen = [s for s in range(k.shape[1]) if mask[t, s]]
        weights = [math.exp(sum(float(q[b, t, h, d]) * float(k[b, s, h, d]) for d in range(D)) / D**0.5) for s in seen]
        for weight, s in zip(weights, seen, strict=True):
            out[b, t, h] += weight / sum(weights) * v[b, s, h].astype(np.float64)
    return out


@pytest.mark.parametrize("T, S, start", [(5, 5, 0), (2, 7, 3)], ids=["square", "behind a cache"])
def test_attention_is_the_average_weighted_by_likeness(T, S, start):
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, length, 3, 4)).astype(np.float32) for length in (T, S, S))
    mask = np.arange(S) <= start + np.arange(T)[:, None]
    ours = attention(*map(jnp.asarray, (q, k, v, mask)))
    np.testing.assert_allclose(ours, slow_attention(q, k, v, mask), atol=1e-5)


@pytest.mark.parametrize("queries", [1, 2, 5, 64], ids="chunks of {}".format)
def test_causal_attention_in_chunks_is_attention_to_the_past_and_oneself(queries, monkeypatch):
    monkeypatch.setattr(attention_module, "QUERIES", queries)
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 5, 3, 4)).astype(np.float32)
    ours = model.causal_attention(*map(jnp.asarray, (q, k, v)))
    np.testing.assert_allclose(ours, slow_attention(q, k, v, np.tri(5, dtype=bool)), atol=1e-5)


def test_attention_to_half_precision_values_takes_its_softmax_in_float32():
    q = jnp.full((1, 1, 1, 4), 12.0, jnp.float16)
    k = jnp.full((1, 512, 1, 4), 12.0, jnp.float16).at[0, 0].add(2**-7)  # score 288.1875, no float16, against 288
    v = jnp.zeros((1, 512, 1, 4), jnp.float16).at[0, 0].set(1.0)
    share = attention(q, k, v, jnp.ones((1, 512), bool))[0, 0, 0, 0]
    assert share == pytest.approx(math.exp(0.1875) / (math.exp(0.1875) + 511), rel=2e-3)


def test_layer_norm_is_numpys_with_gpt2s_epsilon():
    rng = np.random.default_rng(0)
    x = rng.normal(2, 0.01, (3, 5, 16)).astype(np.float32)  # so quiet that epsilon counts
    norm = model.LayerNorm(16, bias=True)
    norm.scale[...], norm.bias[...] = rng.normal(size=(2, 16)).astype(np.float32)
    x64 = x.astype(np.float64)
    expected = (x64 - x64.mean(-1, keepdims=True)) / np.sqrt(x64.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected * norm.scale[...] + norm.bias[...], atol=1e-4)


def test_layer_norm_counts_in_float32_and_gives_back_the_type_it_got():
    x = jnp.asarray([[0.0, 1000.0, 2000.0, 3000.0]], jnp.float16)  # their squares overflow float16
    y = model.LayerNorm(4, bias=False)(x)
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(y[0], np.array([-3, -1, 1, 3]) / math.sqrt(5), atol=2e-3)


@pytest.mark.parametrize("n_in, n_out", [(3, 7), (7, 3)], ids=["widening", "narrowing"])
def test_a_linear_layer_has_the_gradients_of_its_formula(n_in, n_out):
    layer = model.Linear(n_in, n_out, bias=True, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    x, g = (rng.normal(size=(2, 5, n)).astype(np.float32) for n in (n_in, n_out))
    graphdef, weights = nnx.split(layer)
    y, pull = jax.vjp(lambda weights, x: nnx.merge(graphdef, weights)(x), weights, jnp.asarray(x))
    (d_weights, dx) = pull(jnp.asarray(g))
    np.testing.assert_allclose(y, x @ layer.kernel[...], atol=1e-6)
    np.testing.assert_allclose(dx, g @ layer.kernel[...].T, atol=1e-6)
    np.testing.assert_allclose(d_weights["kernel"][...], np.einsum("bti,bto->io", x, g), atol=1e-5)
    np.testing.assert_allclose(d_weights["bias"][...], g.sum((0, 1)), atol=1e-5)


# The head


def test_a_tied_head_is_the_token_embedding_and_stays_it():
    tied, untied = (changed(n_layer=1, bias=False, tie_head=tie) for tie in (True, False))
    run = TrainConfig(model=tied, batch_size=4, warmup_steps=0)
    state = jax.jit(lambda: trainer.init_state(run, jnp.dtype("float32")))()
    before = np.array(state.params["wte"]["embedding"])
    text = jnp.asarray(np.random.default_rng(0).integers(0, 11, 200), jnp.int32)
    after = trainer.make_train_step(run, jnp.dtype("float32"))(state, text)[0].params
    assert [path for path, value in by_path(after).items() if value.shape in [(11, 16), (16, 11)]] == ["wte/embedding"]
    wte = after["wte"]["embedding"]
    assert (wte != before).all()
    np.testing.assert_allclose(
        logits_of(nnx.merge(trainer.graph(tied), after)),
        logits_of(nnx.merge(trainer.graph(untied), {**after, "lm_head": {"kernel": wte.T}})),
        atol=1e-6,
    )


def test_an_untied_head_has_weights_of_its_own():
    gpt = lively(changed(tie_head=False))
    before = logits_of(gpt)
    gpt.lm_head.kernel[...] += 1.0
    assert (logits_of(gpt) != before).all()
    assert gpt.lm_head.kernel.shape == (16, 11)


# Dropout


def test_dropout_drops_its_share_and_keeps_the_mean():
    dropped = model.dropout(jnp.full((300, 300), 2.0), 0.2, jax.random.key(0))
    assert set(np.unique(dropped).tolist()) == {0.0, 2.5}
    assert (dropped == 0).mean() == pytest.approx(0.2, abs=0.01)
    assert dropped.mean() == pytest.approx(2, abs=0.03)


def test_dropout_falls_anew_on_every_row_and_every_column():
    kept = np.asarray(model.dropout(jnp.ones((64, 64)), 0.5, jax.random.key(0))) > 0
    assert len({row.tobytes() for row in kept}) == len({column.tobytes() for column in kept.T}) == 64


def test_a_place_is_dropped_whatever_its_neighbours_and_other_keys_do():
    first, other = (np.asarray(model.dropout(jnp.ones((300, 256)), 0.5, jax.random.key(seed))) > 0 for seed in (0, 1))
    for shift in (1, 2, 3, 4, 8, 16, 64, 128):
        assert (first[:, shift:] == first[:, :-shift]).mean() == pytest.approx(0.5, abs=0.02), shift
        assert (first[shift:] == first[:-shift]).mean() == pytest.approx(0.5, abs=0.02), shift
    assert (first == other).mean() == pytest.approx(0.5, abs=0.02)


def test_the_same_key_drops_the_same():
    first, again = (model.dropout(jnp.ones(64), 0.5, jax.random.key(0)) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_every_chunk_of_queries_drops_something_else(monkeypatch):
    # Equal scores, and values that show by whom they were looked at: the output is the weights.
    monkeypatch.setattr(attention_module, "QUERIES", 64)
    q, v = jnp.zeros((1, 128, 1, 128)), jnp.eye(128)[None, :, None]
    weights = np.asarray(model.causal_attention(q, q, v, 0.5, jax.random.key(0)))[0, :, 0]  # (T, S)
    seen = np.tri(128, dtype=bool)
    assert (weights[~seen] == 0).all()
    assert (weights[seen] > 0).mean() == pytest.approx(0.5, abs=0.03)
    first, second = weights[:64, :64], weights[64:]
    same_row = (first > 0) == (second[:, :64] > 0)
    assert same_row[seen[:64, :64]].mean() == pytest.approx(0.5, abs=0.05)
    same_place = (first.ravel() > 0) == (second.ravel()[: 64 * 64] > 0)  # where a hash of the index would repeat
    both = seen[:64, :64].ravel() & seen[64:].ravel()[: 64 * 64]
    assert same_place[both].mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("rate", ["dropout", "embd_dropout"])
def test_a_model_drops_with_a_key_only_and_otherwise_with_every_key(rate):
    plain = lively()
    gpt = nnx.merge(trainer.graph(changed(**{rate: 0.5})), trainer.params_of(plain))
    whole, first, other = (logits_of(gpt, key=key) for key in (None, jax.random.key(0), jax.random.key(1)))
    np.testing.assert_array_equal(whole, logits_of(plain))
    assert (first != whole).any()
    assert (first != other).any()


def outputs_of(part, x: jax.Array):
    """What `part`, attention or MLP, gives with and without dropout."""
    key = jax.random.key(0)
    whole, dropped = jax.jit(lambda: (part(x), part(x, key=key)))()
    return (whole[0], dropped[0]) if isinstance(whole, tuple) else (whole, dropped)


DROPPING = ModelConfig(block_size=64, n_head=2, n_embd=32, dropout=0.25)
STREAM = jnp.asarray(np.random.default_rng(1).normal(size=(4, 64, 32)), jnp.float32)


def test_the_mlp_drops_its_outputs_and_nothing_else():
    whole, dropped = outputs_of(model.MLP(DROPPING, nnx.Rngs(0)), STREAM)
    kept = dropped != 0
    assert kept.mean() == pytest.approx(0.75, abs=0.02)
    np.testing.assert_allclose(dropped[kept], whole[kept] / 0.75, rtol=1e-4)


def test_attention_drops_its_outputs_and_its_weights():
    whole, dropped = outputs_of(model.CausalSelfAttention(DROPPING, nnx.Rngs(0)), STREAM)
    kept = dropped != 0
    assert kept.mean() == pytest.approx(0.75, abs=0.02)
    assert jnp.abs(dropped[kept] / (whole[kept] / 0.75) - 1).mean() > 0.1


def test_each_layer_drops_something_else():
    # Two layers that add nothing but a constant each: 1 and 10. The head shows the stream as it is, normalised.
    config = changed(vocab_size=64, n_embd=64, dropout=0.5)
    params = jax.tree.map(jnp.zeros_like, trainer.params_of(lively(config)))
    for layer, constant in ((0, 1.0), (1, 10.0)):
        params["h"][layer]["mlp"]["c_proj"]["bias"] = jnp.full(64, constant)
    params["ln_f"]["scale"] = jnp.ones(64)
    params["wte"]["embedding"] = jnp.eye(64)
    gpt = nnx.merge(trainer.graph(config), params)
    stream = np.asarray(logits_of(gpt, jnp.zeros((1, 1), jnp.int32), jax.random.key(0)))[0, 0, 1:]
    levels = np.round((stream - stream.min()) / np.ptp(stream) * 11, 2)
    assert sorted(set(levels.tolist())) == [0, 1, 10, 11]  # kept: neither, the first, the second, both


# Rotary positions, queries and keys of one length, shifted values


def test_rotary_positions_tell_how_far_apart_tokens_are_and_nothing_else():
    q, k = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)), jnp.float32)

    def score(i, j):
        turned = (attention_module.rotate(x, jnp.array([place]), 64) for x, place in ((q, i), (k, j)))
        return jnp.vdot(*turned)

    assert score(0, 0) == pytest.approx(jnp.vdot(q, k).item(), abs=1e-5)
    assert score(37, 35) == pytest.approx(score(2, 0).item(), abs=1e-4)
    far = [score(distance, 0).item() for distance in range(64)]
    assert len(np.unique(np.round(far, 4))) == 64


def test_turning_keeps_the_length_of_what_is_turned():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 3, 8)), jnp.float32)
    turned = attention_module.rotate(x, jnp.arange(6), 6)
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])  # the first place is the angle 0


def test_a_rotary_model_knows_the_order_of_its_tokens():
    gpt = lively(changed(positions="rotary"))
    swapped = TOKENS[:, jnp.array([1, 0, 2, 3, 4, 5])]
    assert np.abs(logits_of(gpt, swapped) - logits_of(gpt))[:, 2:].max() > 1e-3


def test_with_qk_norm_the_size_of_the_queries_and_keys_does_not_matter():
    config = changed(qk_norm=True, qkv_bias=False)
    params = trainer.params_of(lively(config))
    kernel = params["h"][0]["attn"]["c_attn"]["kernel"]
    longer = kernel.at[:, :32].multiply(7.0)  # queries and keys; the values are the last third
    before = logits_of(nnx.merge(trainer.graph(config), params))
    params["h"][0]["attn"]["c_attn"]["kernel"] = longer
    np.testing.assert_allclose(logits_of(nnx.merge(trainer.graph(config), params)), before, atol=1e-4)


def test_half_of_a_shifted_value_is_that_of_the_token_before():
    values = jnp.arange(2 * 3 * 4.0).reshape(1, 3, 2, 4)  # (B, T, H, D)
    shifted = attention_module.shift(values)
    np.testing.assert_array_equal(shifted[..., :2], values[..., :2])
    np.testing.assert_array_equal(shifted[:, 1:, :, 2:], values[:, :-1, :, 2:])
    np.testing.assert_array_equal(shifted[:, 0, :, 2:], jnp.zeros((1, 2, 2)))


# Every setting does something

CASES = {  # field: another value, and what it changes
    "architecture": ("head", "weights"),
    "vocab_size": (12, "weights"),
    "block_size": (9, "weights"),
    "n_layer": (3, "weights"),
    "n_head": (4, "output"),
    "n_embd": (32, "weights"),
    "dropout": (0.5, "output with a key"),
    "embd_dropout": (0.5, "output with a key"),
    "activation": ("relu", "output"),
    "bias": (False, "weights"),
    "qkv_bias": (False, "weights"),
    "tie_head": (False, "weights"),
    "embd_norm": (True, "output"),
    "positions": ("rotary", "weights"),
    "qk_norm": (True, "output"),
    "value_shift": (True, "output"),
}


LOOKS = {  # what a setting can change, from the obvious to the hidden
    "weights": lambda config: {path: leaf.shape for path, leaf in by_path(trainer.params_of(lively(config))).items()},
    "output": lambda config: logits_of(lively(config)).tolist(),
    "output with a key": lambda config: logits_of(lively(config), key=jax.random.key(0)).tolist(),
}


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(ModelConfig)])
def test_every_setting_changes_what_it_is_said_to(field):
    value, change = CASES[field]  # a new field needs a case

    before, after = LOOKS[change](CONFIG), LOOKS[change](changed(**{field: value}))
    assert before != after
    for more_obvious in list(LOOKS)[: list(LOOKS).index(change)]:
        assert LOOKS[more_obvious](CONFIG) == LOOKS[more_obvious](changed(**{field: value}))


def test_without_bias_there_is_none_anywhere():
    config = changed(bias=False, tie_head=False)
    assert not [path for path in by_path(trainer.params_of(lively(config))) if "bias" in path]


def test_without_qkv_bias_the_other_biases_stay():
    with_all, without = (set(by_path(trainer.params_of(lively(changed(qkv_bias=b))))) for b in (True, False))
    assert with_all - without == {"h/0/attn/c_attn/bias", "h/1/attn/c_attn/bias"}


# Weights in and out of the modules


@pytest.fixture(params=[True, False], ids=["graph mode", "tree mode"])
def nnx_mode(request):
    before = flax.config.nnx_graph_mode
    flax.config.update("nnx_graph_mode", request.param)
    yield
    flax.config.update("nnx_graph_mode", before)


def test_modules_hold_parameters_and_nothing_else(nnx_mode):
    gpt = lively(changed(dropout=0.1, embd_dropout=0.1))
    _, params, rest = nnx.split(gpt, nnx.Param, ...)
    assert not nnx.to_pure_dict(rest)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 16 * (11 + 6 + 2 * (12 * 16 + 13) + 2)
    jax.eval_shape(lambda: (gpt(TOKENS, jax.random.key(0)), gpt.decode(TOKENS, gpt.empty_cache(2))))
    assert not nnx.to_pure_dict(nnx.split(gpt, nnx.Param, ...)[2])  # nor after a call


def test_weights_taken_out_and_put_back_are_the_same_model(nnx_mode):
    gpt = lively()
    copy = nnx.merge(trainer.graph(CONFIG), trainer.params_of(gpt))
    np.testing.assert_array_equal(logits_of(copy), logits_of(gpt))


def test_every_layer_keeps_its_place_beyond_the_tenth(nnx_mode):
    # By name, layer 10 comes before layer 2.
    config = changed(n_layer=12)
    params = trainer.params_of(lively(config))
    params["h"] = {i: jax.tree.map(lambda p, i=i: jnp.full_like(p, i), params["h"][i]) for i in range(12)}
    gpt = nnx.merge(trainer.graph(config), params)
    for i, block in enumerate(gpt.h):
        assert all((leaf == i).all() for leaf in jax.tree.leaves(nnx.state(block))), i
    back = trainer.params_of(gpt)["h"]
    assert [back[i]["ln_1"]["scale"][0].item() for i in range(12)] == list(range(12))
