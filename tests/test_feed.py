"""Updates one after another: from a text on the device or on the host, the same batches, and what a call costs."""

import jax
import numpy as np
import pytest
import toy
from toy import CONFIG, F32, TABLE, assert_near, assert_same, differ

from jaxgpt.config import TrainConfig, override
from jaxgpt.counting import HeldOut
from jaxgpt.data import batches
from jaxgpt.data.token_files import TokenFile
from jaxgpt.training import feed

FEEDERS = [feed.from_device, feed.from_host]
DROPPING = override(CONFIG, dropout=0.5)


@pytest.fixture
def updates_that_tell(monkeypatch):
    """Updates that train nothing: their metrics are the inputs, the targets and the key that they were given."""

    def update(state, inputs, targets, key, soft=None):
        return state._replace(step=state.step + 1), (inputs, targets, jax.random.key_data(key))

    monkeypatch.setattr(feed, "make_update", lambda config, dtype, placement: update)


def told(feeder, config: TrainConfig, tokens, steps, n_devices: int = 1) -> list:
    """What the update of each step was given."""
    on = toy.placement(n_devices)
    train_steps, state = feeder(config, F32, on, tokens), toy.init_state(config, F32, on)
    found = []
    for i in steps:
        state, given = train_steps(state._replace(step=jax.device_put(np.int32(i), on.replicated)), i, 1)
        found.append(jax.tree.map(np.asarray, given))
    return found


# Which batches

STEPS = [*range(70), 10**6, 2**31 - 2]  # the host draws the positions of 64 steps together


@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("n_devices", [1, 4])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_every_update_is_given_the_same_by_either_feeder(dtype, n_devices, replacement, updates_that_tell, tmp_path):
    tokens, config = toy.TEXT.astype(dtype), override(CONFIG, replacement=replacement)
    tokens.tofile(tmp_path / "text.bin")
    device = told(feed.from_device, config, tokens, STEPS, n_devices)
    host = told(feed.from_host, config, TokenFile(tmp_path / "text.bin", dtype), STEPS, n_devices)
    assert_same(device, host)
    assert {leaf.dtype for leaf in host[0][:2]} == {np.dtype("int32")}


@pytest.mark.parametrize("feeder", FEEDERS)
def test_every_step_and_every_seed_has_a_batch_and_a_key_of_its_own(feeder, updates_that_tell):
    tokens = np.arange(1000, dtype=np.uint16)
    found = told(feeder, CONFIG, tokens, range(10)) + told(feeder, override(CONFIG, seed=2), tokens, range(10))
    assert len({inputs.tobytes() for inputs, _, _ in found}) == 20
    assert len({key.tobytes() for _, _, key in found}) == 20


@pytest.mark.parametrize("feeder", FEEDERS)
def test_targets_are_the_text_one_token_after_the_inputs(feeder, updates_that_tell):
    ((inputs, targets, _),) = told(feeder, CONFIG, np.arange(1000, dtype=np.uint16), [3])
    assert inputs.shape == (4, 8)
    assert_same(inputs, inputs[:, :1] + np.arange(8))
    assert_same(targets, inputs + 1)


@pytest.mark.parametrize("feeder", FEEDERS)
def test_without_replacement_every_window_is_trained_on_once_a_pass(feeder, updates_that_tell):
    tokens = np.arange(129, dtype=np.uint16)  # 15 windows of 8 a pass, wherever it begins
    found = []
    train_steps = feeder(override(CONFIG, replacement=False), F32, toy.placement(), tokens)
    state = toy.init_state()
    for i in range(15):
        state, (inputs, targets, _) = train_steps(state, i, 1)
        assert_same(targets, inputs + 1)
        found.append(np.asarray(inputs)[:, 0])
    passes = np.concatenate(found).reshape(4, 15)
    assert_same(np.diff(np.sort(passes)), np.full((4, 14), 8))


class EndlessText:
    """Tokens that tell their place in a text of 2^33."""

    dtype, nbytes = np.dtype("int32"), 2**35

    def __len__(self) -> int:
        return 2**33

    def __getitem__(self, index):
        return (index >> 8).astype(np.int32)


def test_a_text_beyond_the_reach_of_a_device_feeds_updates_from_all_of_it(updates_that_tell):
    on, state = toy.placement(), toy.init_state()
    train_steps = feed.compile_train_steps(CONFIG, F32, on, EndlessText())
    places = []
    for i in range(50):
        state, (inputs, _, _) = train_steps(state, i, 1)
        places.append(np.asarray(inputs)[:, 0] / 2**25)
    assert np.histogram(places, 4, (0, 1))[0].min() > 25  # 200 places in all


def test_a_run_by_either_feeder_is_the_same():
    by_device, each = toy.run(DROPPING, 5)
    by_host, last = feed.from_host(DROPPING, F32, toy.placement(), toy.TEXT)(toy.init_state(DROPPING), 0, 5)
    assert_near(by_host, by_device, 1e-6)
    assert_near(last, each[-1], 1e-6)
    assert differ(by_host.params, toy.init_state().params)


def test_the_text_goes_to_the_device_only_if_it_fits(monkeypatch):
    monkeypatch.setattr(feed, "from_device", lambda *_: "device")
    monkeypatch.setattr(feed, "from_host", lambda *_: "host")

    def choice(tokens, n_devices=1, config=CONFIG):
        return feed.compile_train_steps(config, F32, toy.placement(n_devices), tokens)

    assert choice(toy.TEXT) == "device"
    monkeypatch.setattr(feed, "DEVICE_TEXT_BYTES", 1000)
    assert (choice(toy.TEXT), choice(toy.TEXT.astype(np.int32))) == ("device", "host")  # 1,000 and 2,000 bytes
    assert choice(toy.TEXT, n_devices=2) == "host"  # the cores of a CPU share its memory
    assert choice(toy.TEXT, 2, override(CONFIG, soft_targets=0.5)) == "device"  # where their table is
    monkeypatch.setattr(feed, "DEVICE_TEXT_BYTES", 2**60)
    assert choice(EndlessText()) == "host"  # no device's index names its last tokens


# What a call does


def test_several_steps_by_one_call_are_those_steps_bit_for_bit():
    straight, each = toy.run(DROPPING, 6)
    state, metrics = toy.init_state(DROPPING), []
    for n in (1, 3, 2):
        state, last = toy.loop(DROPPING)(state, feed.Text(toy.TEXT), np.int32(n))
        metrics.append(last)
    assert_same(state, straight)
    assert_same(metrics, [each[i] for i in (0, 3, 5)])


def test_several_steps_without_replacement_are_those_steps_bit_for_bit():
    config = override(DROPPING, replacement=False)
    train_steps = feed.from_device(config, F32, toy.placement(), toy.TEXT)
    straight, first = train_steps(toy.init_state(config), 0, 60)
    straight, last = train_steps(straight, 60, 80)  # across the ends of two blocks of 64
    state, metrics = toy.init_state(config), None
    for i in range(140):
        state, metrics = train_steps(state, i, 1)
        if i == 59:
            assert_same(metrics, first)
    assert_same(state, straight)
    assert_same(metrics, last)


def test_any_number_of_steps_is_one_program_in_which_nothing_moves_between_host_and_device(caplog):
    loop, on = feed.device_loop(TABLE, F32, toy.placement()), toy.placement()
    text, state, *ns = jax.device_put(
        (feed.Text(toy.TEXT), toy.init_state(TABLE), *np.int32([1, 2, 5, 3])), on.replicated
    )
    with toy.compilations(caplog) as first:
        state, _ = loop(state, text, ns[0])
    with toy.compilations(caplog) as later:
        for n in ns[1:]:
            state, _ = loop(state, text, n)
    assert (bool(first), later) == (True, [])
    assert state.step == 11
    with jax.transfer_guard("disallow"):
        for n in ns:
            state, _ = loop(state, text, n)
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed"):  # else the guard guards nothing here
            loop(state, feed.Text(toy.TEXT), n)


def test_a_batch_is_sent_from_the_host_on_purpose(updates_that_tell):
    train_steps = feed.from_host(CONFIG, F32, toy.placement(), toy.TEXT)
    state, _ = train_steps(toy.init_state(), 0, 1)
    with jax.transfer_guard("disallow"):  # of what JAX would do unasked
        state, _ = train_steps(state, 1, 2)
    assert state.step == 3


@pytest.mark.parametrize("feeder", FEEDERS)
def test_the_old_state_is_used_up(feeder, updates_that_tell):
    old = toy.init_state()
    state, _ = feeder(CONFIG, F32, toy.placement(), toy.TEXT)(old, 0, 2)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((old.params, old.opt_state)))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize("replacement", [True, False])
def test_soft_targets_are_those_of_the_targets_places(replacement, monkeypatch):
    def update(state, inputs, targets, key, soft=None):
        return state._replace(step=state.step + 1), (targets, soft)

    monkeypatch.setattr(feed, "make_update", lambda config, dtype, placement: update)
    config = override(CONFIG, soft_targets=0.5, replacement=replacement)
    held_out = HeldOut(toy.TEXT, 13)
    predicted = held_out.table()[held_out.rows]  # (N, V)
    ((targets, soft),) = told(feed.from_device, config, toy.TEXT, [3])
    windows = batches.host_batch(config.seed, 3, np.arange(len(toy.TEXT)), 4, 8, replacement)
    assert_same(targets, toy.TEXT[windows[:, 1:]])
    assert_same(soft, predicted[windows[:, 1:]])
