"""Data parallelism: every device takes a share of the batch's windows, and the shares' gradients are averaged.

All devices hold all weights. On a GPU machine the devices are its GPUs; on a CPU every core is one (see
`backend.setup`): a core that works through a batch of its own need not wait for the other at every operation.
"""

from typing import Any

import jax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxgpt.config import TrainConfig

AXIS = "data"
CPU_MIN_TOKENS = 128  # of a batch, for a core to be worth asking
CPU_REPLICA_BYTES = 2**30  # that all cores' copies of weights, gradients and optimiser state may take
CPU_MIN_SAMPLES = 8  # to be written side by side, for a core to read all weights for them
CPU_MICRO_TOKENS = 512  # of a micro-batch, whose activations then stay near a core's cache


def mesh(config: TrainConfig, n_params: int, devices: list[jax.Device] | None = None) -> Mesh:
    """The devices that one batch of `config` is shared among: as many as get equal shares.

    Args:
        n_params: the model's size; a CPU's cores share one memory, which their copies must not fill.
        devices: to choose from; None takes all of this machine.
    """
    devices = jax.local_devices() if devices is None else devices
    most = len(devices)
    if devices[0].platform == "cpu":
        by_work = config.batch_size * config.model.block_size // CPU_MIN_TOKENS
        by_memory = CPU_REPLICA_BYTES // (16 * n_params)
        most = min(most, max(1, by_work), max(1, by_memory))
    parts = config.batch_size // max(1, config.micro_batches)
    n = max(n for n in range(1, most + 1) if parts % n == 0)
    return over(devices[:n])


def sampling_mesh(samples: int) -> Mesh:
    """The CPU cores that `samples` texts are shared among, as many as get equal shares; elsewhere, one device."""
    devices = jax.local_devices()
    most = min(len(devices), samples // CPU_MIN_SAMPLES) if devices[0].platform == "cpu" else 1
    return over(devices[: max(n for n in range(1, max(1, most) + 1) if samples % n == 0)])


def over(devices: list[jax.Device]) -> Mesh:
    """These devices side by side. An axis of type Auto lets XLA find what follows from the arguments' shardings."""
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def micro_batches(config: TrainConfig, mesh: Mesh) -> int:
    """How many parts a device cuts its share into: as the config says, or what is fastest."""
    if config.micro_batches or mesh.devices.flat[0].platform != "cpu":
        return config.micro_batches or 1
    share, T = config.batch_size // mesh.size, config.model.block_size
    return min(n for n in range(1, share + 1) if share % n == 0 and (share // n * T <= CPU_MICRO_TOKENS or n == share))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shared(mesh: Mesh) -> NamedSharding:
    """A part of the array on every device, along the first axis."""
    return NamedSharding(mesh, PartitionSpec(AXIS))


def average(tree: Any, mesh: Mesh) -> Any:
    """The mean of every array over the devices, inside `jax.shard_map`; all as one vector, so that the devices meet
    once and not once an array."""
    if mesh.size == 1:
        return tree
    vector, unravel = ravel_pytree(tree)
    return unravel(jax.lax.pmean(vector, AXIS))


def gather(tree: Any) -> Any:
    """Every array (...) of every device, (devices, ...), inside `jax.shard_map`; all as one vector, as in `average`."""
    vector, unravel = ravel_pytree(tree)
    return jax.vmap(unravel)(jax.lax.all_gather(vector, AXIS))


def on_one(tree: Any) -> Any:
    """The first device's copy of replicated arrays."""
    return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)
