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
from jaxgpt.data.tokenizer import CharTokenizer
from jaxgpt.runs.run import Run
from jaxgpt.sampling import Drawn
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
    assert [row["step"] for row in run.metrics] == [1, 2]


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


def test_a_model_can_be_sampled_in_a_shorter_type(copy):
    run = jaxgpt.load(copy)
    short = jaxgpt.load(copy, weights="bfloat16")
    assert short.model.wte.embedding[...].dtype == jnp.bfloat16
    assert short.model.ln_f.scale[...].dtype == jnp.float32
    assert run.cast("float16").model.wte.embedding[...].dtype == jnp.float16
    assert run.model.wte.embedding[...].dtype == jnp.float32
    tokens = run.tokenizer.encode("ROMEO:")[None]
    np.testing.assert_allclose(short.model(tokens), run.model(tokens), atol=0.02)
    assert len(short.generate("ROMEO:", tokens=9)) == len("ROMEO:") + 9
    with pytest.raises(UserError, match="`weights` is one of float32, bfloat16, float16, not 'int8'"):
        jaxgpt.load(copy, weights="int8")


def test_a_run_can_be_looked_into(trained):
    text = "ROMEO:\nthe"
    logits = trained.model(trained.tokenizer.encode(text)[None])[0]
    lens, attention = trained.logit_lens(text), trained.attention(text)
    assert (attention.shape, lens.shape) == ((1, 2, 10, 10), (2, 10, trained.tokenizer.vocab_size))
    assert attention.dtype == lens.dtype == np.float32
    np.testing.assert_allclose(lens[-1], logits, atol=1e-5)
    np.testing.assert_allclose(trained.attention(text[:6]), attention[..., :6, :6], atol=1e-6)
    for look in (trained.attention, trained.logit_lens):
        with pytest.raises(UserError, match="the text is empty"):
            look("")
        with pytest.raises(UserError, match="17 tokens are more than the model's block_size of 16"):
            look("R" * 17)


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
        ({"stop": ""}, "`stop` is a text of a character at least, or several, not ''"),
        ({"stop": ["a", 1]}, r"`stop` is a text of a character at least, or several, not \['a', 1\]"),
        ({"prompt": []}, "there are no prompts"),
        ({"prompt": ["a", ""]}, "the `prompt` is empty"),
        ({"prompt": ["a", 1]}, "the `prompt` is a text, not 1"),
        ({"temprature": 1.0}, "'temprature': did you mean 'temperature'"),
        ({"top_k": "many"}, "`top_k` is a whole number, not 'many'"),
        ({"tokens": 0}, "`tokens` must be a whole number, from 1 to 2147483647, not 0"),
        ({"tokens": 1.5}, "`tokens` must be a whole number, from 1 to 2147483647, not 1.5"),
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


def test_prompts_of_different_lengths_are_each_continued_as_alone(trained):
    prompts = ["R", "JULIET:\nmy lord and so are we", "ROMEO:"]
    texts = trained.generate(prompts, tokens=20, seed=1)
    assert texts == [trained.generate(prompt, tokens=20, seed=1) for prompt in prompts]
    found = trained.completions(prompts, tokens=20, seed=1, samples=2)
    assert [one.prompt for one in found] == [prompt for prompt in prompts for _ in range(2)]
    assert [one.prompt + one.text for one in found] == [
        text for prompt in prompts for text in trained.samples(prompt, tokens=20, seed=1, samples=2)
    ]


def test_a_completion_has_the_text_its_tokens_and_what_the_model_thought_of_them(trained):
    (one,) = trained.completions("ROMEO:", tokens=8, temperature=2.0)
    assert (one.prompt, one.finish_reason) == ("ROMEO:", "length")
    assert one.text == trained.tokenizer.decode(one.tokens)
    read = [*trained.tokenizer.encode("ROMEO:"), *one.tokens]
    known = np.asarray(trained.model(np.array([read]))[0, 5:-1])
    expected = [logits[token] - np.logaddexp.reduce(logits) for logits, token in zip(known, one.tokens, strict=True)]
    np.testing.assert_allclose(one.logprobs, expected, atol=1e-5)
    assert one.logprobs.dtype == np.float32


def test_without_a_prompt_a_completion_continues_a_line_break(trained):
    (one,) = trained.completions(tokens=9)
    assert one.prompt == "\n"
    assert one.text == trained.generate(tokens=9)


@pytest.fixture
def ending(trained) -> Run:
    """The trained run with a tokenizer for which an "e" is the end of a text."""

    class Ending(CharTokenizer):
        @property
        def end_of_text(self):
            return self.characters.index("e")

    tokenizer = Ending(trained.tokenizer.characters)
    return Run(trained.path, trained.config, tokenizer, trained.model, trained.step)


def test_writing_stops_before_a_stop_text(trained):
    whole = trained.generate("R", tokens=60, seed=1)[1:]
    stop = whole[20:22]
    before = whole[: whole.index(stop)]
    assert trained.generate("R", tokens=60, seed=1, stop=stop) == "R" + before
    assert "".join(piece for (piece,) in trained.stream("R", tokens=60, seed=1, stop=["#", stop])) == before
    (one,) = trained.completions("R", tokens=60, seed=1, stop=stop)
    assert (one.text, one.finish_reason) == (before, "stop")
    assert trained.tokenizer.decode(one.tokens) == before + stop
    assert one.logprobs.shape == one.tokens.shape


def test_writing_stops_at_the_end_of_text(trained, ending):
    whole = trained.samples("R", tokens=200, seed=1)
    assert all("e" in text for text in whole)
    assert ending.samples("R", tokens=200, seed=1) == [text[: text.index("e")] for text in whole]
    found = ending.completions("R", tokens=200, seed=1, samples=3)
    assert [one.finish_reason for one in found] == ["stop"] * 3
    assert [one.prompt + one.text + "e" for one in found] == [
        "R" + trained.tokenizer.decode(one.tokens) for one in found
    ]


def test_nothing_is_computed_after_all_texts_have_stopped(ending, monkeypatch):
    asked = []

    def stream(model, prompts, *_):
        for word in (["a", "b"], ["e", "h"], ["d", "e"], ["f", "g"]):
            asked.append(word)
            yield Drawn(np.stack([ending.tokenizer.encode(letter) for letter in word]))

    monkeypatch.setattr("jaxgpt.sampling.stream", stream)
    assert list(ending.stream("R", samples=2)) == [["a", "b"], ["", "h"], ["", ""]]
    assert len(asked) == 3


class Bytes:
    """A tokenizer whose tokens are parts of characters."""

    start = "\n"
    end_of_text = None

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
    monkeypatch.setattr("jaxgpt.sampling.stream", lambda *_: (Drawn(tokens[None, [i]]) for i in range(len(tokens))))
    run = Run(trained.path, trained.config, Bytes(), trained.model, 2)
    assert [piece for (piece,) in run.stream("a", tokens=7)] == ["a", "", "é", "", "", "日", "", "�"]


# The model


def test_the_model_refuses_what_it_cannot_read(trained):
    vocab_size = trained.config.model.vocab_size
    for tokens in (np.zeros((1, 17), int), [[0, vocab_size]], [[-1]], [1, 2], [[0.5]]):
        with pytest.raises(UserError):
            trained.model(tokens)
    np.testing.assert_array_equal(trained.model([[1, 2]]), trained.model(jnp.array([[1, 2]])))
