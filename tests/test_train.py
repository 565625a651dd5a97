"""`jaxgpt.train` and `jaxgpt.resume`: what they refuse, and that stopping half-way changes nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from runs_compared import assert_same_weights, leaves, untimed

import jaxgpt
from jaxgpt import Interrupted, UserError, override
from jaxgpt.data import batches
from jaxgpt.data.dataset import Dataset
from jaxgpt.data.tokenizer import CharTokenizer
from jaxgpt.prepare import prepare
from jaxgpt.runs.folder import RunFolder
from jaxgpt.training import feed, train

ROOT = Path(__file__).parent.parent
# without PYTHONUNBUFFERED, as most people run it
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


class Stop:
    """Somebody who asks a run to stop."""

    signal_number = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def stop_after(monkeypatch):
    """`stop_after(step, number)` asks a run to stop while it computes update `step`."""

    def stop_after(step: int, number: int = signal.SIGTERM) -> Stop:
        stop, compile = Stop(), feed.compile_train_steps

        def compile_train_steps(*arguments):
            train_steps = compile(*arguments)

            def watched(state, before, n):
                if before < step <= before + n:
                    stop.signal_number = number
                return train_steps.run(state, before, n)

            return train_steps._replace(run=watched)

        monkeypatch.setattr(feed, "compile_train_steps", compile_train_steps)
        return stop

    return stop_after


# A run that is stopped goes on


@pytest.mark.parametrize("step", [1, 4, 6])
def test_an_interrupted_run_goes_on_bit_for_bit(step, whole, config, tmp_path, stop_after):
    path = tmp_path / "run"
    with pytest.raises(Interrupted, match=f"stopped and saved after step {step}, in .*run") as stop:
        jaxgpt.train(config, out=path, quiet=True, stop=stop_after(step))
    assert stop.value.signal_number == signal.SIGTERM
    assert jaxgpt.load(path).step == step

    resumed = jaxgpt.resume(path, quiet=True)
    assert resumed.step == 8
    assert_same_weights(resumed, whole)
    assert_same_weights(jaxgpt.load(path), whole)
    assert untimed(resumed.metrics) == untimed(whole.metrics)


def test_an_interrupted_speedrun_goes_on_bit_for_bit(config, tmp_path, stop_after):
    sizes = ("data", "n_layer", "n_head", "n_embd", "block_size", "batch_size", "max_steps")
    values = {**vars(config), **vars(config.model)}
    sizes = {name: values[name] for name in (*sizes, "eval_windows", "log_interval")}
    fast = jaxgpt.preset("speedrun", dropout=0.1, **sizes)
    whole = jaxgpt.train(fast, out=tmp_path / "whole", quiet=True)
    with pytest.raises(Interrupted):
        jaxgpt.train(fast, out=tmp_path / "run", quiet=True, stop=stop_after(3))
    resumed = jaxgpt.resume(tmp_path / "run", quiet=True)
    assert_same_weights(resumed, whole)
    assert untimed(resumed.metrics) == untimed(whole.metrics)


def test_a_text_on_the_host_trains_the_same_model(whole, config, tmp_path, stop_after, monkeypatch):
    monkeypatch.setattr(feed, "DEVICE_TEXT_BYTES", 0)
    with pytest.raises(Interrupted):
        jaxgpt.train(config, out=tmp_path / "run", quiet=True, stop=stop_after(6))
    resumed = jaxgpt.resume(tmp_path / "run", quiet=True)
    for a, b in zip(leaves(resumed), leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert [row["train_loss"] for row in resumed.metrics[1:]] == pytest.approx(
        [row["train_loss"] for row in whole.metrics[1:]], abs=1e-5
    )


@pytest.mark.parametrize("device_bytes", [0, 2**30])
def test_token_files_train_the_same_model_as_their_text_and_go_on_with_it(
    device_bytes, whole, config, tmp_path, stop_after, monkeypatch
):
    prepare(config.data, tmp_path / "tokens", "char", quiet=True)
    monkeypatch.setattr(feed, "DEVICE_TEXT_BYTES", device_bytes)
    with pytest.raises(Interrupted):
        jaxgpt.train(override(config, data=tmp_path / "tokens"), out=tmp_path / "run", quiet=True, stop=stop_after(6))
    resumed = jaxgpt.resume(tmp_path / "run", quiet=True)
    for a, b in zip(leaves(resumed), leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert resumed.tokenizer == whole.tokenizer
    assert jaxgpt.resume(tmp_path / "run", data=config.data, max_steps=9, quiet=True).step == 9


def test_token_files_bring_their_tokenizer(config, text, tmp_path, capsys):
    prepare(config.data, tmp_path / "tokens", "bpe", 300, val_share=0.2, quiet=True)
    run = jaxgpt.train(override(config, data=tmp_path / "tokens", max_steps=1), out=tmp_path / "run")
    assert (run.config.tokenizer, run.config.model.vocab_size) == ("bpe", 300)
    assert "to validate (the last 20 %), 300 different ones" in capsys.readouterr().out
    prepare(config.data, tmp_path / "other", "bpe", 290, quiet=True)
    with pytest.raises(UserError, match=r"other is no longer the text that"):
        jaxgpt.resume(tmp_path / "run", data=tmp_path / "other", max_steps=2, quiet=True)


def test_a_run_without_replacement_is_another_one_and_goes_on_bit_for_bit(whole, config, tmp_path, stop_after):
    shuffled = override(config, replacement=False)
    straight = jaxgpt.train(shuffled, out=tmp_path / "straight", quiet=True)
    assert not any(np.array_equal(a, b) for a, b in zip(leaves(straight), leaves(whole), strict=True))
    with pytest.raises(Interrupted):
        jaxgpt.train(shuffled, out=tmp_path / "run", quiet=True, stop=stop_after(3))
    assert_same_weights(jaxgpt.resume(tmp_path / "run", quiet=True), straight)


def test_a_request_to_stop_before_the_first_update_leaves_nothing_to_resume(config, tmp_path):
    stop = Stop()
    stop.signal_number = signal.SIGINT
    with pytest.raises(Interrupted, match=r"stopped before a step was done, in .*run") as caught:
        jaxgpt.train(config, out=tmp_path / "run", quiet=True, stop=stop)
    assert caught.value.signal_number == signal.SIGINT
    assert not RunFolder(tmp_path / "run").has_checkpoint()


def test_rows_after_the_checkpoint_are_dropped(whole, config, tmp_path, stop_after):
    with pytest.raises(Interrupted):
        jaxgpt.train(config, out=tmp_path / "run", quiet=True, stop=stop_after(6))
    folder = RunFolder(tmp_path / "run")
    for step in (7, 8):  # as when a run is killed between a row and the next checkpoint
        folder.append_row({"step": step, "train_loss": 99.0, "val_loss": 99.0})
    with folder.metrics.open("a") as file:
        file.write('{"step": 9, "tra')
    assert untimed(jaxgpt.resume(folder.path, quiet=True).metrics) == untimed(whole.metrics)


def test_a_request_to_stop_at_the_last_update_lets_the_run_end(whole, config, tmp_path, stop_after):
    assert_same_weights(jaxgpt.train(config, out=tmp_path / "run", quiet=True, stop=stop_after(8)), whole)


@pytest.mark.slow
def test_sigterm_stops_train_py_and_resume_goes_on_bit_for_bit(config, tmp_path):
    changes = {"data": config.data, "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 4}
    changes |= {"dtype": "float16", "micro_batches": 2, "max_steps": 1200, "eval_interval": 600, "log_interval": 10}
    changes |= {"eval_windows": 8, "sample_tokens": 0}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in changes.items()]
    command = [sys.executable, str(ROOT / "train.py")]
    outside = {"cwd": tmp_path, "env": ENVIRONMENT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*command, "--preset=cpu", "--out=run", *flags], **outside)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, err
    assert "python train.py --resume run\n" in err
    assert "Traceback" not in err
    assert "\x1b" not in out + err
    assert 3 < jaxgpt.load(tmp_path / "run").step < 1200

    resumed = subprocess.run([*command, "--resume", "run"], **outside)
    assert resumed.returncode == 0, resumed.stderr
    straight = jaxgpt.train(jaxgpt.preset("cpu", **changes), out=tmp_path / "straight", quiet=True)
    assert_same_weights(jaxgpt.load(tmp_path / "run"), straight)
    assert untimed(jaxgpt.load(tmp_path / "run").metrics) == untimed(straight.metrics)
    assert len({row["loss_scale"] for row in straight.metrics}) > 1  # it moved, so its counter was resumed too
    assert straight.metrics[-1]["final_val_loss"] < straight.metrics[0]["train_loss"] - 0.5


def test_training_works_outside_the_main_thread_and_in_another_folder(whole, config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = []
    thread = threading.Thread(target=lambda: runs.append(jaxgpt.train(config, out="run", quiet=True)))
    thread.start()
    while thread.is_alive() and not Path("run").exists():
        time.sleep(0.001)
    (tmp_path / "elsewhere").mkdir()
    os.chdir(tmp_path / "elsewhere")
    thread.join()
    assert_same_weights(runs[0], whole)
    assert untimed(runs[0].metrics) == untimed(whole.metrics)
    assert runs[0].path == tmp_path / "run"


def test_a_finished_run_is_not_resumed(copy):
    with pytest.raises(UserError, match="has done its 8 steps; to go on, give a larger `max_steps`"):
        jaxgpt.resume(copy, quiet=True)


def test_a_finished_run_goes_on_to_a_later_end(copy, whole):
    longer = jaxgpt.resume(copy, max_steps=10, quiet=True)
    assert longer.step == jaxgpt.load(copy).step == 10
    assert longer.config == override(whole.config, max_steps=10) == RunFolder(copy).read()[0]
    assert untimed(longer.metrics[:8]) == untimed(whole.metrics)
    assert [row["step"] for row in longer.metrics[8:]] == [9, 10]
    assert "final_val_loss" in longer.metrics[-1]


def test_an_interrupted_run_to_a_later_end_knows_that_end(copy, stop_after):
    with pytest.raises(Interrupted):
        jaxgpt.resume(copy, max_steps=10, quiet=True, stop=stop_after(9))
    assert jaxgpt.resume(copy, quiet=True).step == 10


# The text of a run that goes on


@pytest.mark.parametrize("change", [lambda text: text[::-1], lambda text: text + "é"], ids=["order", "new character"])
def test_a_run_is_not_resumed_on_another_text(change, copy, text, tmp_path):
    (tmp_path / "other.txt").write_text(change(text), "utf-8")
    with pytest.raises(UserError, match=r"other\.txt is no longer the text that"):
        jaxgpt.resume(copy, data=tmp_path / "other.txt", max_steps=10, quiet=True)


def test_a_run_goes_on_where_its_text_has_moved(copy, text, tmp_path, monkeypatch):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"data": str(tmp_path / "gone.txt")}))
    (tmp_path / "moved.txt").write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"gone\.txt"):
        jaxgpt.resume(copy, max_steps=10, quiet=True)
    assert jaxgpt.resume(copy, data="moved.txt", max_steps=9, quiet=True).config.data == str(tmp_path / "moved.txt")


def test_a_path_of_the_text_is_kept_whole(config, text, tmp_path, monkeypatch, stop_after):
    (tmp_path / "text.txt").write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Interrupted):
        jaxgpt.train(override(config, data="text.txt"), out="run", quiet=True, stop=stop_after(4))
    monkeypatch.chdir("/")
    assert jaxgpt.resume(tmp_path / "run", quiet=True).step == 8


# What is refused


def test_a_config_that_was_changed_since_the_checkpoint_is_refused_by_the_fields_name(copy):
    config = json.loads((copy / "config.json").read_text())
    config["seed"] = 7
    config["model"]["n_head"] = 4
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json was changed .*: seed was 1337 and is 7, n_head was 2 and is 4"):
        jaxgpt.resume(copy, max_steps=10, quiet=True)
    with pytest.raises(UserError, match="n_head was 2 and is 4"):
        jaxgpt.load(copy)


def test_a_run_that_is_being_trained_is_not_resumed(copy):
    weights = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with RunFolder(copy).lock(), pytest.raises(UserError, match="copy is being trained by another process"):
        jaxgpt.resume(copy, max_steps=10, quiet=True)
    assert {path: path.read_bytes() for path in weights} == weights
    assert jaxgpt.resume(copy, max_steps=9, quiet=True).step == 9


def test_a_text_shorter_than_a_window_is_refused_before_a_folder_is_made(config, text, tmp_path):
    validation = len(text) - int(0.9 * len(text))
    with pytest.raises(UserError, match="the text is too short"):
        jaxgpt.train(override(config, block_size=validation), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_the_shortest_text_has_a_window_and_the_target_of_its_last_token_to_validate():
    def dataset(n: int) -> Dataset:
        return Dataset(CharTokenizer("ab"), *batches.split(np.zeros(n, np.uint16)), "")

    train._check_length(dataset(170), 16)  # 17 to validate
    with pytest.raises(UserError, match=r"of its 160 characters 16 are for validation, .* needs 17"):
        train._check_length(dataset(160), 16)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokenizer": "bpe", "vocab_size": 300}, "no soft targets: they are for characters and bytes"),
        ({"remat": True}, "no soft targets: they do not go with `remat`"),
        ({}, "no soft targets: they might take 0.0 GB for this text"),
    ],
    ids=["byte pairs", "remat", "large"],
)
def test_where_no_soft_targets_can_be_a_run_says_so_and_has_none(changes, said, config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "SOFT_TARGETS", 2**29 if changes else 1000)
    config = override(config, max_steps=1, eval_interval=1, **changes)
    run = jaxgpt.train(override(config, soft_targets=0.5), out=tmp_path / "run")
    assert capsys.readouterr().out.startswith(f"{said}\n\n")
    assert run.config.soft_targets == 0
    assert_same_weights(run, jaxgpt.train(config, out=tmp_path / "other", quiet=True))


@pytest.mark.parametrize("replacement", [True, False])
def test_an_interrupted_run_with_soft_targets_goes_on_bit_for_bit(replacement, config, tmp_path, stop_after):
    soft = override(config, soft_targets=0.5, replacement=replacement)
    whole = jaxgpt.train(soft, out=tmp_path / "whole", quiet=True)
    with pytest.raises(Interrupted):
        jaxgpt.train(soft, out=tmp_path / "run", quiet=True, stop=stop_after(3))
    with pytest.raises(UserError, match="no soft targets: they do not go with `remat`"):
        jaxgpt.resume(tmp_path / "run", quiet=True, remat=True)
    run = jaxgpt.resume(tmp_path / "run", quiet=True)
    assert_same_weights(run, whole)
    assert untimed(run.metrics) == untimed(whole.metrics)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vocab_size": 7}, "`vocab_size` is 7, but the text has [0-9]+ different characters"),
        ({"architecture": "gtp"}, "no `architecture` 'gtp': did you mean 'gpt'"),
        ({"tokenizer": "chars"}, "'chars': did you mean 'char'"),
        ({"data": "nowhere.txt"}, r"nowhere\.txt"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_trained_is_refused_before_a_folder_is_made(changes, said, config, tmp_path):
    with pytest.raises(UserError, match=said):
        jaxgpt.train(override(config, **changes), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_an_empty_folder_is_taken_and_another_is_not(config, tmp_path, whole):
    (tmp_path / "empty").mkdir()
    assert_same_weights(jaxgpt.train(config, out=tmp_path / "empty", quiet=True), whole)
    before = RunFolder(tmp_path / "empty").metrics.read_bytes()
    with pytest.raises(UserError, match=r"empty exists and is not overwritten: choose another `out`, or `resume` it"):
        jaxgpt.train(config, out=tmp_path / "empty", quiet=True)
    assert RunFolder(tmp_path / "empty").metrics.read_bytes() == before


def test_a_run_may_have_any_name(config, text, tmp_path, monkeypatch, capsys):
    name = '-[gpt] $x_$ 100% it\'s "so" 日本 *?'
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / name)
    data = Path(f"{name}.txt")
    data.write_text(text, "utf-8")
    run = jaxgpt.train(override(config, data=data, max_steps=2, eval_interval=1), out=name)
    shown = capsys.readouterr().out
    assert f"{name}, 2 steps" in shown
    assert "no picture" not in shown
    assert (Path(name) / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert_same_weights(jaxgpt.load(name), run)
    assert jaxgpt.resume(name, max_steps=3, quiet=True).step == 3


def test_a_library_call_prints_nothing_when_quiet_and_leaves_no_thread(config, copy, capfd, stop_after):
    with pytest.raises(Interrupted):
        jaxgpt.resume(copy, max_steps=10, quiet=True, stop=stop_after(9))
    assert capfd.readouterr() == ("", "")


def test_numbers_and_paths_of_other_kinds_are_taken(config, text_file):
    changed = override(config, seed=np.int64(2), learning_rate=np.float32(0.5), data=text_file)
    assert (changed.seed, changed.learning_rate, changed.data) == (2, 0.5, str(text_file))
    assert [type(v) for v in (changed.seed, changed.learning_rate, changed.data)] == [int, float, str]


def test_a_run_survives_being_copied(copy, whole, tmp_path):
    shutil.move(copy, tmp_path / "moved")
    assert_same_weights(jaxgpt.resume(tmp_path / "moved", max_steps=9, quiet=True), jaxgpt.load(tmp_path / "moved"))


def test_a_checkpoint_of_a_format_to_come_is_told(copy):
    progress = copy / "checkpoints" / "8" / "progress" / "metadata"
    assert json.loads(progress.read_text())["format"] == 2
    progress.write_text(json.dumps(json.loads(progress.read_text()) | {"format": 3, "colour": "blue"}))
    (copy / "checkpoints" / "8" / "manifest.json").unlink()
    for go_on in (jaxgpt.load, jaxgpt.resume):
        with pytest.raises(UserError, match="copy was saved by a newer version of jaxgpt"):
            go_on(copy)
