"""Where things live: which devices a batch is shared among, and how state and batch lie on them.

Data parallelism: every device holds the whole state and takes a share of the batch's rows; the shares' gradients are
averaged. On a GPU machine the devices are its GPUs; on a CPU they are what `jax_num_cpu_devices` makes of it, a core
each in the commands: a core that works through rows of its own need not wait for the others at every operation.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXIS = "data"
CPU_MIN_TOKENS = 128  # of a batch, for one more core to be worth it
CPU_REPLICA_BYTES = 2**30  # that all cores' copies of weights, gradients and optimiser state may take
CPU_MIN_SAMPLES = 8  # to be written side by side, for one more core to read all weights for them
CPU_MICRO_TOKENS = 512  # of a micro-batch, whose activations then stay near a core's cache


class Placement(NamedTuple):
    """The devices of a computation, and how arrays lie on them. No other room decides that."""

    mesh: Mesh
    micro_batches: int = 1
    """Parts that a device splits its share of a batch into and works through one by one."""

    @property
    def state(self) -> NamedSharding:
        """Weights and optimiser state: all of it on every device. It stands for each array of the state."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """Arrays of a batch (B, ...): each device has some of the rows."""
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    @property
    def rows_of_batches(self) -> NamedSharding:
        """Several batches (N, B, ...): each device has some rows of each."""
        return NamedSharding(self.mesh, PartitionSpec(None, AXIS))

    def abstract(self, tree: Any) -> Any:
        """The shapes and types of a part of the state, with its sharding: what it is compiled for, or restored as."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.state), tree)

    @property
    def platform(self) -> str:
        """`cpu`, `gpu` or `tpu`."""
        return self.mesh.devices.flat[0].platform


def place(devices: Sequence[jax.Device], micro_batches: int = 1) -> Placement:
    """These devices side by side. An axis of type Auto lets XLA find what follows from the arguments' shardings."""
    mesh = jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=list(devices))
    return Placement(mesh, micro_batches)


def for_training(
    batch_size: int, block_size: int, n_params: int, micro_batches: int = 0, devices: Sequence[jax.Device] | None = None
) -> Placement:
    """As many devices as get equal shares of a batch.

    Args:
        batch_size, block_size: rows of a batch, and tokens of a row.
        n_params: the model's size; a CPU's cores share one memory, which their copies must not fill.
        micro_batches: parts of a device's share; 0 for what is fastest.
        devices: to choose from; None takes all of this machine.
    """
    devices = jax.local_devices() if devices is None else devices
    most = len(devices)
    if devices[0].platform == "cpu":
        by_work = batch_size * block_size // CPU_MIN_TOKENS
        by_memory = CPU_REPLICA_BYTES // (16 * n_params)
        most = min(most, max(1, by_work), max(1, by_memory))
    n = _most_equal_shares(batch_size // max(1, micro_batches), most)
    if micro_batches == 0 and devices[0].platform == "cpu":
        micro_batches = _cpu_micro_batches(batch_size // n, block_size)
    return place(devices[:n], micro_batches or 1)


def for_sampling(samples: int) -> Placement:
    """The CPU cores that `samples` texts are shared among, as many as get equal shares; elsewhere, one device."""
    devices = jax.local_devices()
    most = min(len(devices), samples // CPU_MIN_SAMPLES) if devices[0].platform == "cpu" else 1
    return place(devices[: _most_equal_shares(samples, max(1, most))])


def _most_equal_shares(rows: int, most: int) -> int:
    return max(n for n in range(1, most + 1) if rows % n == 0)


def _cpu_micro_batches(rows: int, block_size: int) -> int:
    """The fewest equal parts of `rows` that are small enough for a core's cache."""
    small = (n for n in range(1, math.isqrt(rows) + 1) if rows % n == 0)
    divisors = sorted({divisor for n in small for divisor in (n, rows // n)})
    return next(n for n in divisors if rows // n * block_size <= CPU_MICRO_TOKENS or n == rows)


# Inside `jax.shard_map`


def average(tree: Any, mesh: Mesh) -> Any:
    """The mean of every array over the devices. All arrays go as one vector, so that the devices wait for each other
    once and not once an array."""
    if mesh.size == 1:
        return tree
    vector, unravel = ravel_pytree(tree)
    return unravel(jax.lax.pmean(vector, AXIS))


def all_gather(tree: Any) -> Any:
    """Every array (...) of every device, (devices, ...). All arrays go as one vector, as in `average`."""
    vector, unravel = ravel_pytree(tree)
    return jax.vmap(unravel)(jax.lax.all_gather(vector, AXIS))
