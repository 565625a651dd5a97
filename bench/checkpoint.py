"""What does a checkpoint cost: the copy for which training stops, the write behind it, its checksums, what makes it
outlive a power cut, the reading?

python bench/checkpoint.py --changes n_layer=12 n_head=12 n_embd=768 block_size=1024 vocab_size=50257
"""

import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import race
import tyro
from recipe import recipe


def noise(leaf):
    """As in the middle of a run: fresh moments are zeros, which Orbax packs into nothing."""
    import jax

    return jax.random.normal(jax.random.key(leaf.size), leaf.shape) if leaf.dtype == np.float32 else leaf


def main(preset: str = "cpu", changes: tuple[str, ...] = (), rounds: int = 5, json: Path | None = None) -> None:
    """Saves and reads the state of a run, some times over.

    Args:
        preset: Whose model and optimiser.
        changes: Fields of it that are to be others: NAME=VALUE.
        rounds: How often.
        json: File to write the figures to.
    """
    import jax

    import jaxgpt
    from jaxgpt.runs import checkpoints as saving
    from jaxgpt.runs import manifest
    from jaxgpt.training import items, step

    jaxgpt.setup()
    config = recipe(preset, *changes)
    state = jax.jit(lambda: step.init_state(config, np.dtype("float32")))()
    # Waited for: otherwise the first save would, and look as slow as drawing the noise.
    parts = jax.block_until_ready(jax.tree.map(noise, items.of_state(state)))
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), parts)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(parts))
    seconds: dict[str, list[float]] = {
        name: [] for name in ("stopped", "update", "kept", "saved", "checksums", "synced", "read", "checked")
    }

    @partial(jax.jit, donate_argnums=0)
    def update(parts):
        return jax.tree.map(lambda leaf: leaf + 1, parts)

    def updated(parts):
        return jax.block_until_ready(update(parts))

    def timed_within(module, function: str, name: str) -> None:
        work = getattr(module, function)
        setattr(module, function, lambda *arguments, **options: timed(name, work, *arguments, **options))

    def timed(name: str, work, *arguments, **options):
        began = time.perf_counter()
        result = work(*arguments, **options)
        seconds[name].append(time.perf_counter() - began)
        return result

    timed_within(manifest, "write", "checksums")
    timed_within(saving, "sync", "synced")
    with tempfile.TemporaryDirectory() as folder, saving.Checkpoints(folder) as checkpoints:
        parts = updated(parts)  # compiled here
        for i in range(rounds):
            parts = timed("update", updated, parts)
            began = time.perf_counter()
            timed("stopped", checkpoints.save, i, parts, {})
            parts = timed("kept", updated, parts)
            checkpoints.wait()
            seconds["saved"].append(time.perf_counter() - began)
            timed("checked", lambda i=i: [manifest.check(Path(folder, str(i)), name) for name in like])
            timed("read", checkpoints.restore, i, like)
    synced = seconds["synced"]
    seconds["synced"] = [files + folder for files, folder in zip(synced[::2], synced[1::2], strict=True)]
    what = {
        "training stops for": "stopped",
        "an update of nothing but the state": "update",
        "the first one after a save, which must keep the old state": "kept",
        "until it is saved, checksums included": "saved",
        "of that, the checksums": "checksums",
        "of that, the wait for the disk to have all of it": "synced",
        "reading it, checksums included": "read",
        "of that, the checksums ": "checked",
    }
    rows = [
        (title, f"{median(seconds[name]):.2f} s", f"{min(seconds[name]):.2f} to {max(seconds[name]):.2f} s")
        for title, name in what.items()
    ]
    for part, name in {"the checksums add": "checksums", "the wait adds": "synced"}.items():
        shares = [one / (saved - one) for one, saved in zip(seconds[name], seconds["saved"], strict=True)]
        rows.append((f"{part} to a save", f"{median(shares):.1%}", f"{min(shares):.1%} to {max(shares):.1%}"))
    title = f"A checkpoint of `{' '.join([preset, *changes])}`, {size / 1e9:.2f} GB"
    race.report(title, ("", "median", "range"), rows, {"seconds": seconds, "bytes": size}, json)


if __name__ == "__main__":
    tyro.cli(main)
