"""What devices do together, inside `jax.shard_map`: share rows, gather weights, average gradients."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec

from jaxgpt.device.mesh import AXES, DATA, FSDP, TENSOR
from jaxgpt.device.sharding import ROWS, Placement


def share_rows(function: Any, placement: Placement, in_specs: Any, out_specs: Any) -> Any:
    """`jax.shard_map` of `function`, which sees what a device has along the axes that share rows. What is shared along
    the axis `tensor` it sees whole, and XLA splits the work."""
    manual = AXES if placement.mesh.shape[TENSOR] == 1 else ROWS
    keep = partial(jax.tree.map, partial(_along, manual))
    return jax.shard_map(
        function,
        mesh=placement.mesh,
        in_specs=keep(in_specs),
        out_specs=keep(out_specs),
        axis_names=set(manual),
        check_vma=False,
    )


def _along(axes: Sequence[str], spec: PartitionSpec) -> PartitionSpec:
    """The spec without all other axes."""
    return PartitionSpec(*(axis if isinstance(axis, tuple) or axis in axes else None for axis in spec))


def gather(params: Any, specs: Any, dtype: Any) -> Any:
    """Whole weights, of those that are shared along `fsdp` in the type `dtype`."""
    return jax.tree.map(lambda x, spec: _gather(x, spec.index(FSDP), dtype) if FSDP in spec else x, params, specs)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x: jax.Array, dimension: int, dtype: Any) -> jax.Array:
    return jax.lax.all_gather(x.astype(dtype), FSDP, axis=dimension, tiled=True)


def _gather_backward(dimension, dtype, _, g):
    """Each device gets its part of the mean of all devices' gradients, added up in float32."""
    total = jax.lax.psum_scatter(g.astype(jnp.float32), FSDP, scatter_dimension=dimension, tiled=True)
    return (total / jax.lax.axis_size(FSDP),)


_gather.defvjp(lambda x, dimension, dtype: (_gather(x, dimension, dtype), None), _gather_backward)


def is_gathered(primitive: Any, *_, call_jaxpr: Any = None, **__) -> bool:
    """Of what a function computes, as a policy of `jax.checkpoint` is asked: whether `gather` made it."""
    inner = [] if call_jaxpr is None else call_jaxpr.eqns  # of `_gather`, which has a gradient of its own
    return "all_gather" in (primitive.name, *(eqn.primitive.name for eqn in inner))


def average(tree: Any, placement: Placement, specs: Any = None) -> Any:
    """The mean of every array over the devices that share rows.

    Args:
        specs: of gradients: those of weights that were gathered are means along `fsdp` already. None for none.
    """
    if placement.shares == 1:
        return tree
    if not placement.shards_state:  # as one vector, so that the devices wait for each other once, not once an array
        vector, unravel = ravel_pytree(tree)
        return unravel(jax.lax.pmean(vector, ROWS))
    return jax.tree.map(lambda x, spec: jax.lax.pmean(x, DATA if FSDP in spec else ROWS), tree, specs)


def all_gather(tree: Any) -> Any:
    """Every array (...) of every device, (devices, ...). All arrays go as one vector, as in `average`."""
    vector, unravel = ravel_pytree(tree)
    return jax.vmap(unravel)(jax.lax.all_gather(vector, AXES))
