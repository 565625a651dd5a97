"""Resident memory stays flat: over a long run, over many texts, over many runs in one process.

Each trial is a process of its own, and its memory is read from outside, as `top` shows it. It prints what it saw in
MiB, after a warm-up, from start to end: `pytest -m slow -s tests/test_memory.py`, with --thorough for the long trials.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc"),
]

ROOT = Path(__file__).parent.parent
SMALL = """
    --preset cpu --n-layer 2 --n-head 2 --n-embd 32 --block-size 32 --batch-size 8 --warmup-steps 2 --eval-windows 32
    --dropout 0.1 --sample-tokens 50
""".split()  # noqa: SIM905
READINGS = 5  # of a trial's memory, and one before them
WARM_UP = 20  # checkpoints, until which allocators take what they need
# MiB, of Orbax 0.12 and TensorStore 0.1.86, which keep them by themselves, too (bench/save_memory.py).
A_CHECKPOINT = 0.03

# What the children do again and again; each prints a line when it has, and waits for one.
GENERATE = """
run = jaxgpt.load({run!r})
def once(i):
    run.generate("ROMEO:", tokens=40 + i % 50, seed=i)
"""
# What is freed stays with glibc, in pieces, for the next run, unless it is asked for it: what is in use is measured.
RUNS = """
import ctypes, gc
trim = getattr(ctypes.CDLL(None), "malloc_trim", id)
config = jaxgpt.load({run!r}).config
def once(i):
    few = dict(max_steps=4, eval_interval=2, sample_tokens=8)
    jaxgpt.train(jaxgpt.override(config, seed=i, learning_rate=1e-3 + i * 1e-5, **few), out=f"run-{{i}}", quiet=True)
    gc.collect()
    trim(0)
"""
REPEAT = """
import itertools, sys, jaxgpt
{define}
done = 0
for line in sys.stdin:
    for done in range(done + 1, done + 1 + int(line)):
        once(done)
    print(done, flush=True)
"""


def resident(pid: int) -> float:
    """The memory of a process, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    (kib,) = (line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return int(kib) / 1024


def newest(checkpoints: Path) -> int:
    """The step of the newest checkpoint; 0 where there is none yet."""
    names = os.listdir(checkpoints) if checkpoints.exists() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def told(what: str, readings: list[float]) -> float:
    """The growth from the median of the first readings to that of the last, in MiB, when all are printed."""
    print(f"\n{what}: {' '.join(f'{reading:.0f}' for reading in readings)} MiB")
    early, late = (sorted(part)[len(part) // 2] for part in (readings[:3], readings[-3:]))
    return late - early


@pytest.fixture(scope="module")
def run(text_file, tmp_path_factory) -> Path:
    """A trained run, by the command."""
    folder = tmp_path_factory.mktemp("memory") / "run"
    arguments = [*SMALL, "--data", text_file, "--out", folder, "--max-steps", "20", "--eval-interval", "10"]
    subprocess.run([sys.executable, ROOT / "train.py", *arguments], check=True, capture_output=True)
    return folder


def repeated(define: str, warm_up: int, times: int, folder: Path) -> list[float]:
    """The memory of a process that does `once` again and again: after the warm-up, and at each fifth of the rest."""
    program = REPEAT.format(define=define)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes) as child:
        readings = []
        for part in [warm_up, *[times // READINGS] * READINGS]:
            child.stdin.write(f"{part}\n")
            child.stdin.flush()
            assert child.stdout.readline(), "the child has ended"
            readings.append(resident(child.pid))
        child.stdin.close()
    assert child.returncode == 0
    return readings


def test_the_memory_of_a_long_run_stays_flat(text_file, tmp_path, thorough):
    seconds = 3600 if thorough else 10
    arguments = [*SMALL, "--data", text_file, "--max-steps", "100000000", "--eval-interval", "50", "--out", "run"]
    with subprocess.Popen(
        [sys.executable, ROOT / "train.py", *arguments], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as child:
        checkpoints = tmp_path / "run" / "checkpoints"
        while child.poll() is None and newest(checkpoints) < WARM_UP * 50:
            time.sleep(0.05)
        readings = [resident(child.pid)]
        for _ in range(READINGS):
            time.sleep(seconds / READINGS)
            readings.append(resident(child.pid))
        child.send_signal(signal.SIGTERM)
        said = child.stderr.read().decode()
    assert child.returncode == 128 + signal.SIGTERM, said
    steps = newest(checkpoints)
    grown = told(f"a run of {seconds} s, {steps:,} steps, {steps // 50:,} checkpoints", readings)
    assert grown < 40 + steps // 50 * A_CHECKPOINT


def test_the_memory_of_a_process_that_writes_many_texts_stays_flat(run, tmp_path, thorough):
    times = 1000 if thorough else 50
    readings = repeated(GENERATE.format(run=str(run)), 20, times, tmp_path)
    assert told(f"{times} calls of generate", readings) < 10


def test_the_memory_of_a_process_that_trains_many_runs_stays_flat(run, tmp_path, thorough):
    times = 100 if thorough else 5
    readings = repeated(RUNS.format(run=str(run)), 2, times, tmp_path)
    assert told(f"{times} runs in one process", readings) < 20 + 1.5 * times
