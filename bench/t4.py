"""What would a training step cost on a Tesla T4? Compiles it for one, on a machine that needs no GPU, and counts.

python bench/t4.py --verbose --json out.json

It needs `pip install -r requirements.txt` on Linux x86-64, for XLA's CUDA compiler, and no driver. Nothing is run, so
nothing is timed: the roofline is the time in which a T4 could do all this, were every operation to run either at the
full width of its memory or at the full speed of its tensor cores, whichever takes longer for it, one after another.
The program is the loop that train.py calls; what is counted is a call that makes one step.
XLA picks the libraries' kernels by trying them out on the GPU, which it cannot do here: they may differ on a real T4.
"""

import collections
import importlib.util
import os
import re
from pathlib import Path

import hlo
import race
import tyro

MEMORY_BYTES = 14e9  # of 16 GB: what is left beside the driver and the libraries
BYTES_PER_SECOND = 320e9
TENSOR_FLOPS = 65e12  # float16, on tensor cores
PLAIN_FLOPS = 8.1e12  # float32
STEPS = 5000
REALISTIC = 2  # times the roofline

# XLA's GpuTargetConfigProto, from which it knows a device that is not there.
T4 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 65536
  threads_per_core_limit: 1024 core_count: 40 fpus_per_core: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 320000000000 l2_cache_size: 4194304 clock_rate_ghz: 1.59 device_memory_size: 15843721216
  shared_memory_per_block_optin: 65536 cuda_compute_capability { major: 7 minor: 5 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 28 } runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "Tesla T4"
"""


def compile_step(preset: str):
    """The program that train.py calls for training steps of `preset`, in the type that `auto` picks for a T4, compiled
    for one."""
    # Before JAX is imported: its CUDA plugin must not look for a GPU, and nothing here runs on one.
    os.environ |= {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
    import jax
    import numpy as np
    from jax.experimental import topologies

    from jaxgpt import presets
    from jaxgpt.device import precision, sharding
    from jaxgpt.training import feed, step

    topology = topologies.get_topology_desc(platform="cuda", target_config=T4, topology="1x1x1")
    placement = sharding.place(list(topology.devices))
    config = presets.preset(preset, vocab_size=65)
    dtype, _ = precision.choose(config.dtype, topology.devices[0])
    state = step.abstract_state(config, dtype, placement)
    text = jax.ShapeDtypeStruct((1_003_854,), np.uint16, sharding=placement.state)
    return feed.device_loop(config, dtype, placement).lower(state, text, np.int32(1)).compile()


def seconds(cost: hlo.Cost) -> float:
    """The roofline of one operation, over all the times that it runs."""
    peak = TENSOR_FLOPS if cost.product and cost.product[:2] == ("f16", "f16") else PLAIN_FLOPS
    return cost.times * max(cost.bytes / BYTES_PER_SECOND, cost.flops / peak)


def products(costs: list[hlo.Cost]) -> list[tuple]:
    """Rows of the table of matrix products, by their types."""
    groups = collections.defaultdict(list)
    for cost in costs:
        if cost.product:
            groups[cost.product].append(cost)
    return [
        (
            f"{left} x {right}",
            hlo.SUMMED_IN.get(out, "?"),
            out,
            sum(c.times for c in group),
            f"{sum(c.times * c.flops for c in group) / 1e12:.3f} TFLOP",
            "yes" if (left, right) == ("f16", "f16") else "NO",
        )
        for (left, right, out), group in groups.items()
    ]


def movers(costs: list[hlo.Cost], count: int) -> list[tuple]:
    """Rows of the table of what moves the most bytes, by the line of the model that it comes from."""
    bytes_of, number = collections.Counter(), collections.Counter()
    for cost in costs:
        kind = "library" if cost.product else re.sub(r"[.\d]+$", "", cost.operation.name)
        name = (cost.operation.source.removeprefix("jit(loop)/while/body/"), kind)
        bytes_of[name] += cost.times * cost.bytes
        number[name] += cost.times
    return [(f"`{s}`", kind, number[s, kind], f"{b / 1e9:.2f} GB") for (s, kind), b in bytes_of.most_common(count)]


def problems(program: str, costs: list[hlo.Cost], peak_bytes: float) -> list[str]:
    """What would be slow or impossible on a T4."""
    wrong = []
    if slow := {c.product for c in costs if c.product and c.product[:2] != ("f16", "f16")}:
        wrong.append(f"matrix products without tensor cores: {sorted(slow)}")
    if re.search(r"\bbf16\[", program):
        wrong.append("bfloat16 in the program, which a T4 does not have")
    if peak_bytes > MEMORY_BYTES:
        wrong.append(f"{peak_bytes / 1e9:.2f} GB of memory, of {MEMORY_BYTES / 1e9:.0f}")
    return wrong


def main(preset: str = "t4", verbose: bool = False, json: Path | None = None) -> None:
    """Counts what a training step costs on a Tesla T4, without one.

    Args:
        preset: Whose size, batch and dropout.
        verbose: Show also what moves the most bytes.
        json: File to write the figures to.
    """
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise SystemExit("error: JAX's CUDA plugin is not installed here; pip install -r requirements.txt brings it")
    compiled = compile_step(preset)
    text, memory = compiled.as_text(), compiled.memory_analysis()
    costs = hlo.Program(text).costs
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
    moved, flops = (sum(c.times * getattr(c, what) for c in costs) for what in ("bytes", "flops"))
    roofline = sum(map(seconds, costs))
    rows = [
        ("memory: arguments", f"{memory.argument_size_in_bytes / 1e9:.2f} GB"),
        ("memory: temporaries", f"{memory.temp_size_in_bytes / 1e9:.2f} GB"),
        ("memory: together, at the peak", f"{peak / 1e9:.2f} GB of {MEMORY_BYTES / 1e9:.0f}"),
        ("operations on the GPU", f"{sum(c.times for c in costs)}"),
        ("bytes moved", f"{moved / 1e9:.2f} GB, {1e3 * moved / BYTES_PER_SECOND:.1f} ms at 320 GB/s"),
        ("matrix products", f"{flops / 1e12:.3f} TFLOP, {1e3 * flops / TENSOR_FLOPS:.1f} ms at 65 TFLOP/s"),
        ("roofline", f"{1e3 * roofline:.1f} ms"),
        (f"{STEPS:,} steps at {REALISTIC} x roofline", f"{STEPS * REALISTIC * roofline / 60:.1f} min"),
    ]
    figures = {
        "memory_bytes": {"arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes},
        "peak_bytes": peak,
        "operations": sum(c.times for c in costs),
        "bytes_moved": moved,
        "flops": flops,
        "roofline_seconds": roofline,
    }
    print(f"Matrix products of a training step of `{preset}`, compiled for a Tesla T4\n")
    race.table(("operands", "summed in", "result", "number", "work", "tensor cores"), products(costs))
    if verbose:
        print("\nWhat moves the most bytes\n")
        race.table(("from", "as", "number", "bytes moved"), movers(costs, 25))
    race.report(f"A training step of `{preset}`, compiled for a Tesla T4", ("", "per step"), rows, figures, json)
    if wrong := problems(text, costs, peak):
        raise SystemExit("error: " + "; ".join(wrong))


if __name__ == "__main__":
    tyro.cli(main)
