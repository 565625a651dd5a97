"""What JAX must be told before it touches this machine's devices."""

import contextlib
import ctypes
import importlib.util
import os
from functools import cache

import jax

from jaxgpt.home import home


def setup() -> None:
    """Makes ready for the machine at hand; call it before the first array. Calling it again is harmless."""
    if _cuda_without_driver():
        # Otherwise the CUDA plugin logs a traceback before JAX falls back to the CPU by itself.
        jax.config.update("jax_platforms", "cpu")
    _keep_freed_memory()
    if jax.config.jax_num_cpu_devices == -1 and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX has begun already, and a CPU is one device
            jax.config.update("jax_num_cpu_devices", cores())  # see sharding.py
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(home() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _keep_freed_memory() -> None:
    """Tells glibc to keep what a step frees for the next one, instead of giving it to the system and faulting it
    in again page by page. Elsewhere than under glibc this does nothing."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no allocation by mmap, which is always given back
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never shrink the heap
        libc.mallopt(-2, 2**27)  # M_TOP_PAD: nor give back a thread's heap, which comes in pieces of 64 MiB


def compiler_options(platform: str) -> dict[str, str | int]:
    """What XLA is to do differently in a training step on devices of `platform`.

    Nothing where the environment has JAXGPT_PLAIN_XLA=1, and nothing that this version of XLA does not know.
    """
    if platform != "cpu" or os.environ.get("JAXGPT_PLAIN_XLA") == "1":
        return {}
    if _known(*CPU_OPTIONS.items()):
        return dict(CPU_OPTIONS)
    return {name: value for name, value in CPU_OPTIONS.items() if _known((name, value))}


FOREVER = 10**9  # seconds
CPU_OPTIONS = {
    # This pass removes optimisation barriers before fusion, and so all that `ops.cut` is for.
    "xla_disable_hlo_passes": "cse_barrier_expander",
    # A core that waits 40 s for another's gradient would end the program, and so would a laptop that was closed in
    # the middle of a step, or Ctrl-Z.
    "xla_cpu_collective_call_terminate_timeout_seconds": FOREVER,
    "xla_cpu_collective_call_warn_stuck_seconds": FOREVER,
    "xla_cpu_collective_timeout_seconds": FOREVER,
}


@cache
def _known(*options: tuple[str, str | int]) -> bool:
    """Whether XLA takes all these options: one that it does not know is an error."""
    try:
        jax.jit(lambda: 0, compiler_options=dict(options)).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def cores() -> int:
    """How many processors this program may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_preset() -> str:
    """The recipe for this machine: `t4` on an accelerator, `speedrun` without one."""
    setup()
    return "speedrun" if jax.default_backend() == "cpu" else "t4"


def describe(device: jax.Device) -> str:
    """The device and its like in words: `NVIDIA T4`, or `CPU, 2 cores`, with the reason where a GPU is missed."""
    if device.platform != "cpu":
        count = jax.local_device_count()
        return f"{count} x {device.device_kind}" if count > 1 else device.device_kind
    reason = " (no NVIDIA driver here)" if _cuda_without_driver() else ""
    return f"CPU, {cores()} cores{reason}"


def _cuda_without_driver() -> bool:
    """Whether JAX's CUDA plugin is installed on a machine that has no NVIDIA driver, and nobody chose."""
    if jax.config.jax_platforms not in (None, "", "cpu") or "JAX_PLATFORMS" in os.environ:
        return False
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        return False
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True
    return False
