"""What a command does to its own process, in good and in hostile surroundings."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxgpt.cli import process
from jaxgpt.device import backend

ROOT = Path(__file__).parent.parent


@pytest.fixture
def settings(monkeypatch):
    """JAX as on a machine where nobody set anything; what a test changes is put back."""
    for name in ("JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    names = ("jax_platforms", "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_platforms", None)
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def plugin_without_driver(settings, monkeypatch):
    """A machine with JAX's CUDA plugin, but no NVIDIA driver."""
    monkeypatch.setattr(backend, "cuda_without_driver", lambda: True)


def test_without_a_driver_the_cpu_is_used(plugin_without_driver):
    process.setup()
    assert jax.config.jax_platforms == "cpu"


def test_otherwise_jax_decides(settings):
    process.setup()
    assert jax.config.jax_platforms is None


def test_compiled_programs_are_kept_in_jaxgpts_folder(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("JAXGPT_HOME", str(tmp_path / "home"))
    process.setup()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "home" / "xla")
    assert (tmp_path / "home" / "xla").is_dir()


def test_the_users_folder_of_compiled_programs_stays(settings, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    process.setup()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")


@pytest.mark.parametrize("home", ["a file", "a folder below a file", "not writable"])
def test_where_no_folder_can_be_programs_are_not_kept(home, settings, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JAXGPT_HOME", str(tmp_path / "file" / ("x" if home == "a folder below a file" else "")))
    if home == "not writable":  # to anybody but root
        monkeypatch.setenv("JAXGPT_HOME", str(tmp_path))
        monkeypatch.setattr(os, "access", lambda *_: False)
    process.setup()
    assert jax.config.jax_compilation_cache_dir is None


def run(script: str | Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """A Python of its own, with these variables beside the usual ones."""
    command = [sys.executable, *(["-c", script] if isinstance(script, str) else [str(script)]), *arguments]
    return subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)} | environment, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"XLA_FLAGS": "--bogus"}, "XLA does not take what XLA_FLAGS says: Unknown flag in XLA_FLAGS: --bogus"),
        ({"JAX_PLATFORMS": "tpu"}, "JAX_PLATFORMS asks for tpu, which JAX cannot start here: "),
        ({"JAX_PLATFORMS": "rocm"}, "JAX_PLATFORMS asks for rocm, which JAX cannot start here"),
        ({"JAX_ENABLE_X64": "maybe"}, "JAX cannot start: invalid truth value 'maybe'"),
    ],
)
def test_a_variable_that_jax_cannot_start_with_is_told_in_one_line(environment, said, tmp_path):
    done = run(ROOT / "train.py", "--preset", "cpu", "--out", str(tmp_path / "run"), **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {said}")
    assert done.stderr.count("\n") == 1


NOISE = """
import sys
from jaxgpt.cli import process
process.setup()
import jax
from pathlib import Path
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
f = lambda x: x + 1
jax.jit(f)(1)
programs = list(Path(jax.config.jax_compilation_cache_dir).iterdir())
assert programs
for path in programs:
    path.write_bytes(path.read_bytes()[:10])
jax.clear_caches()
jax.jit(f)(1)  # from a file that is cut off

from matplotlib.figure import Figure
figure = Figure()
figure.subplots().set(title="紅樓夢")
figure.savefig("picture.png")

print("naïve │ 紅樓夢")
"""


def test_libraries_make_no_noise_and_output_takes_any_character(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(
        NOISE,
        JAXGPT_HOME=str(tmp_path / "home"),
        HOME="/dev/null",
        MPLBACKEND="bogus",
        PYTHONIOENCODING="ascii",  # as a console of few characters
    )
    assert done.stderr == ""
    assert (done.returncode, done.stdout) == (0, "na?ve ? ???\n")


@pytest.mark.skipif(sys.platform == "win32", reason="no shell to close streams")
def test_a_process_without_streams_has_some(tmp_path):
    script = f"{sys.executable} {ROOT / 'sample.py'} --help <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", script], env=os.environ).returncode == 0


SWALLOWED = """
import os, signal, time
from jaxgpt.cli import process
process.prepare()
class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)
Finalized()
try:
    time.sleep(10)
except KeyboardInterrupt:
    print("raised")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no signals to itself")
def test_ctrl_c_in_a_finalizer_is_not_lost():
    done = run(SWALLOWED)
    assert (done.stdout, done.stderr) == ("raised\n", "")


def test_ctrl_c_waits_for_the_end_of_imports():
    imported = []
    with pytest.raises(KeyboardInterrupt), process.uninterrupted():
        signal.raise_signal(signal.SIGINT)
        imported.append(True)
    assert imported
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait():
    with pytest.raises(KeyboardInterrupt), process.uninterrupted():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("it waited")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_jax_is_not_needed_to_tell_of_a_wrong_flag():
    script = "import sys; from jaxgpt.cli import train; train.main(['--bogus']); sys.exit('jax' in sys.modules)"
    assert run(script).returncode == 0
