"""What the tests share: a made-up text, a small model, an out-of-the-way cache."""

import importlib.util
import os
import shutil
import signal
import tempfile
from importlib.metadata import version
from pathlib import Path

# Before anything of ours is imported: compiled programs are cached, but not in the user's folder.
os.environ.setdefault("JAXGPT_HOME", os.path.join(tempfile.gettempdir(), "jaxgpt-tests"))
# The tests compile some hundred programs and run each for a moment: compile them fast, not to be fast.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
    # a later XLA does not know this one, and has no other way
    + (" --xla_cpu_use_fusion_emitters=false" if version("jax").startswith("0.10.") else ""),
)

import jax
import numpy as np
import pytest

import jaxgpt

# As in a terminal, also where the tests were started to outlive it (`nohup pytest &`), which ignores these signals.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

jax.config.update("jax_num_cpu_devices", 4)  # so that what is shared among devices can be tested
# Many tests train the same small models: what one has compiled, the others need not.
jax.config.update("jax_compilation_cache_dir", os.path.join(os.environ["JAXGPT_HOME"], "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

SPEAKERS = ("ROMEO", "JULIET", "NURSE")
WORDS = "the night is young and so are we my lord but soft what light through yonder window breaks".split()  # noqa: SIM905


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help="trials of reliability at their full size (an hour or so)")


@pytest.fixture(scope="session")
def thorough(request) -> bool:
    """Whether a trial of reliability is to be repeated as often as docs/reliability.md says, or a few times only."""
    return request.config.getoption("thorough")


@pytest.fixture(scope="session")
def text() -> str:
    """A few thousand characters of nonsense dialogue, the same in every session."""
    rng = np.random.default_rng(0)
    lines = (f"{rng.choice(SPEAKERS)}:\n{' '.join(rng.choice(WORDS, 6))}.\n" for _ in range(200))
    return "\n".join(lines)


@pytest.fixture(scope="session")
def text_file(text, tmp_path_factory) -> Path:
    """That text in a file, which no test changes."""
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text(text, "utf-8")
    return path


@pytest.fixture(scope="session")
def config(text_file) -> jaxgpt.TrainConfig:
    """A run that takes a second: eight updates with dropout, evaluated after the fourth and the last."""
    return jaxgpt.preset(
        "cpu",
        data=text_file,
        n_layer=1,
        n_head=2,
        n_embd=16,
        block_size=16,
        embd_dropout=0.2,
        batch_size=4,
        max_steps=8,
        warmup_steps=2,
        eval_interval=4,
        eval_windows=8,
        log_interval=1,
        sample_tokens=0,
    )


@pytest.fixture(scope="session")
def whole(config, tmp_path_factory) -> jaxgpt.Run:
    """The run of `config`, from start to end. Copy its folder to change it."""
    return jaxgpt.train(config, out=tmp_path_factory.mktemp("whole") / "run", quiet=True)


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    """A copy of the whole run's folder, to go on with or to spoil."""
    return shutil.copytree(whole.path, tmp_path / "copy")


# PyTorch and transformers serve the parity tests alone, and are not asked of everybody.
PARITY = "test_parity*.py"
collect_ignore_glob = [] if all(map(importlib.util.find_spec, ("torch", "transformers"))) else [PARITY]


def pytest_terminal_summary(terminalreporter):
    for name in collect_ignore_glob:
        terminalreporter.write_line(
            f"left out: tests/{name}, for want of PyTorch and transformers; to run them: "
            "pip install -r requirements-parity.txt"
        )
