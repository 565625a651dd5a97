"""A run's folder: made once, found again, read back, and refused where it is damaged."""

import itertools
import json
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

import jaxgpt
from jaxgpt import UserError
from jaxgpt.data.tokenizer import CharTokenizer
from jaxgpt.runs import run
from jaxgpt.training import step as trainer

TOKENIZER = CharTokenizer("\nabc")


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory) -> jaxgpt.Run:
    """Two updates, evaluated after each, of which the first is said to be the best."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(text, "utf-8")
    config = jaxgpt.preset(
        "cpu",
        data=str(folder / "text.txt"),
        n_layer=1,
        n_head=2,
        n_embd=8,
        block_size=8,
        batch_size=2,
        max_steps=2,
        eval_interval=1,
        eval_windows=4,
        sample_tokens=0,
    )
    with pytest.MonkeyPatch.context() as patch:
        losses = itertools.count()
        patch.setattr(trainer, "make_evaluate", lambda *_: lambda *_: jnp.float32(next(losses)))
        return jaxgpt.train(config, out=folder / "run", quiet=True)


@pytest.fixture
def copy(trained, tmp_path, monkeypatch):
    """A copy of the trained run at runs/copy, below the working folder, to spoil."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(trained.path, run.RUNS / "copy")


def make(name=None, **changes):
    """An untrained run, at `name` or where it falls."""
    return run.create(name and run.RUNS / name, jaxgpt.preset("cpu", vocab_size=4, **changes), TOKENIZER)


def test_a_new_run_has_its_config_tokenizer_and_metrics(tmp_path):
    config = jaxgpt.preset("cpu", max_steps=5, vocab_size=4)
    path = run.create(tmp_path / "deep" / "run", config, TOKENIZER)
    assert {p.name for p in path.iterdir()} == {"config.json", "tokenizer.json", "metrics.jsonl"}
    assert run.read(path) == (config, TOKENIZER)
    assert run.read_metrics(path) == []


def test_runs_of_one_preset_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [str(make()) for _ in range(3)] == ["runs/cpu", "runs/cpu-2", "runs/cpu-3"]


def test_a_folder_that_exists_is_left_as_it_is(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(UserError, match="mine exists and is not overwritten"):
        run.create(tmp_path / "mine", jaxgpt.preset("cpu"), TOKENIZER)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_the_newest_run_is_the_one_trained_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, preset, trained_at in (("b", "cpu", 300), ("c", "t4", 200), ("a", "t4", 100)):
        path = make(name, preset=preset)
        os.utime(path / "metrics.jsonl", (trained_at, trained_at))
    (run.RUNS / "a" / "config.json").touch()  # looked at since, not trained
    (run.RUNS / "notes").mkdir()
    assert run.newest().name == "b"
    assert run.newest("t4").name == "c"


def test_no_run_yet_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="there is no run in runs/"):
        run.newest()
    make()
    with pytest.raises(UserError, match="there is no run of preset 't4' in runs/"):
        run.newest("t4")


def test_a_folder_that_is_no_run_names_the_runs_there_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"elsewhere is not a run.*none yet"):
        jaxgpt.load("elsewhere")
    make("one")
    make("two")
    with pytest.raises(UserError, match=r"elsewhere is not a run.*runs/one, runs/two"):
        jaxgpt.load("elsewhere")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"max_steps": "many"}', b'{"colour": 1}'])
def test_a_damaged_config_is_named(content, copy):
    (copy / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        jaxgpt.load(copy)


def test_a_config_of_no_possible_model_is_named(copy):
    config = json.loads((copy / "config.json").read_text())
    config["model"]["n_head"] = 0
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="n_head"):
        jaxgpt.load(copy)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"kind": "char", "characters": "ba"}', None])
def test_a_damaged_tokenizer_is_named(content, copy):
    (copy / "tokenizer.json").unlink()
    if content is not None:
        (copy / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        jaxgpt.load(copy)


def test_metrics_that_are_missing_or_no_rows_are_none(tmp_path):
    assert run.read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('3\n{"step": 2}\n')
    assert run.read_metrics(tmp_path) == []


def test_a_last_line_of_metrics_that_was_cut_off_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert run.read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]


def test_a_run_without_a_checkpoint_is_named(tmp_path):
    path = run.create(tmp_path / "run", jaxgpt.preset("cpu", vocab_size=4), TOKENIZER)
    with pytest.raises(UserError, match="run has no checkpoint yet"):
        jaxgpt.load(path)
    (path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no checkpoint yet"):
        jaxgpt.load(path)


@pytest.mark.parametrize("part", ["params", "metrics"])
def test_a_damaged_checkpoint_is_named(part, copy):
    for file in (copy / "checkpoints" / "2" / part).rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=r"checkpoints.*damaged"):
        jaxgpt.load(copy)


def test_a_loaded_run_is_the_trained_one(trained):
    loaded = jaxgpt.load(trained.path)
    assert (loaded.path, loaded.config, loaded.tokenizer) == (trained.path, trained.config, trained.tokenizer)
    assert loaded.metrics == trained.metrics
    tokens = loaded.tokenizer.encode("ROMEO:")[None]
    np.testing.assert_array_equal(loaded.model(tokens), trained.model(tokens))


def test_the_best_checkpoint_is_the_one_of_least_validation_loss(trained):
    newest, best = jaxgpt.load(trained.path), jaxgpt.load(trained.path, "best")
    assert (newest.step, best.step) == (2, 1)
    assert not np.array_equal(newest.model.wte.embedding[...], best.model.wte.embedding[...])


def test_without_a_path_the_newest_run_is_loaded(copy):
    make("other")
    os.utime(run.RUNS / "other" / "metrics.jsonl", (0, 0))
    assert jaxgpt.load().path == copy


def test_a_checkpoint_of_another_name_is_refused(trained):
    with pytest.raises(UserError, match="'newest' or 'best', not 'oldest'"):
        jaxgpt.load(trained.path, "oldest")


def test_generated_text_begins_with_the_prompt_and_has_the_asked_length(trained):
    text = trained.generate("ROMEO:", tokens=20, seed=1)
    assert text.startswith("ROMEO:")
    assert len(text) == len("ROMEO:") + 20
    assert trained.generate("ROMEO:", tokens=20, seed=2) != text


def test_a_stream_comes_in_pieces(trained):
    pieces = [piece for (piece,) in trained.stream("R", tokens=20, seed=1)]
    assert len(pieces) > 1
    assert "R" + "".join(pieces) == trained.generate("R", tokens=20, seed=1)
