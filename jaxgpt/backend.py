"""What JAX must be told before it touches this machine's devices."""

import contextlib
import ctypes
import importlib.util
import os

import jax

from jaxgpt import corpus


def setup() -> None:
    """Makes ready for the machine at hand; call it before the first array. Calling it again is harmless."""
    if _cuda_without_driver():
        # Otherwise the CUDA plugin logs a traceback before JAX falls back to the CPU by itself.
        jax.config.update("jax_platforms", "cpu")
    _keep_freed_memory()
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(corpus.home() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


def _keep_freed_memory() -> None:
    """Tells glibc to keep what a step frees for the next one, instead of giving it to the system and faulting it
    in again page by page. Elsewhere than under glibc this does nothing."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no allocation by mmap, which is always given back
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never shrink the heap


def compiler_options() -> dict[str, str]:
    """What XLA is to do differently in a training step on this machine's device."""
    if jax.default_backend() != "cpu":
        return {}
    # On a CPU this pass removes optimisation barriers before fusion, and so all that `model.cut` is for.
    return {"xla_disable_hlo_passes": "cse_barrier_expander"}


def default_preset() -> str:
    """The recipe for this machine: `t4` on an accelerator, `cpu` without one."""
    setup()
    return "cpu" if jax.default_backend() == "cpu" else "t4"


def describe(device: jax.Device) -> str:
    """The device in words: `NVIDIA T4`, or `CPU, 2 cores`, with the reason where a GPU is missed."""
    if device.platform != "cpu":
        others = f", the first of {jax.device_count()}" if jax.device_count() > 1 else ""
        return device.device_kind + others
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    reason = " (no NVIDIA driver here)" if _cuda_without_driver() else ""
    return f"CPU, {cores} cores{reason}"


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
