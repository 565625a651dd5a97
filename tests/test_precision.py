"""The number type fits the device, and float16's loss scale finds its level."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from programs import products

from jaxgpt import presets
from jaxgpt.device import precision
from jaxgpt.device.precision import LossScale, adjust_scale
from jaxgpt.model import ladder
from jaxgpt.training import step as trainer

CPU = SimpleNamespace(platform="cpu")
TPU = SimpleNamespace(platform="tpu")
P100, V100, T4, A100, H100 = (
    SimpleNamespace(platform="gpu", compute_capability=capability) for capability in ("6.0", "7.0", "7.5", "8.0", "9.0")
)


@pytest.mark.parametrize(
    "device, dtype",
    [
        (CPU, "float32"),
        (TPU, "bfloat16"),
        (P100, "float32"),
        (V100, "float16"),
        (T4, "float16"),
        (A100, "bfloat16"),
        (H100, "bfloat16"),
    ],
    ids=["cpu", "tpu", "p100", "v100", "t4", "a100", "h100"],
)
def test_auto_picks_what_the_device_is_good_at(device, dtype):
    chosen, reason = precision.choose("auto", device)
    assert chosen == jnp.dtype(dtype)
    assert reason


@pytest.mark.parametrize("device", [CPU, TPU, P100, T4, A100])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_type_that_was_asked_for_is_taken_on_any_device(device, dtype):
    assert precision.choose(dtype, device)[0] == jnp.dtype(dtype)


def test_only_matrices_are_cast():
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "norm": {"scale": jnp.ones(2)}}
    cast = precision.cast(params, jnp.float16)
    assert cast["kernel"].dtype == jnp.float16
    assert cast["bias"].dtype == cast["norm"]["scale"].dtype == jnp.float32


def scale_of(factor: float, good_steps: int = 0) -> LossScale:
    return LossScale(jnp.float32(factor), jnp.int32(good_steps))


def adjusted(scale: LossScale, finite: bool, dtype=jnp.float16) -> tuple[float, int]:
    factor, good_steps = adjust_scale(scale, jnp.bool(finite), jnp.dtype(dtype))
    return factor.item(), good_steps.item()


def test_only_float16_starts_with_a_scale():
    assert precision.initial_scale(jnp.dtype("float16")).factor > 1000
    assert precision.initial_scale(jnp.dtype("bfloat16")).factor == 1
    assert precision.initial_scale(jnp.dtype("float32")).factor == 1


def test_an_overflow_halves_the_scale_and_starts_counting_afresh():
    assert adjusted(scale_of(1024, good_steps=7), finite=False) == (512, 0)


def test_a_good_step_is_counted():
    assert adjusted(scale_of(1024, good_steps=7), finite=True) == (1024, 8)


def test_the_scale_doubles_after_enough_good_steps(monkeypatch):
    monkeypatch.setattr(precision, "GROWTH_STEPS", 3)
    scale, factors = scale_of(1024), []
    for _ in range(7):
        scale = adjust_scale(scale, jnp.bool(True), jnp.dtype("float16"))
        factors.append(scale.factor.item())
    assert factors == [1024, 1024, 2048, 2048, 2048, 4096, 4096]


def test_the_scale_doubles_after_as_many_steps_as_it_says():
    assert adjusted(scale_of(1024, precision.GROWTH_STEPS - 2), finite=True) == (1024, precision.GROWTH_STEPS - 1)
    assert adjusted(scale_of(1024, precision.GROWTH_STEPS - 1), finite=True) == (2048, 0)


def test_the_scale_never_falls_below_one():
    assert adjusted(scale_of(1), finite=False) == (1, 0)


def test_the_scale_never_grows_out_of_float32():
    scale = scale_of(2.0**120, precision.GROWTH_STEPS - 1)
    assert adjusted(scale, finite=True)[0] <= 2.0**24


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("finite", [True, False])
def test_other_types_keep_their_scale(dtype, finite):
    assert adjusted(scale_of(1, precision.GROWTH_STEPS - 1), finite, dtype) == (1, precision.GROWTH_STEPS - 1)


SIZES = {"vocab_size": 11, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16, "batch_size": 2}
STEPS = {
    **{name: {"preset": name} for name in ladder.RUNGS if name != "bigram"},  # which has no products
    "cpu": {"preset": "cpu"},
    "t4": {"preset": "t4"},
    "gpt2": {"preset": "cpu", "bias": True, "dropout": 0.1, "embd_dropout": 0.1, "micro_batches": 2},
    "speedrun": {"preset": "speedrun", "optimizer": "adamw"},  # Muon's own products are float32 in any case
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", STEPS)
def test_every_product_of_a_training_step_runs_in_the_chosen_type(name, dtype):
    changes = dict(STEPS[name])
    config = presets.preset(changes.pop("preset"), **SIZES, **changes)
    step = trainer.make_train_step(config, jnp.dtype(dtype))
    state = jax.eval_shape(lambda: trainer.init_state(config, jnp.dtype(dtype)))
    program = step.trace(state, jax.ShapeDtypeStruct((100,), jnp.uint16)).jaxpr
    assert products(program.jaxpr) == {dtype}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
