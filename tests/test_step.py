"""An update is a pure function of state, batch and key: its figures, and what it makes of gradients that are not
finite."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy
from toy import CONFIG, F16, F32, KEY, TABLE, assert_near, assert_same, differ

from jaxgpt.config import TrainConfig, override
from jaxgpt.data import batches
from jaxgpt.evaluation import make_evaluate
from jaxgpt.model import build
from jaxgpt.model import loss as losses
from jaxgpt.training import feed, optimizer, step

GOLDEN = override(CONFIG, qkv_bias=True)


def test_the_first_step_has_the_figures_it_always_had():
    # If you changed what a step computes on purpose (the initialisation, the order of random numbers, the model's
    # mathematics), put the new figures here, which `pytest tests/test_step.py -k figures` shows, and say why in the
    # commit. If you did not, you have found a bug.
    state, (metrics,) = toy.run(GOLDEN, 1)
    assert metrics.loss.item() == pytest.approx(2.59876, abs=1e-4)
    assert metrics.grad_norm.item() == pytest.approx(1.37906, abs=1e-4)  # before clipping: 1 is the longest
    assert metrics.learning_rate.item() == pytest.approx(1e-2 / 3)
    assert state.step == 1


def plain_loss(params, inputs, targets):
    logits = build.merge(CONFIG.model, params)(inputs)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1).mean()


def adamw(config: TrainConfig, t: int, p, g, m, v):
    """Update `t` of one weight, by the paper (Loshchilov and Hutter 2017), in float64; t counts from 1."""
    m = config.beta1 * m + (1 - config.beta1) * g
    v = config.beta2 * v + (1 - config.beta2) * g**2
    direction = m / (1 - config.beta1**t) / (np.sqrt(v / (1 - config.beta2**t)) + 1e-8)
    decay = config.weight_decay * p if p.ndim >= 2 else 0
    return p - config.learning_rate * t / (config.warmup_steps + 1) * (direction + decay), m, v


def test_updates_are_adamw_of_the_gradient_of_the_batch_that_is_handed_in():
    state = toy.init_state()
    params = {path: np.asarray(p, np.float64) for path, p in jax.tree.leaves_with_path(state.params)}
    moments = {path: (np.zeros_like(p), np.zeros_like(p)) for path, p in params.items()}
    loss_and_gradient = jax.jit(jax.value_and_grad(plain_loss))
    for t, batch in enumerate([toy.batch(0), toy.batch(200)], 1):
        loss, gradient = loss_and_gradient(state.params, *batch)
        gradient = {path: np.asarray(g, np.float64) for path, g in jax.tree.leaves_with_path(gradient)}
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        state, metrics = toy.update()(state, *batch, KEY)
        assert metrics.loss.item() == pytest.approx(loss.item(), abs=1e-6)
        assert metrics.grad_norm.item() == pytest.approx(norm, rel=1e-5)
        for path, g in gradient.items():
            params[path], *moments[path] = adamw(CONFIG, t, params[path], g / max(norm, 1), *moments[path])
    for path, p in jax.tree.leaves_with_path(state.params):
        np.testing.assert_allclose(p, params[path], rtol=0, atol=2e-6)


def test_the_same_arguments_give_the_same_results_bit_for_bit():
    update, state = toy.update(override(CONFIG, dropout=0.5)), toy.init_state()
    first = update(state, *toy.batch(), KEY)
    update(*first[:1], *toy.batch(100), jax.random.key(1))  # it keeps nothing of a call for the next
    assert_same(update(state, *toy.batch(), KEY), first)


def test_the_key_decides_what_is_dropped_and_nothing_else():
    state, keys = toy.init_state(), jax.random.split(KEY, 3)
    dropping, whole = (
        {toy.update(config)(state, *toy.batch(), key)[1].loss.item() for key in keys}
        for config in (override(CONFIG, dropout=0.5), CONFIG)
    )
    assert len(dropping) == 3
    assert len(whole) == 1


def test_micro_batches_are_the_same_update_as_the_batch_at_once():
    whole, whole_metrics = toy.update()(toy.init_state(), *toy.batch(), KEY)
    parts, parts_metrics = toy.update(CONFIG, F32, toy.placement(1, 4))(toy.init_state(), *toy.batch(), KEY)
    assert_near(parts_metrics, whole_metrics, 1e-6)
    assert_near(parts.params, whole.params, 2e-6)


def test_every_device_and_every_micro_batch_drops_something_else(monkeypatch):
    logits_seen = []

    def overheard(logits, targets):
        jax.debug.callback(lambda x: logits_seen.append(x.item()), logits[0, 0, 0])
        return logits[..., 0]

    monkeypatch.setattr(losses, "cross_entropy", overheard)
    on = toy.placement(2, 2)
    update = step.make_update(override(CONFIG, dropout=0.5), F32, on)
    same = jnp.zeros((4, 8), jnp.int32)
    jax.block_until_ready(jax.jit(update)(toy.init_state(CONFIG, F32, on), same, same, KEY))
    jax.effects_barrier()
    assert len(set(logits_seen)) == len(logits_seen) == 4


def test_another_seed_gives_other_weights_and_the_same_one_the_same():
    first = toy.init_state()
    assert_same(first, toy.init_state())
    assert differ(first.params, toy.init_state(override(CONFIG, seed=2)).params)


def test_the_abstract_state_is_that_of_the_real_one():
    config = override(CONFIG, ema_decay=0.9, optimizer="muon")
    shapes, state = step.abstract_state(config, F16, toy.placement(4)), toy.init_state(config, F16, toy.placement(4))
    assert jax.tree.structure(shapes) == jax.tree.structure(state)
    for shape, leaf in zip(jax.tree.leaves(shapes), jax.tree.leaves(state), strict=True):
        assert (shape.shape, shape.dtype, shape.sharding) == (leaf.shape, leaf.dtype, leaf.sharding)


# Half precision

LIKE_T4 = override(CONFIG, activation="relu", tie_head=False, dropout=0.2)


@pytest.mark.parametrize(
    "config, dtype", [(GOLDEN, "bfloat16"), (LIKE_T4, "float16")], ids=["tied, GELU, bfloat16", "like t4, float16"]
)
def test_a_run_in_half_precision_learns_as_well(config, dtype):
    single, single_metrics = toy.run(config, 30)
    half, half_metrics = toy.run(config, 30, jnp.dtype(dtype))
    assert single_metrics[0].loss > 2.5  # ln 13 = 2.56: nothing known
    assert single_metrics[-1].loss < 2.2
    assert half_metrics[-1].loss == pytest.approx(single_metrics[-1].loss.item(), abs=0.02)
    assert differ(half.params, single.params)  # it was not single precision under another name
    assert all(leaf.dtype == F32 for leaf in jax.tree.leaves(half.params))


def test_float16_starts_with_a_loss_scale_that_the_figures_do_not_show():
    half, single = (toy.run(LIKE_T4, 1, dtype)[1][0] for dtype in (F16, F32))
    assert half.loss_scale == toy.init_state(LIKE_T4, F16).loss_scale.factor > 1000
    assert half.loss == pytest.approx(single.loss.item(), rel=0.01)
    assert half.grad_norm == pytest.approx(single.grad_norm.item(), rel=0.01)


def test_a_loss_scale_that_overflows_float16_comes_down_by_itself():
    state = toy.init_state(TABLE, F16)
    state = state._replace(loss_scale=state.loss_scale._replace(factor=jnp.float32(2**24)))
    skipped = []
    for _ in range(12):
        state, metrics = toy.update(TABLE, F16)(state, *toy.batch(), KEY)
        skipped.append(metrics.skipped.item())
    assert skipped[0] == 1
    assert skipped[-1] == 0
    assert 1 < state.loss_scale.factor < 2**24


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


BROKEN = [infinite_loss, loss_not_a_number, gradient_not_a_number, one_infinite_gradient]
AVERAGED = override(TABLE, ema_decay=0.25)


@cache
def breakable_update(dtype: jnp.dtype):
    """The update of AVERAGED, compiled, with BROKEN[i] for its loss where the first target is -1 - i."""
    functions = [losses.cross_entropy, *BROKEN]

    def loss(logits, targets):
        return jax.lax.switch(jnp.maximum(-targets[0, 0], 0), functions, logits, targets)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "cross_entropy", loss)
        update = jax.jit(step.make_update(AVERAGED, dtype, toy.placement()))
        return update.lower(toy.init_state(AVERAGED, dtype), *toy.batch(), KEY).compile()


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_update_that_is_not_finite_is_left_out_and_counted(broken, dtype):
    update, (inputs, targets) = breakable_update(jnp.dtype(dtype)), toy.batch()
    state = toy.init_state(AVERAGED, jnp.dtype(dtype))
    for _ in range(2):
        state, metrics = update(state, inputs, targets, KEY)
    assert (metrics.skipped, metrics.total_skipped) == (0, 0)
    before, bad_targets = state, targets.at[0, 0].set(-1 - BROKEN.index(broken))
    for skipped in (1, 2):
        state, metrics = update(state, inputs, bad_targets, KEY)
        assert metrics.skipped == metrics.total_skipped == state.skipped == skipped
    assert_same(state.params, before.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.ema_params))
    moments = [optax.tree.get(s.opt_state, "ScaleByAdamState") for s in (state, before)]
    assert_same(*moments)  # the count of the bias correction is among them; the schedule goes on with the step
    assert state.step == 4
    assert state.loss_scale.factor == before.loss_scale.factor / (4 if dtype == "float16" else 1)
    state, metrics = update(state, inputs, targets, KEY)  # as if nothing had been
    assert (metrics.skipped, metrics.total_skipped, state.skipped) == (0, 2, 0)
    assert metrics.learning_rate == pytest.approx(float(optimizer.learning_rate(AVERAGED)(4)))
    assert differ(state.params, before.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))


# The moving average


def test_the_moving_average_is_the_one_that_its_formula_gives():
    state, plain = toy.init_state(AVERAGED), toy.init_state(TABLE)
    expected = jax.tree.map(np.asarray, state.params)
    for i, decay in enumerate((1 / 10, 2 / 11, 0.25, 0.25)):  # short at first, then as long as it may be
        state, _ = breakable_update(F32)(state, *toy.batch(i), KEY)
        plain, _ = toy.update(TABLE)(plain, *toy.batch(i), KEY)
        expected = jax.tree.map(lambda mean, p, d=decay: d * mean + (1 - d) * np.asarray(p), expected, state.params)
    assert_near(state.params, plain.params, 1e-6)  # training itself knows nothing of it
    assert_near(state.eval_params, expected, 1e-6)
    assert differ(state.eval_params, state.params)


def test_without_a_moving_average_the_trained_weights_are_evaluated():
    state = toy.init_state(TABLE)
    assert state.eval_params is state.params
    assert len(jax.tree.leaves(state.ema_params)) == 0


# JAX_ENABLE_X64=1


def test_with_64_bit_types_switched_on_a_run_trains_the_same():
    everything = {"positions": "rotary", "embd_norm": True, "qk_norm": True, "value_shift": True, "dropout": 0.2}
    config = override(CONFIG, optimizer="muon", schedule="linear", ema_decay=0.9, embd_dropout=0.2, **everything)
    windows = batches.fixed_windows(len(toy.TEXT), 8, 10)
    found = []
    for x64 in (False, True):
        with jax.enable_x64(x64):
            on, state = toy.placement(1, 2), toy.init_state(config)
            update = jax.jit(step.make_update(config, F32, on))
            for i in range(3):
                state, metrics = update(state, *toy.batch(i), KEY)
            loss = make_evaluate(config, F32, on)(state.eval_params, toy.TEXT, *windows)
            found.append((state, metrics, loss))
    (plain, *_), (wide, *_) = found
    assert [leaf.dtype for leaf in jax.tree.leaves(wide)] == [leaf.dtype for leaf in jax.tree.leaves(plain)]
    assert_near(*found, 2e-5)


def test_what_is_computed_again_for_the_gradient_need_not_be_kept():
    deep = override(CONFIG, n_layer=4, n_embd=64, batch_size=32)
    again = override(deep, remat=True)
    assert_near(*(toy.run(config, 2)[0].params for config in (again, deep)), 1e-6)
    given = toy.init_state(deep), feed.Text(toy.TEXT), np.int32(1)
    kept, little = (toy.loop(c).lower(*given).compile().memory_analysis().temp_size_in_bytes for c in (deep, again))
    assert little < 0.6 * kept, (little, kept)


# Soft targets

SOFT = override(CONFIG, soft_targets=0.5)


def one_hot(targets):
    return jax.nn.one_hot(targets, 13)


def test_soft_targets_that_are_certain_of_the_targets_are_the_targets():
    inputs, targets = toy.batch()
    soft, plain = toy.update(SOFT), toy.update()
    found, metrics = soft(toy.init_state(), inputs, targets, KEY, one_hot(targets))
    expected, expected_metrics = plain(toy.init_state(), inputs, targets, KEY)
    assert_near(found.params, expected.params, 1e-6)
    assert_near(metrics, expected_metrics, 1e-5)


def test_soft_targets_get_their_share_of_the_gradient_and_none_of_the_loss():
    inputs, targets = toy.batch()
    other = (targets + 1) % 13
    start, updates = toy.init_state(TABLE), [toy.update(override(TABLE, soft_targets=share)) for share in (0.5, 1.0)]
    half, whole = (update(start, inputs, targets, KEY, one_hot(other)) for update in updates)
    plain, learnt = (toy.update(TABLE)(start, inputs, wanted, KEY) for wanted in (targets, other))
    assert_near(whole[0].params, learnt[0].params, 1e-6)
    assert differ(half[0].params, whole[0].params)
    assert float(half[1].loss) == float(whole[1].loss) == pytest.approx(float(plain[1].loss))


def test_soft_targets_are_shared_among_devices_and_micro_batches():
    given = *toy.batch(), KEY, one_hot((toy.batch()[1] + 1) % 13)
    whole, _ = toy.update(SOFT)(toy.init_state(), *given)
    parts, _ = toy.update(SOFT, F32, toy.placement(2, 2))(toy.init_state(CONFIG, F32, toy.placement(2, 2)), *given)
    assert_near(parts.params, whole.params, 1e-5)
