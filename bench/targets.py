"""Machines that are not here: what XLA must know of one to compile for it, and what it can do at best.

Nothing is run on them, so nothing is timed. A GPU needs JAX's CUDA plugin on Linux x86-64 (`requirements.txt` brings
it), and no driver; a TPU needs `pip install libtpu`, and no TPU.
XLA picks the libraries' kernels by trying them out on the GPU, which it cannot do here: they may differ on a real one.
"""

import importlib.metadata
import os
from typing import Any, NamedTuple

import hlo


class Target(NamedTuple):
    """One kind of device, several of them side by side, and their figures by the makers' data sheets."""

    name: str
    devices: int
    memory_bytes: float
    """Of a device, beside what the driver and the libraries take."""
    bytes_per_second: float
    """Between a device and its memory."""
    flops: dict[str, float]
    """A second in matrix products, by the type of both operands."""
    link_bytes_per_second: float
    """That a device can send to its neighbours."""

    def seconds(self, cost: hlo.Cost) -> float:
        """The roofline of one operation, over all the times that it runs: at the full width of the memory or the full
        speed of the units that multiply, whichever takes longer."""
        left, right, _ = cost.product or ("f32", "f32", "f32")
        peak = self.flops.get(left if left == right else "f32", self.flops["f32"])
        return cost.times * max(cost.bytes / self.bytes_per_second, cost.flops / peak)


GB = 1e9
TARGETS = {
    # NVIDIA's T4 data sheet. Kaggle's two have no link but PCI Express 3.0 x16, 15.75 GB/s; about 10 arrive.
    "t4": Target("Tesla T4", 1, 14 * GB, 320e9, {"f16": 65e12, "f32": 8.1e12}, 10e9),
    "t4x2": Target("two Tesla T4", 2, 14 * GB, 320e9, {"f16": 65e12, "f32": 8.1e12}, 10e9),
    # NVIDIA's A100 data sheet, the one with 40 GB: NVLink 600 GB/s, half of it each way.
    "a100x8": Target("eight A100 40 GB", 8, 40 * GB, 1555e9, {"bf16": 312e12, "f16": 312e12, "f32": 19.5e12}, 300e9),
    # cloud.google.com/tpu/docs/v5e: 1,600 Gbit/s a chip over four links. A ring through 2 x 4 chips uses two of them.
    # Products of float32 are made in bfloat16, unless one asks JAX for more.
    "v5e8": Target("TPU v5e-8", 8, 16 * GB, 819e9, {"bf16": 197e12, "f32": 197e12}, 100e9),
    # Says how many bytes are sent, and nothing about time.
    "cpu8": Target("eight simulated CPU devices", 8, float("inf"), float("inf"), {"f32": float("inf")}, float("inf")),
}

# XLA's GpuTargetConfigProto, from which it knows a device that is not there.
GPUS = {
    "t4": """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 65536
  threads_per_core_limit: 1024 core_count: 40 fpus_per_core: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 320000000000 l2_cache_size: 4194304 clock_rate_ghz: 1.59 device_memory_size: 15843721216
  shared_memory_per_block_optin: 65536 cuda_compute_capability { major: 7 minor: 5 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 28 } runtime_version { CUDA }
device_description_str: "Tesla T4"
""",
    "a100": """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 167936
  threads_per_core_limit: 2048 core_count: 108 fpus_per_core: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 1555200000000 l2_cache_size: 41943040 clock_rate_ghz: 1.41 device_memory_size: 42331013120
  shared_memory_per_block_optin: 166912 cuda_compute_capability { major: 8 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 28 } runtime_version { CUDA }
device_description_str: "NVIDIA A100-SXM4-40GB"
""",
}
CUDA = {"jax-cuda12-plugin": "major: 12 minor: 9 patch: 0", "jax-cuda13-plugin": "major: 13 minor: 0 patch: 0"}


def devices(name: str) -> tuple[list[Any], str]:
    """The devices of the target `name`, to compile for, and the compiler in words. To be called before anything else
    uses JAX: this process then computes on its CPU alone."""
    # JAX's CUDA plugin must not look for a GPU, nor libtpu for a TPU or for Google's metadata server.
    os.environ |= {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
    os.environ |= {"TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost"}
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    import jax
    from jax.experimental import topologies

    n = TARGETS[name].devices
    if name.startswith("cpu"):
        jax.config.update("jax_num_cpu_devices", n)
        return jax.devices(), f"jaxlib {importlib.metadata.version('jaxlib')}"
    if name.startswith("v5e"):
        compiler = _installed({"libtpu": ""}, "pip install libtpu")
        return list(topologies.get_topology_desc("v5e:2x4", platform="tpu").devices), compiler
    compiler = _installed(CUDA, "pip install -r requirements.txt")
    config = GPUS[name.partition("x")[0]].replace("CUDA }", CUDA[compiler.split()[0]] + " }")
    topology = topologies.get_topology_desc(platform="cuda", target_config=config, topology=f"1x1x{n}")
    return list(topology.devices), compiler


def _installed(packages: dict[str, str], advice: str) -> str:
    """The first of the packages that is here, with its version."""
    for package in packages:
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    raise SystemExit(f"error: {' or '.join(packages)} is not installed here: {advice}")
