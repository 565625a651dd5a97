"""The arithmetic below the modules: matrix products, LayerNorm, ReLU and dropout, some with a custom VJP.

A custom VJP is for what JAX does not know: which of the values that a backward pass needs are cheap to compute
again, and in which type to add up. bench/t4.py counts what that saves in memory traffic on a GPU. Functions with one
have no forward-mode derivative (`jax.jvp`).

Shapes: (..., C) stands for (B, T, C): B sequences, T tokens, C channels.
"""

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.lax import optimization_barrier
from jax.typing import DTypeLike

SMALL_TABLE = 1024  # rows, for `take_rows`
PART_ROWS = 256  # of a matrix that `row_matmul` reads
Tree = TypeVar("Tree")  # arrays, in any nesting of containers


def cpu_barrier(x: Tree) -> Tree:
    """An optimization barrier on a CPU, where XLA otherwise computes what looks cheap again for every reader of it: the
    gradient of the residual stream, a sum with a term a layer, has many readers. A GPU's compiler weighs this better,
    and a barrier would make it write what it could keep in registers."""
    return jax.lax.platform_dependent(x, cpu=optimization_barrier, default=lambda x: x)


def product(formula: str, a: jax.Array, b: jax.Array, dtype: DTypeLike) -> jax.Array:
    """The einsum `formula` of two arrays of one type, returned in `dtype`; its gradients are computed likewise.

    XLA adds up products of float16 and bfloat16 in float32 and rounds the sum, on every device. To ask for a float32
    sum here, and to convert it afterwards, would make a GPU write the float32 sum to memory first.
    """
    return _product(formula, a, b, jnp.dtype(dtype))


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _product(formula, a, b, dtype):
    return jnp.einsum(formula, a, b, preferred_element_type=dtype)


def _product_backward(formula, dtype, residuals, g):
    a, b = residuals
    left, right, out = formula.replace("->", ",").split(",")
    g = g.astype(a.dtype)
    # With `a` as it is, this would sum over its rows, for which XLA has no quick product on a CPU: the rung `layernorm`
    # takes 1.04 ms a step for 1.11.
    transposed = left[:-2] + left[-1] + left[-2]
    d_b = product(f"{transposed},{out}->{right}", cpu_barrier(a.mT), g, b.dtype)
    return product(f"{out},{right}->{left}", g, b, a.dtype), d_b


_product.defvjp(lambda formula, a, b, dtype: (_product(formula, a, b, dtype), (a, b)), _product_backward)


@jax.custom_vjp
def take_rows(table: jax.Array, tokens: jax.Array) -> jax.Array:
    """Rows of `table` (V, C) for `tokens` (...): (..., C), in float32."""
    return table.astype(jnp.float32)[tokens]


def _take_rows_backward(residuals, g):
    """The gradient of a token that occurs often is a sum of many, which a GPU's scatter adds up in an order that
    changes from run to run. For a small table, a product with a matrix of ones and zeros is quicker than to sort."""
    table, tokens = residuals

    def scatter(tokens, g):
        return jnp.zeros(table.shape, jnp.float32).at[tokens].add(g)

    def one_hot(tokens, g):
        hot = jax.nn.one_hot(tokens.reshape(-1), table.shape[0], dtype=table.dtype)
        g = g.reshape(-1, table.shape[1]).astype(table.dtype)
        return jnp.einsum("nv,nc->vc", hot, g, preferred_element_type=jnp.float32)

    on_gpu = one_hot if table.shape[0] <= SMALL_TABLE else scatter
    return jax.lax.platform_dependent(tokens, g, cuda=on_gpu, rocm=on_gpu, default=scatter).astype(table.dtype), None


take_rows.defvjp(lambda table, tokens: (take_rows(table, tokens), (table, tokens)), _take_rows_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: jax.Array, w: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`x @ w`, (..., K) by (K, N), both of one type, returned in `dtype`."""
    plain = partial(jnp.matmul, preferred_element_type=dtype)
    if x.size > x.shape[-1]:
        return plain(x, w)
    return jax.lax.platform_dependent(x, w, cpu=partial(row_matmul, dtype=dtype), default=plain)


def row_matmul(x: jax.Array, w: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`matmul` for a single row `x`, as the sum of the products of its parts with those of `w`: XLA's CPU code reads a
    large matrix fastest as a batch of parts with some 200 rows each."""
    K, N = w.shape
    n = 1
    while K % (2 * n) == 0 and (n == 1 or K // n > PART_ROWS):
        n *= 2
    parts = jnp.einsum("nk,nkm->nm", x.reshape(n, K // n), w.reshape(n, K // n, N), preferred_element_type=jnp.float32)
    return parts.sum(0).astype(dtype).reshape(*x.shape[:-1], N)


def _matmul_forward(x, w, dtype):
    x = cpu_barrier(x)  # read here and again for the gradient of w
    return jnp.matmul(x, w, preferred_element_type=dtype), (x, w)


def _matmul_backward(dtype, residuals, g):
    x, w = residuals
    g = cpu_barrier(g.astype(w.dtype))  # read for both gradients
    rows = tuple(range(x.ndim - 1))
    # A product that sums over rows transposes a copy of its left operand: let that be the narrow one.
    left, right = (x, g) if x.shape[-1] <= g.shape[-1] else (g, x)
    dw = jax.lax.dot_general(left, right, ((rows, rows), ((), ())))
    # Without the barrier XLA would fuse the transpose into the product, for which it has no quick code: `cpu` takes
    # 18.4 ms a step for 19.3.
    return g @ w.T, dw if left is x else cpu_barrier(dw).T


matmul.defvjp(_matmul_forward, _matmul_backward)


@jax.custom_vjp
def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """`x + bias` in the type of `x`, so that a GPU's library can add it before it writes a product; the gradient of
    `bias`, a sum over all tokens, in float32."""
    return x + bias.astype(x.dtype)


def _add_bias_backward(bias, g):
    return g, g.sum(tuple(range(g.ndim - 1)), dtype=jnp.float32).astype(bias.dtype)


add_bias.defvjp(lambda x, bias: (add_bias(x, bias), bias), _add_bias_backward)


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """The larger of `x` and 0, with a gradient that reads the result alone: `x` itself is never stored."""
    return jnp.maximum(x, 0)


def _relu_forward(x):
    y = optimization_barrier(relu(x))  # else XLA sees that y > 0 where x > 0, and stores x as well
    return y, y


relu.defvjp(_relu_forward, lambda y, g: (jnp.where(y > 0, g, 0),))


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Channels to mean 0 and variance 1, times `scale`, plus `bias`: in float32, returned in the type of `x`.

    For the gradient, `x` is stored as it came, with two numbers a token.
    """
    return _layer_norm_forward(x, scale, bias)[0]


def _layer_norm_forward(x, scale, bias):
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True)
    centred = x32 - mean
    rstd = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
    y = centred * rstd * scale
    return (y if bias is None else y + bias).astype(x.dtype), (x, mean, rstd, scale, bias)


def _layer_norm_backward(residuals, g):
    x, mean, rstd, scale, bias = residuals
    rows = tuple(range(g.ndim - 1))
    g = g.astype(jnp.float32)
    x_hat = (x.astype(jnp.float32) - mean) * rstd
    d_x_hat = g * scale
    # Both means need `x` and `g` alone, so they are read once. JAX's own gradient computes one after the other.
    along = (d_x_hat * x_hat).mean(-1, keepdims=True)
    dx = (d_x_hat - d_x_hat.mean(-1, keepdims=True) - x_hat * along) * rstd
    d_bias = None if bias is None else g.sum(rows).astype(bias.dtype)
    return dx.astype(x.dtype), (g * x_hat).sum(rows).astype(scale.dtype), d_bias


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@jax.custom_vjp
def rms_norm(x: jax.Array) -> jax.Array:
    """Channels to a mean square of 1: in float32, returned in the type of `x`, which is all that the gradient stores.

    Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467, without the learnt scale.
    """
    return _rms_norm_forward(x)[0]


def _rms_norm_forward(x):
    x32 = x.astype(jnp.float32)
    rstd = jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + 1e-6)
    return (x32 * rstd).astype(x.dtype), (x, rstd)


def _rms_norm_backward(residuals, g):
    x, rstd = residuals
    g = g.astype(jnp.float32)
    x_hat = x.astype(jnp.float32) * rstd
    return (((g - x_hat * (g * x_hat).mean(-1, keepdims=True)) * rstd).astype(x.dtype),)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of `x` and scales the rest up so that the mean stays; without a key, `x` itself.

    Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html.
    """
    if key is None or rate == 0:
        return x
    kept = random_bits(key, x.shape) >= jnp.uint32(rate * 2**32)
    return jnp.where(kept, x * (1 / (1 - rate)), 0).astype(x.dtype)


def random_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """32 random bits for each element of an array of `shape`: its index, hashed with two words of the key.

    It is far cheaper than `jax.random.bits`, and the backward pass computes it again instead of storing a mask.
    """
    index = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return hashed(index, jax.random.bits(key, (2,), jnp.uint32))


def hashed(x: jax.Array, words: jax.Array) -> jax.Array:
    """Each number of `x` (...) mixed with two random words (2,), all uint32: Chris Wellons' lowbias32 with the second
    word added half-way."""
    x = x ^ words[0]
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) + words[1]
    x = x * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
