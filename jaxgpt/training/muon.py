"""Muon: momentum, orthogonalised, so that an update is equally strong in every direction.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. The updates are those of `optax.contrib.muon` but without
its bias correction, which makes no difference: orthogonalising forgets the length. What differs is the speed: matrices
of one shape are stacked and shared among the devices, where Optax works on one after the other, all on every device.

Shapes: G matrices of a shape, M rows, N columns, M <= N.
"""

from collections import defaultdict
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxgpt.device import collectives
from jaxgpt.device.mesh import AXES
from jaxgpt.model.ops import cpu_barrier

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al.: lifts small singular values fastest, brings all near 1
ITERATIONS = 5


class MuonState(NamedTuple):
    """Muon's state."""

    mu: Any  # moving average of the gradients


def scale_by_muon(momentum: float, mesh: Mesh | None = None) -> optax.GradientTransformationExtraArgs:
    """Gradients of matrices to orthogonalised updates, with Nesterov's momentum.

    Its `update` takes `finite`, as `optimizer.scale_by_adam` does: where that is false, the state stays as it is.

    Args:
        momentum: the moving average's decay, 0 to below 1.
        mesh: devices to share the work among; None has every device do all of it.
    """

    def update(updates, state: Any, params=None, *, finite: Any = True, **_):
        mu = optax.tree.update_moment(updates, state.mu, momentum, 1)
        mu = cpu_barrier(jax.tree.map(lambda new, old: jnp.where(finite, new, old), mu, state.mu))
        nesterov = optax.tree.update_moment(updates, mu, momentum, 1)
        return orthogonalize(nesterov, mesh), MuonState(mu)

    return optax.GradientTransformationExtraArgs(lambda params: MuonState(optax.tree.zeros_like(params)), update)


def orthogonalize(matrices: Any, mesh: Mesh | None = None) -> Any:
    """Every matrix of the tree with all singular values near 1 (0.7 to 1.2), times `sqrt(n_out / n_in)` where that is
    above 1, so that weights of any shape can have one learning rate."""
    matrices, tree = jax.tree.flatten(matrices)
    groups = defaultdict(list)  # of indices, by shape, tall matrices transposed
    for i, x in enumerate(matrices):
        groups[tuple(sorted(x.shape))].append(i)
    stacks = [jnp.stack([_wide(matrices[i]) for i in group]) for group in groups.values()]  # (G, M, N) each
    if mesh is None or mesh.size == 1:
        stacks = [newton_schulz(x) for x in stacks]
    else:
        share = partial(_share, mesh.size)
        stacks = jax.shard_map(share, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)(stacks)
    results = list(matrices)
    for group, stack in zip(groups.values(), stacks, strict=True):
        for i, x in zip(group, stack, strict=True):
            n_in, n_out = matrices[i].shape
            results[i] = (x if n_in <= n_out else x.T) * max(1, n_out / n_in) ** 0.5
    return jax.tree.unflatten(tree, results)


def _wide(x: jax.Array) -> jax.Array:
    return x if x.shape[0] <= x.shape[1] else x.T


def _share(devices: int, stacks: list[jax.Array]) -> list[jax.Array]:
    """`newton_schulz` of every stack, inside `jax.shard_map`: each device does its part, and gathers the others'."""
    local = []
    for x in stacks:
        part = -(-len(x) // devices)
        x = jnp.pad(x, [(0, part * devices - len(x)), (0, 0), (0, 0)])  # the zeros at the end stay zeros
        local.append(newton_schulz(jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(AXES) * part, part)))
    gathered = collectives.all_gather(local)  # (devices, part, M, N) each
    return [new.reshape(-1, *x.shape[1:])[: len(x)] for new, x in zip(gathered, stacks, strict=True)]


def newton_schulz(x: jax.Array) -> jax.Array:
    """Each matrix of the stack (G, M, N) with its singular values brought near 1 and the same singular vectors.

    An iteration is `x = (a + b s + c s s) x` with `s = x x^T`. All of them commute, so they are done on `s` alone,
    which is smaller than `x`, and applied to `x` at the end. That needs all digits of float32: a rounding error in the
    least singular values is not corrected by the next iteration, as it is where `x` itself goes through them.
    """
    with jax.default_matmul_precision("highest"):
        a, b, c = QUINTIC
        x = x / (jnp.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-20)
        square, one = x @ x.mT, jnp.eye(x.shape[1], dtype=x.dtype)  # (G, M, M), (M, M)
        total = one
        for i in range(ITERATIONS):
            factor = a * one + b * square + c * square @ square
            total = factor @ total if i else factor
            square = factor @ square @ factor
        return total @ x
