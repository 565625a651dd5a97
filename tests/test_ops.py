"""The arithmetic below the modules: values and gradients against plain formulas, and the type that sums run in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxgpt.model import gpt as model
from jaxgpt.model import ops

# 1 and many numbers that are too small, one by one, to change it in the type; together they double it.
SMALL = {"float16": 2.0**-12, "bfloat16": 2.0**-9}


def one_and_many_small(dtype: str) -> jax.Array:
    many = jnp.full((1, 1 + round(1 / SMALL[dtype])), SMALL[dtype], dtype)
    return many.at[0, 0].set(1)


@pytest.mark.parametrize("dtype", SMALL)
def test_products_add_up_in_float32(dtype):
    x = one_and_many_small(dtype)
    ones = jnp.ones_like(x).T
    for result in (dtype, "float32"):
        for y in (ops.product("ab,bc->ac", x, ones, result), ops.matmul(x, ones, jnp.dtype(result))):
            assert y.dtype == result
            assert y == pytest.approx(2, rel=1e-2)


def noise(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.float32)


def assert_same_gradients(ours, theirs, *inputs):
    """The same values, and the same gradients for an output gradient of noise."""
    y, pull = jax.vjp(ours, *inputs)
    expected, expected_pull = jax.vjp(theirs, *inputs)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    g = noise(*y.shape)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), pull(g), expected_pull(g))


@pytest.mark.parametrize("formula", ["bhtd,bhsd->bhts", "bhts,bhsd->bhtd", "bhts,bhtd->bhsd"])
def test_a_product_has_the_gradients_of_an_einsum(formula):
    sizes = {"b": 2, "h": 3, "t": 4, "s": 5, "d": 6}
    a, b = (noise(*(sizes[letter] for letter in part)) for part in formula.split("->")[0].split(","))
    assert_same_gradients(
        lambda a, b: ops.product(formula, a, b, jnp.float32), lambda a, b: jnp.einsum(formula, a, b), a, b
    )


@pytest.mark.parametrize("n_in, n_out", [(3, 7), (7, 3)], ids=["widening", "narrowing"])
def test_a_matrix_product_has_the_gradients_of_its_formula(n_in, n_out):
    assert_same_gradients(
        lambda x, w: ops.matmul(x, w, jnp.float32), lambda x, w: x @ w, noise(2, 5, n_in), noise(n_in, n_out)
    )


def test_relu_has_no_gradient_at_zero_and_below():
    x = jnp.asarray([-1.0, 0.0, 2.0])
    y, pull = jax.vjp(ops.relu, x)
    assert y.tolist() == [0, 0, 2]
    assert pull(jnp.full(3, 5.0))[0].tolist() == [0, 0, 5]


def plain_layer_norm(x, scale, bias):
    y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale
    return y if bias is None else y + bias


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_has_the_gradients_of_its_formula(bias):
    assert_same_gradients(ops.layer_norm, plain_layer_norm, noise(2, 5, 16) + 1, noise(16), noise(16) if bias else None)


# 5,000 tokens: in float16 their ones would add up to 2,048, in bfloat16 to 256.


@pytest.mark.parametrize("dtype", SMALL)
def test_the_gradient_of_a_bias_adds_up_in_float32(dtype):
    _, pull = jax.vjp(ops.add_bias, jnp.zeros((5, 1000, 2), dtype), jnp.zeros(2))
    (d_bias,) = pull(jnp.ones((5, 1000, 2), dtype))[1:]
    assert d_bias.dtype == jnp.float32
    assert d_bias.tolist() == [5000, 5000]


@pytest.mark.parametrize("dtype", SMALL)
def test_the_gradient_of_an_embedding_adds_up_in_float32(dtype):
    graphdef, rows = nnx.split(model.Embed(3, 2, nnx.Rngs(0)))
    rows = jax.tree.map(lambda p: p.astype(dtype), rows)
    _, pull = jax.vjp(lambda rows: nnx.merge(graphdef, rows)(jnp.ones(5000, jnp.int32)).astype(dtype), rows)
    (d_rows,) = pull(jnp.ones((5000, 2), dtype))
    np.testing.assert_allclose(d_rows["embedding"][...].astype(jnp.float32)[:, 0], [0, 5000, 0], rtol=2**-8)


def test_rms_norm_is_a_division_by_the_root_of_the_mean_square():
    def plain(x):
        return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)

    assert_same_gradients(ops.rms_norm, plain, 3 * noise(2, 3, 16))


@pytest.mark.parametrize("dtype", SMALL)
def test_rms_norm_reckons_in_float32_and_answers_in_the_type_it_was_asked(dtype):
    x = one_and_many_small(dtype)
    y, pull = jax.vjp(ops.rms_norm, x)
    assert y.dtype == pull(y)[0].dtype == dtype
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(np.asarray(y, np.float64), exact / np.sqrt((exact**2).mean() + 1e-6), rtol=1e-2)
