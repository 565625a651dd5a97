"""What JAX is told of the machine, and what of it a person is told."""

import ctypes
import importlib.util
from types import SimpleNamespace

import jax
import pytest

from jaxgpt.device import backend


@pytest.fixture
def settings(monkeypatch):
    """JAX as on a machine where nobody set anything; what a test changes is put back."""
    for name in ("JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    names = ("jax_platforms", "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_platforms", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def plugin_without_driver(settings, monkeypatch):
    """A machine with JAX's CUDA plugin, but no NVIDIA driver."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: "found" if name == "jax_cuda12_plugin" else find_spec(name, *a)
    )
    monkeypatch.setattr(ctypes, "CDLL", no_library)


def no_library(name):
    raise OSError(f"{name}: cannot open shared object file")


def gpu(kind: str) -> SimpleNamespace:
    return SimpleNamespace(platform="gpu", device_kind=kind)


def test_a_cpu_gets_the_quick_preset(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert backend.default_preset() == "speedrun"


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_an_accelerator_gets_the_large_preset(platform, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    assert backend.default_preset() == "t4"


def test_a_gpu_is_described_by_its_name(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    assert backend.describe(gpu("NVIDIA T4")) == "NVIDIA T4"


def test_several_gpus_are_counted(monkeypatch):
    monkeypatch.setattr(jax, "local_device_count", lambda: 4)
    assert backend.describe(gpu("NVIDIA T4")) == "4 x NVIDIA T4"


def test_without_a_driver_the_cpu_is_used_and_the_reason_given(plugin_without_driver):
    backend.setup()
    assert jax.config.jax_platforms == "cpu"
    assert "(no NVIDIA driver here)" in backend.describe(jax.devices("cpu")[0])  # and still, after the setup


def test_with_a_driver_jax_decides(plugin_without_driver, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    backend.setup()
    assert jax.config.jax_platforms is None
    assert "driver" not in backend.describe(jax.devices("cpu")[0])


def test_without_the_plugin_no_driver_is_missed(settings, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    monkeypatch.setattr(ctypes, "CDLL", no_library)
    backend.setup()
    assert jax.config.jax_platforms is None
    assert "driver" not in backend.describe(jax.devices("cpu")[0])


def test_the_users_choice_of_platforms_stays(plugin_without_driver, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    jax.config.update("jax_platforms", "cuda,cpu")  # as JAX does on import
    backend.setup()
    assert jax.config.jax_platforms == "cuda,cpu"


def test_a_cpu_that_the_user_chose_needs_no_reason(plugin_without_driver, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    jax.config.update("jax_platforms", "cpu")
    assert "driver" not in backend.describe(jax.devices("cpu")[0])


def test_compiled_programs_are_kept_in_jaxgpts_folder(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("JAXGPT_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    backend.setup()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "xla")


def test_the_users_folder_of_compiled_programs_stays(settings, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    backend.setup()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    known = backend.compiler_options("cpu")
    assert "xla_disable_hlo_passes" in known
    monkeypatch.setitem(backend.CPU_OPTIONS, "xla_cpu_of_another_day", True)
    assert backend.compiler_options("cpu") == known


def test_options_are_for_a_cpu_and_can_be_switched_off(monkeypatch):
    assert backend.compiler_options("gpu") == {}
    monkeypatch.setenv("JAXGPT_PLAIN_XLA", "1")
    assert backend.compiler_options("cpu") == {}
