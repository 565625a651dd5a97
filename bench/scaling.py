"""What does sharding cost? Compiles a training step for every mesh, and counts what a device holds, computes and sends.

    python bench/scaling.py --preset gpt2 --target a100x8
    python bench/scaling.py --preset gpt2-xl --target v5e8 --meshes fsdp=8 data=2,fsdp=4 --layers 2 4
    python bench/scaling.py --preset cpu --run

The target is a machine that need not be here (targets.py), or eight simulated CPU devices. Nothing is run there, so
nothing is timed: `computes` is the roofline, each operation at the full width of the memory or the full speed of the
matrix units, whichever takes longer; `sends` is what the collectives of a step send, at the full width of the links.
Where the second is no longer small beside the first, scaling ends: what XLA does at the same time hides some of it.
All layers are alike: with `--layers 2 4` a model of two and one of four are compiled, and the figures of the whole one
lie on the straight line through theirs. A single layer's memory does not, with `remat`.

`--run` times a step on this machine's cores instead, as simulated devices: one alone, and two in each kind of mesh.
"""

import collections
import dataclasses
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import hlo
import race
import targets
import tyro
from targets import Target

HERE = Path(__file__)
MESHES = {2: ("data=2", "fsdp=2", "tensor=2"), 8: ("data=8", "fsdp=8", "data=4,tensor=2", "data=2,fsdp=2,tensor=2")}
KINDS = "all-reduce", "all-gather", "reduce-scatter", "others"
GPT2_VOCABULARY = 50_257
TEXT_TOKENS = 2**24  # on every device; a longer text stays on the host


def compiled_step(config: Any, devices: list[Any]):
    """The loop of training steps that train.py calls, compiled for these devices, and how it is placed on them."""
    import jax
    import numpy as np

    from jaxgpt.device import precision, sharding
    from jaxgpt.model import build
    from jaxgpt.training import feed, step

    c, m = config, config.model
    placement = sharding.for_training(
        c.batch_size, m.block_size, build.n_params(m), c.micro_batches, c.mesh, devices=devices
    )
    dtype, _ = precision.choose(c.dtype, devices[0])
    state = step.abstract_state(c, dtype, placement)
    text = jax.ShapeDtypeStruct((TEXT_TOKENS,), np.uint16, sharding=placement.replicated)
    return feed.device_loop(c, dtype, placement).lower(state, feed.Text(text), np.int32(1)).compile(), placement


def figures(config: Any, devices: list[Any], target: Target, verbose: bool) -> dict[str, Any]:
    """What one device does in a step."""
    import jax

    from jaxgpt.device.memory import peak_bytes

    try:
        compiled, placement = compiled_step(config, devices)
    except jax.errors.JaxRuntimeError as problem:  # XLA's TPU compiler stops where memory does not suffice
        needed = re.search(r"Used ([\d.]+)([GM]) of [\d.]+[GM] hbm", str(problem))
        if needed is None:
            raise
        return {"peak_bytes": float(needed[1]) * {"G": 2**30, "M": 2**20}[needed[2]]}
    program, memory = hlo.Program(compiled.as_text()), compiled.memory_analysis()
    if verbose:
        print(f"\nWhat a device sends, with `{config.mesh}`\n")
        race.table(("from", "kind", "devices", "number", "sent"), sources(program.collectives))
    sent = collections.Counter()
    for c in program.collectives:
        sent[c.kind if c.kind in KINDS else "others"] += c.times * c.sent
    return {
        "micro_batches": placement.micro_batches,
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "peak_bytes": peak_bytes(compiled),
        "flops": sum(c.times * c.flops for c in program.costs),
        "roofline_seconds": sum(map(target.seconds, program.costs)),
        "collectives": dict(collections.Counter(c.kind for c in program.collectives for _ in range(c.times))),
        "sent_bytes": dict(sent),
        "sending_seconds": sum(sent.values()) / target.link_bytes_per_second,
    }


def continued(config: Any, layers: tuple[int, int], figures_of: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    """The figures of all layers, on a straight line through those of two smaller numbers of layers."""

    def with_layers(n: int) -> Any:
        return dataclasses.replace(config, model=dataclasses.replace(config.model, n_layer=n))

    (few, more), all_layers = layers, config.model.n_layer
    at_few, at_more = figures_of(with_layers(few)), figures_of(with_layers(more))
    far = (all_layers - few) / (more - few)
    return _combined(lambda a, b: a + (b - a) * far, at_few, at_more)


def _combined(function: Callable, a: Any, b: Any) -> Any:
    """`function` of the numbers in two dicts that are alike."""
    if isinstance(a, dict):
        return {name: _combined(function, a.get(name, 0), b.get(name, 0)) for name in b}
    return function(a, b)


def row(mesh: str, f: dict[str, Any], target: Target) -> tuple:
    """Of the table, for one mesh."""
    peak = size(f["peak_bytes"]) + (" (too much)" if f["peak_bytes"] > target.memory_bytes else "")
    if "flops" not in f:
        return (mesh, "", "", "", peak, *[""] * (len(KINDS) + 4))
    held = [size(f[name]) for name in ("argument_bytes", "temporary_bytes")]
    sent = [size(f["sent_bytes"].get(kind, 0)) for kind in KINDS]
    computes, sends = f["roofline_seconds"], f["sending_seconds"]
    times = [f"{1e3 * computes:,.1f} ms", f"{1e3 * sends:,.1f} ms", f"{sends / computes:.0%}"] if computes else [""] * 3
    return (mesh, f"{f['micro_batches']:g}", *held, peak, *sent, f"{f['flops'] / 1e12:.2f} TFLOP", *times)


def size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"


def sources(collectives: list[hlo.Collective], most: int = 20) -> list[tuple]:
    """Rows of a table of what sends the most, by the line of the model that it comes from."""
    sent, times = collections.Counter(), collections.Counter()
    for c in collectives:
        key = c.operation.source.removeprefix("jit(loop)/while/body/"), c.kind, c.devices
        sent[key] += c.times * c.sent
        times[key] += c.times
    return [(f"`{k[0]}`", *k[1:], times[k], size(count)) for k, count in sent.most_common(most)]


def count(
    preset: str,
    changes: tuple[str, ...],
    target: str,
    meshes: tuple[str, ...],
    layers: tuple[int, int] | None,
    verbose: bool,
    json: Path | None,
) -> None:
    """Prints a table of what a device does in a step of each mesh."""
    machine = targets.TARGETS[target]
    devices, compiler = targets.devices(target)
    from recipe import recipe

    if recipe(preset).tokenizer == "gpt2":
        changes = (f"vocab_size={GPT2_VOCABULARY}", *changes)
    rows, results = [], {}
    for mesh in meshes or MESHES[len(devices)]:
        print(f"compiling {mesh} ...", file=sys.stderr)
        config = recipe(preset, *changes, f"mesh={mesh}")
        figures_of = partial(figures, devices=devices, target=machine, verbose=verbose)
        results[mesh] = continued(config, layers, figures_of) if layers else figures_of(config)
        rows.append(row(mesh, results[mesh], machine))
    columns = ("mesh", "micro-batches", "arguments", "temporaries", "peak", *KINDS, "products")
    how = f"compiled for {machine.name} by {compiler}" + (" with {} and {} layers".format(*layers) if layers else "")
    title = f"A step of `{' '.join([preset, *changes])}` on a device, {how}"
    race.report(title, (*columns, "computes", "sends", "of it"), rows, results, json)


def timed(preset: str, changes: tuple[str, ...], rounds: int, json: Path | None) -> None:
    """Prints a table of how long a step takes here."""
    meshes = ("data=1", *MESHES[2])
    step = str(HERE.with_name("train_step.py"))
    contestants = {mesh: [step, "--contestant", preset, *changes, f"mesh={mesh}"] for mesh in meshes}
    results = race.race(contestants, rounds)
    alone = results["data=1"]["median_seconds"]
    rows = [(mesh, *race.figures(r, "ms"), f"{alone / r['median_seconds']:.2f}") for mesh, r in results.items()]
    headings = ("mesh", "median", "range (ms)", "peak memory", "times as fast")
    race.report(f"A step of `{preset}` on this machine's cores, as simulated devices", headings, rows, results, json)


def main(
    preset: str = "cpu",
    changes: tuple[str, ...] = (),
    target: Literal["cpu8", "t4x2", "a100x8", "v5e8"] = "cpu8",
    meshes: tuple[str, ...] = (),
    layers: tuple[int, int] | None = None,
    verbose: bool = False,
    run: bool = False,
    rounds: int = race.ROUNDS,
    json: Path | None = None,
) -> None:
    """Counts what a training step costs in each mesh, or times it.

    Args:
        preset: Whose size and batch.
        changes: Fields of it that are to be others: NAME=VALUE.
        target: The machine to compile for.
        meshes: As the field `mesh`; left out, one of each kind.
        layers: Two small numbers of layers to compile instead of all; the figures continue on a straight line.
        verbose: Show also what sends the most bytes.
        run: Time a step on simulated devices here instead.
        rounds: Turns of each mesh, with --run.
        json: File to write the figures to.
    """
    if run:
        timed(preset, changes, rounds, json)
    else:
        count(preset, changes, target, meshes, layers, verbose, json)


if __name__ == "__main__":
    tyro.cli(main)
