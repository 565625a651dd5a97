"""A run's folder: made once, found again, written whole, read back, and refused where it is damaged."""

import json
import os
import tracemalloc
from pathlib import Path

import pytest

import jaxgpt
from jaxgpt import UserError
from jaxgpt.data import tokenizer
from jaxgpt.data.tokenizer import CharTokenizer
from jaxgpt.runs import folder
from jaxgpt.runs.folder import RunFolder

TOKENIZER = CharTokenizer("\nabc")
FILES = {"config.json", "tokenizer.json", "metrics.jsonl", ".lock"}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder, worked in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(name: str | None = None, saved: bool = True, **changes) -> RunFolder:
    """An untrained run below runs/, by default where it falls, with something like a checkpoint if `saved`."""
    config = jaxgpt.preset("cpu", vocab_size=4, **changes)
    run = folder.new(None if name is None else Path(folder.RUNS, name), config.preset)
    run.create(config, TOKENIZER)
    if saved:
        (run.checkpoints / "4").mkdir(parents=True)
    return run


def complaint(function, *arguments) -> str:
    """The one line that is said."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# A new one


def test_a_new_run_has_its_config_tokenizer_and_metrics(tmp_path):
    config = jaxgpt.preset("cpu", max_steps=5, vocab_size=4)
    run = RunFolder(tmp_path / "deep" / "run")
    run.create(config, TOKENIZER)
    assert {p.name for p in run.path.iterdir()} == FILES
    assert run.read() == (config, TOKENIZER)
    assert list(run.rows()) == []


def test_runs_of_one_preset_are_numbered(here):
    assert [str(make()) for _ in range(3)] == ["runs/cpu", "runs/cpu-2", "runs/cpu-3"]


def test_a_folder_that_exists_is_left_as_it_is_unless_it_is_empty(here):
    (here / "empty").mkdir()
    assert folder.new("empty", "cpu").path == here / "empty"
    (here / "mine").mkdir()
    (here / "mine" / "notes.txt").write_text("keep")
    assert "mine exists and is not overwritten" in complaint(folder.new, "mine", "cpu")
    assert [p.name for p in (here / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("place", ["file.txt", "file.txt/x", "link", "file.txt/../x/\0"])
def test_a_place_that_cannot_be_a_folder_is_refused(place, here):
    (here / "file.txt").touch()
    (here / "link").symlink_to("nowhere")
    before = sorted(here.iterdir())
    config = jaxgpt.preset("cpu", vocab_size=4)
    assert "`out`" in complaint(lambda: folder.new(place, "cpu").create(config, TOKENIZER))
    assert sorted(here.iterdir()) == before


def test_a_file_where_the_runs_should_be_is_told(here):
    Path("runs").touch()
    assert "`out`" in complaint(make)


def test_paths_are_whole_from_the_start_and_shown_short(here, monkeypatch):
    run = RunFolder("runs/cpu")
    assert str(run) == "runs/cpu"
    monkeypatch.chdir("/")
    assert run.metrics == here / "runs" / "cpu" / "metrics.jsonl"
    monkeypatch.setenv("HOME", str(here))
    assert RunFolder("~/x").path == here / "x"


# Which one


def test_the_newest_run_is_the_one_trained_last_that_has_a_checkpoint(here):
    times = {"b": ("cpu", True, 300), "c": ("t4", True, 200), "a": ("t4", True, 100), "d": ("cpu", False, 400)}
    for name, (preset, saved, trained_at) in times.items():
        os.utime(make(name, saved, preset=preset).metrics, (trained_at, trained_at))
    (here / "runs" / "a" / "config.json").touch()  # read since, not trained
    (here / "runs" / "notes").mkdir()
    assert folder.newest().path.name == "b"
    assert folder.newest("t4").path.name == "c"


def test_a_damaged_run_does_not_hide_the_others(here):
    make("sound", preset="t4")
    make("damaged", preset="t4").config.write_text("{")
    assert folder.newest("t4").path.name == "sound"


def test_no_run_yet_is_said(here):
    assert complaint(folder.newest).startswith("there is no run in runs/ yet")
    make(saved=False)
    assert "no run in runs/ has a checkpoint yet" in complaint(folder.newest)
    assert "there is no run of preset 't4' in runs/" in complaint(folder.newest, "t4")


def test_a_folder_that_is_no_run_names_a_few_of_those_there_are(here):
    assert "elsewhere is not a run" in complaint(jaxgpt.load, "elsewhere")
    for i in range(9):
        make(f"run{i}")
    line = complaint(jaxgpt.load, "elsewhere")
    assert "runs/run0, runs/run1" in line
    assert "and 4 more" in line
    assert "run8" not in line


def test_only_one_trains_a_run_at_a_time(here):
    run = make()
    with run.lock():
        assert "runs/cpu is being trained by another process" in complaint(run.lock)
    run.lock().release()


def test_of_those_who_make_one_folder_at_once_one_makes_it(here, monkeypatch):
    config = jaxgpt.preset("cpu", vocab_size=4)
    one, other = RunFolder("run"), RunFolder("run")
    write_rows = one.write_rows

    def write_rows_late(rows) -> None:
        assert "run is being trained by another process" in complaint(other.create, config, TOKENIZER)
        write_rows(rows)

    monkeypatch.setattr(one, "write_rows", write_rows_late)
    one.create(config, TOKENIZER)
    assert "run is a run without a checkpoint" in complaint(other.create, config, TOKENIZER)
    assert one.read() == (config, TOKENIZER)


def test_what_may_be_done_with_a_run_without_a_checkpoint_is_told(here):
    make("killed", saved=False)
    make("saved")
    assert complaint(folder.new, "runs/killed", "cpu").endswith("remove it, or choose another `out`")
    with RunFolder("runs/killed").lock():  # it is not to be removed
        assert "runs/killed is being trained by another process" in complaint(folder.new, "runs/killed", "cpu")
    assert complaint(folder.new, "runs/saved", "cpu").endswith("choose another `out`, or `resume` it")


# Config and tokenizer


DAMAGED = {
    "empty": b"",
    "cut off": b"{",
    "a list": b"[]",
    "not UTF-8": b"\xff",
    "a wrong type": b'{"max_steps": "many"}',
    "an unknown field": b'{"colour": 1}',
    "no possible model": b'{"model": {"n_head": 0}}',
    "too many layers to build": b'{"model": {"n_layer": 100000}}',
    "deep": b"[" * 100_000,
    "a long number": b'{"seed": ' + b"9" * 400 + b"}",
    "a huge text": b'{"dtype": "' + b"x" * 10**7 + b'"}',
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_config_is_named_in_a_short_line(content, here):
    run = make()
    run.config.write_bytes(content)
    line = complaint(run.read)
    assert "runs/cpu/config.json" in line
    assert len(line) < 1000


def test_a_mark_at_the_head_of_a_config_is_none_of_it(here):
    run = make()
    run.config.write_bytes(b"\xef\xbb\xbf" + run.config.read_bytes())
    assert run.read()[0].preset == "cpu"


@pytest.mark.parametrize("content", [b"", b"{}", b'{"kind": "char", "characters": "ba"}', None])
def test_a_damaged_tokenizer_is_named(content, here):
    run = make()
    run.tokenizer.unlink()
    if content is not None:
        run.tokenizer.write_bytes(content)
    assert "tokenizer.json" in complaint(run.read)


@pytest.mark.parametrize("characters", ["\nab", "\nabcd"])
def test_a_tokenizer_of_another_run_is_told(characters, here):
    run = make()
    CharTokenizer(characters).save(run.tokenizer)
    assert f"tokenizer.json has {len(characters)} tokens, but the model of runs/cpu/config.json has 4" in complaint(
        run.read
    )


# Metrics


def test_rows_come_back_as_they_were_written(here):
    run = make()
    run.write_rows([{"step": 9}])
    run.write_rows([{"step": 0, "val_loss": 1 / 3}, {"step": 1, "train_loss": 1e-30}])
    run.append_row({"step": 2})
    assert list(run.rows()) == [{"step": 0, "val_loss": 1 / 3}, {"step": 1, "train_loss": 1e-30}, {"step": 2}]


def test_a_row_may_have_a_sample_and_no_other_text(here):
    run = make()
    sampled = {"step": 1, "val_loss": 2.0, "sample": "ROMEO:\nwhat \udcff light"}
    run.write_rows([sampled, {"step": 2, "note": "what light"}])
    assert list(run.rows()) == [sampled]


def test_numbers_that_json_does_not_have_are_null(here):
    run = make()
    run.append_row({"step": 1, "train_loss": float("nan"), "grad_norm": float("inf")})
    assert json.loads(run.metrics.read_text()) == {"step": 1, "train_loss": None, "grad_norm": None}
    assert list(run.rows()) == [{"step": 1, "train_loss": None, "grad_norm": None}]
    run.write_rows(run.rows())  # as when it goes on
    assert list(run.rows()) == [{"step": 1, "train_loss": None, "grad_norm": None}]


def test_a_file_that_is_not_as_it_was_is_known_and_rows_that_were_added_are_no_change(here):
    run = make()
    run.append_row({"step": 1, "train_loss": 2.5})
    before = run.checksums()
    run.append_row({"step": 2, "train_loss": 2.0})
    assert run.unchanged(run.metrics, before)
    assert run.unchanged(run.tokenizer, before)
    assert run.unchanged(run.tokenizer, None)  # of an older version
    run.metrics.write_bytes(run.metrics.read_bytes().replace(b"2.5", b"2.7"))
    assert not run.unchanged(run.metrics, before)
    run.metrics.unlink()
    assert not run.unchanged(run.metrics, before)
    run.tokenizer.write_bytes(run.tokenizer.read_bytes() + b" ")
    assert not run.unchanged(run.tokenizer, before)


@pytest.mark.parametrize(
    "line", [b"3", b"{}", b'{"st', b'{"step": "x"}', b"[" * 100_000, b'{"step": 1, "loss": \xff}', b"\0" * 50, b""]
)
def test_a_line_that_is_no_row_is_left_out(line, here):
    run = make()
    run.metrics.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    assert list(run.rows()) == [{"step": 1}, {"step": 2}]


def test_no_metrics_are_no_rows(tmp_path):
    assert list(RunFolder(tmp_path).rows()) == []


def test_a_write_that_fails_leaves_what_was_there(here, monkeypatch):
    run = make()
    before = run.config.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run.write_config(jaxgpt.preset("t4", vocab_size=4))
    assert run.config.read_bytes() == before
    assert {p.name for p in run.path.iterdir() if p.is_file()} == FILES


def test_a_folder_that_cannot_be_filled_is_free_again(here, monkeypatch):
    config = jaxgpt.preset("cpu", vocab_size=4)
    run, written = folder.new(None, "cpu"), []

    def full_after_two(path, content):
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device", str(path))
        path.write_bytes(content)

    with monkeypatch.context() as disk:
        disk.setattr(folder, "write_atomically", full_after_two)
        disk.setattr(tokenizer, "write_atomically", full_after_two)
        with pytest.raises(OSError, match="No space left"):
            run.create(config, TOKENIZER)
    assert written == [run.metrics, run.tokenizer, run.config]
    run.create(config, TOKENIZER)
    assert run.read() == (config, TOKENIZER)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "loss.png", ".lock"])
def test_a_run_is_not_written_through_a_link_to_elsewhere(name, here):
    run = make()
    (here / "thesis.txt").write_text("years of work")
    (run.path / name).unlink(missing_ok=True)
    (run.path / name).symlink_to(here / "thesis.txt")
    assert f"{name} is a link" in complaint(run.lock)
    assert (here / "thesis.txt").read_text() == "years of work"


def test_the_rows_of_a_long_run_are_never_all_in_memory(here):
    run = make()
    run.metrics.write_bytes(b'{"step": 1, "train_loss": 2.5, "grad_norm": 0.5}\n' * 20_000)
    tracemalloc.start()
    assert sum(row["step"] for row in run.rows()) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000
