"""Nothing is lost when a process is killed, a file is damaged, a disk is full: real processes, signals, disks.

`pytest -m slow -n 0 -s --thorough tests/test_crashes.py` prints the figures of docs/reliability.md.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from runs_compared import assert_same_weights, untimed
from test_checkpoints import empty, files_of, flip_a_bit, truncate

import jaxgpt
from jaxgpt import UserError
from jaxgpt.runs import manifest
from jaxgpt.runs.checkpoints import STEP, UNFINISHED
from jaxgpt.runs.folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")]

ROOT = Path(__file__).parent.parent
SEED = int(os.environ.get("JAXGPT_TRIAL_SEED", "0"))  # with another one, the moments are others
STEPS = 24
# Saved after every other update, and large enough that most of the time something is being written.
MODEL = {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 16, "batch_size": 4, "dropout": 0.1}
PACE = {"max_steps": STEPS, "warmup_steps": 2, "eval_interval": 2, "eval_windows": 4, "log_interval": 1}
DAMAGES = {"truncated": truncate, "emptied": empty, "a bit flipped": flip_a_bit, "removed": Path.unlink}


def flags(**fields: object) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in fields.items()]


class Machine:
    """A folder to start `train.py` in, as a person does; what one run has compiled, the next need not."""

    def __init__(self, folder: Path, text: str):
        self.folder = folder
        (folder / "text.txt").write_text(text, "utf-8")
        self.environment = {**os.environ, "JAXGPT_HOME": str(folder / "home"), "JAX_PLATFORMS": "cpu"}
        self.environment.pop("PYTHONUNBUFFERED", None)
        self.begin = ["--preset=cpu", *flags(data="text.txt", sample_tokens=0, **MODEL, **PACE)]

    def start(self, *arguments: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,  # so that it can be stopped as by Ctrl-Z
        )

    def train(self, *arguments: str) -> tuple[int, str, str]:
        """The exit code, and what is said on either stream."""
        process = self.start(*arguments)
        out, err = process.communicate()
        return process.returncode, out, err


@pytest.fixture(scope="module")
def machine(text, tmp_path_factory) -> Machine:
    return Machine(tmp_path_factory.mktemp("machine"), text)


@pytest.fixture(scope="module")
def straight(machine) -> tuple[jaxgpt.Run, float]:
    """A run that nobody disturbs, and how long its process takes when all is compiled."""
    code, _, err = machine.train(*machine.begin, "--out=first")
    assert (code, err) == (0, "")
    began = time.monotonic()
    code, _, err = machine.train(*machine.begin, "--out=straight")
    assert (code, err) == (0, "")
    return jaxgpt.load(machine.folder / "straight"), time.monotonic() - began


def numbers(run: Path) -> list[Path]:
    """The folders that are called checkpoints."""
    with contextlib.suppress(FileNotFoundError):
        found = (path for path in (run / "checkpoints").iterdir() if STEP.fullmatch(path.name))
        return sorted(found, key=lambda path: int(path.name))
    return []


def unfinished(run: Path) -> set[int]:
    """Folders that are no checkpoint yet, or no more."""
    return {path.stat().st_ino for path in run.glob("checkpoints/*") if UNFINISHED in path.name}


def assert_readable(run: Path) -> None:
    """Every checkpoint is whole, by the checksums of all its files, and the newest and the best can be loaded."""
    for checkpoint in numbers(run):
        parts = {name.partition("/")[0] for name in json.loads((checkpoint / "manifest.json").read_bytes())}
        assert parts >= {"params", "opt_state", "counters", "progress", "metrics"}
        for part in parts:
            manifest.check(checkpoint, part)
    if numbers(run):
        for which in ("newest", "best"):
            jaxgpt.load(run, which)


def assert_same_run(run: Path, straight: jaxgpt.Run) -> None:
    """It has ended as the other one, to the last bit of its weights and the last digit of its rows."""
    assert_readable(run)
    ended = jaxgpt.load(run)
    assert ended.step == straight.step
    assert_same_weights(ended, straight)
    assert untimed(ended.metrics) == untimed(straight.metrics)


def assert_one_line(err: str) -> None:
    assert re.fullmatch(r"error: [^\n]+\n", err), err


def report(what: str, seen: Counter) -> None:
    print(f"\n{what} (seed {SEED}): " + ", ".join(f"{name} {n}" for name, n in sorted(seen.items())))


# Killed, stopped, paused


def disturb(machine: Machine, straight: tuple[jaxgpt.Run, float], number: signal.Signals, times: int) -> None:
    """Starts a run and goes on with it, sends each process a signal at a random moment of its life, and begins another
    run when one has come to its end, `times` over. Each run ends as the undisturbed one."""
    reference, life = straight
    rng, seen, runs = np.random.default_rng(SEED), Counter(), 0
    run = machine.folder / f"{number.name}-0"
    while seen["signals"] < times or run.exists():
        go_on, before = bool(numbers(run)), unfinished(run)
        process = machine.start(*(["--resume", run.name] if go_on else [*machine.begin, f"--out={run.name}"]))
        if seen["signals"] < times:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, life))
        in_time = seen["signals"] < times and process.poll() is None
        if in_time:
            process.send_signal(number)
        out, err = process.communicate()
        assert_readable(run)
        if in_time:
            assert_ended_by(number, process.returncode, out, err, run)
            seen["signals"] += 1
            seen["inside of a save"] += not unfinished(run) <= before
            seen["before the first checkpoint"] += not numbers(run)
        if numbers(run) and numbers(run)[-1].name == str(STEPS):  # at its end, though perhaps not told so any more
            assert_same_run(run, reference)
            runs += 1
            run = machine.folder / f"{number.name}-{runs}"
        else:
            assert in_time, err
            if run.exists() and not numbers(run):
                assert_told_to_begin_again(machine, run)
                shutil.rmtree(run)
    seen["runs that ended alike"] = runs
    report(number.name, seen)


def assert_ended_by(number: signal.Signals, code: int, out: str, err: str, run: Path) -> None:
    assert "Traceback" not in err or "jaxgpt" not in err, err  # Python tells of its own first moments
    if saved := re.search(r"stopped and saved after step (\d+), in", err):
        assert numbers(run)[-1].name == saved[1]
        assert f"python train.py --resume {run.name}\n" in err
    if code == -number:  # which Python does, before there is a run, and when it has ended
        assert number == signal.SIGKILL or out == "" or numbers(run)[-1].name == str(STEPS)
    else:
        assert code in (128 + number, 0), err  # or it was at its end


def assert_told_to_begin_again(machine: Machine, run: Path) -> None:
    """Where a run was killed before its first checkpoint, both commands say what to do."""
    if not (run / "config.json").exists():  # killed before it was a run
        return
    code, out, err = machine.train("--resume", run.name)
    assert (code, out) == (2, "")
    assert_one_line(err)
    assert "has no checkpoint yet: wait for the first, or remove the run and begin it again" in err
    code, out, err = machine.train(*machine.begin, f"--out={run.name}")
    assert (code, out) == (2, "")
    assert_one_line(err)
    assert "is a run without a checkpoint to go on from: remove it, or choose another --out" in err


def test_a_run_that_is_killed_again_and_again_ends_as_one_that_is_not(machine, straight, thorough):
    disturb(machine, straight, signal.SIGKILL, 50 if thorough else 4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_run_that_is_asked_to_stop_again_and_again_ends_as_one_that_is_not(number, machine, straight, thorough):
    disturb(machine, straight, number, 20 if thorough else 2)


def test_a_run_that_is_paused_by_ctrl_z_and_gone_on_with_by_fg_ends_as_one_that_is_not(machine, straight, thorough):
    rng, seen = np.random.default_rng(SEED), Counter()
    while seen["times"] < (5 if thorough else 1):
        run = machine.folder / f"paused-{seen['times']}"
        process = machine.start(*machine.begin, f"--out={run.name}")
        for _ in range(3):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, straight[1] / 2))
                break
            os.killpg(process.pid, signal.SIGTSTP)
            time.sleep(0.5)
            before = sorted(path.stat().st_mtime_ns for path in run.rglob("*"))
            time.sleep(0.5)
            assert sorted(path.stat().st_mtime_ns for path in run.rglob("*")) == before  # it stands still
            assert process.poll() is None
            os.killpg(process.pid, signal.SIGCONT)
            seen["pauses"] += 1
        _, err = process.communicate()
        assert (process.returncode, err) == (0, "")
        assert_same_run(run, straight[0])
        seen["times"] += 1
    report("Ctrl-Z and fg", seen)


def test_a_command_that_fails_while_a_program_is_compiled_ends_with_its_own_exit_code(machine):
    code = """
        import sys, time
        import jax, jax.numpy as jnp
        from jaxgpt.cli.command import run_command
        from jaxgpt.threads import in_thread

        def compile():
            def slow(x):
                for i in range(300):
                    x = jnp.sin(x) @ x + i
                return x
            jax.jit(slow).lower(jnp.ones((8, 8))).compile()

        def command(given):
            in_thread(compile)
            time.sleep(float(sys.argv[1]))
            raise OSError("the disk is full")

        sys.exit(run_command(command, {}, []))
    """
    for seconds in (0.5, 1.0, 2.0):  # by then it is traced, lowered, or in the hands of LLVM
        command = [sys.executable, "-c", textwrap.dedent(code), str(seconds)]
        done = subprocess.run(command, cwd=ROOT, env=machine.environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (1, "error: the disk is full\n")


# Two at once


def only_one(processes: list[subprocess.Popen]) -> subprocess.Popen:
    """The one that trains to its end; the others have refused."""
    said = [process.communicate() for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, *[2] * (len(processes) - 1)], said
    for code, (out, err) in zip(codes, said, strict=True):
        if code == 2:
            assert_one_line(err)
            assert re.search("is being trained by another process|exists and is not over|is a run without", err), err
            assert "step" not in out
    return processes[codes.index(0)]


def test_of_two_that_begin_or_go_on_with_one_run_at_once_one_refuses(machine, straight, thorough):
    seen = Counter()
    for i in range(5 if thorough else 1):
        run = machine.folder / f"twice-{i}"
        end = flags(max_steps=STEPS // 2)  # the later flag counts
        only_one([machine.start(*machine.begin, f"--out={run.name}", *end, f"--seed={j}") for j in range(2)])
        assert jaxgpt.load(run).config == RunFolder(run).read()[0]  # the files are all of the same one
        only_one([machine.start("--resume", run.name, *flags(max_steps=STEPS)) for _ in range(2)])
        assert_readable(run)
        assert jaxgpt.load(run).step == STEPS
        seen["begun twice, gone on with twice"] += 1
    report("two at once", seen)


# Damaged files


def damaged(source: Path, target: Path, name: str, damage: Callable[[Path], None]) -> Path:
    """A copy of a run with one of its files damaged."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    damage(target / name)
    return target


def test_whatever_file_of_the_newest_checkpoint_is_damaged_the_run_ends_as_before(whole, tmp_path, capsys, thorough):
    """Or its end stands: what nobody reads who goes on is told to those who read it."""
    seen, rng = Counter(), np.random.default_rng(SEED)
    newest = whole.path / "checkpoints" / "8"
    cases = [(path.relative_to(whole.path), kind) for path in files_of(newest) for kind in DAMAGES]
    for name, kind in cases if thorough else [cases[i] for i in rng.permutation(len(cases))[:8]]:
        run = damaged(whole.path, tmp_path / "run", str(name), DAMAGES[kind])
        path = name.relative_to("checkpoints/8").as_posix()
        capsys.readouterr()
        try:
            assert_same_weights(jaxgpt.load(run), whole)
        except UserError as error:
            assert f"its file {path} is" in str(error) or path == "manifest.json"
        try:
            resumed = jaxgpt.resume(run)
        except UserError as error:
            assert str(error).endswith("run has done its 8 steps; to go on, give a larger `max_steps`")
            assert path in ("manifest.json", "metrics/metrics")
            seen["needed by nobody who goes on"] += 1
        else:
            assert_same_weights(resumed, whole)
            assert untimed(resumed.metrics) == untimed(whole.metrics)
            said = capsys.readouterr().out
            assert path == "manifest.json" or f"checkpoints/8 cannot be read: its file {path} is" in said
            assert "; going back to step 4, and keeping the damaged one as 8.damaged\n" in said
            assert (run / "checkpoints" / "8.damaged").is_dir()
            seen["went back to the one before"] += 1
        assert_same_weights(jaxgpt.load(run), whole)
    report("files of the newest checkpoint", seen)


def test_whatever_file_of_the_run_is_damaged_it_is_told_and_no_weight_is_another(whole, tmp_path, capsys, thorough):
    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(content)

    longer = jaxgpt.resume(shutil.copytree(whole.path, tmp_path / "longer"), max_steps=10, quiet=True)
    seen, rng = Counter(), np.random.default_rng(SEED)
    kinds = [truncate, empty, Path.unlink] + [flip] * (60 if thorough else 3)
    for name in ("config.json", "tokenizer.json", "metrics.jsonl"):
        for damage in kinds:
            run = damaged(whole.path, tmp_path / "run", name, damage)
            capsys.readouterr()
            try:
                resumed = jaxgpt.resume(run, max_steps=10)
            except UserError as error:
                assert "\n" not in str(error)
                # a flipped bit in `data` names another file, and that is what is told
                assert name in str(error) or "no file or folder is called" in str(error)
                seen[f"{name}: told, and refused"] += 1
            else:
                said = capsys.readouterr().out
                assert_same_weights(resumed, longer)
                if name == "metrics.jsonl":
                    assert f"{name} is not as it was written" in said
                assert name != "tokenizer.json"
                seen[f"{name}: went on, with the same weights"] += 1
    report("files of a run", seen)


# A full disk


@pytest.fixture
def disk(tmp_path):
    """A disk of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip(
            "only root can mount a small disk; as somebody else: unshare -rm pytest -m slow tests/test_crashes.py"
        )
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, kib: int) -> None:
    """Leaves so much free."""
    (disk / "filler").unlink(missing_ok=True)
    free = shutil.disk_usage(disk).free - kib * 1024
    (disk / "filler").write_bytes(b"x" * free)


def test_a_full_disk_is_told_and_nothing_is_lost(machine, disk, text, thorough):
    small = {"n_layer": 1, "n_head": 2, "n_embd": 16}
    begin = [*machine.begin, *flags(**small, eval_interval=4, max_steps=8)]
    go_on = flags(max_steps=STEPS)
    assert machine.train(*begin, "--out=small")[0] == 0
    shutil.copytree(machine.folder / "small", machine.folder / "longer")
    assert machine.train("--resume", "longer", *go_on)[0] == 0
    longer = jaxgpt.load(machine.folder / "longer")
    needed = 2 * sum(path.stat().st_size for path in files_of(numbers(machine.folder / "small")[-1])) // 1024 + 64
    run, seen, rng = disk / "run", Counter(), np.random.default_rng(SEED)
    amounts = range(0, needed, 16) if thorough else [int(needed * (i + rng.random()) / 2) for i in range(2)]
    for i, kib in enumerate(amounts):
        shutil.rmtree(run, ignore_errors=True)
        (disk / "filler").unlink(missing_ok=True)
        shutil.copytree(machine.folder / "small", run)
        fill(disk, kib)
        process = machine.start("--resume", str(run), *go_on)
        if i % 2:  # and is asked to stop, which it does if it can save
            while process.poll() is None and len(list(RunFolder(run).rows())) < 12:
                time.sleep(0.01)
            process.terminate()
        out, err = process.communicate()
        seen[outcome(process.returncode, out, err, run)] += 1
        assert_readable(run)  # on a disk that is still full
        (disk / "filler").unlink()
        code, out, err = machine.train("--resume", str(run), *go_on)
        assert code == 0 or "has done its 24 steps" in err, err
        assert_same_run(run, longer)
    report(f"a disk with 0 to {needed} KiB free", seen)


def outcome(code: int, out: str, err: str, run: Path) -> str:
    """What came of a run on a full disk, in a word; fails where it has said what is not so."""
    assert "Traceback" not in err, err
    if code == 143:
        assert re.search(r"stopped and saved after step (\d+)", err)[1] == numbers(run)[-1].name
        return "stopped and saved"
    if code == 0:
        assert numbers(run)[-1].name == str(STEPS)
        return "went on to its end" + (" without a picture" if "no picture of the losses" in out else "")
    assert code == 1
    assert "saved after" not in err
    message = err.splitlines()[-1]
    assert "No space left on device" in message
    assert "The last checkpoint stands; to go on, then: python train.py --resume " in message
    where = re.search(r"(config\.json|metrics\.jsonl|a checkpoint could not be written|\.lock)", message)
    return f"stopped by {where[0] if where else 'a write: ' + message}"
