"""The type of the matrix products fits the device, and float16's loss scale finds its level."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
import toy
from programs import products

from jaxgpt import presets
from jaxgpt.device import precision
from jaxgpt.device.precision import GROWTH_INTERVAL, LossScale, adjust_scale
from jaxgpt.model import ladder
from jaxgpt.training import step


def device(platform: str, **known) -> SimpleNamespace:
    return SimpleNamespace(platform=platform, **known)


@pytest.mark.parametrize(
    "device, dtype",
    [
        (device("cpu"), "float32"),
        (device("tpu"), "bfloat16"),
        (device("gpu", compute_capability="6.0"), "float32"),  # P100
        (device("gpu", compute_capability="7.0"), "float16"),  # V100
        (device("gpu", compute_capability="7.5"), "float16"),  # T4
        (device("gpu", compute_capability="8.0"), "bfloat16"),  # A100
        (device("gpu", compute_capability="12.1"), "bfloat16"),  # DGX Spark
        (device("gpu", compute_capability="gfx906"), "float32"),  # AMD MI50
        (device("gpu", compute_capability="gfx908"), "bfloat16"),  # MI100
        (device("gpu", compute_capability="gfx90a:sramecc+:xnack-"), "bfloat16"),  # MI250
        (device("gpu", compute_capability="gfx942"), "bfloat16"),  # MI300
        (device("gpu", compute_capability="gfx1030"), "float32"),  # RX 6900
        (device("gpu", compute_capability="gfx1100"), "bfloat16"),  # RX 7900
        (device("gpu", compute_capability=None), "bfloat16"),
        (device("gpu"), "bfloat16"),
    ],
    ids=lambda x: "" if isinstance(x, str) else " ".join(map(str, vars(x).values())),
)
def test_auto_picks_what_the_device_is_good_at(device, dtype):
    chosen, reason = precision.choose("auto", device)
    assert chosen == jnp.dtype(dtype)
    assert reason
    for asked in ("float32", "bfloat16", "float16"):  # is taken on any device
        assert precision.choose(asked, device) == (jnp.dtype(asked), "as asked")


def test_only_matrices_are_cast():
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "norm": {"scale": jnp.ones(2)}}
    cast = precision.cast(params, jnp.float16)
    assert jax.tree.map(lambda p: p.dtype.name, cast) == {
        "kernel": "float16",
        "bias": "float32",
        "norm": {"scale": "float32"},
    }


# The loss scale


def adjusted(factor: float, good_steps: int, finite: bool, dtype: str = "float16") -> tuple[float, int]:
    scale = LossScale(jnp.float32(factor), jnp.int32(good_steps))
    factor, good_steps = adjust_scale(scale, jnp.bool(finite), jnp.dtype(dtype))
    return factor.item(), good_steps.item()


@pytest.mark.parametrize(
    "before, finite, after",
    [
        ((1024, 7), False, (512, 0)),
        ((1024, 7), True, (1024, 8)),
        ((1024, GROWTH_INTERVAL - 2), True, (1024, GROWTH_INTERVAL - 1)),
        ((1024, GROWTH_INTERVAL - 1), True, (2048, 0)),
        ((1, 0), False, (1, 0)),  # the least
        ((2**24, GROWTH_INTERVAL - 1), True, (2**24, 0)),  # the greatest
    ],
)
def test_the_scale_halves_after_an_overflow_and_doubles_after_many_updates_without(before, finite, after):
    assert adjusted(*before, finite) == after


def test_the_scale_goes_on_doubling(monkeypatch):
    monkeypatch.setattr(precision, "GROWTH_INTERVAL", 3)
    scale, factors = LossScale(jnp.float32(1024), jnp.int32(0)), []
    for _ in range(7):
        scale = adjust_scale(scale, jnp.bool(True), jnp.dtype("float16"))
        factors.append(scale.factor.item())
    assert factors == [1024, 1024, 2048, 2048, 2048, 4096, 4096]


def test_only_float16_has_a_scale_that_moves():
    assert precision.initial_scale(jnp.dtype("float16")).factor > 1000
    for dtype in ("float32", "bfloat16"):
        assert precision.initial_scale(jnp.dtype(dtype)).factor == 1
        for finite in (True, False):
            assert adjusted(1, GROWTH_INTERVAL - 1, finite, dtype) == (1, GROWTH_INTERVAL - 1)


# A step in the chosen type

SIZES = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16, "batch_size": 2}
GPT2 = {"bias": True, "dropout": 0.1, "embd_dropout": 0.1}
CONFIGS = {
    **{name: presets.preset(name, **SIZES) for name in ladder.RUNGS if name != "bigram"},  # which has no products
    "cpu": presets.preset("cpu", **SIZES),
    "t4": presets.preset("t4", **SIZES),
    "gpt2": presets.preset("cpu", **SIZES, **GPT2),
    "speedrun": presets.preset("speedrun", **SIZES, optimizer="adamw"),  # Muon's own products are float32 in any case
}


@pytest.mark.parametrize(
    "name, dtype", [(name, "float16") for name in CONFIGS] + [("t4", "bfloat16"), ("t4", "float32")]
)
def test_every_product_of_an_update_runs_in_the_chosen_type(name, dtype):
    config, dtype, on = CONFIGS[name], jnp.dtype(dtype), toy.placement()
    state, tokens = step.abstract_state(config, dtype, on), jax.ShapeDtypeStruct((2, 8), jnp.int32)
    program = jax.make_jaxpr(step.make_update(config, dtype, on))(state, tokens, tokens, toy.KEY)
    assert products(program.jaxpr) == {dtype.name}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
