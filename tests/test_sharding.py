"""Which devices work, and how state and batch lie on them."""

from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
import toy
from toy import CONFIG, F32

from jaxgpt import UserError
from jaxgpt.config import override
from jaxgpt.device import sharding
from jaxgpt.model import build
from jaxgpt.training import step

# How arrays lie


def shards(array: jax.Array) -> list[list]:
    return [np.asarray(shard.data).tolist() for shard in array.addressable_shards]


def test_a_placement_says_how_state_and_batches_lie_on_its_devices():
    on, rows = toy.placement(4), np.arange(8)
    assert shards(jax.device_put(rows, on.replicated)) == [rows.tolist()] * 4
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


def test_of_a_weight_that_is_shared_each_device_holds_a_part():
    state = toy.init_state(override(CONFIG, optimizer="muon"), F32, toy.placement(4, 1, 2, 2))
    block, moments = state.params["h"][0], optax.tree.get(state.opt_state, "MuonState").mu["h"][0]
    parts = {
        "attn": {"c_attn": {"kernel": (8, 24)}, "c_proj": {"kernel": (8, 8), "bias": (16,)}},
        "mlp": {"c_fc": {"kernel": (8, 32), "bias": (32,)}, "c_proj": {"kernel": (32, 8)}},
        "ln_1": {"scale": (16,)},
    }
    for path, shape in jax.tree.leaves_with_path(parts, is_leaf=lambda x: isinstance(x, tuple)):
        for tree in (block, moments) if len(shape) == 2 else (block,):
            for key in path:
                tree = tree[key.key]
            assert {shard.data.shape for shard in tree.addressable_shards} == {shape}, path
    wte = state.params["wte"]["embedding"]  # (13, 16): two do not divide 13
    assert {shard.data.shape for shard in wte.addressable_shards} == {(13, 8)}


# Which devices


@pytest.fixture
def placed(monkeypatch):
    """`for_training` on devices that are not there: how many it takes, and micro-batches."""
    monkeypatch.setattr(sharding, "place", lambda devices, micro_batches, fsdp, tensor: (len(devices), micro_batches))

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
        (480, 0, (8, 1)),
        (2400, 0, (8, 5)),  # 300 windows of 256 a device, 60 at a time
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


# A mesh that somebody asked for


def mesh(text: str, batch_size: int = 16, micro_batches: int = 0) -> tuple[int, ...]:
    """Its shape on four devices."""
    return sharding.for_training(batch_size, 8, 10**9, micro_batches, text).mesh.devices.shape


@pytest.mark.parametrize(
    "text, shape",
    [
        ("data=4", (4, 1, 1)),  # though it is not worth it on a CPU
        ("fsdp=2", (1, 2, 1)),  # two devices are idle: as asked
        ("tensor=2,data=-1", (2, 1, 2)),
        ("data=-1,fsdp=4", (1, 4, 1)),
        ("data=1", (1, 1, 1)),
    ],
)
def test_a_mesh_is_taken_as_it_is_asked_for(text, shape):
    assert mesh(text) == shape


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("data=8",), "`mesh` data=8 needs 8 devices, and there are 4"),
        (("fsdp=3,data=-1,tensor=2",), "needs 6 devices"),
        (("data=4", 6), "a `batch_size` of 6 cannot be shared equally by 4 devices: take a multiple of 4, or another"),
        (("data=2,fsdp=2", 8, 4), "by 4 devices of 4 `micro_batches` each: take a multiple of 16"),
    ],
)
def test_a_mesh_that_the_devices_or_the_batch_do_not_fit_is_refused(arguments, words):
    with pytest.raises(UserError) as error:
        mesh(*arguments)
    assert words in str(error.value)


def test_a_mesh_shares_the_rows_among_data_and_fsdp_alone():
    on = toy.placement(4, 1, 2, 2)
    assert on.shares == 2
    assert shards(jax.device_put(np.arange(4), on.batch)) == [[0, 1], [0, 1], [2, 3], [2, 3]]
