"""Many devices and many processes, for real: eight devices of a CPU in a process of their own, and two processes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs_compared import assert_same_weights, untimed

import jaxgpt

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
RECIPE = {
    "preset": "cpu",
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 16,
    "block_size": 16,
    "batch_size": 8,
    "max_steps": 20,
    "warmup_steps": 2,
    "eval_interval": 10,
    "eval_windows": 8,
    "log_interval": 1,
    "sample_tokens": 20,
}
LONGEST = 240  # seconds for a command
# What Gloo writes to stdout by itself, a line a thread, "#" for each digit.
GLOO = "[Gloo] Rank # is connected to # peer ranks. Expected number of connected peer ranks is : #\n"


class Folder:
    """A folder with a text, in which commands are run."""

    def __init__(self, path: Path, text: str):
        self.path = path
        (path / "text.txt").write_text(text, "utf-8")

    def start(self, *arguments: str, devices: int = 1) -> subprocess.Popen:
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
        command = [sys.executable, str(ROOT / "train.py"), *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.path, env=environment, **pipes)

    def train(self, out: str, *arguments: str, devices: int = 1, **recipe) -> jaxgpt.Run:
        return self.finish(out, self.start(*begin(out, **recipe), *arguments, devices=devices))

    def resume(self, out: str, *arguments: str, devices: int = 1) -> jaxgpt.Run:
        return self.finish(out, self.start("--resume", out, *arguments, devices=devices))

    def finish(self, out: str, *processes: subprocess.Popen) -> jaxgpt.Run:
        for process in processes:
            _, errors = process.communicate(timeout=LONGEST)
            assert process.returncode == 0, errors
        return jaxgpt.load(self.path / out)

    def pair(self, *arguments: str) -> list[subprocess.Popen]:
        """Two processes with two devices each."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        return [self.start(*arguments, f"--distributed={address},2,{i}", devices=2) for i in range(2)]


def begin(out: str, **recipe) -> list[str]:
    flags = RECIPE | {"data": "text.txt", "out": out} | recipe
    return [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, text) -> Folder:
    return Folder(tmp_path_factory.mktemp("distributed"), text)


@pytest.fixture(scope="module")
def alone(folder) -> jaxgpt.Run:
    """The run on one device."""
    return folder.train("alone")


def assert_same_losses(run: jaxgpt.Run, alone: jaxgpt.Run) -> None:
    for name in ("train_loss", "val_loss"):
        pairs = [(a[name], b[name]) for a, b in zip(run.metrics, alone.metrics, strict=True) if name in a and name in b]
        assert pairs and all(abs(a - b) < 1e-5 for a, b in pairs), name


@pytest.mark.parametrize("mesh", ["data=8", "fsdp=8"])
def test_eight_devices_train_the_run_of_one(mesh, folder, alone):
    assert_same_losses(folder.train(mesh, devices=8, mesh=mesh), alone)


def test_a_run_goes_on_bit_for_bit_on_the_same_devices_and_on_others(folder):
    """With Muon on all three axes, then on one device, and back."""
    mesh, muon = "data=2,fsdp=2,tensor=2", {"optimizer": "muon", "schedule": "constant"}
    whole = folder.train("whole", devices=8, mesh=mesh, **muon)
    folder.train("half", devices=8, mesh=mesh, max_steps=10, **muon)
    assert_same_weights(folder.resume("half", "--max-steps=20", devices=8), whole)
    assert folder.resume("half", "--max-steps=24", "--mesh=data=-1").step == 24
    back = folder.resume("half", "--max-steps=28", f"--mesh={mesh}", devices=8)
    assert_same_losses(back, folder.train("one", max_steps=28, **muon))


def test_two_processes_train_the_run_of_one_and_the_first_alone_tells_of_it(folder, alone):
    first, second = folder.pair(*begin("pair", mesh="data=2,fsdp=2"))
    (told, errors), (silence, _) = (process.communicate(timeout=LONGEST) for process in (first, second))
    assert (first.returncode, second.returncode) == (0, 0), errors
    assert "mesh  data 2 x fsdp 2 x tensor 1, 2 processes" in told
    # Two threads may write at once, so that their lines are mixed: the characters are the same.
    assert sorted(re.sub(r"\d", "#", silence)) == sorted(GLOO * silence.count("[Gloo]"))
    pair = jaxgpt.load(folder.path / "pair")
    assert_same_losses(pair, alone)
    assert [row["step"] for row in pair.metrics] == list(range(1, 21))


def test_a_signal_to_one_of_two_processes_stops_both_and_they_go_on_bit_for_bit(folder):
    whole = folder.finish("long", *folder.pair(*begin("long", max_steps=100, eval_interval=50)))
    first, second = folder.pair(*begin("stopped", max_steps=100, eval_interval=50))
    wait_for_rows(folder.path / "stopped", 10)
    second.send_signal(signal.SIGTERM)
    outcome = [(*process.communicate(timeout=LONGEST), process.returncode) for process in (first, second)]
    assert [code for *_, code in outcome] == [143, 143]
    assert "stopped and saved after step" in outcome[0][1]
    stopped = jaxgpt.load(folder.path / "stopped")
    assert 10 <= stopped.step < 100
    resumed = folder.finish("stopped", *folder.pair("--resume=stopped"))
    assert_same_weights(resumed, whole)
    assert untimed(resumed.metrics) == untimed(whole.metrics)


@pytest.mark.parametrize("killed", [0, 1], ids=["the first", "the second"])
def test_when_one_of_two_processes_dies_the_other_says_so_within_a_minute(killed, folder):
    out = f"killed-{killed}"
    processes = folder.pair(*begin(out, max_steps=10**6, eval_interval=10**6))
    wait_for_rows(folder.path / out, 5)
    processes[killed].kill()
    died = time.monotonic()
    _, errors = processes[1 - killed].communicate(timeout=LONGEST)
    assert time.monotonic() - died < 60
    assert errors.strip().splitlines()[-1].startswith("error: ")
    assert "start all of them again" in errors
    assert processes[1 - killed].returncode == 1


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--distributed=localhost"], "--distributed is HOST:PORT,N,I"),
        (["--distributed=localhost:1,2,2"], "and has none of number 2"),
        (["--distributed"], "give HOST:PORT,N,I"),
    ],
)
def test_processes_that_nobody_can_join_are_refused(arguments, words, folder):
    process = folder.start(*arguments)
    _, errors = process.communicate(timeout=LONGEST)
    assert process.returncode == 2
    assert errors.startswith("error: ") and words in errors and errors.count("\n") == 1


def wait_for_rows(run: Path, count: int) -> None:
    until = time.monotonic() + LONGEST
    while time.monotonic() < until:
        with_rows = run / "metrics.jsonl"
        if with_rows.exists() and len(with_rows.read_bytes().splitlines()) > count:
            return
        time.sleep(0.1)
    raise TimeoutError(json.dumps({"run": str(run), "rows": count}))
