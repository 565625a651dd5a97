"""The arithmetic below the modules: matrix products, LayerNorm, ReLU and dropout, some with a gradient of their own.

A gradient of its own is for what JAX does not know: which of the values that a backward pass needs are cheap to compute
again, and in which type to add up. bench/t4.py counts what that saves in memory traffic on a GPU.

Shapes: (..., C) stands for (B, T, C): B sequences, T tokens, C channels.
"""

from functools import partial

import jax
import jax.numpy as jnp

keep = jax.lax.optimization_barrier  # `keep(x)` is computed once and stored, whatever XLA thinks of it


def cut(x: jax.Array) -> jax.Array:
    """`x`, computed once and kept, on a CPU. There XLA otherwise computes what looks cheap again for every reader of
    it, and the gradient of the residual stream, a sum with a term a layer, has many readers. On a GPU it weighs better,
    and would have to write what it could keep in registers."""
    return jax.lax.platform_dependent(x, cpu=keep, default=lambda x: x)


def product(formula: str, a: jax.Array, b: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The einsum `formula` of two arrays of one type, given back in `dtype`; so are the products of its gradient.

    XLA adds up products of float16 and bfloat16 in float32 and rounds the sum, on every device; to say so here, with a
    float32 sum and a conversion after it, would make a GPU write the float32 sum to memory first.
    """
    return _product(formula, a, b, jnp.dtype(dtype))


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def _product(formula, a, b, dtype):
    return jnp.einsum(formula, a, b, preferred_element_type=dtype)


def _product_backward(formula, dtype, operands, g):
    a, b = operands
    left, right, out = formula.replace("->", ",").split(",")
    g = g.astype(a.dtype)
    # With `a` as it is, this would sum over its rows, for which XLA has no quick product on a CPU: the rung `layernorm`
    # takes 1.04 ms a step for 1.11.
    turned = left[:-2] + left[-1] + left[-2]
    d_b = product(f"{turned},{out}->{right}", cut(a.mT), g, b.dtype)
    return product(f"{out},{right}->{left}", g, b, a.dtype), d_b


_product.defvjp(lambda formula, a, b, dtype: (_product(formula, a, b, dtype), (a, b)), _product_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(x: jax.Array, w: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`x @ w`, (..., K) by (K, N), both of one type, given back in `dtype`; with operands that are computed once and a
    backward pass that is fast."""
    if x.size == x.shape[-1] and jax.default_backend() == "cpu":
        return row_matmul(x, w, dtype)
    return jnp.matmul(x, w, preferred_element_type=dtype)


def row_matmul(x: jax.Array, w: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`matmul` for a single row `x`, as the sum of the products of its halves with those of `w`: XLA's CPU code
    reads a large matrix faster as a batch of two."""
    K, N = w.shape
    n = 2 if K % 2 == 0 else 1
    halves = jnp.einsum("nk,nkm->nm", x.reshape(n, K // n), w.reshape(n, K // n, N), preferred_element_type=jnp.float32)
    return halves.sum(0).astype(dtype).reshape(*x.shape[:-1], N)


def _matmul_forward(x, w, dtype):
    x = cut(x)  # read here and again for the gradient of w
    return jnp.matmul(x, w, preferred_element_type=dtype), (x, w)


def _matmul_backward(dtype, operands, g):
    x, w = operands
    g = cut(g.astype(w.dtype))  # read for both gradients
    rows = tuple(range(x.ndim - 1))
    # A product over rows transposes a copy of its left operand: let that be the narrow one.
    left, right = (x, g) if x.shape[-1] <= g.shape[-1] else (g, x)
    dw = jax.lax.dot_general(left, right, ((rows, rows), ((), ())))
    # Uncut, XLA would have a product give the transpose at once, and has no quick one that does: `cpu` takes 18.4 ms a
    # step for 19.3.
    return g @ w.T, dw if left is x else cut(dw).T


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
    """The larger of `x` and 0, with a gradient that needs the result only: `x` itself is never stored."""
    return jnp.maximum(x, 0)


def _relu_forward(x):
    y = keep(relu(x))  # else XLA sees that y > 0 where x > 0, and stores x as well
    return y, y


relu.defvjp(_relu_forward, lambda y, g: (jnp.where(y > 0, g, 0),))


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
    """Channels to mean 0 and variance 1, times `scale`, plus `bias`: in float32, given back in the type of `x`.

    For the gradient, `x` is kept as it came, with two numbers a token.
    """
    return _layer_norm_forward(x, scale, bias)[0]


def _layer_norm_forward(x, scale, bias):
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True)
    centred = x32 - mean
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)  # of the standard deviation
    y = centred * inverse * scale
    return (y if bias is None else y + bias).astype(x.dtype), (x, mean, inverse, scale, bias)


def _layer_norm_backward(kept, g):
    x, mean, inverse, scale, bias = kept
    rows = tuple(range(g.ndim - 1))
    g = g.astype(jnp.float32)
    normal = (x.astype(jnp.float32) - mean) * inverse
    d_normal = g * scale
    # Both means need `x` and `g` only: one reading of them. JAX's own gradient takes one after the other.
    along = (d_normal * normal).mean(-1, keepdims=True)
    dx = (d_normal - d_normal.mean(-1, keepdims=True) - normal * along) * inverse
    d_bias = None if bias is None else g.sum(rows).astype(bias.dtype)
    return dx.astype(x.dtype), (g * normal).sum(rows).astype(scale.dtype), d_bias


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


@jax.custom_vjp
def rms_norm(x: jax.Array) -> jax.Array:
    """Channels to a mean square of 1: in float32, given back in the type of `x`, which is all that the gradient keeps.

    Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467, without the learnt scale.
    """
    return _rms_norm_forward(x)[0]


def _rms_norm_forward(x):
    x32 = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + 1e-6)
    return (x32 * inverse).astype(x.dtype), (x, inverse)


def _rms_norm_backward(kept, g):
    x, inverse = kept
    g = g.astype(jnp.float32)
    normal = x.astype(jnp.float32) * inverse
    return (((g - normal * (g * normal).mean(-1, keepdims=True)) * inverse).astype(x.dtype),)


rms_norm.defvjp(_rms_norm_forward, _rms_norm_backward)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a share `rate` of `x` and scales the rest up to keep its mean; without a key, `x` itself.

    Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html.
    """
    if key is None or rate == 0:
        return x
    kept = random_bits(key, x.shape) >= jnp.uint32(rate * 2**32)
    return jnp.where(kept, x * (1 / (1 - rate)), 0).astype(x.dtype)


def random_bits(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """32 random bits for each place of `shape`: its index, hashed with two words of the key.

    The hash is Chris Wellons' lowbias32 with the second word added half-way. It is far cheaper than
    `jax.random.bits`, and the backward pass computes it again instead of keeping a mask.
    """
    first, second = jax.random.bits(key, (2,))
    index = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    x = index ^ first
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) + second
    x = x * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)
