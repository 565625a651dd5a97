"""What the library knows of the machine, and what of it a person is told."""

import ctypes
import importlib.util
import os
from types import SimpleNamespace

import jax
import pytest

from jaxgpt.device import backend


@pytest.fixture
def settings(monkeypatch):
    """JAX as on a machine where nobody chose a platform."""
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    yield
    jax.config.update("jax_platforms", before)


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


def test_a_missing_driver_is_told(plugin_without_driver):
    assert "(no NVIDIA driver here)" in backend.describe(jax.devices("cpu")[0])


@pytest.mark.parametrize("missing", ["driver is there", "plugin is not installed", "cpu was chosen"])
def test_no_driver_is_missed_where_none_is_needed(missing, plugin_without_driver, monkeypatch):
    if missing == "driver is there":
        monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    elif missing == "plugin is not installed":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None)
    else:
        monkeypatch.setenv("JAX_PLATFORMS", "cpu")
        jax.config.update("jax_platforms", "cpu")  # as JAX does on import
    assert "driver" not in backend.describe(jax.devices("cpu")[0])


def test_the_preset_is_chosen_without_a_change_to_the_process(plugin_without_driver):
    before = dict(jax.config.values)
    backend.default_preset()
    assert dict(jax.config.values) == before


@pytest.mark.parametrize(("count", "words"), [(1, "CPU, 1 core"), (2, "CPU, 2 cores")])
def test_a_cpu_is_described_by_its_cores(count, words, settings, monkeypatch):
    monkeypatch.setattr(backend, "cores", lambda: count)
    assert backend.describe(jax.devices("cpu")[0]) == words


# How many processors the control group allows: files as Linux shows them

V2 = "0::/user.slice/run-7.scope\n"
V1 = "5:memory:/others\n4:cpu,cpuacct:/docker/abc\n0::/\n"


@pytest.mark.parametrize(
    ("own", "limits", "quota"),
    [
        (V2, {}, float("inf")),
        (V2, {"user.slice/run-7.scope/cpu.max": "max 100000"}, float("inf")),
        (V2, {"user.slice/run-7.scope/cpu.max": "150000 100000"}, 1.5),
        (V2, {"user.slice/run-7.scope/cpu.max": "400000 100000", "user.slice/cpu.max": "200000 100000"}, 2),
        ("0::/\n", {"cpu.max": "100000 100000"}, 1),  # in a container
        (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "-1", "cpu/docker/abc/cpu.cfs_period_us": "100000"}, float("inf")),
        (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "50000", "cpu/docker/abc/cpu.cfs_period_us": "100000"}, 0.5),
        (V1, {"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),  # in a container
        (V1, {"cpu/others/cpu.cfs_quota_us": "1", "cpu/others/cpu.cfs_period_us": "9"}, float("inf")),  # not our group
    ],
)
def test_the_quota_of_the_control_group_is_read(own, limits, quota, tmp_path):
    (tmp_path / "own").write_text(own)
    for name, limit in limits.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{limit}\n")
    assert backend._quota(tmp_path / "cgroup", tmp_path / "own") == quota


def test_a_system_without_control_groups_has_no_quota(tmp_path):
    assert backend._quota(tmp_path / "none", tmp_path / "none") == float("inf")


@pytest.mark.parametrize(("quota", "cores"), [(float("inf"), 64), (1, 1), (0.5, 1), (1.5, 2), (100, 64)])
def test_the_cores_are_those_that_the_program_may_use(quota, cores, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(backend, "_quota", lambda: quota)
    assert backend.cores() == cores


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    known = backend.compiler_options("cpu")
    assert "xla_disable_hlo_passes" in known
    monkeypatch.setitem(backend.OPTIONS["cpu"], "xla_cpu_of_another_day", True)
    assert backend.compiler_options("cpu") == known


def test_options_are_for_a_platform_and_can_be_switched_off(monkeypatch):
    assert backend.compiler_options("gpu") == {"xla_gpu_exclude_nondeterministic_ops": True}
    assert backend.compiler_options("tpu") == {}
    monkeypatch.setenv("JAXGPT_PLAIN_XLA", "1")
    assert backend.compiler_options("cpu") == backend.compiler_options("gpu") == {}
