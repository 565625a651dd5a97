"""What is saved comes back bit for bit, the newest and the best stay, and damage is told of."""

import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt.config import ModelConfig, TrainConfig, override
from jaxgpt.errors import UserError
from jaxgpt.runs.checkpoints import Checkpoints
from jaxgpt.training import step as trainer

pytestmark = [  # see `dropped_reads`
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]

CONFIG = TrainConfig(
    model=ModelConfig(vocab_size=13, block_size=8, n_layer=1, n_head=2, n_embd=16), batch_size=4, warmup_steps=2
)
F16 = jnp.dtype("float16")
LIKE = jax.eval_shape(lambda: trainer.init_state(CONFIG, F16))
AVERAGED = jax.eval_shape(lambda: trainer.init_state(override(CONFIG, ema_decay=0.9), F16))


def made_up(step: int = 5, like: trainer.TrainState = LIKE) -> trainer.TrainState:
    """A state in which every number is its own: weights, both running means, counters, loss scale."""
    rng = np.random.default_rng(step)
    state = jax.tree.map(lambda leaf: jnp.asarray(rng.integers(1, 10_000, leaf.shape), leaf.dtype), like)
    return state._replace(step=jnp.int32(step))


def assert_same(one, other):
    """Two trees are built alike and hold the same numbers of the same types, bit for bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def saved(folder: Path, val_losses: dict[int, float]) -> Path:
    """A folder with a checkpoint after each of some steps."""
    with Checkpoints(folder) as checkpoints:
        for step, val_loss in val_losses.items():
            checkpoints.save(made_up(step), {"note": f"after {step}"}, val_loss)
    return folder


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir())


# There and back


def test_a_state_comes_back_bit_for_bit_with_all_it_holds(tmp_path):
    progress = {"data_sha256": "abc", "seconds": 1.5, "best_val_loss": float("inf"), "best_step": 0}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(made_up(), progress)
    with Checkpoints(tmp_path) as checkpoints:
        state, told = checkpoints.restore(LIKE)
    assert_same(state, made_up())
    assert told == progress


def test_saving_is_not_disturbed_by_the_steps_that_follow(tmp_path):
    text = jnp.asarray(np.random.default_rng(0).integers(0, 13, 200), jnp.int32)
    train_step = trainer.make_train_step(CONFIG, F16)
    state = jax.jit(lambda: trainer.init_state(CONFIG, F16))()
    state, _ = train_step(state, text)
    moment = jax.tree.map(np.array, state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {})
        for _ in range(3):  # each uses up the memory of the state before
            state, _ = train_step(state, text)
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(LIKE)[0], moment)


def test_weights_can_be_read_alone(tmp_path):
    saved(tmp_path, {5: 1.0})
    with Checkpoints(tmp_path) as checkpoints:
        params, step = checkpoints.restore_params(LIKE.params)
    assert_same(params, made_up().params)
    assert step == 5


def test_where_weights_are_averaged_both_come_back_and_the_average_can_be_read_alone(tmp_path):
    state = made_up(like=AVERAGED)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, {})
    with Checkpoints(tmp_path) as checkpoints:
        assert_same(checkpoints.restore(AVERAGED)[0], state)
        assert_same(checkpoints.restore_params(LIKE.params)[0], state.average)


def test_a_checkpoint_from_before_weights_could_be_averaged_is_read(tmp_path):
    # As those of a run without an average still are: it has no such entry.
    saved(tmp_path, {5: 1.0})
    parts = json.loads((tmp_path / "5" / "rest" / "_METADATA").read_text("utf-8"))["tree_metadata"]
    fields = {re.match(r"\('(\w+)'", path)[1] for path in parts}
    assert fields == {"step", "params", "opt_state", "loss_scale", "skipped"}


def test_every_layer_keeps_its_place_beyond_the_tenth(tmp_path):
    # By name, layer 10 comes before layer 2.
    model = ModelConfig(vocab_size=3, block_size=2, n_layer=12, n_head=1, n_embd=2, bias=False)
    like = jax.eval_shape(lambda: trainer.init_params(model, 0))
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), like)
    params["h"] = {i: jax.tree.map(lambda p, i=i: jnp.full(p.shape, float(i)), like["h"][i]) for i in range(12)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(made_up()._replace(params=params, opt_state=()), {})
    with Checkpoints(tmp_path) as checkpoints:
        back, _ = checkpoints.restore_params(like)
    for i in range(12):
        assert all((leaf == i).all() for leaf in jax.tree.leaves(back["h"][i])), i


def test_a_relative_folder_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved(Path("checkpoints"), {5: 1.0})
    assert steps_in(tmp_path / "checkpoints") == [5]


FOUR_DEVICES = """
import sys
from pathlib import Path
import jax
import test_checkpoints as here
mesh = jax.make_mesh((4,), ("data",))
def spread(leaf):
    split = leaf.ndim == 2 and leaf.shape[0] % 4 == 0
    return jax.device_put(leaf, jax.NamedSharding(mesh, jax.P("data") if split else jax.P()))
state = jax.tree.map(spread, here.made_up())
assert len(state.params["wpe"]["embedding"].addressable_shards) == 4
assert not state.params["wpe"]["embedding"].is_fully_replicated
with here.Checkpoints(Path(sys.argv[1])) as checkpoints:
    checkpoints.save(state, {})
"""


def test_what_four_devices_saved_is_restored_on_one(tmp_path):
    tests = Path(__file__).parent
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)]),
    }
    subprocess.run([sys.executable, "-c", FOUR_DEVICES, str(tmp_path)], env=environment, check=True, timeout=120)
    with Checkpoints(tmp_path) as checkpoints:
        state, _ = checkpoints.restore(LIKE)
    assert_same(state, made_up())
    assert {leaf.sharding for leaf in jax.tree.leaves(state)} == {jax.sharding.SingleDeviceSharding(jax.devices()[0])}


# Which are kept


@pytest.mark.parametrize(
    "val_losses, kept",
    [
        ({2: 3.0, 4: 2.0, 6: 2.5, 8: 2.7}, [4, 8]),
        ({2: 3.0, 4: 2.0}, [4]),
        ({2: 1.0, 4: 2.0, 6: 3.0}, [2, 6]),
        ({2: 2.0, 4: float("nan"), 6: 3.0}, [2, 6]),
    ],
    ids=["best in the middle", "best is newest", "best is first", "not a number"],
)
def test_the_newest_and_the_best_are_kept_and_nothing_else(tmp_path, val_losses, kept):
    saved(tmp_path, val_losses)
    assert steps_in(tmp_path) == kept
    with Checkpoints(tmp_path) as checkpoints:
        for which, step in (("best", kept[0]), ("newest", kept[-1])):
            params, found = checkpoints.restore_params(LIKE.params, which)
            assert found == step
            assert_same(params, made_up(step).params)
        state, progress = checkpoints.restore(LIKE)
    assert state.step == kept[-1]
    assert progress == {"note": f"after {kept[-1]}"}


def test_a_save_without_a_loss_is_never_the_best(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(made_up(2), {}, 3.0)
        checkpoints.save(made_up(4), {})
        checkpoints.save(made_up(6), {})
    assert steps_in(tmp_path) == [2, 6]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_params(LIKE.params, "best")[1] == 2


def test_the_best_is_remembered_when_a_run_goes_on(tmp_path):
    saved(tmp_path, {2: 1.0, 4: 2.0})
    saved(tmp_path, {6: 3.0, 8: 1.5})
    assert steps_in(tmp_path) == [2, 8]


# What cannot be read


@pytest.fixture
def dropped_reads():
    """When one file cannot be read, Orbax drops the other reads half done; Python is to tell of them now, not later."""
    yield
    gc.collect()


@pytest.mark.parametrize("which", ["newest", "best"])
def test_a_folder_without_a_checkpoint_is_said_to_have_none(tmp_path, which):
    with Checkpoints(tmp_path / "checkpoints") as checkpoints, pytest.raises(UserError, match="no checkpoint yet"):
        checkpoints.restore_params(LIKE.params, which)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def garbage(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGED = {
    "weights": lambda folder: files_of(folder / "params" / "ocdbt.process_0" / "d"),
    "index of the weights": lambda folder: [folder / "params" / "manifest.ocdbt"],
    "names of the weights": lambda folder: [folder / "params" / "_METADATA"],
    "optimiser": lambda folder: files_of(folder / "rest" / "ocdbt.process_0" / "d"),
    "progress": lambda folder: [folder / "progress" / "metadata"],
    "loss": lambda folder: [folder / "metrics" / "metrics"],
}


@pytest.mark.usefixtures("dropped_reads")
@pytest.mark.parametrize("damage", [garbage, truncate, Path.unlink])
@pytest.mark.parametrize("part", list(DAMAGED)[:-1])
def test_a_damaged_checkpoint_is_called_damaged(tmp_path, part, damage):
    folder = saved(tmp_path, {5: 1.0}) / "5"
    for path in DAMAGED[part](folder):
        damage(path)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="seems damaged") as caught:
        checkpoints.restore(LIKE)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("damage", [garbage, truncate])
def test_a_damaged_loss_is_called_damaged(tmp_path, damage):
    (loss,) = DAMAGED["loss"](saved(tmp_path, {5: 1.0}) / "5")
    damage(loss)
    with pytest.raises(UserError, match="damaged"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore(LIKE)


@pytest.mark.usefixtures("dropped_reads")
@pytest.mark.parametrize("damage", [garbage, truncate])
def test_whatever_file_is_damaged_no_wrong_number_is_read(tmp_path, damage):
    folder = saved(tmp_path, {5: 1.0}) / "5"
    outcomes = set()
    for path in files_of(folder):
        if path in DAMAGED["loss"](folder):
            continue
        whole = path.read_bytes()
        damage(path)
        with Checkpoints(tmp_path) as checkpoints:
            try:
                state, progress = checkpoints.restore(LIKE)
                assert_same(state, made_up())  # a file that is not needed to restore
                assert progress == {"note": "after 5"}
                outcomes.add("unharmed")
            except UserError:
                outcomes.add("told")
        path.write_bytes(whole)
    assert outcomes == {"unharmed", "told"}


@pytest.mark.usefixtures("dropped_reads")
def test_a_checkpoint_of_another_model_is_not_taken_for_this_one(tmp_path):
    saved(tmp_path, {5: 1.0})
    wider = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*leaf.shape, 2), leaf.dtype), LIKE.params)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError):
        checkpoints.restore_params(wider)


def test_a_checkpoint_that_cannot_be_written_is_told_in_one_line_and_the_last_one_is_kept(tmp_path, monkeypatch):
    saved(tmp_path, {5: 1.0})

    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED:\n  no space left")

    with pytest.raises(OSError, match=r"could not be written to .* free there") as caught, Checkpoints(tmp_path) as c:
        monkeypatch.setattr(c.manager, "save", full)
        c.save(made_up(8), {}, 0.5)
    assert "\n" not in str(caught.value)
    assert steps_in(tmp_path) == [5]
