"""A run from start to end: what it leaves behind, and that stopping it half-way changes nothing."""

import dataclasses
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgpt
from jaxgpt import Interrupted, UserError, override
from jaxgpt.data import batches
from jaxgpt.runs import report, run
from jaxgpt.training import loop as fit
from jaxgpt.training import step as trainer
from jaxgpt.training.signals import StopRequest

ROOT = Path(__file__).parent.parent
# without PYTHONUNBUFFERED, as most people run it
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.fixture(scope="module")
def config(text, tmp_path_factory) -> jaxgpt.TrainConfig:
    """Eight updates with dropout, evaluated after the fourth and the last."""
    path = tmp_path_factory.mktemp("data") / "text.txt"
    path.write_text(text, "utf-8")
    return jaxgpt.preset(
        "cpu",
        data=str(path),
        n_layer=1,
        n_head=2,
        n_embd=16,
        block_size=16,
        embd_dropout=0.2,
        batch_size=4,
        max_steps=8,
        warmup_steps=2,
        eval_interval=4,
        eval_windows=8,
        log_interval=1,
        sample_tokens=0,
    )


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> jaxgpt.Run:
    """The run of `config`, not interrupted."""
    return jaxgpt.train(config, out=tmp_path_factory.mktemp("whole") / "run", quiet=True)


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    """A copy of the whole run's folder, to go on with or to spoil."""
    return shutil.copytree(whole.path, tmp_path / "copy")


@pytest.fixture
def stop_after(monkeypatch):
    """`stop_after(step, number)` sends this process a signal while a run computes update `step`."""

    def stop_after(step: int, number: int = signal.SIGTERM) -> None:
        requests = []
        monkeypatch.setattr(fit, "StopRequest", lambda: requests.append(StopRequest()) or requests[-1])
        make = trainer.compile_train_steps

        def compile_train_steps(*arguments):
            train_steps = make(*arguments)

            def watched(state, tokens, n):
                before = int(state.step)
                result = train_steps(state, tokens, n)
                if before < step <= before + n:
                    os.kill(os.getpid(), number)
                    while not requests[-1].signal_number:
                        time.sleep(0.001)
                return result

            return watched

        monkeypatch.setattr(trainer, "compile_train_steps", compile_train_steps)

    return stop_after


def assert_same_weights(one: jaxgpt.Run, other: jaxgpt.Run) -> None:
    pairs = zip(leaves(one), leaves(other), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def leaves(of: jaxgpt.Run) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(trainer.params_of(of.model))]


def untimed(rows: list[dict]) -> list[dict]:
    """The rows without what differs from run to run."""
    return [{k: v for k, v in row.items() if k not in ("step_seconds", "tokens_per_second")} for row in rows]


def test_the_trained_model_gives_logits(whole):
    tokens = whole.tokenizer.encode("ROMEO:\nthe night")[None]
    logits = whole.model(tokens)
    assert logits.shape == (1, 16, whole.tokenizer.vocab_size)
    assert logits.dtype == jnp.float32
    assert np.isfinite(logits).all()
    assert whole.step == 8


def test_the_metrics_of_every_update_are_there_and_finite(whole, config):
    rows = whole.metrics
    assert [row["step"] for row in rows] == list(range(9))
    names = {"step", "train_loss", "learning_rate", "grad_norm", "step_seconds", "tokens_per_second"}
    assert [row["step"] for row in rows if names <= row.keys()] == list(range(1, 9))
    assert [row["step"] for row in rows if "val_loss" in row] == [0, 4, 8]
    assert [row["step"] for row in rows if "final_val_loss" in row] == [8]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    tokens = config.batch_size * config.model.block_size
    assert all(row["tokens_per_second"] * row["step_seconds"] == pytest.approx(tokens) for row in rows[1:])


def test_the_step_size_climbs_then_falls_to_its_end(whole, config):
    rates = [row["learning_rate"] for row in whole.metrics[1:]]
    assert rates[0] < rates[1] < rates[2] == pytest.approx(config.learning_rate)
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert config.min_learning_rate < rates[-1] < rates[2]


def test_a_clock_gives_the_mean_time_of_the_updates_since(monkeypatch):
    times = iter([100.0, 110.0])
    monkeypatch.setattr(fit, "time", SimpleNamespace(monotonic=lambda: next(times)))
    assert fit.Clock(step=4).step_seconds(9) == 2.0


def test_rows_are_as_far_apart_as_asked(config, tmp_path):
    trained = jaxgpt.train(override(config, log_interval=3, eval_interval=5), out=tmp_path / "run", quiet=True)
    assert [row["step"] for row in trained.metrics] == [0, 3, 5, 6, 8]


def test_a_run_leaves_its_config_and_a_picture(whole, config):
    written = json.loads((whole.path / "config.json").read_text())
    assert written == dataclasses.asdict(override(config, vocab_size=whole.tokenizer.vocab_size))
    assert (whole.path / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_a_run_without_a_place_takes_a_free_one(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "cpu").mkdir(parents=True)
    assert jaxgpt.train(config, quiet=True).path == Path("runs/cpu-2")


def test_looking_at_a_run_does_not_change_it(whole, config, tmp_path):
    looks = override(config, eval_interval=3, eval_windows=2, log_interval=5, sample_tokens=5)
    assert_same_weights(jaxgpt.train(looks, out=tmp_path / "run", quiet=True), whole)


@pytest.mark.parametrize("step", [1, 4, 6])
def test_an_interrupted_run_goes_on_bit_for_bit(step, whole, config, tmp_path, stop_after):
    path = tmp_path / "run"
    stop_after(step)
    with pytest.raises(Interrupted) as stop:
        jaxgpt.train(config, out=path, quiet=True)
    assert stop.value.signal_number == signal.SIGTERM
    assert f"saved after step {step}." in str(stop.value)
    assert f"python train.py --resume --out {path}\n" in str(stop.value)
    assert jaxgpt.load(path).step == step

    resumed = jaxgpt.resume(path, quiet=True)
    assert resumed.step == 8
    assert_same_weights(resumed, whole)
    assert_same_weights(jaxgpt.load(path), whole)
    assert untimed(resumed.metrics) == untimed(whole.metrics)


def test_an_interrupted_speedrun_goes_on_bit_for_bit(config, tmp_path, stop_after):
    sizes = (
        "data",
        "n_layer",
        "n_head",
        "n_embd",
        "block_size",
        "batch_size",
        "max_steps",
        "eval_windows",
        "log_interval",
    )
    values = {**vars(config), **vars(config.model)}
    fast = jaxgpt.preset("speedrun", dropout=0.1, **{name: values[name] for name in sizes})
    whole = jaxgpt.train(fast, out=tmp_path / "whole", quiet=True)
    stop_after(3)
    with pytest.raises(Interrupted):
        jaxgpt.train(fast, out=tmp_path / "run", quiet=True)
    resumed = jaxgpt.resume(tmp_path / "run", quiet=True)
    assert_same_weights(resumed, whole)
    assert untimed(resumed.metrics) == untimed(whole.metrics)


def test_a_run_with_averaged_weights_is_judged_by_them_and_keeps_them(config, whole, text, tmp_path):
    averaged = jaxgpt.train(override(config, ema_decay=0.9), out=tmp_path / "run", quiet=True)
    assert not any(np.array_equal(a, b) for a, b in zip(leaves(averaged), leaves(whole), strict=True))
    assert_same_weights(jaxgpt.load(tmp_path / "run"), averaged)
    tokens = averaged.tokenizer.encode(text)
    val = jnp.asarray(batches.split(tokens)[1])
    windows = trainer.eval_windows(averaged.config, len(val))
    loss = trainer.make_evaluate(averaged.config, jnp.dtype("float32"))(
        trainer.params_of(averaged.model), val, *windows
    )
    assert averaged.metrics[-1]["final_val_loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_rows_after_the_checkpoint_are_dropped(whole, config, tmp_path, stop_after):
    stop_after(6)
    with pytest.raises(Interrupted):
        jaxgpt.train(config, out=tmp_path / "run", quiet=True)
    for step in (7, 8):  # as when a run is killed between a row and the next checkpoint
        report.append_row(tmp_path / "run", {"step": step, "train_loss": 99.0, "val_loss": 99.0})
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "tra')
    assert untimed(jaxgpt.resume(tmp_path / "run", quiet=True).metrics) == untimed(whole.metrics)


def test_a_resumed_run_remembers_its_best_loss_and_its_time(config, tmp_path, stop_after, monkeypatch, capsys):
    losses = itertools.count(1)
    monkeypatch.setattr(trainer, "make_evaluate", lambda *_: lambda *_: jnp.float32(next(losses)))
    monkeypatch.setattr(fit, "time", SimpleNamespace(monotonic=lambda: next(hours) * 3600.0))
    hours = itertools.count()
    stop_after(6)
    with pytest.raises(Interrupted):
        jaxgpt.train(config, out=tmp_path / "run", quiet=True)
    hours = itertools.count(next(hours) + 1000)  # a pause that counts for nothing
    jaxgpt.resume(tmp_path / "run")
    shown = capsys.readouterr().out
    assert "Best val loss 2.0000, after step 0." in shown
    assert 12 < int(re.search(r"8 steps in (\d+) h", shown)[1]) < 1000


def test_a_signal_at_the_last_update_lets_the_run_end(whole, config, tmp_path, stop_after):
    stop_after(8)
    assert_same_weights(jaxgpt.train(config, out=tmp_path / "run", quiet=True), whole)


def test_sigterm_stops_train_py_and_resume_goes_on_bit_for_bit(config, tmp_path):
    changes = {"data": config.data, "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 4}
    changes |= {"dtype": "float16", "micro_batches": 2, "max_steps": 3000, "eval_interval": 1500, "log_interval": 1}
    changes |= {"eval_windows": 8, "sample_tokens": 0}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]
    command = [sys.executable, str(ROOT / "train.py"), "--preset=cpu", "--out=run"]
    outside = {"cwd": tmp_path, "env": ENVIRONMENT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*command, *flags], **outside)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "python train.py --resume --out run\n" in err
    assert "Traceback" not in err
    assert "\x1b" not in out + err
    assert 3 < jaxgpt.load(tmp_path / "run").step < 3000

    resumed = subprocess.run([*command, "--resume"], **outside)
    assert resumed.returncode == 0, resumed.stderr
    straight = jaxgpt.train(jaxgpt.preset("cpu", **changes), out=tmp_path / "straight", quiet=True)
    assert_same_weights(jaxgpt.load(tmp_path / "run"), straight)
    assert untimed(run.read_metrics(tmp_path / "run")) == untimed(straight.metrics)
    assert len({row["loss_scale"] for row in straight.metrics[1:]}) > 1  # it moved, so its counter was resumed too
    assert straight.metrics[-1]["final_val_loss"] < straight.metrics[0]["val_loss"] - 1


def test_a_second_ctrl_c_quits_at_once():
    # a computation that lets other threads run, but whose own thread handles no signals
    code = """
import hashlib, jaxgpt.signals
with jaxgpt.signals.StopRequest():
    print("on", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**8)
"""
    outside = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], **outside) as process:
        assert process.stdout.readline() == "on\n"
        process.send_signal(signal.SIGINT)
        while "stopping and saving" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130


def test_signal_handlers_are_put_back(config, tmp_path, stop_after):
    def state():
        wakeup = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(wakeup)
        return wakeup, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    before = state()
    stop_after(1, signal.SIGINT)
    with pytest.raises(Interrupted) as stop:
        jaxgpt.train(config, out=tmp_path / "run", quiet=True)
    assert stop.value.signal_number == signal.SIGINT
    assert state() == before


def test_training_works_outside_the_main_thread(whole, config, tmp_path):
    runs = []
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=lambda: runs.append(jaxgpt.train(config, out=tmp_path / "run", quiet=True)))
    thread.start()
    thread.join()
    assert_same_weights(runs[0], whole)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_is_not_resumed(copy):
    with pytest.raises(UserError, match="has done its 8 steps; to go on, give a larger --max-steps"):
        jaxgpt.resume(copy, quiet=True)


def test_a_finished_run_goes_on_to_a_later_end(copy, whole):
    longer = jaxgpt.resume(copy, max_steps=10, quiet=True)
    assert longer.step == jaxgpt.load(copy).step == 10
    assert longer.config == override(whole.config, max_steps=10) == run.read(copy)[0]
    assert untimed(longer.metrics[:9]) == untimed(whole.metrics)
    assert [row["step"] for row in longer.metrics[9:]] == [9, 10]
    assert "final_val_loss" in longer.metrics[-1]


def test_an_interrupted_run_to_a_later_end_goes_on_by_the_command_it_names(copy, stop_after):
    stop_after(9)
    with pytest.raises(Interrupted):
        jaxgpt.resume(copy, max_steps=10, quiet=True)
    assert jaxgpt.resume(copy, quiet=True).step == 10


@pytest.mark.parametrize("change", [lambda text: text[::-1], lambda text: text + "é"], ids=["order", "new character"])
def test_a_run_is_not_resumed_on_another_text(change, copy, text, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    (tmp_path / "other.txt").write_text(change(text), "utf-8")
    (copy / "config.json").write_text(json.dumps(config | {"data": str(tmp_path / "other.txt")}))
    with pytest.raises(UserError, match=r"other\.txt is no longer the text that"):
        jaxgpt.resume(copy, max_steps=10, quiet=True)


def test_a_text_shorter_than_a_window_is_refused_before_a_folder_is_made(config, text, tmp_path):
    validation = len(text) - int(0.9 * len(text))
    with pytest.raises(UserError, match="the text is too short"):
        jaxgpt.train(override(config, block_size=validation), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_the_shortest_text_has_a_window_and_the_target_of_its_last_token_to_validate(config):
    fit._check_length(np.zeros(170), config)  # 17 to validate
    with pytest.raises(UserError, match=r"of its 160 characters 16 are for validation, .* needs 17"):
        fit._check_length(np.zeros(160), config)


def test_a_vocabulary_of_another_size_is_refused(config, tmp_path):
    with pytest.raises(UserError, match="vocab_size is 7, but the text has"):
        jaxgpt.train(override(config, vocab_size=7), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_gradients_that_stay_not_finite_end_the_run_and_leave_its_checkpoint(copy, whole, monkeypatch):
    monkeypatch.setattr(trainer, "cross_entropy", lambda logits, targets: logits[..., 0] * jnp.nan)
    monkeypatch.setattr(fit, "MAX_SKIPPED", 3)
    with pytest.raises(jaxgpt.Diverged, match="not finite 3 times in a row, up to step 11"):
        jaxgpt.resume(copy, max_steps=100, quiet=True)
    kept = jaxgpt.load(copy)
    assert kept.step == 8
    assert_same_weights(kept, whole)


def test_the_training_step_is_compiled_once_a_run(config, copy, tmp_path, monkeypatch):
    compiled = []
    make = trainer.compile_train_steps
    monkeypatch.setattr(trainer, "compile_train_steps", lambda *a: compiled.append(make(*a)) or compiled[-1])
    jaxgpt.train(config, out=tmp_path / "run", quiet=True)
    jaxgpt.resume(copy, max_steps=10, quiet=True)
    assert [type(steps) for steps in compiled] == [jax.stages.Compiled] * 2  # which never compiles again


def test_a_call_ends_where_a_row_an_evaluation_or_the_run_does(config, tmp_path, monkeypatch):
    calls = []
    make = trainer.compile_train_steps

    def compile_train_steps(*arguments):
        train_steps = make(*arguments)
        return lambda state, tokens, n: calls.append((int(state.step), int(n))) or train_steps(state, tokens, n)

    monkeypatch.setattr(trainer, "compile_train_steps", compile_train_steps)
    monkeypatch.setattr(fit, "CALL_SECONDS", 1e6)  # however slow this machine is
    run = jaxgpt.train(jaxgpt.override(config, max_steps=22, eval_interval=8, log_interval=5), out=tmp_path / "run")
    assert calls[:3] == [(0, 1), (1, 1), (2, 3)]  # the first call is timed, while the second is on
    assert [step + n for step, n in calls] == [1, 2, 5, 8, 10, 15, 16, 20, 22]
    assert [row["step"] for row in run.metrics] == [0, 5, 8, 10, 15, 16, 20, 22]


def test_how_many_steps_a_call_makes_changes_nothing(config, tmp_path, monkeypatch):
    weights = []
    for seconds in (0, 1e6):
        monkeypatch.setattr(fit, "CALL_SECONDS", seconds)
        changed = jaxgpt.override(config, max_steps=20, eval_interval=20, log_interval=20)
        weights.append(leaves(jaxgpt.train(changed, out=tmp_path / f"run{seconds}", quiet=True)))
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
