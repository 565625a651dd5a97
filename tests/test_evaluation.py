"""An evaluation is the mean loss of every target of its windows: from a text on the host, by one program, on any
number of devices."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from toy import CONFIG, F16, F32

from jaxgpt.config import override
from jaxgpt.data import batches
from jaxgpt.evaluation import Evaluate, make_evaluate
from jaxgpt.model import build

T = CONFIG.model.block_size
CONFIG = override(CONFIG, eval_windows=10, dropout=0.5, embd_dropout=0.5)  # three rows of four windows to a call


@cache
def evaluate(n_devices: int = 1) -> Evaluate:
    return make_evaluate(CONFIG, F32, toy.placement(n_devices))


@cache
def params(n_devices: int = 1):
    """Those of a few updates."""
    state = toy.init_state()
    for i in range(5):
        state, _ = toy.update()(state, *toy.batch(100 * i), toy.KEY)
    return jax.device_put(state.params, toy.placement(n_devices).replicated)


@cache
def plain_losses(n: int) -> dict[int, float]:
    """The loss of every target of the first `n` tokens by its place: windows end to end, the last moved back to fit."""
    losses, forward = {}, jax.jit(build.merge(toy.MODEL, params()))
    for start in [*range(0, n - 1 - T, T), n - 1 - T]:
        logits = np.asarray(forward(jnp.asarray(toy.TEXT[None, start : start + T], jnp.int32))[0], np.float64)
        for t in range(T):
            place = start + t + 1
            probs = np.exp(logits[t]) / np.exp(logits[t]).sum()
            losses.setdefault(place, -np.log(probs[toy.TEXT[place]]))
    return losses


@pytest.mark.parametrize("n_devices", [1, 4])
@pytest.mark.parametrize("n", [9, 47, 97, 500], ids=["1 window", "6 of them", "12 and no more", "63"])
def test_it_is_the_mean_loss_of_every_target_without_dropout(n, n_devices):
    losses = plain_losses(n)
    assert sorted(losses) == list(range(1, n))
    loss = evaluate(n_devices)(params(n_devices), toy.TEXT[:n], *batches.fixed_windows(n, T))
    assert isinstance(loss, float)
    assert loss == pytest.approx(np.mean(list(losses.values())), rel=1e-5)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params(n_devices)))  # training goes on with them


def test_of_a_few_windows_it_reads_those():
    starts, skips = batches.fixed_windows(81, T, count=3)
    assert starts.tolist() == [0, 32, 72]
    few = [plain_losses(81)[start + t] for start in starts for t in range(1, 9)]
    assert evaluate()(params(), toy.TEXT[:81], starts, skips) == pytest.approx(np.mean(few), rel=1e-5)


def test_any_number_of_windows_and_any_text_is_one_program(caplog):
    evaluate()(params(), toy.TEXT, *batches.fixed_windows(500, T, 1))
    with toy.compilations(caplog) as later:
        for n, count in [(500, None), (500, 3), (97, None), (9, None), (200, 13)]:
            evaluate()(params(), toy.TEXT[:n], *batches.fixed_windows(n, T, count))
    assert later == []
    with toy.compilations(caplog) as another:
        make_evaluate(CONFIG, F16, toy.placement())(params(), toy.TEXT, *batches.fixed_windows(500, T, 1))
    assert another  # else nothing was counted


def test_a_text_in_a_file_is_read_where_its_windows_are(tmp_path):
    n = 2**33
    text = np.memmap(tmp_path / "text.bin", np.uint16, "w+", shape=(n,))  # a hole in the disk: zeros
    text[-T - 1 :] = toy.TEXT[: T + 1]
    starts, skips = np.array([0, n - 1 - T]), np.array([0, 0], np.int32)
    zeros, head = (np.zeros(T + 1, np.uint16), toy.TEXT[: T + 1])
    expected = [evaluate()(params(), part, *batches.fixed_windows(T + 1, T)) for part in (zeros, head)]
    assert evaluate()(params(), text, starts, skips) == pytest.approx(np.mean(expected), rel=1e-6)
