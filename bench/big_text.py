"""A text that outgrows memory: how fast is it prepared, how much memory does that take, and training from its files?

    python bench/big_text.py --gigabytes 1 --tokenizer gpt2
    python bench/big_text.py --gigabytes 4 --tokenizer bytes

The text is made: lines of tiny Shakespeare in random order, as JSON lines of some 20 kB each. Training is that of the
preset `cpu`, from the files, and from an array of their first 2^27 tokens.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import race
import tyro

ROOT = Path(__file__).parent.parent
SECONDS = 0.1  # between two looks at a process's memory
IN_MEMORY = 2**27  # tokens


def make(path: Path, size: int) -> None:
    """A file of `size` bytes or a little more."""
    from jaxgpt.data import tiny_shakespeare

    lines, rng, done = tiny_shakespeare.load().split("\n"), np.random.default_rng(0), 0
    with path.open("w", encoding="utf-8") as file:
        while done < size:
            text = "\n".join([lines[i] for i in rng.integers(0, len(lines), 700)])
            done += file.write(json.dumps({"text": text}) + "\n")


def watched(*command: object) -> tuple[float, list[int]]:
    """Runs a command: seconds, and its resident memory (MiB) from time to time."""
    process, began, memory = subprocess.Popen(list(map(str, command)), cwd=ROOT), time.monotonic(), []
    while process.poll() is None:
        memory += [kib // 1024 for kib in race.resident_memory(process.pid)]
        time.sleep(SECONDS)
    if process.returncode:
        sys.exit(process.returncode)
    return time.monotonic() - began, memory


def training(folder: Path, steps: int, rounds: int) -> tuple[dict[str, list[float]], list[int]]:
    """Tokens a second of each way, in turns; and this process's resident memory (MiB) while it trains from the files
    alone, which is done first."""
    import jax

    import jaxgpt
    from jaxgpt.data import dataset
    from jaxgpt.training import feed, step

    jaxgpt.setup()
    data = dataset.load(jaxgpt.preset("cpu", data=str(folder)))
    config, dtype = jaxgpt.preset("cpu", vocab_size=data.tokenizer.vocab_size), np.dtype("float32")
    placement, memory, speeds, done = step.placement(config), [], {}, {}
    shardings = step.shardings(config, dtype, placement)

    def run(name: str, make_steps, tokens) -> None:
        if name not in done:
            train_steps = make_steps(config, dtype, placement, tokens)
            state = jax.jit(lambda: step.init_state(config, dtype), out_shardings=shardings)()
            done[name], speeds[name] = [train_steps, train_steps(state, 0, 1)[0], 1], []
        train_steps, state, at = done[name]
        began = time.perf_counter()
        state, metrics = train_steps(state, at, steps)
        metrics.loss.item()
        speeds[name].append(steps * config.batch_size * config.model.block_size / (time.perf_counter() - began))
        done[name] = [train_steps, state, at + steps]

    for _ in range(2 * rounds):
        run("from the files", feed.from_host, data.train)
        memory += [kib // 1024 for kib in race.resident_memory()]
    first = data.train.windows(np.zeros(1, np.int64), min(IN_MEMORY, len(data.train)))[0]
    for _ in range(rounds):
        run("from the files", feed.from_host, data.train)
        run("from memory, drawn by the host", feed.from_host, first)
        run("from memory, drawn by the device", feed.from_device, first)
    return {name: found[-rounds:] for name, found in speeds.items()}, memory


def main(
    gigabytes: float = 1.0, tokenizer: str = "gpt2", steps: int = 200, rounds: int = 5, json: Path | None = None
) -> None:
    """Measures both.

    Args:
        gigabytes: Size of the text.
        tokenizer: What a token is, as in `python -m jaxgpt.prepare`.
        steps: Updates of a turn.
        rounds: Turns of each way to train.
        json: File to write the figures to.
    """
    with tempfile.TemporaryDirectory() as folder:
        text, tokens = Path(folder, "text.jsonl"), Path(folder, "tokens")
        make(text, int(gigabytes * 1e9))
        command = ("-m", "jaxgpt.prepare", "--data", text, "--to", tokens, "--tokenizer", tokenizer)
        seconds, memory = watched(sys.executable, *command)
        speed = text.stat().st_size / seconds / 1e6
        rows = [("prepare", f"{speed:.1f} MB/s, {seconds:.0f} s", f"{max(memory):,} MiB at most")]
        speeds, resident = training(tokens, steps, rounds)
        grown = f"{resident[0]:,} MiB after the first {steps} steps, {resident[-1]:,} after {len(resident) * steps:,}"
        for name, found in speeds.items():
            rows.append((f"training {name}", f"{median(found):,.0f} tokens/s", grown if "files" in name else ""))
        size = (tokens / "train.bin").stat().st_size / 1e9
    title = f"A text of {gigabytes:g} GB, {tokenizer}: train.bin has {size:.2f} GB"
    figures = {"seconds": seconds, "memory": memory, "speeds": speeds, "resident": resident}
    race.report(title, ("", "speed", "resident memory"), rows, figures, json)


if __name__ == "__main__":
    tyro.cli(main)
