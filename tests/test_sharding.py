"""A batch shared among devices is the batch: the same update, wherever its parts were computed."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import ModelConfig, TrainConfig, override
from jaxgpt.data import batches
from jaxgpt.device import sharding
from jaxgpt.runs.checkpoints import Checkpoints
from jaxgpt.training import step as trainer

# Without a bias of the keys: its gradient is nothing but rounding, of which Adam makes full steps.
MODEL = ModelConfig(vocab_size=13, block_size=8, n_layer=1, n_head=2, n_embd=16, qkv_bias=False)
CONFIG = TrainConfig(model=MODEL, seed=1, batch_size=8, max_steps=30, warmup_steps=2, learning_rate=1e-2)
F32 = jnp.dtype("float32")


@pytest.fixture(scope="module")
def text() -> jax.Array:
    steps = np.random.default_rng(0).choice([1, 3], 500)
    return jnp.asarray(np.cumsum(steps) % 13, jnp.uint16)


def mesh_of(n: int) -> jax.sharding.Mesh:
    return sharding.over(jax.devices()[:n])


def run(config: TrainConfig, text: jax.Array, n_devices: int, steps: int = 3):
    """The state after some steps on `n_devices`, and the losses on the way."""
    mesh = mesh_of(n_devices)
    step = trainer.make_train_step(config, F32, mesh)
    state = jax.device_put(trainer.init_state(config, F32), sharding.replicated(mesh))
    losses = []
    for _ in range(steps):
        state, metrics = step(state, text)
        losses.append(metrics.loss.item())
    return state, losses


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("n_devices", [2, 4])
def test_any_number_of_devices_makes_the_same_updates(text, n_devices, micro_batches):
    one, losses = run(override(CONFIG, micro_batches=1), text, 1)
    many, shared_losses = run(override(CONFIG, micro_batches=micro_batches), text, n_devices)
    np.testing.assert_allclose(shared_losses, losses, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), many.params, one.params)


def test_muon_makes_the_same_updates_on_any_number_of_devices(text):
    config = override(CONFIG, optimizer="muon", micro_batches=1)
    one, losses = run(config, text, 1)
    many, shared_losses = run(config, text, 4)
    np.testing.assert_allclose(shared_losses, losses, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), many.params, one.params)


def test_every_device_holds_the_same_weights_after_an_update(text):
    state, _ = run(CONFIG, text, 4)
    for leaf in jax.tree.leaves(state):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 4
        for copy in copies[1:]:
            np.testing.assert_array_equal(copy, copies[0])


def test_every_device_drops_something_else():
    # In a text of one token all windows are alike: were the masks alike as well, so would be the gradients, and
    # half the batch on each of two devices would be the same as that half alone on one.
    text = jnp.zeros(100, jnp.uint16)
    config = override(CONFIG, dropout=0.5, micro_batches=1)
    _, (whole, *_) = run(override(config, batch_size=2), text, 2, 1)
    _, (half, *_) = run(override(config, batch_size=1), text, 1, 1)
    assert whole != half


def test_an_evaluation_is_the_same_on_any_number_of_devices(text):
    params = trainer.init_params(MODEL, 1)
    windows = trainer.eval_windows(CONFIG, len(text))
    losses = [trainer.make_evaluate(CONFIG, F32, mesh_of(n))(params, text, *windows).item() for n in (1, 2, 4)]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)


def test_a_checkpoint_of_four_devices_is_read_on_one_and_the_other_way_round(text, tmp_path):
    after_four, _ = run(CONFIG, text, 4)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(after_four, {})
    with Checkpoints(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore(jax.eval_shape(lambda: trainer.init_state(CONFIG, F32)))
    jax.tree.map(np.testing.assert_array_equal, restored, after_four)
    again = jax.device_put(restored, sharding.replicated(mesh_of(2)))
    step = trainer.make_train_step(CONFIG, F32, mesh_of(2))
    straight, _ = run(CONFIG, text, 4, steps=4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=4e-6), step(again, text)[0].params, straight.params)


# Which devices


@pytest.mark.parametrize(
    "changes, n_params, expected",
    [
        ({"batch_size": 64, "block_size": 256}, 10**6, 4),
        ({"batch_size": 6, "block_size": 256}, 10**6, 3),  # equal shares: not four
        ({"batch_size": 7, "block_size": 256}, 10**6, 1),
        ({"batch_size": 8, "block_size": 256, "micro_batches": 4}, 10**6, 2),  # of a share, too
        ({"batch_size": 4, "block_size": 8}, 1000, 1),  # not worth the call
        ({"batch_size": 32, "block_size": 8}, 1000, 2),
        ({"batch_size": 64, "block_size": 256}, 40_000_000, 1),  # not room for two copies
    ],
)
def test_as_many_cores_work_as_get_equal_shares_worth_having(changes, n_params, expected):
    assert sharding.mesh(override(CONFIG, **changes), n_params).size == expected


def fake_gpus() -> SimpleNamespace:
    return SimpleNamespace(devices=np.array([SimpleNamespace(platform="gpu")] * 2), size=2)


@pytest.mark.parametrize(
    "batch_size, block_size, expected", [(64, 256, 16), (12, 64, 1), (2, 2048, 1), (10, 256, 5), (64, 8, 1)]
)
def test_a_core_takes_as_much_at_a_time_as_stays_near_its_cache(batch_size, block_size, expected):
    config = override(CONFIG, batch_size=batch_size, block_size=block_size)
    assert sharding.micro_batches(config, mesh_of(2)) == expected
    assert sharding.micro_batches(config, fake_gpus()) == 1
    assert sharding.micro_batches(override(config, micro_batches=2), fake_gpus()) == 2


def test_random_windows_do_not_depend_on_the_devices(text):
    key = jax.random.key(0)
    alone = batches.random_windows(key, text, 8, 8)
    spread = batches.random_windows(key, jax.device_put(text, sharding.replicated(mesh_of(4))), 8, 8)
    jax.tree.map(np.testing.assert_array_equal, alone, spread)
