"""Does a process grow that saves again and again? By our checkpoints, by Orbax alone, which writes the arrays, and by
the one call of Orbax to TensorStore that keeps its strings.

    python bench/save_memory.py

A saved state is that of a small model: 51 arrays. Each way is a process of its own; what it grows by is counted after
the first saves, until which allocators take what they need.
"""

import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import race
import tyro

HERE = Path(__file__)
WARM_UP = 100  # saves
CALLS = 63  # of to_json, when Orbax writes those arrays
SMALL = ("n_layer=2", "n_head=2", "n_embd=32", "block_size=32")


def small_state():
    """Names to trees of numpy arrays, as a run saves them."""
    import jax
    import jax.numpy as jnp
    from recipe import recipe

    from jaxgpt.training import items, step

    return jax.device_get(items.of_state(step.init_state(recipe("cpu", *SMALL), jnp.dtype("float32"))))


def ours(folder: Path):
    from jaxgpt.runs.checkpoints import Checkpoints

    checkpoints, state = Checkpoints(folder), small_state()

    def save(i: int):
        checkpoints.save(i, state, {})
        checkpoints.wait()

    return save


def orbax_alone(folder: Path):
    import jax
    import orbax.checkpoint as ocp

    logging.disable()
    checkpointer = ocp.StandardCheckpointer()
    trees = [tree for tree in small_state().values() if jax.tree.leaves(tree)]

    def save(i: int):
        for tree in trees:
            checkpointer.save(folder / str(i), tree)
            checkpointer.wait_until_finished()
            shutil.rmtree(folder / str(i))

    return save


def to_json_alone(folder: Path):
    import tensorstore

    spec = tensorstore.KvStore.Spec({"driver": "file", "path": f"{folder}/0.orbax-checkpoint-tmp/ocdbt.process_0/"})

    def save(i: int):
        for _ in range(CALLS):
            spec.to_json()

    return save


WAYS = {"our checkpoints": ours, "Orbax alone": orbax_alone, "TensorStore's to_json, as often": to_json_alone}


def growth(way: str, saves: int) -> None:
    """Prints the KiB that a save adds."""
    with tempfile.TemporaryDirectory() as folder:
        save = WAYS[way](Path(folder))
        for i in range(WARM_UP):
            save(i)
        (before,) = race.resident_memory()
        for i in range(WARM_UP, WARM_UP + saves):
            save(i)
        (after,) = race.resident_memory()
    print((after - before) / saves)


def main(saves: int = 400) -> None:
    """Counts what a save adds to a process's memory.

    Args:
        saves: How many of them.
    """
    rows = []
    for way in WAYS:
        command = [sys.executable, str(HERE), "--way", way, str(saves)]
        kib = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        rows.append((way, f"{float(kib):.0f} KiB"))
    race.report(f"Resident memory, {saves} saves of 51 arrays", ("", "a save adds"), rows, {}, None)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--way"]:
        growth(sys.argv[2], int(sys.argv[3]))
    else:
        tyro.cli(main)
