"""How well a model predicts a text: the figures, each token's loss, and the command that prints them."""

import json
import math

import jax
import numpy as np
import optax
import pytest

import jaxgpt
from jaxgpt import UserError, evaluate


def losses_by_hand(run, text: str) -> np.ndarray:
    """Window by window, each from its own first token: (N - 1,)."""
    tokens, T = run.tokenizer.encode(text).astype(int), run.config.model.block_size
    losses = []
    for start in range(0, len(tokens) - 1, T):
        window = tokens[start : start + T + 1]
        logits = run.model(window[None, :-1])[0]
        losses += optax.softmax_cross_entropy_with_integer_labels(logits, window[1:]).tolist()
    return np.array(losses)


@pytest.mark.parametrize("length", [2, 10, 17, 18, 33])
def test_each_token_but_the_first_is_predicted_once_from_its_window(whole, text, length):
    """The last window of a text is moved back to be full, so its tokens see more than by hand: leave those out."""
    losses = whole.losses(text[:length])
    assert losses.shape == (length - 1,) and losses.dtype == np.float32
    whole_windows = length - 1 if length <= 17 else (length - 1) // 16 * 16
    expected = losses_by_hand(whole, text[:length])[:whole_windows]
    np.testing.assert_allclose(losses[:whole_windows], expected, atol=1e-5)


def test_a_long_text_is_read_in_pieces_with_the_same_losses(whole, text, monkeypatch):
    whole_text = whole.losses(text[:1000])
    monkeypatch.setattr("jaxgpt.evaluation.TOKENS_AT_ONCE", 64)
    np.testing.assert_allclose(whole.losses(text[:1000]), whole_text, atol=1e-5)


def test_a_run_is_scored_on_its_validation_split_as_at_the_end_of_training(whole):
    score = whole.evaluate()
    assert score.loss == pytest.approx(whole.metrics[-1]["final_val_loss"], abs=1e-5)
    assert score.perplexity == pytest.approx(math.exp(score.loss))
    assert score.bits_per_byte == pytest.approx(score.loss / math.log(2))  # a byte is a character here


def test_a_text_of_ones_own_is_scored_as_a_whole(whole, text, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(text[:500], "utf-8")
    score = whole.evaluate(other)
    assert (score.tokens, score.bytes) == (499, 499)
    assert score.loss == pytest.approx(whole.losses(text[:500]).mean(), abs=1e-5)


def test_bits_a_byte_count_the_bytes_of_utf8(tmp_path):
    path = tmp_path / "greek.txt"
    path.write_text("αβγδ " * 300, "utf-8")
    config = jaxgpt.preset("bigram", data=path, max_steps=1, eval_windows=2, sample_tokens=0)
    run = jaxgpt.train(config, out=tmp_path / "run", quiet=True)
    score = run.evaluate(path)
    assert (score.tokens, score.bytes) == (1499, 300 * 9 - 2)
    assert score.bits_per_byte == pytest.approx(score.loss * 1499 / 2698 / math.log(2))


def test_the_command_prints_the_figures_and_writes_every_loss(whole, text_file, tmp_path, capsys):
    where = [str(whole.path), "--data", str(text_file)]
    assert evaluate.main(where) == 0
    shown = capsys.readouterr().out
    score = whole.evaluate(text_file)
    assert f"loss  {score.loss:.4f} nats a character" in shown
    assert f"perplexity  {score.perplexity:.2f}" in shown and f"bits a byte  {score.bits_per_byte:.4f}" in shown

    assert evaluate.main([*where, "--json", "--losses", str(tmp_path / "losses.jsonl")]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures == pytest.approx(
        score._asdict() | {"perplexity": score.perplexity, "bits_per_byte": score.bits_per_byte}
    )
    rows = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text("utf-8").splitlines()]
    assert "".join(row["text"] for row in rows) == text_file.read_text("utf-8")[1:]
    assert np.mean([row["loss"] for row in rows]) == pytest.approx(score.loss, abs=1e-5)


def test_mistakes_are_one_line(whole, tmp_path, capsys):
    one = tmp_path / "one.txt"
    one.write_text("t", "utf-8")
    for arguments in (
        [str(tmp_path)],
        [str(whole.path), "--data", str(one)],
        [str(whole.path), "--dta", "x"],
        ["a", "b"],
    ):
        assert evaluate.main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_text_of_one_token_has_nothing_to_predict(whole):
    with pytest.raises(UserError, match="two tokens"):
        whole.losses("t")
    with jax.disable_jit(), pytest.raises(UserError):
        whole.losses("")
