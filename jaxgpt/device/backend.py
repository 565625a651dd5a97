"""What any caller needs to know of the machine: its devices in words, its cores, what XLA takes."""

import contextlib
import ctypes
import importlib.util
import math
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import jax

FOREVER = 10**9  # seconds
OPTIONS: dict[str, dict[str, str | int]] = {
    "cpu": {
        # This pass removes optimisation barriers before fusion, and so all that `ops.cpu_barrier` is for.
        "xla_disable_hlo_passes": "cse_barrier_expander",
        # A core that waits 40 s for another's gradient would end the program, and so would a laptop that was closed in
        # the middle of a step, or Ctrl-Z.
        "xla_cpu_collective_call_terminate_timeout_seconds": FOREVER,
        "xla_cpu_collective_call_warn_stuck_seconds": FOREVER,
        "xla_cpu_collective_timeout_seconds": FOREVER,
    },
    "gpu": {
        # A sum whose order changes from run to run would lead a resumed run elsewhere than one that never stopped.
        "xla_gpu_exclude_nondeterministic_ops": True,
    },
}


def compiler_options(platform: str) -> dict[str, str | int]:
    """What XLA is to do differently in a training step on devices of `platform`.

    Nothing where the environment has JAXGPT_PLAIN_XLA=1, and nothing that this version of XLA does not know.
    """
    options = OPTIONS.get(platform, {})
    if os.environ.get("JAXGPT_PLAIN_XLA") == "1":
        return {}
    if _known(*options.items()):
        return dict(options)
    return {name: value for name, value in options.items() if _known((name, value))}


@cache
def _known(*options: tuple[str, str | int]) -> bool:
    """Whether XLA takes all these options: one that it does not know is an error."""
    try:
        jax.jit(lambda: 0, compiler_options=dict(options)).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def cores() -> int:
    """How many processors this program may use: by its affinity, and by its control group's quota of CPU time."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(affinity, _quota())))


def _quota(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """How many processors' time the control group may use (`docker --cpus`, Kubernetes, systemd); inf for no limit.

    Args:
        groups, own: as in `_control_groups`.
    """
    return min([math.inf, *map(_limit, _control_groups("cpu", groups, own))])


def _control_groups(controller: str, groups: Path, own: Path) -> Iterator[Path]:
    """The folders of this process's control group and of those above it, each of which may have a limit.

    Args:
        controller: "cpu" or "memory"; cgroup v1 has a tree of its own for each.
        groups: where Linux shows the groups.
        own: the file that names this process's group, or several, one a line: `ID:CONTROLLERS:PATH`.
    """
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or controller in controllers.split(","):
                # In a container the path may be the host's, and not be there.
                group = groups / (controller if controllers else "") / path.lstrip("/")
                yield from (group, *group.parents)


def memory_limit(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """Bytes of memory that the control group may use (`docker --memory`); inf for no limit."""
    limits = [math.inf]
    for group in _control_groups("memory", groups, own):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with contextlib.suppress(OSError, ValueError):  # ValueError: "max"
                limits.append(int((group / name).read_text()))
    return min(limits)


def _limit(group: Path) -> float:
    """The quota of one control group, in processors."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: "max 100000"
        quota, period = map(int, (group / "cpu.max").read_text().split())
        return quota / period
    with contextlib.suppress(OSError, ValueError):
        quota, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else math.inf
    return math.inf


def default_preset() -> str:
    """The recipe for this machine: `t4` on an accelerator, `speedrun` without one."""
    return "speedrun" if jax.default_backend() == "cpu" else "t4"


def describe(device: jax.Device) -> str:
    """The device and its like in words: `NVIDIA T4`, or `CPU, 2 cores`, with the reason where a GPU is missed."""
    if device.platform != "cpu":
        count = jax.local_device_count()
        return f"{count} x {device.device_kind}" if count > 1 else device.device_kind
    count = cores()
    reason = " (no NVIDIA driver here)" if cuda_without_driver() else ""
    return f"CPU, {count} {'core' if count == 1 else 'cores'}{reason}"


def cuda_without_driver() -> bool:
    """Whether JAX's CUDA plugin is installed on a machine that has no NVIDIA driver, and nobody chose."""
    if jax.config.values["jax_platforms"] not in (None, "", "cpu") or "JAX_PLATFORMS" in os.environ:
        return False
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        return False
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True
    return False
