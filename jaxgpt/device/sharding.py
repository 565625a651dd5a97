"""Where things live: which devices a batch is shared among, and how state and batch lie on them.

The devices stand in a mesh with the axes of mesh.py. Where nobody names one, they are in data parallel: every device
holds the whole state and takes a share of the batch's rows; the shares' gradients are averaged. On a GPU machine the
devices are its GPUs; on a CPU they are what `jax_num_cpu_devices` makes of it, a core each in the commands: a core that
works through rows of its own need not wait for the others at every operation.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxgpt.device import mesh as meshes
from jaxgpt.device.mesh import AXES, DATA, FSDP, TENSOR
from jaxgpt.errors import UserError

ROWS = DATA, FSDP  # the axes that share the rows of a batch
RULES = {
    # Which axis shares which dimension of an array, by the end of its name. The moments of an optimiser have the names
    # of the weights. What is not named here, or does not divide, lies whole on every device.
    "wte/embedding": (TENSOR, FSDP),  # (V, C)
    "wpe/embedding": (None, FSDP),  # (T, C)
    "c_attn/kernel": (FSDP, TENSOR),  # (C, 3 C)
    "c_attn/bias": (TENSOR,),
    "c_fc/kernel": (FSDP, TENSOR),  # (C, 4 C)
    "c_fc/bias": (TENSOR,),
    "c_proj/kernel": (TENSOR, FSDP),  # (C, C) and (4 C, C)
    "lm_head/kernel": (FSDP, TENSOR),  # (C, V)
    "lm_head/bias": (TENSOR,),
}
CPU_MIN_TOKENS = 128  # of a batch, for one more core to be worth it
CPU_REPLICA_BYTES = 2**30  # that all cores' copies of weights, gradients and optimiser state may take
CPU_MIN_SAMPLES = 8  # to be written side by side, for one more core to read all weights for them
MICRO_TOKENS = {"cpu": 512}  # of a micro-batch, whose activations then stay near a core's cache
MOST_MICRO_TOKENS = 2**14  # elsewhere, where they fill the device


class Placement(NamedTuple):
    """The devices of a computation, and how arrays lie on them. No other room decides that."""

    mesh: Mesh
    micro_batches: int = 1
    """Parts that a device splits its share of a batch into and works through one by one."""

    @property
    def replicated(self) -> NamedSharding:
        """All of an array on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """Arrays of a batch (B, ...): each device has some of the rows."""
        return NamedSharding(self.mesh, PartitionSpec(ROWS))

    @property
    def rows_of_batches(self) -> NamedSharding:
        """Several batches (N, B, ...): each device has some rows of each."""
        return NamedSharding(self.mesh, PartitionSpec(None, ROWS))

    @property
    def shares(self) -> int:
        """Of a batch, that are worked through side by side."""
        return self.mesh.shape[DATA] * self.mesh.shape[FSDP]

    @property
    def shards_state(self) -> bool:
        """Whether a device has a part of the weights, and not all of them."""
        return self.mesh.shape[FSDP] * self.mesh.shape[TENSOR] > 1

    def specs(self, tree: Any) -> Any:
        """By `RULES`, how each array of the state, or of a part of it, lies on the mesh."""
        return jax.tree.map_with_path(lambda path, x: self._spec(path, x.shape), tree)

    def _spec(self, path: Any, shape: tuple[int, ...]) -> PartitionSpec:
        axes = RULES.get("/".join(str(getattr(key, "key", "")) for key in path[-2:]), ())
        if len(axes) != len(shape):
            return PartitionSpec()
        sizes = [self.mesh.shape[axis] if axis else 1 for axis in axes]
        shared = [
            axis if size > 1 and n % size == 0 else None for axis, size, n in zip(axes, sizes, shape, strict=True)
        ]
        return PartitionSpec(*shared) if any(shared) else PartitionSpec()

    def shardings(self, tree: Any) -> Any:
        """`specs` with the devices."""
        return jax.tree.map(lambda spec: NamedSharding(self.mesh, spec), self.specs(tree))

    def abstract(self, tree: Any) -> Any:
        """The shapes and types of a part of the state, with its sharding: what it is compiled for, or restored as."""
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, self.shardings(tree)
        )

    @property
    def platform(self) -> str:
        """`cpu`, `gpu` or `tpu`."""
        return self.mesh.devices.flat[0].platform


def place(devices: Sequence[jax.Device], micro_batches: int = 1, fsdp: int = 1, tensor: int = 1) -> Placement:
    """These devices side by side. An axis of type Auto lets XLA find what follows from the arguments' shardings."""
    shape = len(devices) // (fsdp * tensor), fsdp, tensor
    mesh = jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=list(devices))
    return Placement(mesh, micro_batches)


def for_training(
    batch_size: int,
    block_size: int,
    n_params: int,
    micro_batches: int = 0,
    mesh: str = "",
    devices: Sequence[jax.Device] | None = None,
) -> Placement:
    """The devices of a mesh; where none is named, as many in data parallel as get equal shares of a batch.

    Args:
        batch_size, block_size: rows of a batch, and tokens of a row.
        n_params: the model's size; a CPU's cores share one memory, which their copies must not fill.
        micro_batches: parts of a device's share; 0 for what is fastest.
        mesh: as the field `mesh`.
        devices: to choose from; None takes all of this machine, or of all machines that take part.

    Raises:
        UserError: for a mesh that the devices or the batch are too few for, or do not fit.
    """
    devices = jax.devices() if devices is None else devices
    platform, several_processes = devices[0].platform, jax.process_count() > 1
    if several_processes and not mesh:
        mesh = f"{DATA}=-1"
    if mesh:
        sizes = meshes.fit(mesh, len(devices))
        _check_shares(batch_size, micro_batches, sizes)
        n = math.prod(sizes.values())
        if several_processes and n < len(devices):
            raise UserError(f"`mesh` {mesh} uses {n} of {len(devices)} devices: all processes must take part")
    else:
        n = _most_equal_shares(batch_size // max(1, micro_batches), _most(devices, batch_size * block_size, n_params))
        sizes = {DATA: n, FSDP: 1, TENSOR: 1}
    rows = batch_size // (sizes[DATA] * sizes[FSDP])
    parts = micro_batches or _micro_batches(rows, block_size, MICRO_TOKENS.get(platform, MOST_MICRO_TOKENS))
    return place(devices[:n], parts, sizes[FSDP], sizes[TENSOR])


def _check_shares(batch_size: int, micro_batches: int, sizes: dict[str, int]) -> None:
    shares = sizes[DATA] * sizes[FSDP]
    parts = shares * max(1, micro_batches)
    if batch_size % parts:
        of = f" of {micro_batches} `micro_batches` each" if micro_batches > 1 else ""
        raise UserError(
            f"a `batch_size` of {batch_size} cannot be shared equally by {shares} devices{of}: take a multiple of "
            f"{parts}, or another `mesh`"
        )


def _most(devices: Sequence[jax.Device], batch_tokens: int, n_params: int) -> int:
    """How many of the devices are worth having."""
    if devices[0].platform != "cpu":
        return len(devices)
    by_work, by_memory = batch_tokens // CPU_MIN_TOKENS, CPU_REPLICA_BYTES // (16 * n_params)
    return min(len(devices), max(1, by_work), max(1, by_memory))


def for_sampling(samples: int) -> Placement:
    """The CPU cores that `samples` texts are shared among, as many as get equal shares; elsewhere, one device."""
    devices = jax.local_devices()
    most = min(len(devices), samples // CPU_MIN_SAMPLES) if devices[0].platform == "cpu" else 1
    return place(devices[: _most_equal_shares(samples, max(1, most))])


def _most_equal_shares(rows: int, most: int) -> int:
    return max(n for n in range(1, most + 1) if rows % n == 0)


def _micro_batches(rows: int, block_size: int, most_tokens: int) -> int:
    """The fewest equal parts of `rows` that have no more tokens than that."""
    small = (n for n in range(1, math.isqrt(rows) + 1) if rows % n == 0)
    divisors = sorted({divisor for n in small for divisor in (n, rows // n)})
    return next(n for n in divisors if rows // n * block_size <= most_tokens or n == rows)


def put(x: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """`x`, which every process has, laid out so."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def put_rows(read: Callable[..., np.ndarray], shape: tuple[int, ...], sharding: jax.sharding.Sharding) -> jax.Array:
    """The array of `shape` that `read(rows=...)` reads, laid out so: a process reads the rows that its devices need."""
    if sharding.is_fully_addressable:
        return jax.device_put(read(), sharding)
    return jax.make_array_from_callback(shape, sharding, lambda index: read(rows=index[0]))
