"""Which number type the matrix products run in, and the loss scale that float16 needs.

Weights, optimiser state, softmax, norms and loss are float32 always (Micikevicius et al. 2017,
"Mixed Precision Training", https://arxiv.org/abs/1710.03740).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

GROWTH_STEPS = 1000  # good float16 steps before the scale is doubled


class LossScale(NamedTuple):
    """Factor on the loss that lifts small gradients into float16's range; 1 for other types."""

    factor: jax.Array  # () float32
    good_steps: jax.Array  # () int32, updates since the factor last changed


def choose(dtype: str, device: jax.Device) -> tuple[jnp.dtype, str]:
    """The type for `dtype` ("auto" or a name) on `device`, and the reason, for people."""
    if dtype != "auto":
        return jnp.dtype(dtype), "as asked"
    if device.platform == "tpu":
        return jnp.dtype("bfloat16"), "native on a TPU"
    if device.platform == "gpu":
        capability = float(getattr(device, "compute_capability", 8.0))
        if capability >= 8.0:
            return jnp.dtype("bfloat16"), "fast on this GPU, needs no loss scale"
        if capability >= 7.0:
            return jnp.dtype("float16"), "this GPU has tensor cores but no bfloat16"
        return jnp.dtype("float32"), "this GPU has no tensor cores"
    return jnp.dtype("float32"), "a CPU gains nothing from less"


def cast(params, dtype: jnp.dtype):
    """The matrices of `params` in `dtype`; vectors (biases, norms) stay as they are."""
    return jax.tree.map(lambda p: p.astype(dtype) if p.ndim >= 2 else p, params)


def initial_scale(dtype: jnp.dtype) -> LossScale:
    return LossScale(jnp.float32(2**15 if dtype == jnp.float16 else 1), jnp.int32(0))


def adjust_scale(scale: LossScale, finite: jax.Array, dtype: jnp.dtype) -> LossScale:
    """Half after an overflow, double after `GROWTH_STEPS` updates without one; only float16's moves."""
    if dtype != jnp.float16:
        return scale
    good_steps = jnp.where(finite, scale.good_steps + 1, 0)
    grow = good_steps >= GROWTH_STEPS
    factor = jnp.where(finite, jnp.where(grow, scale.factor * 2, scale.factor), scale.factor / 2)
    return LossScale(jnp.clip(factor, 1, 2**24), jnp.where(grow, 0, good_steps))
