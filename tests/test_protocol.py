"""What holds for every model: the tokens that it takes, the cache that it reads through, and the transformations of JAX
that go through it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import TOKENS, changed, logits_of, noise, noisy

from jaxgpt.device import precision
from jaxgpt.errors import UserError
from jaxgpt.model import build, ops
from jaxgpt.model.build import ARCHITECTURES
from jaxgpt.model.gpt import GPT
from jaxgpt.model.protocol import check_tokens

# Every architecture


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_reads_through_its_cache_what_it_reads_at_once(name):
    model = noisy(changed(architecture=name, n_layer=1))

    @jax.jit
    def read(tokens):
        whole, one = model(tokens), model(tokens[:, :1])
        first, cache = model.decode(padded, model.empty_cache(1, 3))
        cache = cache._replace(length=jnp.int32(2)).with_capacity(5).repeated(2)
        rest, longer = model.decode(tokens[:, 2:5], cache)
        only, _ = model.decode(tokens[:, 2:5], cache, jnp.int32(1))
        return whole, one, first, rest, only, longer.length, model.empty_cache(2)

    padded = np.array([[*TOKENS[0, :2], 0]])  # what was read beyond a cache's length does not count
    tokens = np.concatenate([TOKENS[:1], np.concatenate([TOKENS[:1, :2], TOKENS[1:, 2:]], axis=1)])  # begin alike
    whole, one, first, rest, only, length, empty = read(tokens)
    assert (whole.shape, whole.dtype) == ((2, 6, 11), jnp.float32)
    near = partial(np.testing.assert_allclose, atol=1e-5)
    near(one, whole[:, :1])
    near(first[:, :2], whole[:1, :2])
    near(rest, whole[:, 2:5])
    near(only, whole[:, 3:4])
    assert (length, empty.length) == (5, 0)
    assert [x.shape for x in jax.tree.leaves(empty)] == [x.shape for x in jax.tree.leaves(model.empty_cache(2, 6))]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_sizes_of_an_architecture_are_the_fields_that_decide_its_program(name):
    def program(**changes) -> str:
        config = changed(**{"architecture": name, "n_layer": 1} | changes)
        return str(jax.make_jaxpr(lambda p: build.merge(config, p)(TOKENS))(build.abstract_params(config)))

    before, others = program(), {"n_layer": 2, "n_head": 4, "n_embd": 32}
    changing = [field for field, value in others.items() if program(**{field: value}) != before]
    assert changing == [field for field in others if field in ARCHITECTURES[name].sizes]


# Tokens

MODEL = changed(n_layer=1)
SHAPE = r"tokens are whole numbers of shape \(B, T\), not"


@pytest.mark.parametrize(
    "tokens, message",
    [
        ([[1] * 7], "7 tokens are more than the model's block_size of 6"),
        ([[1, 11]], "token 11 is outside the vocabulary of 11"),
        ([[0, -1]], "token -1 is outside the vocabulary of 11"),
        ([[2**32]], "token 4294967296 is outside the vocabulary of 11"),  # not what is left of it in 32 bits
        ([1, 2, 3], rf"{SHAPE} int\d\d of shape \(3,\)"),
        (1, rf"{SHAPE} int\d\d of shape \(\)"),
        ([[[1]]], rf"{SHAPE} int\d\d of shape \(1, 1, 1\)"),
        ([[1.0, 2.0]], rf"{SHAPE} float\d\d of shape \(1, 2\)"),
        ([[True, False]], rf"{SHAPE} bool of shape \(1, 2\)"),
        ([["a"]], rf"{SHAPE} <U1 of shape \(1, 1\)"),
        (None, rf"{SHAPE} object of shape \(\)"),
        ([[1, 2], [3]], f"{SHAPE} rows of different lengths"),
    ],
    ids=str,
)
def test_tokens_that_cannot_be_are_told_in_one_line(tokens, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        check_tokens(tokens, MODEL)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_checks_its_tokens(name):
    with pytest.raises(UserError, match="token 11 is outside"):
        noisy(changed(architecture=name, n_layer=1))([[1, 11]])


def test_known_tokens_are_checked_where_something_else_is_traced():
    model, tokens = noisy(MODEL), jnp.asarray(TOKENS)
    jax.eval_shape(lambda scale: scale * model(tokens), 1.0)
    tokens = tokens + 10
    with pytest.raises(UserError, match="token 20 is outside"):
        jax.eval_shape(lambda scale: scale * model(tokens), 1.0)


def test_traced_tokens_are_checked_for_their_shape_alone():
    model = noisy(MODEL)
    assert np.isfinite(logits_of(model, TOKENS + 10)).all()
    with pytest.raises(UserError, match="7 tokens are more"):
        jax.eval_shape(model, jax.ShapeDtypeStruct((1, 7), jnp.int32))


@pytest.mark.parametrize(
    "like", [np.ndarray.tolist, np.uint16, np.int64, jnp.asarray], ids=["list", "u16", "i64", "jax"]
)
def test_tokens_may_be_a_list_or_any_whole_numbers(like):
    model = noisy(changed(architecture="bigram"))
    np.testing.assert_array_equal(model(like(TOKENS)), logits_of(model))


# Transformations


def loss(params, tokens=TOKENS):
    return (build.merge(MODEL, params)(tokens) ** 2).mean()


@pytest.fixture(scope="module")
def gradient():
    return jax.jit(jax.grad(loss))(noise(MODEL))


def assert_near(one, other):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), one, other)


def test_a_model_goes_through_nnx_transformations(gradient):
    grads = nnx.jit(nnx.grad(lambda model: (model(TOKENS) ** 2).mean()))(noisy(MODEL))
    assert_near(nnx.to_pure_dict(grads), gradient)


def test_remat_gives_the_same_gradient(gradient):
    assert_near(jax.jit(jax.grad(jax.checkpoint(loss)))(noise(MODEL)), gradient)


def test_vmap_over_tokens_and_over_weights_is_a_loop():
    params = noise(MODEL)
    twice = jax.tree.map(lambda p: np.stack([p, 2 * p]), params)
    texts = np.stack([TOKENS, TOKENS[::-1]])
    both = jax.jit(jax.vmap(lambda params, tokens: build.merge(MODEL, params)(tokens)))(twice, texts)
    for i, weights in enumerate((params, jax.tree.map(lambda p: 2 * p, params))):
        np.testing.assert_allclose(both[i], logits_of(build.merge(MODEL, weights), texts[i]), rtol=1e-4, atol=1e-4)


def test_a_model_with_bfloat16_weights_is_near_its_float32_self():
    half = build.merge(MODEL, precision.cast(noise(MODEL, std=0.1), jnp.dtype("bfloat16")))
    whole = logits_of(build.merge(MODEL, noise(MODEL, std=0.1)))
    logits = logits_of(half)
    assert logits.dtype == np.float32
    assert 0 < np.abs(logits - whole).max() < 0.02 * np.abs(whole).max()
    cache = half.empty_cache(2)
    assert {x.dtype for x in (*cache.k, *cache.v)} == {jnp.dtype("bfloat16")}
    read, _ = jax.jit(half.decode)(TOKENS, cache)
    np.testing.assert_allclose(read, whole, atol=0.02 * np.abs(whole).max())


def test_forward_mode_is_refused_as_the_docstrings_say():
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(loss, (noise(MODEL),), (noise(MODEL),))
    assert "jax.jvp" in GPT.__doc__
    assert "jax.jvp" in ops.__doc__
