"""Where does a training step on a CPU spend its time? By kinds of operations, from JAX's own profiler.

    python bench/profile_step.py --preset cpu
    python bench/profile_step.py --preset cpu --changes n_layer=12 n_embd=256 batch_size=16 block_size=256 --steps 3

Tracing slows a step down, small operations most: the shares are what counts.
"""

import collections
import glob
import gzip
import json
import re
import tempfile
from pathlib import Path

import jax
import numpy as np
import race
import train_step
import tyro
from recipe import recipe

import jaxgpt
from jaxgpt.counting import HeldOut
from jaxgpt.device.sharding import Placement
from jaxgpt.training import feed, step


def traced_step(wanted: list[str], steps: int) -> tuple[str, list[dict], int]:
    """The compiled program's text, the profiler's events of `steps` steps, and the number of devices."""
    jaxgpt.setup()
    config, float32 = recipe(*wanted), np.dtype("float32")
    placement = step.placement(config)
    text = on_devices(config, placement, train_step.random_text())
    shardings = step.shardings(config, float32, placement)
    state = jax.jit(lambda: step.init_state(config, float32), out_shardings=shardings)()
    loop = feed.device_loop(config, float32, placement).lower(state, text, np.int32(1)).compile()
    state, _ = jax.block_until_ready(loop(state, text, np.int32(steps)))  # to warm up
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(loop(state, text, np.int32(steps)))
        (trace,) = glob.glob(f"{folder}/**/*.trace.json.gz", recursive=True)
        events = json.loads(gzip.decompress(Path(trace).read_bytes()))["traceEvents"]
    events = [e for e in events if e.get("ph") == "X" and "hlo_op" in e.get("args", {})]
    events = [e for e in events if not e["name"].startswith(("while", "call", "conditional"))]  # made of the others
    return loop.as_text(), events, placement.mesh.size


def on_devices(config: jaxgpt.TrainConfig, placement: Placement, tokens: np.ndarray) -> feed.Text:
    """The text as the step draws its batches from it."""
    text = feed.Text(tokens)
    if config.soft_targets:
        counts = HeldOut(tokens, config.model.vocab_size)
        text = feed.Text(tokens, counts.rows, counts.table())
    return jax.device_put(text, placement.replicated)


def kind(name: str, line: str) -> str:
    """Of the operation `name`, which `line` of the program defines."""
    found = re.search(r'op_name="([^"]*)"', line)
    source = found[1] if found else ""
    if "all-reduce" in line or name.startswith("psum"):
        return "average of the cores' gradients, and waiting for it"
    if name.startswith(("ynn_fusion", "dot")) and re.search(r"/(dot_general|transpose)$", source):
        batched = "->" in source or re.match(r"f32\[\d+,\d+,\d+,\d+\]", line)
        return "matrix products of attention" if batched else "matrix products of layers"
    if "shard_map" not in source:
        return "optimiser, gradient's norm, drawing the batch"
    return "everything between the products"


def main(preset: str = "cpu", changes: tuple[str, ...] = (), steps: int = 20) -> None:
    """Profiles the training step of a preset.

    Args:
        preset: Whose size and batch.
        changes: Fields of it that are to be others: NAME=VALUE.
        steps: How many to trace.
    """
    wanted = [preset, *changes]
    program, events, devices = traced_step(wanted, steps)
    lines = dict(re.findall(r"%([\w.-]+) = (.*)", program))
    microseconds, count = collections.Counter(), collections.Counter()
    for event in events:
        of = kind(event["name"], lines.get(event["name"], ""))
        microseconds[of] += event["dur"]
        count[of] += 1
    total = microseconds.total()
    rows = [(of, round(count[of] / steps / devices), f"{t / total:.0%}") for of, t in microseconds.most_common()]
    rows.append(("all", round(count.total() / steps / devices), f"{total / steps / devices / 1e3:.2f} ms, traced"))
    race.report(f"A core's part in a step of `{' '.join(wanted)}`", ("what", "operations", "time"), rows, {}, None)


if __name__ == "__main__":
    tyro.cli(main)
