"""A trained model is loaded with all that belongs to it, and writes text."""

import itertools
import os
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxgpt
from jaxgpt import UserError, override
from jaxgpt.runs.run import Run
from jaxgpt.training import loop


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory) -> jaxgpt.Run:
    """Two updates, evaluated after each, of which the first is said to be the best."""
    with pytest.MonkeyPatch.context() as patch:
        losses = itertools.count()
        patch.setattr(loop, "make_evaluate", lambda *_: lambda *_: float(next(losses)))
        two = override(config, max_steps=2, eval_interval=1)
        return jaxgpt.train(two, out=tmp_path_factory.mktemp("trained") / "run", quiet=True)


@pytest.fixture
def copy(trained, tmp_path, monkeypatch) -> Path:
    """A copy of the trained run at runs/copy, below the working folder, to spoil."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(trained.path, tmp_path / "runs" / "copy")


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
    with pytest.raises(UserError, match="'newest' or 'best', not 'oldest'"):
        jaxgpt.load(trained.path, "oldest")


def test_without_a_path_the_newest_run_is_loaded(copy, trained):
    shutil.copytree(trained.path, copy.with_name("other"))
    os.utime(copy.with_name("other") / "metrics.jsonl", (0, 0))
    assert jaxgpt.load().path == copy


def test_a_run_is_found_from_another_folder(copy, monkeypatch):
    run = jaxgpt.load("runs/copy")
    monkeypatch.chdir("/")
    assert [row["step"] for row in run.metrics] == [0, 1, 2]


def test_a_run_without_a_checkpoint_is_named(copy):
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint yet"):
        jaxgpt.load(copy)
    assert not (copy / "checkpoints").exists()
    (copy / "checkpoints").mkdir()
    with pytest.raises(UserError, match="no checkpoint yet"):
        jaxgpt.load(copy)


def test_a_damaged_checkpoint_is_named_and_nobody_is_told_to_delete_it(copy):
    for file in (copy / "checkpoints" / "2" / "params").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=r"checkpoint runs/copy/checkpoints/2 cannot be read: ") as caught:
        jaxgpt.load(copy)
    assert "remove" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_is_shown_in_a_line(copy):
    assert repr(jaxgpt.load(copy)) == "<Run runs/copy: gpt, 3,920 parameters, step 2>"


# Text


def test_generated_text_begins_with_the_prompt_and_has_the_asked_length(trained):
    text = trained.generate("ROMEO:", tokens=20, seed=1)
    assert text.startswith("ROMEO:")
    assert len(text) == len("ROMEO:") + 20
    assert trained.generate("ROMEO:", tokens=20, seed=2) != text


def test_a_stream_comes_in_pieces(trained):
    pieces = [piece for (piece,) in trained.stream("R", tokens=20, seed=1)]
    assert len(pieces) > 1
    assert "R" + "".join(pieces) == trained.generate("R", tokens=20, seed=1)


def test_none_switches_a_filter_off(trained):
    off = trained.generate("R", tokens=9, top_k=None, top_p=None, min_p=None, temperature=None)
    assert off == trained.generate("R", tokens=9)
    assert trained.generate("R", tokens=9, seed=np.int64(3)) == trained.generate("R", tokens=9, seed=3)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"samples": 2}, r"call run\.samples"),
        ({"temprature": 1.0}, "'temprature': did you mean 'temperature'"),
        ({"top_k": "many"}, "`top_k` is a whole number, not 'many'"),
        ({"tokens": 0}, "`tokens` must be a whole number, 1 or more, not 0"),
        ({"tokens": 1.5}, "`tokens` must be a whole number, 1 or more, not 1.5"),
        ({"seed": -1}, "`seed` must be a whole number, from 0 to 4294967295, not -1"),
        ({"prompt": ""}, "the `prompt` is empty"),
        ({"prompt": "é"}, "did not contain 'é'"),
    ],
    ids=str,
)
def test_what_cannot_be_written_is_one_line(how, said, trained):
    with pytest.raises(UserError, match=said) as caught:
        trained.generate(**how)
    assert "\n" not in str(caught.value)


class Bytes:
    """A tokenizer whose tokens are parts of characters."""

    start = "\n"

    def encode(self, text):
        return np.frombuffer(text.encode(), np.uint8)

    def decoder(self):
        return self.Decoder()

    class Decoder:
        rest = b""

        def decode(self, tokens):
            self.rest += bytes(tokens.astype(np.uint8))
            text = self.rest.decode("utf-8", "ignore")
            self.rest = self.rest[len(text.encode()) :]
            return text

        def flush(self):
            return "�" if self.rest else ""


def test_a_stream_never_gives_half_a_character(trained, monkeypatch):
    tokens = np.frombuffer("aé日".encode() + b"\xf0", np.uint8)
    monkeypatch.setattr("jaxgpt.sampling.stream", lambda *_: (tokens[None, i : i + 1] for i in range(len(tokens))))
    run = Run(trained.path, trained.config, Bytes(), trained.model, 2)
    assert [piece for (piece,) in run.stream("a", tokens=7)] == ["a", "", "é", "", "", "日", "", "�"]


# The model


def test_the_model_refuses_what_it_cannot_read(trained):
    vocab_size = trained.config.model.vocab_size
    for tokens in (np.zeros((1, 17), int), [[0, vocab_size]], [[-1]], [1, 2], [[0.5]]):
        with pytest.raises(UserError):
            trained.model(tokens)
    np.testing.assert_array_equal(trained.model([[1, 2]]), trained.model(jnp.array([[1, 2]])))
