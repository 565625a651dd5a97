"""The learning rate follows its schedule, and an update is AdamW's."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgpt.config import TrainConfig, override
from jaxgpt.training import optimizer

COSINE = TrainConfig(max_steps=50, warmup_steps=10, learning_rate=1e-2, min_learning_rate=1e-3)
PLAIN = TrainConfig(schedule="constant", warmup_steps=0, learning_rate=0.1, weight_decay=0.5, grad_clip=0.0)
PARAMS = {"kernel": jnp.array([[1.0, -2.0], [3.0, 4.0]]), "bias": jnp.array([1.0, -1.0])}


def rates(config: TrainConfig, *steps: int) -> list[float]:
    schedule = optimizer.learning_rate(config)
    return [float(schedule(step)) for step in steps]


def update(config: TrainConfig, grads, params=PARAMS):
    """The parameters after one update, and the optimiser's state."""
    tx = optimizer.build(config)
    updates, state = tx.update(grads, tx.init(params), params)
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_warm_up_climbs_linearly_to_its_peak(schedule):
    climb = rates(override(COSINE, schedule=schedule), *range(11))
    np.testing.assert_allclose(climb, 1e-2 * np.arange(1, 12) / 11, rtol=1e-5)


def test_the_cosine_ends_at_its_least_at_the_last_step():
    peak, quarter, middle, end, beyond = rates(COSINE, 10, 20, 30, 50, 60)
    assert peak == pytest.approx(1e-2)
    assert quarter == pytest.approx(1e-3 + 9e-3 * (1 + np.cos(np.pi / 4)) / 2, rel=1e-5)
    assert middle == pytest.approx(5.5e-3, rel=1e-5)
    assert end == beyond == pytest.approx(1e-3, rel=1e-5)


def test_the_line_starts_where_it_is_told_and_ends_at_its_least_at_the_last_step():
    config = override(COSINE, schedule="linear", decay_start=0.4)
    assert rates(config, 10, 20, 35, 50, 60) == pytest.approx([1e-2, 1e-2, 5.5e-3, 1e-3, 1e-3])


def test_a_line_does_not_start_before_the_warm_up_ends():
    config = override(COSINE, schedule="linear", decay_start=0.0)
    assert rates(config, 9, 10, 30, 50) == pytest.approx([1e-2 * 10 / 11, 1e-2, 5.5e-3, 1e-3])


def test_the_constant_schedule_stays_at_its_peak():
    assert rates(override(COSINE, schedule="constant"), 10, 30, 50) == pytest.approx([1e-2] * 3)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_without_warm_up_the_first_step_has_the_peak(schedule):
    assert rates(override(COSINE, schedule=schedule, warmup_steps=0), 0) == pytest.approx([1e-2])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup_steps", [5, 100])
def test_a_warm_up_longer_than_the_run_just_climbs(schedule, warmup_steps):
    config = override(COSINE, schedule=schedule, max_steps=5, warmup_steps=warmup_steps)
    climb = 1e-2 * np.arange(1, 6) / (warmup_steps + 1)
    np.testing.assert_allclose(rates(config, *range(5)), climb, rtol=1e-5)


def test_only_matrices_decay():
    zeros = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
    after, _ = update(PLAIN, zeros)
    np.testing.assert_allclose(after["kernel"], PARAMS["kernel"] * (1 - 0.1 * 0.5), rtol=1e-6)
    np.testing.assert_array_equal(after["bias"], PARAMS["bias"])


def seen_gradient(config: TrainConfig, grads):
    """The gradient as it reaches AdamW, from its running mean after one update."""
    mean = optax.tree.get(update(config, grads)[1], "mu")
    return {name: np.asarray(value) / (1 - config.beta1) for name, value in mean.items()}


LONG = {"kernel": jnp.array([[3.0, 0.0], [0.0, 0.0]]), "bias": jnp.array([0.0, -4.0])}  # norm 5


def test_a_long_gradient_is_cut_to_grad_clip_as_a_whole():
    seen = seen_gradient(override(PLAIN, grad_clip=0.5), LONG)
    np.testing.assert_allclose(seen["kernel"], LONG["kernel"] / 10, rtol=1e-5)
    np.testing.assert_allclose(seen["bias"], LONG["bias"] / 10, rtol=1e-5)


@pytest.mark.parametrize("grad_clip", [0.0, 5.1], ids=["off", "long enough"])
def test_a_gradient_within_grad_clip_stays(grad_clip):
    seen = seen_gradient(override(PLAIN, grad_clip=grad_clip), LONG)
    np.testing.assert_allclose(seen["kernel"], LONG["kernel"], rtol=1e-5)
    np.testing.assert_allclose(seen["bias"], LONG["bias"], rtol=1e-5)


def test_three_updates_are_adamws():
    config = override(PLAIN, learning_rate=0.01, beta1=0.8, beta2=0.95)
    rng = np.random.default_rng(0)
    tx = optimizer.build(config)
    params = PARAMS
    state = tx.init(params)
    theirs = {name: np.asarray(value, np.float64) for name, value in PARAMS.items()}
    mean, square = ({name: np.zeros_like(value) for name, value in theirs.items()} for _ in range(2))
    for t in (1, 2, 3):
        grads = {name: rng.normal(size=value.shape).astype(np.float32) for name, value in theirs.items()}
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for name, g in grads.items():
            mean[name] = 0.8 * mean[name] + 0.2 * g
            square[name] = 0.95 * square[name] + 0.05 * g**2
            step = mean[name] / (1 - 0.8**t) / (np.sqrt(square[name] / (1 - 0.95**t)) + 1e-8)
            decay = 0.5 * theirs[name] if name == "kernel" else 0
            theirs[name] = theirs[name] - 0.01 * (step + decay)
    for name, value in theirs.items():
        np.testing.assert_allclose(params[name], value, rtol=1e-5)
