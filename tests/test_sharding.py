"""A batch shared among devices is the batch: the same update, wherever its parts were computed; and which devices."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
import toy
from jax.sharding import PartitionSpec as P
from toy import CONFIG, F32, KEY, assert_near, assert_same

from jaxgpt.config import TrainConfig, override
from jaxgpt.device import sharding
from jaxgpt.model import build
from jaxgpt.training import step

MUON = override(CONFIG, optimizer="muon")


def updates(config: TrainConfig, n_devices: int, micro_batches: int = 1):
    """The state after three updates with batches of eight rows, and their metrics."""
    on = toy.placement(n_devices, micro_batches)
    state, metrics = toy.init_state(config, F32, on), []
    for i in range(3):
        state, last = toy.update(config, F32, on)(state, *jax.device_put(toy.batch(100 * i, rows=8), on.batch), KEY)
        metrics.append(last)
    return state, metrics


@pytest.mark.parametrize(
    "config, micro_batches, atol", [(CONFIG, 2, 2e-6), (MUON, 1, 1e-4)], ids=["AdamW, micro-batches", "Muon"]
)
def test_four_devices_make_the_updates_of_one(config, micro_batches, atol):
    one, metrics = updates(config, 1)
    many, shared_metrics = updates(config, 4, micro_batches)
    assert_near(shared_metrics, metrics, 1e-5)
    assert_near(many.params, one.params, atol)


def test_every_device_holds_the_same_weights_after_an_update():
    state, _ = updates(CONFIG, 4, 2)
    for leaf in jax.tree.leaves(state):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 4
        for copy in copies[1:]:
            np.testing.assert_array_equal(copy, copies[0])


# How arrays lie


def shards(array: jax.Array) -> list[list]:
    return [np.asarray(shard.data).tolist() for shard in array.addressable_shards]


def test_a_placement_says_how_state_and_batches_lie_on_its_devices():
    on, rows = toy.placement(4), np.arange(8)
    assert shards(jax.device_put(rows, on.state)) == [rows.tolist()] * 4
    assert shards(jax.device_put(rows, on.batch)) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    two_batches = np.stack([rows, 10 + rows])
    assert shards(jax.device_put(two_batches, on.rows_of_batches))[1] == [[2, 3], [12, 13]]
    assert on.platform == "cpu"


def test_a_placement_can_be_a_key_and_a_static_argument():
    devices = jax.devices()
    known = {sharding.place(devices[:2]): 1, sharding.place(devices[:2], 3): 2, sharding.place(devices): 3}
    assert known[sharding.place(devices[:2], 1)] == 1
    assert len(known) == 3
    double = jax.jit(lambda x, on: x * on.micro_batches, static_argnums=1)
    assert double(2, sharding.place(devices[:2], 3)) == 6


def test_means_and_gatherings_keep_shapes_and_the_order_of_the_devices():
    on = toy.placement(4)
    tree = {"matrix": np.arange(24.0).reshape(4, 2, 3), "scalar": np.array([1.0, 2.0, 3.0, 6.0])}

    def both(tree):
        own = jax.tree.map(lambda x: x[0], tree)
        return sharding.average(own, on.mesh), sharding.all_gather(own)

    shared = jax.shard_map(both, mesh=on.mesh, in_specs=P(sharding.AXIS), out_specs=P(), check_vma=False)
    mean, gathered = jax.jit(shared)(tree)
    assert_near(mean, jax.tree.map(lambda x: x.mean(0), tree), 1e-6)
    assert_same(gathered, tree)


# Which devices


@pytest.fixture
def placed(monkeypatch):
    """`for_training` on devices that are not there: how many it takes, and micro-batches."""
    monkeypatch.setattr(sharding, "place", lambda devices, micro_batches=1: (len(devices), micro_batches))

    def choose(platform: str, count: int, *args) -> tuple[int, int]:
        return sharding.for_training(*args, devices=[SimpleNamespace(platform=platform)] * count)

    return choose


@pytest.mark.parametrize(
    "batch_size, micro_batches, expected",
    [
        (64, 0, (8, 1)),
        (12, 0, (6, 1)),  # equal shares: not eight
        (13, 0, (1, 1)),
        (8, 4, (2, 4)),  # of micro-batches, too
        (16, 2, (8, 2)),
        (13, 13, (1, 13)),
    ],
)
def test_as_many_gpus_work_as_get_equal_shares(placed, batch_size, micro_batches, expected):
    assert placed("gpu", 8, batch_size, 256, 10**9, micro_batches) == expected


@pytest.mark.parametrize(
    "batch_size, block_size, n_params, expected",
    [
        (64, 256, 10**6, 8),
        (6, 256, 10**6, 6),
        (13, 256, 10**6, 1),
        (4, 8, 1000, 1),  # not worth the call
        (32, 8, 1000, 2),
        (64, 256, 40_000_000, 1),  # not room for two copies
        (64, 256, 30_000_000, 2),
        (64, 256, 10**10, 1),
    ],
)
def test_as_many_cores_work_as_get_equal_shares_worth_having(placed, batch_size, block_size, n_params, expected):
    assert placed("cpu", 8, batch_size, block_size, n_params)[0] == expected


@pytest.mark.parametrize(
    "rows, block_size, expected", [(32, 256, 16), (6, 64, 1), (1, 2048, 1), (5, 256, 5), (32, 8, 1), (6, 256, 3)]
)
def test_a_core_takes_as_much_at_a_time_as_stays_near_its_cache(placed, rows, block_size, expected):
    assert placed("cpu", 1, rows, block_size, 10**6) == (1, expected)
    assert placed("cpu", 1, rows, block_size, 10**6, rows) == (1, rows)  # as asked


def test_a_run_uses_the_devices_of_this_machine_that_suit_it():
    large = override(CONFIG, batch_size=12, block_size=256)
    assert [step.placement(c).mesh.size for c in (CONFIG, large, override(large, micro_batches=6))] == [1, 4, 2]
    assert step.placement(override(large, micro_batches=6)).micro_batches == 6
    n_params = build.n_params(large.model)
    assert step.placement(large) == sharding.for_training(12, 256, n_params)


def test_a_batch_that_no_memory_holds_is_placed_all_the_same():
    assert sharding.for_training(2**31 - 1, 64, 1000).micro_batches == 2**31 - 1
