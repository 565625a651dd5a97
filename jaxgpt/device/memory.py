"""How much memory the devices of a computation have, and how much of it a part of the state, or a program, needs."""

import contextlib
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxgpt.device import backend
from jaxgpt.device.sharding import Placement


class Need(NamedTuple):
    """Bytes of one device; a CPU's devices share one memory, which counts as one device."""

    bytes: int
    available: int | None
    """None where the system does not tell."""

    @property
    def too_much(self) -> bool:
        return self.available is not None and self.bytes > self.available

    def __str__(self) -> str:
        return _size(self.bytes) + ("" if self.available is None else f" of {_size(self.available)}")


def of_arrays(tree: Any, placement: Placement) -> Need:
    """What arrays take, by their shapes, types and shardings."""
    shards = ((x.dtype.itemsize, x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree))
    return _need(sum(size * math.prod(shape) for size, shape in shards), placement)


def of_program(program: jax.stages.Compiled, placement: Placement) -> Need:
    """What a compiled program takes, with what it is given and what it returns."""
    return _need(peak_bytes(program), placement)


def peak_bytes(program: jax.stages.Compiled) -> int:
    """The most memory of one device that a program needs, by XLA's account of it."""
    m: Any = program.memory_analysis()
    return sum((m.argument_size_in_bytes, m.output_size_in_bytes, m.temp_size_in_bytes, -m.alias_size_in_bytes))


def _need(bytes: int, placement: Placement) -> Need:
    device = next(device for device in placement.mesh.devices.flat if device.process_index == jax.process_index())
    if device.platform == "cpu":
        return Need(bytes * len(placement.mesh.local_devices), _free_on_host())
    return Need(bytes, (device.memory_stats() or {}).get("bytes_limit"))


def _free_on_host(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """What the system can give, or the control group's limit, if that is less. Linux tells; others do not."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        lines = (line.split() for line in meminfo.read_text().splitlines())
        free = {words[0]: int(words[1]) for words in lines}["MemAvailable:"]
        return int(min(free * 1024, backend.memory_limit()))
    return None


def _size(bytes: int) -> str:
    return f"{bytes / 1e9:,.1f} GB" if bytes >= 1e9 else f"{bytes / 1e6:,.1f} MB"
