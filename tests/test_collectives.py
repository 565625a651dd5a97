"""A batch shared among devices is the batch: the same update, wherever its parts were computed."""

import jax
import numpy as np
import pytest
import toy
from jax.sharding import PartitionSpec as P
from toy import CONFIG, F32, KEY, assert_near, assert_same

from jaxgpt.config import TrainConfig, override
from jaxgpt.device import collectives, sharding

MUON = override(CONFIG, optimizer="muon")


def updates(config: TrainConfig, *placed: int):
    """The state after three updates with batches of eight rows, and their metrics; on `toy.placement(*placed)`."""
    on = toy.placement(*placed)
    state, metrics = toy.init_state(config, F32, on), []
    for i in range(3):
        state, last = toy.update(config, F32, on)(state, *jax.device_put(toy.batch(100 * i, rows=8), on.batch), KEY)
        metrics.append(last)
    return state, metrics


@pytest.mark.parametrize(
    "config, placed, atol",
    [
        (CONFIG, (4, 2), 2e-6),
        (MUON, (4, 1), 1e-4),
        (CONFIG, (4, 2, 4), 2e-6),
        (override(CONFIG, remat=True), (4, 1, 2, 2), 2e-6),
        (MUON, (4, 1, 2, 2), 1e-4),
    ],
    ids=["data", "data, Muon", "fsdp", "fsdp and tensor, remat", "fsdp and tensor, Muon"],
)
def test_four_devices_make_the_updates_of_one(config, placed, atol):
    one, metrics = updates(override(config, remat=False), 1)
    many, shared_metrics = updates(config, *placed)
    assert_near(shared_metrics, metrics, 1e-5)
    assert_near(many.params, one.params, atol)


def test_weights_are_gathered_again_for_the_gradient_and_not_kept():
    on, state = toy.placement(4, 1, 4), toy.init_state(CONFIG, F32, toy.placement(4, 1, 4))
    lowered = toy.update(CONFIG, F32, on).lower(state, *toy.batch(rows=8), KEY).as_text()
    shared = [x for x in jax.tree.leaves(on.specs(state.params), is_leaf=lambda x: isinstance(x, P)) if "fsdp" in x]
    assert len(shared) == 6
    # Those of the block twice; the embeddings once: the head reads its own at the end of the one pass and at the start
    # of the other, and nobody reads the positions' again.
    assert lowered.count("stablehlo.all_gather") == 2 * 4 + 2
    assert lowered.count("stablehlo.reduce_scatter") == len(shared)


def test_every_device_holds_the_same_weights_after_an_update():
    state, _ = updates(CONFIG, 4, 2)
    for leaf in jax.tree.leaves(state):
        copies = [np.asarray(shard.data) for shard in leaf.addressable_shards]
        assert len(copies) == 4
        for copy in copies[1:]:
            np.testing.assert_array_equal(copy, copies[0])


def test_means_and_gatherings_keep_shapes_and_the_order_of_the_devices():
    on = toy.placement(4)
    tree = {"matrix": np.arange(24.0).reshape(4, 2, 3), "scalar": np.array([1.0, 2.0, 3.0, 6.0])}

    def both(tree):
        own = jax.tree.map(lambda x: x[0], tree)
        return collectives.average(own, on), collectives.all_gather(own)

    shared = jax.shard_map(both, mesh=on.mesh, in_specs=P(sharding.ROWS), out_specs=P(), check_vma=False)
    mean, gathered = jax.jit(shared)(tree)
    assert_near(mean, jax.tree.map(lambda x: x.mean(0), tree), 1e-6)
    assert_same(gathered, tree)
