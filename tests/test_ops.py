"""The arithmetic below the modules: values and gradients against plain formulas, the type that sums run in, and what a
program for a CPU has that one for a GPU has not."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxgpt.model import gpt, ops

# 1 and many numbers that are too small, one by one, to change it in the type; together they double it and a bit more,
# which is too little for the type again.
SMALL = {"float16": 2.0**-12, "bfloat16": 2.0**-9}


def one_and_many_small(dtype: str) -> jax.Array:
    many = np.full((1, 4 + round(1 / SMALL[dtype])), SMALL[dtype], np.float32)
    many[0, 0] = 1
    return jnp.asarray(many, dtype)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def assert_same_gradients(ours, theirs, *inputs):
    """The same values, and the same gradients for an output gradient of noise."""

    @jax.jit
    def both(g, *inputs):
        found = []
        for f in (ours, theirs):
            y, pull = jax.vjp(f, *inputs)
            found.append((y, pull(g)))
        return found

    g = noise(*jax.eval_shape(ours, *inputs).shape)
    (y, gradients), (expected, expected_gradients) = both(g, *inputs)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, atol=2e-5), gradients, expected_gradients)


# Matrix products


@pytest.mark.parametrize("dtype", SMALL)
def test_products_add_up_in_float32(dtype):
    x = one_and_many_small(dtype)
    ones = jnp.ones_like(x).T
    for result in (jnp.dtype(dtype), jnp.dtype("float32")):
        row, rows = (ops.matmul(jnp.tile(x, (n, 1)), ones, result) for n in (1, 2))
        for y in (ops.product("ab,bc->ac", x, ones, result), row, rows):
            assert y.dtype == result
            rtol = 1e-6 if result == jnp.float32 else 1e-2
            np.testing.assert_allclose(y.astype(jnp.float32), 2 + 3 * SMALL[dtype], rtol=rtol)


@pytest.mark.parametrize("formula", ["bhtd,bhsd->bhts", "bhts,bhsd->bhtd", "bhts,bhtd->bhsd"])
def test_a_product_has_the_gradients_of_an_einsum(formula):
    sizes = {"b": 2, "h": 3, "t": 4, "s": 5, "d": 6}
    a, b = (noise(*(sizes[letter] for letter in part)) for part in formula.split("->")[0].split(","))
    assert_same_gradients(lambda a, b: ops.product(formula, a, b, jnp.float32), partial(jnp.einsum, formula), a, b)


@pytest.mark.parametrize("rows", [(2, 5), (1, 1)], ids=["rows", "one row"])
@pytest.mark.parametrize("n_in, n_out", [(3, 7), (8, 3)], ids=["widening", "narrowing"])
def test_a_matrix_product_has_the_values_and_gradients_of_its_formula(n_in, n_out, rows):
    ours, x, w = partial(ops.matmul, dtype=jnp.float32), noise(*rows, n_in), noise(n_in, n_out)
    np.testing.assert_allclose(jax.jit(ours)(x, w), x.astype(np.float64) @ w.astype(np.float64), atol=1e-5)
    assert_same_gradients(ours, jnp.matmul, x, w)


def program(f, platform: str, *inputs) -> str:
    """What this machine would have a device of `platform` compile."""
    return jax.jit(f).trace(*inputs).lower(lowering_platforms=(platform,)).as_text()


def types_of_products(program: str) -> list[str]:
    return [line.split(" : ")[1].split(" loc")[0] for line in program.splitlines() if "dot_general" in line]


def test_a_single_row_is_multiplied_in_two_halves_on_a_cpu_and_on_nothing_else():
    row, rows, w = noise(1, 1, 6), noise(1, 2, 6), noise(6, 5)
    ours, plain = partial(ops.matmul, dtype=jnp.float32), partial(jnp.matmul, preferred_element_type=jnp.float32)
    assert types_of_products(program(ours, "cpu", row, w)) == [
        "(tensor<2x3xf32>, tensor<2x3x5xf32>) -> tensor<2x5xf32>"
    ]
    for platform, x in (("cuda", row), ("cuda", rows), ("cpu", rows)):
        assert types_of_products(program(ours, platform, x, w)) == types_of_products(program(plain, platform, x, w))


@pytest.mark.parametrize("width", [6, 7], ids=["even", "odd"])
def test_the_product_of_a_single_row_is_that_row_of_the_product(width):
    x, w = noise(1, 1, width), noise(width, 5)
    np.testing.assert_allclose(ops.row_matmul(x, w, jnp.float32), x @ w, atol=1e-5)


def test_a_barrier_is_for_cpus_alone_and_changes_nothing():
    tree = {"a": noise(3), "b": (noise(2, 2),)}
    jax.tree.map(np.testing.assert_array_equal, ops.cpu_barrier(tree), tree)
    assert "optimization_barrier" in program(ops.cpu_barrier, "cpu", tree)
    assert "optimization_barrier" not in program(ops.cpu_barrier, "cuda", tree)


# Norms and activations


def test_relu_has_no_gradient_at_zero_and_below():
    y, pull = jax.vjp(ops.relu, jnp.asarray([-1.0, 0.0, 2.0]))
    assert y.tolist() == [0, 0, 2]
    assert pull(jnp.full(3, 5.0))[0].tolist() == [0, 0, 5]


def plain_layer_norm(x, scale, bias):
    y = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5) * scale
    return y if bias is None else y + bias


def plain_rms_norm(x):
    return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm_has_the_gradients_of_its_formula(bias):
    assert_same_gradients(ops.layer_norm, plain_layer_norm, noise(2, 5, 16) + 1, noise(16), noise(16) if bias else None)


def test_rms_norm_has_the_gradients_of_its_formula():
    assert_same_gradients(ops.rms_norm, plain_rms_norm, 3 * noise(2, 3, 16))


def test_norms_are_numpys_with_the_usual_epsilons():
    x = 2 + 0.01 * noise(3, 5, 16)  # so quiet that an epsilon counts
    scale, bias = noise(2, 16)
    exact = x.astype(np.float64)
    expected = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5) * scale + bias
    np.testing.assert_allclose(ops.layer_norm(x, scale, bias), expected, atol=1e-4)
    exact = (exact - 2) / 10
    expected = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(ops.rms_norm(exact.astype(np.float32)), expected, atol=1e-5)


def test_layer_norm_counts_in_float32_and_gives_back_the_type_it_got():
    x = jnp.asarray([[0.0, 1000.0, 2000.0, 3000.0]], jnp.float16)  # their squares overflow float16
    y = ops.layer_norm(x, jnp.ones(4), None)
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(y[0], np.array([-3, -1, 1, 3]) / np.sqrt(5), atol=2e-3)


@pytest.mark.parametrize("dtype", SMALL)
def test_rms_norm_counts_in_float32_and_gives_back_the_type_it_got(dtype):
    x = one_and_many_small(dtype)
    y, pull = jax.vjp(ops.rms_norm, x)
    assert y.dtype == pull(y)[0].dtype == dtype
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(np.asarray(y, np.float64), exact / np.sqrt((exact**2).mean() + 1e-6), rtol=1e-2)


# Gradients that are sums over tokens. 5,000 of them: in float16 their ones would add up to 2,048, in bfloat16 to 256.


@pytest.mark.parametrize("dtype", SMALL)
def test_the_gradient_of_a_bias_adds_up_in_float32(dtype):
    y, pull = jax.vjp(ops.add_bias, jnp.ones((5, 1000, 2), dtype), jnp.ones(2))
    dx, d_bias = pull(jnp.ones((5, 1000, 2), dtype))
    assert y.dtype == dx.dtype == dtype
    assert (y[0, 0, 0], dx[0, 0, 0]) == (2, 1)
    assert d_bias.dtype == jnp.float32
    assert d_bias.tolist() == [5000, 5000]


@pytest.mark.parametrize("dtype", SMALL)
def test_the_gradient_of_an_embedding_adds_up_in_float32(dtype):
    graphdef, rows = nnx.split(nnx.eval_shape(lambda: gpt.Embed(3, 2, nnx.Rngs(0))))
    rows = jax.tree.map(lambda p: jnp.zeros(p.shape, dtype), rows)
    _, pull = jax.vjp(lambda rows: nnx.merge(graphdef, rows)(jnp.ones(5000, jnp.int32)).astype(dtype), rows)
    (d_rows,) = pull(jnp.ones((5000, 2), dtype))
    np.testing.assert_allclose(d_rows["embedding"][...].astype(jnp.float32)[:, 0], [0, 5000, 0], rtol=2**-8)


# Dropout; for its random bits see test_random_bits.py


def test_dropout_drops_its_share_and_keeps_the_mean_and_the_same_key_drops_the_same():
    x, key = np.full((300, 300), 2.0, np.float32), jax.random.key(0)
    dropped = np.asarray(ops.dropout(x, 0.2, key))
    assert set(np.unique(dropped).tolist()) == {0.0, 2.5}
    assert (dropped == 0).mean() == pytest.approx(0.2, abs=0.01)
    assert dropped.mean() == pytest.approx(2, abs=0.03)
    np.testing.assert_array_equal(ops.dropout(x, 0.2, key), dropped)


def test_dropout_falls_anew_on_every_row_and_every_column_and_with_every_key():
    first, other = (np.asarray(ops.dropout(jnp.ones((300, 256)), 0.5, jax.random.key(seed))) > 0 for seed in (0, 1))
    assert len({row.tobytes() for row in first}) == 300
    assert len({column.tobytes() for column in first.T}) == 256
    for shift in (1, 2, 3, 4, 8, 16, 64, 128):
        assert (first[:, shift:] == first[:, :-shift]).mean() == pytest.approx(0.5, abs=0.02), shift
        assert (first[shift:] == first[:-shift]).mean() == pytest.approx(0.5, abs=0.02), shift
    assert (first == other).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("rate, key", [(0.0, jax.random.key(0)), (0.5, None)], ids=["no rate", "no key"])
def test_dropout_without_a_rate_or_a_key_is_nothing(rate, key):
    x = jnp.ones(64)
    assert ops.dropout(x, rate, key) is x
