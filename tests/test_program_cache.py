"""The cache of compiled programs, damaged or unusable in any way: the same numbers, and nothing on standard error.

`pytest -m slow -s tests/test_program_cache.py` flips 20 bits of a program, one at a time, with --thorough 200.
"""

import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SAMPLE = ["sample.py", "--run", "run", "--tokens", "20", "--seed", "3"]

# A program is read from the cache and run, after each change to its file, in a process that is forked for it before JAX
# has begun: what it prints, and how it ends, is the answer.
FLIPS = """
import os, random, shutil, sys
import jax, jax.numpy as jnp, numpy as np
from jaxgpt.cli import programs
folder, times = sys.argv[1], int(sys.argv[2])
jax.config.update("jax_compilation_cache_dir", folder)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

def child(work):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.write(write, work())
        os._exit(0)
    os.close(write)
    answer = os.read(read, 10**6)
    os.close(read)
    return answer if os.waitpid(pid, 0)[1] == 0 else b"crash"

def run():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 64), np.float32))
    step = lambda _, c: jnp.tanh(c @ x) * 0.5 + jnp.sin(c).sum(-1, keepdims=True)
    return np.asarray(jax.jit(lambda x: jax.lax.fori_loop(0, 20, step, x))(x)).tobytes()

right = child(run)
programs.seal(folder)
(file,) = [name for name in os.listdir(folder) if "lambda" in name and name.endswith("-cache")]
path = os.path.join(folder, file)
good, rng = open(path, "rb").read(), random.Random(0)
for _ in range(times):
    bad = bytearray(good)
    bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
    open(path, "wb").write(bad)
    answer = child(run)
    print("right" if answer == right else "crash" if answer == b"crash" else "wrong")
"""


@pytest.fixture(scope="module")
def here(whole, tmp_path_factory) -> Path:
    """A folder with a run, and in home/ the programs that it was sampled with."""
    here = tmp_path_factory.mktemp("programs")
    shutil.copytree(whole.path, here / "run")
    return here


def sampled(here: Path, **environment: str) -> str:
    """What sample.py writes, and nothing on standard error."""
    left = {name: value for name, value in os.environ.items() if not name.startswith("JAX")}
    environment = left | {"JAXGPT_HOME": str(here / "home")} | environment
    command = [sys.executable, ROOT / SAMPLE[0], *SAMPLE[1:]]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture(scope="module")
def text_of(here) -> str:
    """The text that is written with whatever cache; the cache is filled."""
    text = sampled(here)
    assert list((here / "home" / "xla").glob("*-cache"))
    return text


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_flipped_bit_in_a_program_is_not_executed(tmp_path, thorough):
    times = 200 if thorough else 20
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", FLIPS, tmp_path / "xla", str(times)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    seen = Counter(done.stdout.split())
    print(f"\n{times} flipped bits: {dict(seen)}")
    assert seen == {"right": times}, done.stderr


def test_a_command_leaves_its_programs_with_checksums(here, text_of):
    import zstandard

    for path in (here / "home" / "xla").glob("*-cache"):
        assert zstandard.get_frame_parameters(path.read_bytes()).has_checksum


@pytest.mark.parametrize("damage", ["emptied", "truncated", "noise", "folders"])
def test_programs_that_are_damaged_are_compiled_anew(damage, here, text_of):
    rng = random.Random(0)
    for path in (here / "home" / "xla").glob("*-cache"):
        content = path.read_bytes()
        path.unlink()
        if damage == "folders":
            path.mkdir()
        else:
            ways = {"emptied": b"", "truncated": content[: len(content) // 2], "noise": rng.randbytes(len(content))}
            path.write_bytes(ways[damage])
    assert sampled(here) == text_of
    shutil.rmtree(here / "home")


def test_a_cache_that_cannot_be_is_done_without(here, text_of):
    (here / "file").touch()
    assert sampled(here, JAXGPT_HOME=str(here / "file")) == text_of
    assert sampled(here, JAXGPT_HOME="/dev/null/x") == text_of


@pytest.fixture
def read_only(here) -> Iterator[None]:
    """The cache is filled, and may not be written to. Root may write to whatever is not mounted read-only."""
    sampled(here)
    home = here / "home"
    if os.geteuid():
        for path in home.rglob("*"):
            path.chmod(0o555 if path.is_dir() else 0o444)
        yield
        return
    if shutil.which("mount") is None or subprocess.run(["mount", "--bind", home, home], capture_output=True).returncode:
        pytest.skip("root may write everywhere, and may not mount here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", home], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", home], check=True)


@pytest.mark.skipif(sys.platform == "win32", reason="a folder can always be written to")
def test_a_cache_that_may_not_be_written_is_read(here, text_of, read_only):
    with pytest.raises(OSError):
        (here / "home" / "xla" / "new-cache").touch()
    assert sampled(here) == text_of


FINGERPRINT = """
import jax
from jax._src.lib import xla_client
print(xla_client.get_topology_for_devices(jax.devices()).fingerprint())
"""


def test_a_program_of_another_processor_is_not_taken():
    """Its instructions may be others. What JAX calls a program by has the processor's features in it: they are changed
    here as they can be, by a limit on them."""

    def fingerprint(limit: str) -> str:
        environment = os.environ | {"XLA_FLAGS": f"--xla_cpu_max_isa={limit}", "JAX_PLATFORMS": "cpu"}
        return subprocess.check_output([sys.executable, "-c", FINGERPRINT], env=environment, text=True)

    assert fingerprint("SSE4_2") != fingerprint("AVX2")
