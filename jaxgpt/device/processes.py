"""Several processes that train one run, on one machine or on many: how they meet, and how they agree.

JAX's own runtime connects them (https://docs.jax.dev/en/latest/multi_process.html). Each runs the same program on its
own devices, so all of them must come to the same decisions: what depends on one process alone (the name of a free
folder, the time, a signal) is decided by the first and told to the others. Where there is one process, nothing here
costs anything.
"""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxgpt.errors import UserError

LONGEST_SILENCE = 30  # seconds without a sign of life until a process counts as dead
MESSAGE_BYTES = 2**14


def start(how: str) -> None:
    """Joins this process with the others, before JAX has found its devices.

    Args:
        how: `HOST:PORT,N,I`: the address of process 0, the number of processes, and which one this is; "" lets JAX find
            out how SLURM, Open MPI, Kubernetes or a TPU pod have started them.

    Raises:
        UserError: where that is not to be found out.
        RuntimeError: where the processes do not meet.
    """
    address, count, index = _parse(how) if how else (None, None, None)
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            heartbeat_timeout_seconds=LONGEST_SILENCE,
            shutdown_timeout_seconds=LONGEST_SILENCE,  # for a process that has failed, the others do not come
        )
    except ValueError as problem:
        raise UserError(
            f"`distributed`: JAX cannot tell who the other processes are ({problem}): give HOST:PORT,N,I"
        ) from problem


def _parse(how: str) -> tuple[str, int, int]:
    address, *numbers = how.split(",")
    host, colon, port = address.rpartition(":")
    if not (host and colon and all(text.isdecimal() for text in (port, *numbers)) and len(numbers) == 2):
        raise UserError(f"`distributed` is HOST:PORT,N,I, as in localhost:1234,2,0, not {how!r}")
    count, index = map(int, numbers)
    if index >= count:
        raise UserError(f"`distributed` counts {count} processes from 0, and has none of number {index}")
    return address, count, index


def several() -> bool:
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process is the one that writes files, and tells people."""
    return jax.process_index() == 0


def agree(decide: Callable[[], str]) -> str:
    """What `decide` says in the first process, or the `UserError` that it raises there, in all of them."""
    if not several():
        return decide()
    said = {}
    if is_first():
        try:
            said = {"value": decide()}
        except UserError as error:
            said = {"error": str(error)}
    said = _from_first(said)
    if "error" in said:
        raise UserError(said["error"])
    return said["value"]


def _from_first(said: dict[str, str]) -> dict[str, str]:
    from jax.experimental import multihost_utils

    text = json.dumps(said).encode()
    message = np.zeros(MESSAGE_BYTES, np.uint8)
    message[: len(text)] = np.frombuffer(text, np.uint8)
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(message)).rstrip(b"\0"))


def agree_on_numbers(first: int, largest: int) -> tuple[int, int]:
    """The `first` of the first process, and the `largest` of all."""
    if not several():  # it is asked at every step
        return first, largest
    numbers = _of_all(first, largest)
    return int(numbers[0, 0]), int(numbers[:, 1].max())


def all_have(number: int) -> bool:
    """Whether all processes have the same number."""
    return len(np.unique(_of_all(number))) == 1


def _of_all(*numbers: int) -> np.ndarray:
    """The numbers (N,) of every process, (processes, N)."""
    own = np.array(numbers, np.int32)
    if not several():
        return own[None]
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(own)


def on_host(tree: Any, keep: bool = True) -> Any:
    """The tree; where each process has a part of its arrays, whole, as numpy arrays. All processes must call it.

    Args:
        keep: whether this process wants them: otherwise none is held for longer than it takes to hand it on.
    """
    if not several():
        return tree
    from jax.experimental import multihost_utils

    def whole(x: jax.Array) -> np.ndarray | None:
        array = multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(array) if keep else None

    return jax.tree.map(whole, tree)
