"""The loop around the step: what it leaves behind, how often it looks, and when it gives up."""

import dataclasses
import itertools
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from runs_compared import assert_same_weights, leaves
from test_train import Stop, stop_after  # noqa: F401

import jaxgpt
from jaxgpt import Interrupted, evaluation, override
from jaxgpt.data import batches
from jaxgpt.model import build
from jaxgpt.model import loss as losses
from jaxgpt.training import feed, loop, pacer, step


def test_the_trained_model_gives_logits(whole):
    tokens = whole.tokenizer.encode("ROMEO:\nthe night")[None]
    logits = whole.model(tokens)
    assert logits.shape == (1, 16, whole.tokenizer.vocab_size)
    assert logits.dtype == jnp.float32
    assert np.isfinite(logits).all()
    assert whole.step == 8


def test_the_metrics_of_every_update_are_there_and_finite(whole, config):
    rows = whole.metrics
    assert [row["step"] for row in rows] == list(range(1, 9))
    names = {"step", "train_loss", "learning_rate", "grad_norm", "step_seconds", "tokens_per_second"}
    assert [row["step"] for row in rows if names <= row.keys()] == list(range(1, 9))
    assert [row["step"] for row in rows if "val_loss" in row] == [4, 8]
    assert [row["step"] for row in rows if "final_val_loss" in row] == [8]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    tokens = config.batch_size * config.model.block_size
    assert all(row["tokens_per_second"] * row["step_seconds"] == pytest.approx(tokens) for row in rows)


def test_the_learning_rate_rises_then_falls_to_its_end(whole, config):
    rates = [row["learning_rate"] for row in whole.metrics]
    assert rates[0] < rates[1] < rates[2] == pytest.approx(config.learning_rate)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert config.min_learning_rate < rates[-1] < rates[2]


def test_rows_are_as_far_apart_as_asked(config, tmp_path):
    trained = jaxgpt.train(override(config, log_interval=3, eval_interval=5), out=tmp_path / "run", quiet=True)
    assert [row["step"] for row in trained.metrics] == [1, 3, 5, 6, 8]


def test_a_run_leaves_its_config_and_a_picture(whole, config):
    written = json.loads((whole.path / "config.json").read_text())
    assert written == dataclasses.asdict(override(config, vocab_size=whole.tokenizer.vocab_size))
    assert (whole.path / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_a_run_without_a_place_takes_a_free_one(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "cpu").mkdir(parents=True)
    assert jaxgpt.train(config, quiet=True).path == Path.cwd() / "runs" / "cpu-2"


def test_evaluations_and_samples_do_not_change_a_run_and_are_kept(whole, config, tmp_path):
    often = override(config, eval_interval=3, eval_windows=2, log_interval=5, sample_tokens=5)
    run = jaxgpt.train(often, out=tmp_path / "run", quiet=True)
    assert_same_weights(run, whole)
    samples = {row["step"]: row["sample"] for row in run.metrics if "sample" in row}
    assert list(samples) == [3, 6, 8]  # each evaluation but the first, of noise
    assert samples[8] == run.generate(tokens=5)


def test_a_run_with_averaged_weights_is_judged_by_them_and_keeps_them(config, whole, text, tmp_path):
    averaged = jaxgpt.train(override(config, ema_decay=0.9), out=tmp_path / "run", quiet=True)
    assert not any(np.array_equal(a, b) for a, b in zip(leaves(averaged), leaves(whole), strict=True))
    assert_same_weights(jaxgpt.load(tmp_path / "run"), averaged)
    val = batches.split(averaged.tokenizer.encode(text))[1]
    windows = batches.fixed_windows(len(val), config.model.block_size)
    evaluate = evaluation.make_evaluate(averaged.config, jnp.dtype("float32"), step.placement(averaged.config))
    loss = evaluate(build.params_of(averaged.model), val, *windows)
    assert averaged.metrics[-1]["final_val_loss"] == pytest.approx(loss, rel=1e-6)


def test_a_resumed_run_remembers_its_best_loss_and_its_time(config, tmp_path, stop_after, monkeypatch, capsys):  # noqa: F811
    losses = itertools.count(1)
    monkeypatch.setattr(loop, "make_evaluate", lambda *_: lambda *_: float(next(losses)))
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(hours) * 3600.0))
    hours = itertools.count()
    with pytest.raises(Interrupted):
        jaxgpt.train(config, out=tmp_path / "run", quiet=True, stop=stop_after(6))
    hours = itertools.count(next(hours) + 1000)  # a pause that counts for nothing
    jaxgpt.resume(tmp_path / "run", stop=Stop())
    shown = capsys.readouterr().out
    assert "going on after step 6" in shown
    assert "Best val loss 2.0000, after step 4." in shown
    assert "8 steps in 3 h" in shown  # one to each time it was saved


def test_gradients_that_stay_not_finite_end_the_run_and_leave_its_checkpoint(copy, whole, monkeypatch):
    monkeypatch.setattr(losses, "cross_entropy", lambda logits, targets: logits[..., 0] * jnp.nan)
    monkeypatch.setattr(loop, "MAX_SKIPPED", 3)
    with pytest.raises(jaxgpt.Diverged, match=r"3 times in a row, up to step 11; the last good .*copy"):
        jaxgpt.resume(copy, max_steps=100, quiet=True)
    kept = jaxgpt.load(copy)
    assert kept.step == 8
    assert_same_weights(kept, whole)


def test_a_run_that_diverges_at_once_promises_no_checkpoint_and_leaves_json(config, tmp_path, monkeypatch):
    monkeypatch.setattr(losses, "cross_entropy", lambda logits, targets: logits[..., 0] * jnp.nan)
    monkeypatch.setattr(loop, "MAX_SKIPPED", 3)
    with pytest.raises(jaxgpt.Diverged, match="up to step 3: try a lower `learning_rate`"):
        jaxgpt.train(config, out=tmp_path / "run", quiet=True)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [row["train_loss"] for row in rows] == [None, None]


def test_a_run_goes_on_where_no_picture_can_be_drawn(config, whole, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise ValueError("no font\nat all")

    monkeypatch.setattr(loop, "plot", fail)
    assert_same_weights(jaxgpt.train(config, out=tmp_path / "run"), whole)
    assert "no picture of the losses: no font at all" in capsys.readouterr().out


def test_a_run_on_other_devices_tells_that_dropout_is_another(copy, capsys, monkeypatch):
    placement = step.placement

    def with_micro_batches(config):
        return placement(config)._replace(micro_batches=2)

    monkeypatch.setattr(step, "placement", with_micro_batches)
    jaxgpt.resume(copy, max_steps=9)
    assert re.search(r"shared among 1 device with 2 micro-batches .* dropout is another one", capsys.readouterr().out)


def test_what_was_saved_is_read_back_before_it_is_said(config, tmp_path, stop_after, monkeypatch):  # noqa: F811
    def spoiled(self, items):
        raise OSError("the checkpoint does not hold what was saved")

    monkeypatch.setattr(loop.Checkpoints, "verify", spoiled)
    with pytest.raises(OSError, match="does not hold what was saved"):
        jaxgpt.train(config, out=tmp_path / "run", quiet=True, stop=stop_after(6))


def calls_of(monkeypatch) -> list[tuple[int, int]]:
    """Each call of `train_steps` of the runs that follow: after which step, and how many."""
    calls, compile = [], feed.compile_train_steps

    def compile_train_steps(*arguments):
        train_steps = compile(*arguments)
        run = train_steps.run
        return train_steps._replace(run=lambda state, step, n: calls.append((step, n)) or run(state, step, n))

    monkeypatch.setattr(feed, "compile_train_steps", compile_train_steps)
    return calls


def test_a_call_ends_where_a_row_an_evaluation_or_the_run_does(config, tmp_path, monkeypatch):
    calls = calls_of(monkeypatch)
    monkeypatch.setattr(pacer, "CALL_SECONDS", 1e6)  # however slow this machine is
    long = override(config, max_steps=22, eval_interval=8, log_interval=5)
    run = jaxgpt.train(long, out=tmp_path / "run", quiet=True)
    assert calls[:3] == [(0, 1), (1, 1), (2, 3)]  # the first call is timed, while the second is on
    assert [step + n for step, n in calls] == [1, 2, 5, 8, 10, 15, 16, 20, 22]
    assert [row["step"] for row in run.metrics] == [1, 5, 8, 10, 15, 16, 20, 22]


def test_how_many_steps_a_call_makes_changes_nothing(config, tmp_path, monkeypatch):
    weights = []
    for seconds in (0, 1e6):
        monkeypatch.setattr(pacer, "CALL_SECONDS", seconds)
        changed = override(config, max_steps=20, eval_interval=20, log_interval=20)
        weights.append(leaves(jaxgpt.train(changed, out=tmp_path / f"run{seconds}", quiet=True)))
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
