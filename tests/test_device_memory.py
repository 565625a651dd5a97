"""What a computation needs of a device's memory, and what there is."""

import jax
import jax.numpy as jnp
import pytest
import toy
from toy import CONFIG, F32

import jaxgpt
from jaxgpt import UserError
from jaxgpt.device import backend, memory
from jaxgpt.device.memory import Need
from jaxgpt.training import step


def test_a_cpu_holds_the_parts_of_all_its_devices():
    state = step.abstract_state(CONFIG, F32, toy.placement(1))
    one = memory.of_arrays(state, toy.placement(1)).bytes
    assert one == sum(4 * x.size for x in jax.tree.leaves(state))
    copies, parts = (toy.placement(4), toy.placement(4, 1, 4))
    assert memory.of_arrays(step.abstract_state(CONFIG, F32, copies), copies).bytes == 4 * one
    assert one < memory.of_arrays(step.abstract_state(CONFIG, F32, parts), parts).bytes < 2 * one


def test_a_program_needs_what_it_is_given_and_what_it_computes():
    x = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    program = jax.jit(lambda x: (x @ x) @ (x + 1)).lower(x).compile()
    assert 2 * 4 * 256**2 <= memory.of_program(program, toy.placement(1)).bytes <= 6 * 4 * 256**2


def test_more_than_there_is_is_too_much():
    assert not Need(10, 10).too_much
    assert Need(11, 10).too_much
    assert not Need(11, None).too_much  # nobody knows
    assert str(Need(3 * 10**6, 2 * 10**9)) == "3.0 MB of 2.0 GB"
    assert str(Need(3 * 10**9, None)) == "3.0 GB"


def test_the_memory_of_a_cpu_is_what_is_free_of_it(tmp_path, monkeypatch):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       24000000 kB\nMemFree:         1000000 kB\nMemAvailable:   20000000 kB\n")
    monkeypatch.setattr(backend, "memory_limit", lambda: float("inf"))
    assert memory._free_on_host(meminfo) == 20_000_000 * 1024
    monkeypatch.setattr(backend, "memory_limit", lambda: 10**9)
    assert memory._free_on_host(meminfo) == 10**9
    assert memory._free_on_host(tmp_path / "none") is None


@pytest.mark.parametrize(
    "own, files, limit",
    [
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "5000\n"}, 5000),
        ("4:memory:/docker/x\n0::/\n", {"memory/docker/x/memory.limit_in_bytes": "7000\n"}, 7000),
        ("0::/a\n", {}, float("inf")),
    ],
    ids=["a group above", "cgroup v1", "none"],
)
def test_a_control_group_may_allow_less(own, files, limit, tmp_path):
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert backend.memory_limit(tmp_path, tmp_path / "own") == limit


def test_a_run_that_cannot_fit_says_so_before_it_leaves_a_trace(config, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_free_on_host", lambda: 40_000)
    with pytest.raises(UserError) as error:
        jaxgpt.train(config, out=tmp_path / "run", quiet=True)
    assert str(error.value).startswith(
        "training needs 0.1 MB of 0.0 MB of memory: try `remat`, more `micro_batches`, or"
    )
    assert not (tmp_path / "run").exists()
