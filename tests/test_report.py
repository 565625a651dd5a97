"""What a person sees: plain where the output is no terminal, nothing when quiet, and a run that outlives its reader."""

import io
import re
import sys
from types import SimpleNamespace

import jax
import pytest
from rich.console import Console

from jaxgpt.device import sharding
from jaxgpt.presets import preset
from jaxgpt.runs import report

ROW = {"step": 3, "train_loss": 2.5, "step_seconds": 0.5, "tokens_per_second": 1234.4}


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves `clock.now`."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(report, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def tell_everything(reporter: report.Report, clock) -> None:
    clock.now += report.PLAIN_SECONDS + 1
    with reporter:
        reporter.banner({"device": "CPU", "data": "[bold]text[/bold]"})
        reporter.step(ROW, 100)
        reporter.evaluation(3, 2.25, 2.125, True, "ROMEO:\n\n[red]soft[/red] … 日\n")
        reporter.note("done")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "0 s"),
        (42.4, "42 s"),
        (59.6, "1 min 00 s"),
        (425, "7 min 05 s"),
        (3599.7, "1 h 00 min"),
        (12_000, "3 h 20 min"),
        (360_000, "100 h 00 min"),
    ],
)
def test_durations_are_in_words(seconds, words):
    assert report.duration(seconds) == words


def test_a_plural_is_for_more_than_one():
    assert [report.count(n, "step") for n in (1, 2, 2000)] == ["1 step", "2 steps", "2,000 steps"]
    assert report.count(2, "micro-batch", "micro-batches") == "2 micro-batches"


def test_plain_output_has_all_facts_and_no_escape_codes(capsys, clock):
    tell_everything(report.Report(), clock)
    out, err = capsys.readouterr()
    for fact in (
        "device  CPU",
        "[bold]text[/bold]",
        "step 3/100",
        "2.2500",
        "2.1250",
        "│ [red]soft[/red] … 日",
        "done",
    ):
        assert fact in out
    assert "\x1b" not in out
    assert err == ""


def test_quiet_prints_nothing(capsys, clock):
    tell_everything(report.Report(quiet=True), clock)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii"])
def test_what_a_console_cannot_show_is_replaced(encoding, monkeypatch, clock):
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", output)
    tell_everything(report.Report(), clock)
    output.flush()
    shown = output.buffer.getvalue().decode(encoding)
    assert "soft[/red]" in shown
    assert "done" in shown


class Closed(io.StringIO):
    """An output that nobody reads any more."""

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_reader_who_goes_away_ends_the_report_and_not_the_run(terminal, clock):
    reporter = report.Report()
    reporter.console = report._Console(file=Closed(), force_terminal=terminal)
    tell_everything(reporter, clock)
    assert reporter.console.quiet


def test_after_the_first_update_plain_progress_lines_are_far_apart(capsys, clock):
    reporter = report.Report()
    for step in range(1, 2 * report.PLAIN_SECONDS + 3):  # a step a second
        clock.now += 1
        reporter.step(ROW | {"step": step}, 1000)
    steps = [int(line.split()[1].split("/")[0]) for line in capsys.readouterr().out.splitlines()]
    assert steps == [1, report.PLAIN_SECONDS + 1, 2 * report.PLAIN_SECONDS + 2]


def test_an_evaluation_stands_for_a_plain_progress_line(capsys, clock):
    reporter = report.Report()
    clock.now += report.PLAIN_SECONDS
    reporter.evaluation(3, 2.0, 2.0, False, "")
    clock.now += report.PLAIN_SECONDS
    reporter.step(ROW, 100)
    assert "3/100" not in capsys.readouterr().out


def test_the_progress_line_tells_loss_time_left_and_speed(capsys, clock):
    reporter = report.Report()
    clock.now += report.PLAIN_SECONDS + 1
    reporter.step(ROW, 123)
    assert capsys.readouterr().out == "step 3/123  loss 2.5000  1 min 00 s left  1,234 tokens/s\n"


def test_a_narrow_terminal_shows_what_matters_most_and_that_whole():
    parts = report.progress_parts(ROW, 123)
    lines = [report.progress_line(parts, 0.25, width).plain for width in (100, 72, 50, 40, 25, 5)]
    assert lines == [
        f"step 3/123  {'━' * 24}  loss 2.5000  1 min 00 s left  1,234 tokens/s",
        "step 3/123  loss 2.5000  1 min 00 s left  1,234 tokens/s",
        "step 3/123  loss 2.5000  1 min 00 s left",
        "step 3/123  loss 2.5000",
        "step 3/123  loss 2.5000",
        "step 3/123",
    ]


def test_a_terminal_gets_a_live_line_and_its_cursor_back(clock):
    terminal = io.StringIO()
    with report.Report() as reporter:
        reporter.console = Console(file=terminal, force_terminal=True, width=100)
        clock.now += 1
        reporter.step(ROW, 100)
        assert "step 3/100" in terminal.getvalue()
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")  # shown after hidden


def test_a_notebooks_cell_gets_plain_lines_and_one_progress_line_that_is_written_over(monkeypatch, capsys, clock):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    with report.Report() as reporter:
        for step in (3, 40, 5):
            clock.now += 1
            reporter.step(ROW | {"step": step}, 100)
        reporter.evaluation(5, 2.25, 2.125, True, "")
    told = capsys.readouterr().out
    assert [part for part in told.split("\r") if part.strip()][:2] == [
        "step 3/100  loss 2.5000  48 s left  1,234 tokens/s",
        "step 40/100  loss 2.5000  30 s left  1,234 tokens/s",
    ]
    lines = [re.sub(".*\r", "", line) for line in told.rstrip("\n").split("\n")]
    assert lines == ["step     5  train loss 2.2500  val loss 2.1250"]


def test_a_notebooks_progress_line_covers_a_longer_one(monkeypatch, capsys, clock):
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    reporter = report.Report()
    for parts in (["a long line"], ["short"]):
        clock.now += 1
        reporter.progress(parts, 0.5)
    assert capsys.readouterr().out == "a long line\r           \rshort"


def test_a_long_sample_is_cut_to_a_few_lines(capsys):
    report.Report().evaluation(0, 2.0, 2.0, False, "\n".join(f"line {i}" for i in range(9)))
    shown = capsys.readouterr().out
    assert "line 3" in shown
    assert "line 4" not in shown


# The facts


def facts(name: str, tmp_path, devices: int = 1, micro_batches: int = 1, **changes) -> dict[str, str]:
    config = preset(name, vocab_size=65, data=tmp_path / "text.txt", **changes)
    placement = sharding.place(jax.devices()[:devices], micro_batches)
    return report.facts(
        config, tmp_path / "run", placement, "float32, as asked", "character", (900, 100), "the last 10 %"
    )


def test_a_model_is_described_by_the_sizes_that_it_has(tmp_path):
    shapes = {name: facts(name, tmp_path)["model"] for name in ("bigram", "head", "multihead", "layernorm", "cpu")}
    assert shapes == {
        "bigram": "bigram, 4,225 parameters",
        "head": "head, 7,553 parameters: 32 wide",
        "multihead": "multihead, 7,553 parameters: 4 heads, 32 wide",
        "layernorm": "layernorm, 42,369 parameters: 3 layers, 4 heads, 32 wide",
        "cpu": "gpt, 804,096 parameters: 4 layers, 4 heads, 128 wide",
    }


def test_data_and_run_are_named_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = facts("cpu", tmp_path, max_steps=1)
    assert told["data"] == "text.txt: 900 characters to train on, 100 to validate (the last 10 %), 65 different ones"
    assert told["run"] == "run, 1 step"


def test_a_batch_is_told_as_it_is_shared(tmp_path, monkeypatch):
    assert facts("cpu", tmp_path)["step"] == "768 tokens: 12 windows of 64, 12 at a time"
    assert facts("cpu", tmp_path, 2, 3)["step"] == "768 tokens: 12 windows of 64, 2 at a time on each of 2 cores"
    gpus = SimpleNamespace(platform="gpu", mesh=SimpleNamespace(size=1), shares=1, micro_batches=1)
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    config = preset("cpu", batch_size=13)
    assert re.search(r"13 at a time \(7 of 8 devices are idle: they cannot share", report._shares(config, gpus))
    asked = preset("cpu", batch_size=13, mesh="data=1")
    assert report._shares(asked, gpus) == "13 windows of 64, 13 at a time"
    groups = SimpleNamespace(platform="gpu", mesh=SimpleNamespace(size=8), shares=4, micro_batches=3)
    assert report._shares(preset("cpu"), groups) == "12 windows of 64, 1 at a time on each of 4 groups of 2 devices"


def test_the_result_names_both_losses():
    words = report.result(preset("cpu"), 61, 1.23456, 1500, 1.3)
    assert "2,000 steps in 1 min 01 s. Best val loss 1.2346, after step 1500." in words
    assert "after the last step: 1.3000." in words


def test_control_characters_are_shown_not_obeyed():
    assert report.visible("a\x1b[2J\x00\tb\n\x9b1m é") == "a\ufffd[2J\ufffd\tb\n\ufffd1m é"
