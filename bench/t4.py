"""What would jaxgpt's programs cost on a Tesla T4? Compiles them for one, on a machine that needs no GPU, and counts.

    python bench/t4.py --verbose --json out.json
    python bench/t4.py --devices 2

It needs `pip install -r requirements.txt` on Linux x86-64, for XLA's CUDA compiler, and no driver. Nothing is run, so
nothing is timed: the roofline is the time in which a T4 could do all this, were every operation to run either at the
full width of its memory or at the full speed of its tensor cores, whichever takes longer for it, one after another.
Of the loop that train.py calls, a call that makes one step is counted.
"""

import collections
import itertools
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import hlo
import race
import targets
import tyro
from targets import Target

REALISTIC = 2  # times the roofline
TEXT_TOKENS = 1_003_854  # of tiny Shakespeare's training split
TABLE_ROWS = 360_722  # of its soft targets, where a preset has them
STEP, INIT, HOST_STEP = "training steps, one of them", "first weights", "a training step, its batch from the host"


def training(config: Any, devices: list[Any]) -> Iterator[tuple[str, Any]]:
    """What train.py has on the device, lowered: by its name."""
    import jax
    import numpy as np

    from jaxgpt import evaluation
    from jaxgpt.device import precision, sharding
    from jaxgpt.model import build
    from jaxgpt.training import feed, step

    c, m = config, config.model
    mesh = f"data={len(devices)}"
    placement = sharding.for_training(c.batch_size, m.block_size, build.n_params(m), c.micro_batches, mesh, devices)
    dtype, _ = precision.choose(c.dtype, devices[0])
    state = step.abstract_state(c, dtype, placement)
    shaped = partial(jax.ShapeDtypeStruct, dtype=np.int32)

    everywhere = partial(jax.ShapeDtypeStruct, sharding=placement.replicated)
    text = feed.Text(everywhere((TEXT_TOKENS,), np.uint16))
    if c.soft_targets:
        table = everywhere((TABLE_ROWS, m.vocab_size), np.float32)
        text = text._replace(rows=everywhere((TEXT_TOKENS,), np.int32), soft=table)
    yield STEP, feed.device_loop(c, dtype, placement).lower(state, text, np.int32(1))
    windows = jax.ShapeDtypeStruct((c.batch_size, m.block_size + 1), np.uint16, sharding=placement.batch)
    yield HOST_STEP, feed.host_step(c, dtype, placement).lower(state, windows)
    shardings = step.shardings(config, dtype, placement)
    yield INIT, jax.jit(partial(step.init_state, c, dtype), out_shardings=shardings).lower()
    B = c.batch_size // placement.micro_batches
    rows = -(-c.eval_windows // B)
    windows = shaped((rows, B, m.block_size + 1), sharding=placement.rows_of_batches)
    skips = shaped((rows, B), sharding=placement.rows_of_batches)
    evaluate = evaluation.make_total_loss(c, dtype, placement)
    yield f"evaluation, {rows * B} windows", evaluate.lower(state.eval_params, windows, skips)


def sampling(config: Any, device: Any) -> Iterator[tuple[str, Any]]:
    """What sample.py has on the device, and train.py for its samples, lowered: by its name."""
    import jax
    import numpy as np

    from jaxgpt import sampling
    from jaxgpt.device import sharding
    from jaxgpt.model import build
    from jaxgpt.sampler import Sampler

    placement = sharding.place([device])
    graph, how = sampling._graph(build.graph(config.model)), sampling.How(Sampler(), logprobs=False)
    on_device = partial(jax.tree.map, lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement.replicated))
    params = on_device(build.abstract_params(config.model))
    key = on_device(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1)))
    i, T, chunk = np.int32(0), config.model.block_size, sampling.CHUNK
    capacities = sorted({min(T, sampling.MIN_CAPACITY << doublings) for doublings in range(T.bit_length())})

    def window(capacity: int, rows: int = 1):
        return jax.ShapeDtypeStruct((rows, capacity), np.int32, sharding=placement.replicated)

    # Of one text, or of several whose prompts are of the same length
    states = {}
    for capacity in (capacities[0], T):
        read = sampling._prefill.lower(graph, placement, 1, params, window(capacity), i)
        yield f"a prompt of up to {capacity} tokens read", read
        states[capacity] = on_device(read.out_info)
    for before, after in itertools.pairwise(capacities):
        enlarged = sampling._extend.lower(after, states[before])
        yield f"the cache enlarged from {before} to {after}", enlarged
        states[after] = on_device(enlarged.out_info)
    for capacity in capacities:
        yield (
            f"{chunk} tokens drawn, {capacity} in the cache",
            sampling._decode.lower(graph, how, chunk, params, states[capacity], key, i),
        )

    # Of two texts whose prompts are of different lengths
    keys = on_device(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2)))
    blank = sampling._blank_each.lower(graph, placement, 2, T, params)
    yield "two texts, an empty cache", blank
    state = on_device(blank.out_info)
    rows = np.zeros(1, np.int32)
    read = sampling._prefill_some.lower(graph, placement, T, params, state, rows, window(T), i)
    yield f"two texts, a prompt of up to {T} tokens read", read
    yield (
        f"two texts, {chunk} tokens drawn, {T} in the cache",
        sampling._decode_each.lower(graph, how, chunk, params, state, keys, i),
    )


def row(name: str, compiled: Any, target: Target) -> tuple:
    """Of the table of programs."""
    from jaxgpt.device.memory import peak_bytes

    costs = hlo.Program(compiled.as_text()).costs
    peak, moved = peak_bytes(compiled), sum(c.times * c.bytes for c in costs)
    milliseconds = 1e3 * sum(map(target.seconds, costs))
    times = sum(c.times for c in costs)
    return name, f"{peak / 1e9:.2f} GB", times, f"{moved / 1e9:.2f} GB", f"{milliseconds:.1f} ms"


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


def problems(program: str, costs: list[hlo.Cost], peak: float, target: Target) -> list[str]:
    """What would be slow or impossible on a T4."""
    wrong = []
    if slow := {c.product for c in costs if c.product and c.product[:2] != ("f16", "f16")}:
        wrong.append(f"matrix products without tensor cores: {sorted(slow)}")
    if re.search(r"\bbf16\[", program):
        wrong.append("bfloat16 in the program, which a T4 does not have")
    if peak > target.memory_bytes:
        wrong.append(f"{peak / 1e9:.2f} GB of memory, of {target.memory_bytes / 1e9:.0f}")
    return wrong


def main(preset: str = "t4", devices: Literal[1, 2] = 1, verbose: bool = False, json: Path | None = None) -> None:
    """Counts what the programs of train.py and sample.py cost on a Tesla T4, without one.

    Args:
        preset: Whose size, batch and dropout.
        devices: How many T4 share a batch; Kaggle lends two.
        verbose: Show also what moves the most bytes.
        json: File to write the figures of the training step to.
    """
    name = "t4" if devices == 1 else "t4x2"
    found, compiler = targets.devices(name)
    target = targets.TARGETS[name]

    from jaxgpt import presets
    from jaxgpt.device.memory import peak_bytes

    config = presets.preset(preset, vocab_size=65)
    rows = []
    for program, lowered in [*training(config, found), *sampling(config, found[0])]:
        compiled = lowered.compile()
        rows.append(row(program, compiled, target))
        if program == STEP:
            step = compiled
    text, memory = step.as_text(), step.memory_analysis()
    program = hlo.Program(text)
    costs, exchanges = program.costs, program.collectives
    peak = peak_bytes(step)
    moved, flops = (sum(c.times * getattr(c, what) for c in costs) for what in ("bytes", "flops"))
    roofline = sum(map(target.seconds, costs))
    sent = sum(c.times * c.sent for c in exchanges)
    sending = sent / target.link_bytes_per_second
    minutes = config.max_steps * REALISTIC * (roofline + sending) / 60
    details = [
        ("memory: arguments", f"{memory.argument_size_in_bytes / 1e9:.2f} GB"),
        ("memory: temporaries", f"{memory.temp_size_in_bytes / 1e9:.2f} GB"),
        ("memory: together, at the peak", f"{peak / 1e9:.2f} GB of {target.memory_bytes / 1e9:.0f}"),
        ("operations on the GPU", f"{sum(c.times for c in costs)}"),
        ("bytes moved", f"{moved / 1e9:.2f} GB, {1e3 * moved / target.bytes_per_second:.1f} ms at 320 GB/s"),
        ("matrix products", f"{flops / 1e12:.3f} TFLOP, {1e3 * flops / target.flops['f16']:.1f} ms at 65 TFLOP/s"),
        ("roofline", f"{1e3 * roofline:.1f} ms"),
        (f"{config.max_steps:,} steps at {REALISTIC} x roofline", f"{minutes:.1f} min"),
    ]
    if devices > 1:
        kinds = ", ".join(f"{n} {kind}" for kind, n in collections.Counter(c.kind for c in exchanges).items())
        details.insert(-1, ("exchanged", f"{kinds}: {sent / 1e6:.1f} MB sent, {1e3 * sending:.1f} ms at 10 GB/s"))
    figures = {
        "memory_bytes": {"arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes},
        "peak_bytes": peak,
        "operations": sum(c.times for c in costs),
        "bytes_moved": moved,
        "flops": flops,
        "roofline_seconds": roofline,
        "bytes_sent": sent,
    }
    for_it = f"compiled for {'a Tesla T4' if devices == 1 else 'each of two Tesla T4'} by {compiler}"
    print(f"The programs of train.py and sample.py with `{preset}`, {for_it}\n")
    race.table(("program", "memory at the peak", "operations", "bytes moved", "roofline"), rows)
    print(f"\nMatrix products of a training step of `{preset}`, {for_it}\n")
    race.table(("operands", "summed in", "result", "number", "work", "tensor cores"), products(costs))
    if verbose:
        print("\nWhat moves the most bytes\n")
        race.table(("from", "as", "number", "bytes moved"), movers(costs, 25))
    race.report(f"A training step of `{preset}`, {for_it}", ("", "per step"), details, figures, json)
    if wrong := problems(text, costs, peak, target):
        raise SystemExit("error: " + "; ".join(wrong))


if __name__ == "__main__":
    tyro.cli(main)
