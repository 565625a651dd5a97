"""What a page shows of a run: the model as it is, and figures that are those of the run."""

import base64
import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from models import by_path, changed, noisy

import jaxgpt
from jaxgpt import UserError, override
from jaxgpt.data import dataset
from jaxgpt.data.bpe import BPETokenizer, BytesTokenizer
from jaxgpt.data.tokenizer import CharTokenizer
from jaxgpt.model import build
from jaxgpt.pages import record as records
from jaxgpt.pages import texts, values
from jaxgpt.pages.record import record
from jaxgpt.runs.run import Run

CHARACTERS = CharTokenizer("\n abcdefghi")


def read(array: dict) -> np.ndarray:
    content = base64.b64decode(array["data"], validate=True)
    return np.frombuffer(content, np.dtype(array["type"]).newbyteorder("<")).reshape(array["shape"])


@pytest.fixture(scope="module")
def live(whole) -> dict:
    """What a page with the model in it shows, as JSON."""
    return json.loads(json.dumps(record(whole), allow_nan=False))


@pytest.fixture(scope="module")
def large(whole) -> dict:
    """What is recorded where a model is too large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "MOST_LIVE", 0)
        return json.loads(json.dumps(record(whole, "the night is young"), allow_nan=False))


def test_the_weights_are_all_there_in_float16(live, whole):
    there = {name.replace(".", "/"): read(array) for name, array in live["weights"].items()}
    expected = by_path(build.params_of(whole.model))
    assert there.keys() == expected.keys()
    for name, weight in expected.items():
        np.testing.assert_array_equal(there[name], np.asarray(weight, np.float16))
    assert live["config"] == dataclasses.asdict(whole.config.model)
    assert live["tokenizer"] == {"kind": "char", "characters": whole.tokenizer.characters}
    assert live["recorded"] is None


def test_the_reference_is_what_jaxgpt_computes(live, whole):
    tokens, logits = live["reference"]["tokens"], read(live["reference"]["logits"])
    np.testing.assert_allclose(logits, whole.model([tokens])[0], atol=1e-5)
    assert tokens == dataset.load(whole.config, whole.tokenizer).val[:16].tolist()
    written = whole.generate("\n", tokens=50, top_k=1)
    assert live["reference"]["prompt"] + live["reference"]["greedy"] == written


def test_what_is_told_of_the_run_is_true(live, whole):
    assert live["facts"] == {
        "parameters": build.n_params(whole.config.model),
        "step": 8,
        "val_loss": whole.metrics[-1]["final_val_loss"],
        "unit": "character",
        "data": "text.txt",  # without the folders above it
    }
    assert live["version"] == jaxgpt.__version__
    assert live["note"] is None


def test_the_texts_are_of_the_validation_split_and_begin_with_a_line(live, text):
    assert 200 < len(live["passage"]) <= 300
    assert f"\n{live['passage']}" in text[int(0.9 * len(text)) :]
    assert live["passage"].startswith(live["prompt"])
    assert live["prompt"].startswith(("ROMEO:\n", "JULIET:\n", "NURSE:\n")) and len(live["prompt"]) == 16


def test_a_heads_average_is_over_windows_of_the_whole_validation_text(live, whole):
    val = dataset.load(whole.config, whole.tokenizer).val
    starts = np.linspace(0, len(val) - 16, len(val) // 16).round().astype(int)
    texts = (whole.tokenizer.decode(val[start : start + 16]) for start in starts[:64])
    expected = np.mean([whole.attention(text) for text in texts], axis=0)
    np.testing.assert_allclose(read(live["heads"]["attention"]), expected, atol=1e-3)


def test_letters_lie_where_their_embeddings_differ_most(live, whole):
    tokens, xy = live["letters"]["tokens"], read(live["letters"]["xy"])
    assert [whole.tokenizer.decode([token]) for token in tokens] == list(whole.tokenizer.characters)
    table = np.asarray(whole.model.wte.embedding[...])
    spread = np.square(xy).sum(0) / np.square(table - table.mean(0)).sum()
    np.testing.assert_allclose(live["letters"]["share"], spread, rtol=1e-4)
    assert spread[0] > spread[1] > 0


def test_the_history_is_that_of_the_metrics(live, whole):
    assert live["learning"]["losses"] == [
        [row["step"], row.get("train_loss"), row.get("val_loss")] for row in whole.metrics
    ]
    first, last = live["learning"]["samples"]  # `whole` draws none while it trains
    assert (first["step"], last["step"]) == (0, 8)
    assert (first["val_loss"], last["val_loss"]) == (None, live["facts"]["val_loss"])
    assert last["text"] == whole.generate(tokens=200)
    assert first["text"] != last["text"]


def test_samples_that_were_drawn_in_training_are_shown(copy, whole):
    rows = [row | ({"sample": f"after {row['step']}"} if row.get("val_loss") else {}) for row in whole.metrics]
    run = jaxgpt.load(copy)
    run = dataclasses.replace(run, config=override(run.config, init_from="other"))  # from no noise
    assert [sample["text"] for sample in records._samples(run, rows)] == ["after 4", "after 8"]


def test_a_long_history_is_thinned_and_keeps_its_evaluations():
    rows = [{"step": i, "train_loss": 1.0} | ({"val_loss": 2.0} if i % 500 == 0 else {}) for i in range(5001)]
    thinned = records._losses(rows)
    assert len(thinned) < 1100
    assert sum(val is not None for _, _, val in thinned) == 11


def test_what_json_has_no_number_for_is_left_out():
    rows = [{"step": 0, "val_loss": float("nan")}, {"step": 1, "train_loss": 2.0, "val_loss": None}, {"step": 2}]
    assert records._losses(rows) == [[1, 2.0, None]]


def test_a_large_model_is_recorded(large, whole):
    prompt = "the night is young"[-16:]
    recorded, tokens = large["recorded"], whole.tokenizer.encode(prompt)
    assert large["weights"] is large["reference"] is None
    assert large["tokenizer"] == {"kind": "recorded"}
    assert (large["prompt"], recorded["tokens"]) == (prompt, tokens.tolist())
    np.testing.assert_allclose(read(recorded["attention"]) / 255, whole.attention(prompt), atol=0.002)

    lens = whole.logit_lens(prompt)
    probs = np.exp(lens - np.logaddexp.reduce(lens, axis=-1, keepdims=True))
    found = np.take_along_axis(probs, np.array(recorded["lens"]["ids"]), -1)
    np.testing.assert_allclose(read(recorded["lens"]["probs"]), found, atol=1e-3)
    assert (found[..., 0] == probs.max(-1)).all()
    top, ids = recorded["top"], np.array(recorded["top"]["ids"])
    shown = np.exp(read(top["logits"]).astype(np.float32) - np.array(top["lse"])[:, None])
    np.testing.assert_allclose(shown, np.take_along_axis(probs[-1], ids, -1), atol=1e-3)
    np.testing.assert_allclose(recorded["losses"], whole.losses(prompt), atol=1e-5)


def test_of_a_large_model_a_passage_is_judged_as_the_run_does(large, whole):
    passage = large["recorded"]["passage"]
    np.testing.assert_allclose(passage["losses"], whole.losses(large["passage"]), atol=1e-5)
    assert whole.tokenizer.decode(passage["tokens"]) == large["passage"]
    first = whole.model([passage["tokens"][:16]])[0]
    assert passage["top"][:16] == np.argmax(first, -1).tolist()


def test_every_token_that_a_page_without_the_model_shows_has_a_text(large, whole):
    recorded = large["recorded"]
    occurring = [recorded["tokens"], recorded["top"]["ids"], recorded["lens"]["ids"], large["letters"]["tokens"]]
    occurring += [recorded["passage"]["tokens"], recorded["passage"]["top"]]
    for token in set(np.concatenate([np.ravel(tokens) for tokens in occurring]).tolist()):
        assert large["vocabulary"][str(token)] == whole.tokenizer.decode([token])


@pytest.mark.parametrize("data", ["gone.txt", "-"])
def test_without_its_data_a_run_shows_what_it_writes_itself(data, whole):
    lost = dataclasses.replace(whole, config=override(whole.config, data=data))
    val, note = texts.validation(lost)
    assert "cannot be read any more" in note
    assert whole.tokenizer.decode(val) == "\n" + whole.generate(tokens=600)
    assert len(texts.passage(lost, val)) > 100


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bigram", "head"])
def test_a_rung_has_a_page_too(architecture, tmp_path):
    config = changed(architecture=architecture)
    run = Run(tmp_path, jaxgpt.TrainConfig(model=config, data="gone.txt"), CHARACTERS, noisy(config), 0)
    found = record(run, "abc")
    layers, heads = {"bigram": (0, 2), "head": (1, 1)}[architecture]
    assert found["heads"]["attention"]["shape"] == [layers, heads, 6, 6]
    assert set(found["weights"]) >= {"table.embedding" if architecture == "bigram" else "attn.query.kernel"}
    assert found["learning"]["losses"] == []


def test_tokens_that_are_no_text_are_shown_as_bytes():
    assert values.token_text(BytesTokenizer(), 0xE2) == "<0xE2>"
    assert values.token_text(BytesTokenizer(), ord("a")) == "a"
    bpe = BPETokenizer.train("the night the night", 260)
    shown = values.vocabulary(bpe)
    assert "<0xE2>" in shown and shown[bpe.end_of_text] == "<|endoftext|>"
    written = values.tokenizer(bpe)
    assert written["vocab"]["Ġ"] == shown.index(" ")
    assert all(left + right in written["vocab"] for left, right in written["merges"])
    foreign = dataclasses.replace(bpe, pattern=r"\S+|\s+")  # the page has no code for it
    assert values.tokenizer(foreign) == {"kind": "recorded"}


@pytest.mark.parametrize(
    ("prompt", "said"),
    [("", "the `prompt` is a text of a character at least, not ''"), (3, "not 3"), ("é", "did not contain 'é'")],
)
def test_a_prompt_that_cannot_be_shown_is_refused(prompt, said, whole):
    with pytest.raises(UserError, match=said):
        record(whole, prompt)


def test_weights_that_are_no_numbers_have_no_page(whole):
    params = build.params_of(whole.model)
    params["wte"]["embedding"] = params["wte"]["embedding"].at[0, 0].set(jnp.nan)
    broken = dataclasses.replace(whole, model=build.merge(whole.config.model, params))
    with pytest.raises(UserError, match="weights that are no finite numbers"):
        record(broken)


def test_the_size_of_a_page_is_known_beforehand_and_small(whole, live, large, monkeypatch):
    assert records.expected_bytes(whole) == pytest.approx(len(json.dumps(live)), abs=15_000)
    for preset in ("speedrun", "cpu", "t4"):
        run = dataclasses.replace(whole, config=jaxgpt.preset(preset, vocab_size=65))
        assert records.expected_bytes(run) < 2.5e6
    monkeypatch.setattr(records, "MOST_LIVE", 0)
    assert records.expected_bytes(whole) == pytest.approx(len(json.dumps(large)), abs=15_000)


def test_a_title_names_no_folder_of_anybody(whole):
    def title(path: str, **changes) -> str:
        return records.title(
            dataclasses.replace(whole, path=Path(path), config=override(whole.config, **changes), step=0)
        )

    assert title("/home/me/work/runs/cpu") == "runs/cpu"
    assert title("/home/me/model") == "model"
    assert title("/home/me/.cache/snapshots/a1b2", init_from="openai/gpt2") == "gpt2"
