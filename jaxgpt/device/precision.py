"""Mixed precision: the type that the matrix products run in, and the loss scale that float16 needs.

Weights, optimiser state, softmax, norms and loss are float32 always (Micikevicius et al. 2017,
"Mixed Precision Training", https://arxiv.org/abs/1710.03740).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

GROWTH_INTERVAL = 1000  # finite float16 updates in a row before the loss scale is doubled
INITIAL_SCALE, MAX_SCALE = 2.0**15, 2.0**24
AMD_WITHOUT_MATRIX_CORES = ("gfx900", "gfx906", "gfx10")  # Vega, RDNA 1 and 2


class LossScale(NamedTuple):
    """Dynamic loss scale: a factor on the loss that lifts small gradients into float16's range; 1 for other types."""

    factor: jax.Array  # () float32
    good_steps: jax.Array  # () int32, updates since the factor last changed


def choose(dtype: str, device: jax.Device) -> tuple[jnp.dtype, str]:
    """The type for `dtype` ("auto" or a name) on `device`, and the reason, for people."""
    if dtype != "auto":
        return jnp.dtype(dtype), "as asked"
    if device.platform == "tpu":
        return jnp.dtype("bfloat16"), "native on a TPU"
    if device.platform == "gpu":
        return _choose_for_gpu(str(getattr(device, "compute_capability", "")))
    return jnp.dtype("float32"), "a CPU gains nothing from less"


def _choose_for_gpu(capability: str) -> tuple[jnp.dtype, str]:
    """By the compute capability: NVIDIA's is a number, "7.5"; AMD's is its architecture's name, "gfx90a"."""
    if capability.startswith(AMD_WITHOUT_MATRIX_CORES):
        return jnp.dtype("float32"), "this GPU has no matrix cores"
    try:
        number = float(capability)
    except ValueError:  # a name, or nothing: as a GPU of today
        number = 8.0
    if number >= 8.0:
        return jnp.dtype("bfloat16"), "fast on this GPU, needs no loss scale"
    if number >= 7.0:
        return jnp.dtype("float16"), "this GPU has tensor cores but no bfloat16"
    return jnp.dtype("float32"), "this GPU has no tensor cores"


def cast(params: Any, dtype: jnp.dtype) -> Any:
    """The matrices of `params` in `dtype`; vectors (biases, norms) stay as they are."""
    return jax.tree.map(lambda p: p.astype(dtype) if p.ndim >= 2 else p, params)


def initial_scale(dtype: jnp.dtype) -> LossScale:
    """The loss scale of the first update."""
    return LossScale(jnp.float32(INITIAL_SCALE if dtype == jnp.float16 else 1), jnp.int32(0))


def adjust_scale(scale: LossScale, finite: jax.Array, dtype: jnp.dtype) -> LossScale:
    """The loss scale after an update whose gradient was `finite` () or not; it changes with float16 alone.

    Half after an overflow, down to 1; twice after `GROWTH_INTERVAL` updates without one, up to `MAX_SCALE`.
    """
    if dtype != jnp.float16:
        return scale
    good_steps = jnp.where(finite, scale.good_steps + 1, 0)
    grow = good_steps >= GROWTH_INTERVAL
    factor = jnp.where(finite, jnp.where(grow, scale.factor * 2, scale.factor), scale.factor / 2)
    return LossScale(jnp.clip(factor, 1, MAX_SCALE), jnp.where(grow, 0, good_steps))
