"""Fair timing: every contestant in a process of its own, taking turns, so that a noisy machine is noisy to all.

A contestant is a script started with some arguments that calls `serve(prepare)`. `race` starts them all, gives
each a turn after the other, and keeps every turn's figure. Medians and ratios of them can be trusted; single
times on a shared machine cannot.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # contestants import jaxgpt from here, installed or not

ROUNDS = 7
TURN_SECONDS = 1.0  # a turn repeats what is quicker than this


def one_by_one(run: Callable[[], Any]) -> Callable[[int], None]:
    """`run` as `serve` wants it: with the number of times."""

    def run_times(n: int) -> None:
        for _ in range(n):
            run()

    return run_times


def serve(prepare: Callable[[], Callable[[int], None]]) -> None:
    """A contestant's side: makes ready, runs once to compile, then runs as often as it is told."""
    answers = os.fdopen(os.dup(1), "w")  # whatever else prints goes to stderr
    os.dup2(2, 1)
    run = prepare()
    run(1)
    device, peak_bytes = _accelerator()
    print(json.dumps({"device": device}), file=answers, flush=True)
    for line in sys.stdin:
        began = time.perf_counter()
        run(int(line))
        seconds = (time.perf_counter() - began) / int(line)
        print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes()}), file=answers, flush=True)


def _accelerator() -> tuple[str | None, Callable[[], int]]:
    """The GPU that this contestant has used, and how to ask for the most memory of it that arrays have taken. On a
    CPU: None, and the most memory of the process."""
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.get_device_name(), torch.cuda.max_memory_allocated
    gpu = next((device for device in jax.devices() if device.platform != "cpu"), None) if jax else None
    if gpu is not None:
        return gpu.device_kind, lambda: gpu.memory_stats()["peak_bytes_in_use"]
    return None, lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Contestant:
    """A process that waits for its turn.

    Args:
        arguments: of Python, to start it.
        options: of `subprocess.Popen`, such as `cwd` and `env`.
    """

    def __init__(self, arguments: list[str], **options: Any):
        command = [sys.executable, *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        # Contestants share a GPU, of whose memory JAX must not take most at the start.
        env = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | dict(options.pop("env", os.environ))
        self.began = time.perf_counter()
        self.process = subprocess.Popen(command, env=env, **pipes, **options)
        self.seconds: list[float] = []
        self.peak_bytes = 0
        self.repeats = 1

    def started(self) -> "Contestant":
        """Waits until it has run once, and sees how often it should run in a turn."""
        self.device = self.answer()["device"]
        self.first_seconds = time.perf_counter() - self.began  # from the start of Python
        for _ in range(2):  # the first may still be slower
            self.turn()
        self.repeats = max(1, round(TURN_SECONDS / self.seconds[-1]))
        self.seconds.clear()
        return self

    def turn(self) -> None:
        self.process.stdin.write(f"{self.repeats}\n")
        self.process.stdin.flush()
        answer = self.answer()
        self.seconds.append(answer["seconds"])
        self.peak_bytes = answer["peak_bytes"]

    def answer(self) -> dict[str, float]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"this contestant died (its own words are above): {' '.join(self.process.args)}")
        return json.loads(line)

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def race(
    contestants: dict[str, list[str]], rounds: int = ROUNDS, options: dict[str, dict[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """Seconds of every turn, their median, and the peak memory of each contestant, by name. Until its first turn each
    compiles all that it needs.

    Args:
        contestants: name to the arguments of Python that start it.
        rounds: turns of each.
        options: name to what else `Contestant` takes.
    """
    running: dict[str, Contestant] = {}
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, arguments) in enumerate(contestants.items()):  # one after another: compiling takes all cores
            print(f"starting {name} ...", file=sys.stderr)
            how = {"env": without_programs(Path(folder, str(i)))} | (options or {}).get(name, {})
            running[name] = Contestant(arguments, **how).started()
        for _ in range(rounds):
            for contestant in running.values():
                contestant.turn()
        for contestant in running.values():
            contestant.stop()
    return {
        name: {
            "median_seconds": median(c.seconds),
            "seconds": c.seconds,
            "first_seconds": c.first_seconds,
            "peak_bytes": c.peak_bytes,
            "device": c.device,
        }
        for name, c in running.items()
    }


def without_programs(folder: Path) -> dict[str, str]:
    """Of a process that keeps what JAX or PyTorch compile in `folder`, and finds there nothing yet."""
    caches = ("JAX_COMPILATION_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    return dict(os.environ) | {name: str(folder / name) for name in caches}


def environment(home: Path) -> dict[str, str]:
    """Of a process that keeps what it compiles in `home`, and finds there what another one left."""
    return {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"} | {"JAXGPT_HOME": str(home)}


def resident_memory(process: int | str = "self") -> list[int]:
    """Of a process on Linux, in KiB; empty for one that has just ended."""
    status = Path(f"/proc/{process}/status").read_text()
    return [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")]


def machine() -> dict[str, str]:
    """What a figure depends on: date, processor, versions, commit."""
    packages = ("jax", "flax", "optax", "numpy", "torch", "transformers")
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "versions": f"Python {platform.python_version()}, " + ", ".join(versions),
        "commit": commit(Path(__file__).parent),
    }


def commit(checkout: Path) -> str:
    """Which one lies in a folder, and whether it was changed."""
    git = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(git, cwd=checkout, capture_output=True, text=True).stdout.strip() or "unknown"


def _processor() -> str:
    facts = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in facts.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def figures(result: dict[str, Any], unit: str) -> tuple[str, str, str]:
    """Three columns of a table: median, range, peak memory; the times in "s" or "ms"."""
    scale, digits = {"s": (1, 3), "ms": (1e3, 2)}[unit]
    middle, least, most = (
        f"{scale * t:,.{digits}f}" for t in (result["median_seconds"], min(result["seconds"]), max(result["seconds"]))
    )
    return f"{middle} {unit}", f"{least} to {most}", f"{result['peak_bytes'] / 2**20:,.0f} MiB"


def table(headings: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    """Prints a markdown table."""
    print("\n".join(f"| {' | '.join(map(str, row))} |" for row in [headings, ("---",) * len(headings), *rows]))


def report(title: str, headings: tuple[str, ...], rows: list[tuple[Any, ...]], results: dict, json_path: Path | None):
    """Prints a markdown table with the machine's facts under it, and writes `results` as JSON if asked to."""
    facts = machine()
    print(f"\n{title}\n")
    table(headings, rows)
    print(f"\n{facts['date']}; {facts['processor']}; {facts['versions']}; commit {facts['commit']}.")
    if json_path is not None:
        json_path.write_text(json.dumps({"title": title, "machine": facts, **results}, indent=2) + "\n", "utf-8")
