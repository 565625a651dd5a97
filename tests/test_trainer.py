"""A step of training and an evaluation: their figures, and that nothing hidden goes into them."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxgpt.config import ModelConfig, TrainConfig, override
from jaxgpt.device import sharding
from jaxgpt.training import step as trainer

MODEL = ModelConfig(vocab_size=13, block_size=8, n_layer=1, n_head=2, n_embd=16)
CONFIG = TrainConfig(model=MODEL, seed=1, batch_size=4, max_steps=30, warmup_steps=2, learning_rate=1e-2)
F32, F16 = jnp.dtype("float32"), jnp.dtype("float16")


@pytest.fixture(scope="module")
def text() -> jax.Array:
    """Tokens (500,) with something to learn: a walk through the vocabulary by steps of 1 and 3."""
    steps = np.random.default_rng(0).choice([1, 3], 500)
    return jnp.asarray(np.cumsum(steps) % 13, jnp.uint16)


@cache
def train_step(config: TrainConfig, dtype=F32):
    """The step of `config`, compiled once for all tests."""
    return trainer.make_train_step(config, dtype)


@cache
def init_state(seed: int, dtype=F32, model: ModelConfig = MODEL):
    return jax.jit(lambda: trainer.init_state(dataclasses.replace(CONFIG, seed=seed, model=model), dtype))


def run(config: TrainConfig, text: jax.Array, steps: int, dtype=F32):
    """The state after some steps from the start, and the metrics of each."""
    state, metrics = init_state(config.seed, dtype, config.model)(), []
    for _ in range(steps):
        state, of_step = train_step(config, dtype)(state, text)
        metrics.append(of_step)
    return state, metrics


def assert_same(one, other):
    """Two trees hold the same numbers bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, one, other)


def differ(one, other) -> bool:
    return any((a != b).any() for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


# The step


def test_the_first_step_has_the_figures_it_always_had(text):
    # If you changed what a step computes on purpose (the initialisation, the order of random numbers, the model's
    # mathematics), put the new figures here and say why in the commit. If you did not, you have found a bug.
    state, (metrics,) = run(CONFIG, text, 1)
    assert metrics.loss.item() == pytest.approx(2.59876, abs=1e-4)
    assert metrics.grad_norm.item() == pytest.approx(1.37906, abs=1e-4)  # before clipping: 1 is the longest
    assert metrics.learning_rate.item() == pytest.approx(1e-2 / 3)
    assert state.step == 1


def test_training_learns(text):
    _, metrics = run(CONFIG, text, 30)
    assert metrics[0].loss > 2.5  # ln 13 = 2.56: nothing known
    assert metrics[-1].loss < 2.1


def test_micro_batches_are_the_same_update_as_the_batch_at_once(text):
    whole, (whole_metrics,) = run(CONFIG, text, 1)
    parts, (parts_metrics,) = run(override(CONFIG, micro_batches=4), text, 1)
    np.testing.assert_allclose(parts_metrics.loss, whole_metrics.loss, atol=1e-6)
    np.testing.assert_allclose(parts_metrics.grad_norm, whole_metrics.grad_norm, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), parts.params, whole.params)


def test_the_same_seed_gives_the_same_weights_bit_for_bit(text):
    config = override(CONFIG, dropout=0.5)
    assert_same(run(config, text, 3), run(config, text, 3))


def test_another_seed_gives_other_weights_and_other_batches(text):
    assert differ(init_state(1)().params, init_state(2)().params)
    _, metrics = train_step(CONFIG)(init_state(1)(), text)
    _, others = train_step(override(CONFIG, seed=2))(init_state(1)(), text)
    assert metrics.loss != others.loss


def loss_at(config: TrainConfig, text: jax.Array, step: int) -> float:
    """The loss of the fresh weights at step `step`."""
    state = init_state(config.seed)()._replace(step=jnp.int32(step))
    return train_step(config)(state, text)[1].loss.item()


def test_every_step_has_a_batch_of_its_own(text):
    losses = [loss_at(CONFIG, text, step) for step in (0, 1, 2, 0)]
    assert len(set(losses)) == 3
    assert losses[0] == losses[3]


def test_every_step_drops_something_else(text):
    # In a text of one token all batches are alike: only dropout can tell the steps apart.
    same = jnp.zeros_like(text)
    dropping = [loss_at(override(CONFIG, dropout=0.5), same, step) for step in (0, 1, 2)]
    assert len(set(dropping)) == 3
    assert len({loss_at(CONFIG, same, step) for step in (0, 1, 2)}) == 1


def test_every_micro_batch_drops_something_else(monkeypatch):
    losses = []

    def overheard(logits, targets):
        jax.debug.callback(lambda logits: losses.append(float(logits[0, 0, 0])), logits)
        return real(logits, targets)

    real = trainer.cross_entropy
    monkeypatch.setattr(trainer, "cross_entropy", overheard)
    config = override(CONFIG, dropout=0.5, micro_batches=4)
    state, _ = trainer.make_train_step(config, F32)(init_state(1)(), jnp.zeros(100, jnp.int32))
    jax.block_until_ready(state)
    jax.effects_barrier()
    assert len(set(losses)) == len(losses) == 4


LIKE_T4 = override(CONFIG, activation="relu", qkv_bias=False, tie_head=False, dropout=0.2)


@pytest.mark.parametrize("config", [CONFIG, LIKE_T4], ids=["tied, GELU", "like t4"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_run_in_half_precision_learns_as_well(text, dtype, config):
    single, single_metrics = run(config, text, 30)
    half, half_metrics = run(config, text, 30, jnp.dtype(dtype))
    assert half_metrics[-1].loss == pytest.approx(single_metrics[-1].loss.item(), abs=0.02)
    assert differ(half.params, single.params)  # it was not single precision under another name
    assert all(leaf.dtype == F32 for leaf in jax.tree.leaves(half.params))


def test_float16_starts_with_a_loss_scale_that_the_figures_do_not_show(text):
    _, (half,) = run(CONFIG, text, 1, F16)
    _, (single,) = run(CONFIG, text, 1)
    assert half.loss_scale == init_state(1, F16)().loss_scale.factor > 1000
    assert half.loss == pytest.approx(single.loss.item(), rel=0.01)
    assert half.grad_norm == pytest.approx(single.grad_norm.item(), rel=0.01)


# A gradient that is not finite


def infinite_loss(logits, targets):
    return jnp.full(targets.shape, jnp.inf)


def loss_not_a_number(logits, targets):
    return logits[..., 0] * jnp.nan


def gradient_not_a_number(logits, targets):
    """A finite loss whose gradient is infinity times zero."""
    return jnp.sqrt(logits.sum(-1) * 0) + 1


def one_infinite_gradient(logits, targets):
    """A finite loss with a gradient that is infinite for one score of one token."""
    losses = logits.sum(-1) * 1e-3
    return losses.at[0, 0].add(jnp.sqrt(logits[0, 0, 0] - jax.lax.stop_gradient(logits[0, 0, 0])))


@pytest.mark.parametrize(
    "broken, dtype",
    [
        (infinite_loss, "float32"),
        (loss_not_a_number, "bfloat16"),
        (loss_not_a_number, "float16"),
        (gradient_not_a_number, "float16"),
        (gradient_not_a_number, "float32"),
        (one_infinite_gradient, "bfloat16"),
        (one_infinite_gradient, "float16"),
    ],
)
def test_an_update_that_is_not_finite_is_left_out_and_counted(text, monkeypatch, broken, dtype):
    state, _ = run(CONFIG, text, 2, jnp.dtype(dtype))
    params, opt_state, factor = jax.tree.map(np.array, (state.params, state.opt_state, state.loss_scale.factor))
    monkeypatch.setattr(trainer, "cross_entropy", broken)
    bad_step = trainer.make_train_step(CONFIG, jnp.dtype(dtype))
    for skipped in (1, 2):
        state, metrics = bad_step(state, text)
        assert metrics.skipped == metrics.skipped_in_all == state.skipped == skipped
    assert_same(state.params, params)
    moments = [optax.tree.get(tree, "ScaleByAdamState") for tree in (state.opt_state, opt_state)]
    assert_same(*moments)  # the count of the bias correction is among them; the schedule goes on with the step
    assert state.step == 4
    assert state.loss_scale.factor == (factor / 4 if dtype == "float16" else factor)
    monkeypatch.undo()
    state, metrics = train_step(CONFIG, jnp.dtype(dtype))(state, text)  # as if nothing had been
    assert (metrics.skipped, metrics.skipped_in_all) == (0, 2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_the_running_mean_is_the_one_that_its_formula_gives(text):
    config = override(CONFIG, ema_decay=0.25)
    start = jax.jit(lambda: trainer.init_state(config, F32))()
    expected = jax.tree.map(np.array, start.params)
    state, plain = start, run(CONFIG, text, 0)[0]
    for memory in (1 / 10, 2 / 11, 0.25, 0.25):  # short at first, then as long as it may be
        state, _ = train_step(config)(state, text)
        plain, _ = train_step(CONFIG)(plain, text)
        assert_same(state.params, plain.params)  # training itself knows nothing of it
        expected = jax.tree.map(lambda mean, p, m=memory: m * mean + (1 - m) * np.array(p), expected, state.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.weights, expected)
    assert differ(state.weights, state.params)


def test_without_a_running_mean_the_weights_are_those_that_are_trained(text):
    state, _ = run(CONFIG, text, 1)
    assert state.weights is state.params
    assert len(jax.tree.leaves(state.average)) == 0


def test_a_gradient_that_is_not_finite_does_not_reach_the_running_mean(text, monkeypatch):
    config = override(CONFIG, ema_decay=0.9)
    state, _ = train_step(config)(jax.jit(lambda: trainer.init_state(config, F32))(), text)
    monkeypatch.setattr(trainer, "cross_entropy", loss_not_a_number)
    state, metrics = trainer.make_train_step(config, F32)(state, text)
    assert metrics.skipped == 1
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.weights))


def test_a_good_update_ends_the_count_of_those_left_out(text):
    state, metrics = train_step(CONFIG)(init_state(1)()._replace(skipped=jnp.int32(7)), text)
    assert metrics.skipped == state.skipped == 0
    assert differ(state.params, init_state(1)().params)


def test_a_loss_scale_that_overflows_float16_comes_down_by_itself(text):
    state = init_state(1, F16)()
    state = state._replace(loss_scale=state.loss_scale._replace(factor=jnp.float32(2**24)))
    skipped = []
    for _ in range(12):
        state, metrics = train_step(CONFIG, F16)(state, text)
        skipped.append(metrics.skipped.item())
    assert skipped[0] == 1
    assert skipped[-1] == 0
    assert 1 < state.loss_scale.factor < 2**24


# What a step costs


def test_the_step_is_compiled_once(text):
    step, everywhere = train_step(CONFIG), sharding.replicated(trainer.make_mesh(CONFIG))
    text = jax.device_put(text, everywhere)
    state, _ = step(jax.device_put(init_state(1)(), everywhere), text)
    programs = step._cache_size()
    for _ in range(4):
        state, _ = step(state, text)
    assert step._cache_size() == programs


def test_nothing_moves_between_host_and_device_in_a_step(text):
    step = train_step(CONFIG)
    state, _ = step(init_state(1)(), text)  # compiling may move constants
    with jax.transfer_guard("disallow"):
        for _ in range(3):
            state, metrics = step(state, text)
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed"):  # else the guard guards nothing here
            step(state, np.zeros(500, np.uint16))
    assert metrics.skipped == 0


def test_the_old_state_is_used_up(text):
    old = init_state(1)()
    train_step(CONFIG)(old, text)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((old.params, old.opt_state)))


# Evaluation


def plain_losses(model, text: np.ndarray) -> dict[int, float]:
    """Every target's loss by its place in the text: windows end to end, the last one moved back to fit."""
    losses, S = {}, MODEL.block_size
    forward = jax.jit(lambda tokens: model(tokens))
    for start in [*range(0, len(text) - 1 - S, S), len(text) - 1 - S]:
        logits = np.asarray(forward(jnp.asarray(text[None, start : start + S], jnp.int32)))[0].astype(np.float64)
        for t in range(S):
            place = start + t + 1
            odds = np.exp(logits[t]) / np.exp(logits[t]).sum()
            losses.setdefault(place, -np.log(odds[text[place]]))
    return losses


@pytest.mark.parametrize("n", [9, 47], ids=["one window", "six that overlap"])
def test_evaluation_is_the_mean_loss_of_every_target_without_dropout(text, n):
    config = override(CONFIG, dropout=0.5, embd_dropout=0.5)
    params = run(CONFIG, text, 10)[0].params
    losses = plain_losses(nnx.merge(trainer.graph(MODEL), params), np.asarray(text[:n]))
    assert sorted(losses) == list(range(1, n))
    loss = trainer.make_evaluate(config, F32)(params, text[:n], *trainer.eval_windows(config, n))
    assert loss == pytest.approx(np.mean(list(losses.values())), rel=1e-5)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))  # training goes on with them


def test_evaluation_of_a_few_windows_reads_those(text):
    params = run(CONFIG, text, 10)[0].params
    losses = plain_losses(nnx.merge(trainer.graph(MODEL), params), np.asarray(text[:81]))  # ten windows
    few_windows = trainer.eval_windows(CONFIG, 81, count=3)
    assert sorted(few_windows[0].ravel().tolist()) == [0, 0, 32, 72]  # one row of four, the last fills it
    few = [losses[start + t] for start in (0, 32, 72) for t in range(1, 9)]
    loss = trainer.make_evaluate(CONFIG, F32)(params, text[:81], *few_windows)
    assert loss == pytest.approx(np.mean(few), rel=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_several_steps_by_one_call_are_those_steps(text, dtype):
    config, dtype = override(CONFIG, dropout=0.5), jnp.dtype(dtype)
    train_steps = trainer.make_train_steps(config, dtype)
    state, metrics = init_state(1, dtype)(), []
    for n in (1, 3, 2):
        state, of_last = train_steps(state, text, n)
        metrics.append(of_last)
    straight, of_each = run(config, text, 6, dtype)
    assert_same(state, straight)
    assert_same(metrics, [of_each[i] for i in (0, 3, 5)])


def test_more_steps_at_once_compile_nothing_new(text):
    train_steps, everywhere = trainer.make_train_steps(CONFIG, F32), sharding.replicated(trainer.make_mesh(CONFIG))
    text, state = jax.device_put((text, init_state(1)()), everywhere)
    for n in (1, 2, 5, 3):
        state, _ = train_steps(state, text, n)
    assert train_steps._cache_size() == 1
    assert state.step == 11
