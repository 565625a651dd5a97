"""A training state comes back from its items, and runs that were written by earlier versions go on."""

import json
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs_compared import untimed

import jaxgpt
from jaxgpt.config import ModelConfig, TrainConfig, override
from jaxgpt.training import items, step

# Two small runs of four updates, by version 0.1 (commit 1a0260c), and what it did with them: greedy text, and the rows
# of `resume(max_steps=8)`. Their text is conftest's; "averaged" is a `speedrun`, with a moving average of its weights.
FORMAT_1 = Path(__file__).parent / "data" / "format1.zip"
# The same of a smaller model, before checkpoints had checksums (commit f22f537), and with those that they had first
# (commit bc317e2).
FORMAT_2 = Path(__file__).parent / "data" / "format2.zip"
CONFIG = TrainConfig(model=ModelConfig(vocab_size=5, block_size=4, n_layer=1, n_head=1, n_embd=4))


@pytest.mark.parametrize("format", [1, 2])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_state_is_made_again_of_its_items(ema_decay, format):
    like = jax.eval_shape(lambda: step.init_state(override(CONFIG, ema_decay=ema_decay), jnp.dtype("float16")))
    numbers = iter(range(10_000))
    state = jax.tree.map(lambda leaf: np.full(leaf.shape, next(numbers), leaf.dtype), like)
    parts = items.of_state(state, format)
    again = items.to_state(parts, format)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert parts["params" if format == 1 or not ema_decay else "ema_params"] is state.eval_params


@pytest.fixture(
    params=[(FORMAT_1, "adamw"), (FORMAT_1, "averaged"), (FORMAT_2, "unchecked"), (FORMAT_2, "sha256")],
    ids=lambda param: param[1],
)
def old(request, tmp_path):
    """The folder of an old run, and what its own version did with it."""
    archive, name = request.param
    with zipfile.ZipFile(archive) as files:
        files.extractall(tmp_path)
    return tmp_path / name, json.loads((tmp_path / f"{name}.json").read_text())


def test_an_old_run_is_loaded(old):
    path, expected = old
    run = jaxgpt.load(path)
    assert run.step == 4
    assert run.generate("ROMEO:", tokens=40, temperature=0.0) == expected["greedy"]


def test_an_old_run_goes_on_as_it_did(old, text_file):
    path, expected = old
    resumed = jaxgpt.resume(path, data=text_file, max_steps=8, quiet=True)
    rows = untimed(resumed.metrics)
    assert [row.keys() for row in rows] == [row.keys() for row in expected["rows"]]
    for row, before in zip(rows, expected["rows"], strict=True):
        assert row == pytest.approx(before, rel=1e-4)
    assert jaxgpt.load(path).step == 8  # and from here on it is a run of today's
