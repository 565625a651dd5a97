"""What a person sees: plain where the output is no terminal, nothing when quiet, files that can be read."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from jaxgpt.runs import report, run

ROW = {"step": 3, "train_loss": 2.5, "step_seconds": 0.5, "tokens_per_second": 1234.4}


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves `clock.now`."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(report, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def tell_everything(reporter: report.Report) -> None:
    with reporter:
        reporter.banner({"device": "CPU", "data": "[bold]text[/bold]"})
        reporter.step(ROW, 100)
        reporter.evaluation(3, 2.25, 2.125, True, "ROMEO:\n\n[red]soft[/red]\n")
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


def test_plain_output_has_all_facts_and_no_escape_codes(capsys, clock):
    reporter = report.Report()
    clock.now += report.PLAIN_SECONDS + 1
    tell_everything(reporter)
    out, err = capsys.readouterr()
    for fact in ("device  CPU", "[bold]text[/bold]", "step 3/100", "2.2500", "2.1250", "│ [red]soft[/red]", "done"):
        assert fact in out
    assert "\x1b" not in out
    assert err == ""


def test_quiet_prints_nothing(capsys, clock):
    reporter = report.Report(quiet=True)
    clock.now += report.PLAIN_SECONDS + 1
    tell_everything(reporter)
    assert capsys.readouterr() == ("", "")


def test_plain_progress_lines_are_far_apart(capsys, clock):
    reporter = report.Report()
    for step in range(1, 2 * report.PLAIN_SECONDS + 3):  # a step a second
        clock.now += 1
        reporter.step(ROW | {"step": step}, 1000)
    steps = [int(line.split()[1].split("/")[0]) for line in capsys.readouterr().out.splitlines()]
    assert steps == [report.PLAIN_SECONDS + 1, 2 * report.PLAIN_SECONDS + 2]


def test_an_evaluation_stands_for_a_plain_progress_line(capsys, clock):
    reporter = report.Report()
    clock.now += report.PLAIN_SECONDS
    reporter.evaluation(3, 2.0, 2.0, False, "")
    clock.now += report.PLAIN_SECONDS
    reporter.step(ROW, 100)
    assert "3/100" not in capsys.readouterr().out


def test_the_progress_line_tells_loss_speed_and_time_left(capsys, clock):
    reporter = report.Report()
    clock.now += report.PLAIN_SECONDS + 1
    reporter.step(ROW, 123)
    assert capsys.readouterr().out == "step 3/123  loss 2.5000  1,234 tokens/s  1 min 00 s left\n"


def test_a_terminal_gets_a_live_line_and_its_cursor_back(clock):
    terminal = io.StringIO()
    with report.Report() as reporter:
        reporter.console = Console(file=terminal, force_terminal=True, width=100)
        clock.now += 1
        reporter.step(ROW, 100)
        assert "step 3/100" in terminal.getvalue()
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")  # shown after hidden


def test_a_long_sample_is_cut_to_a_few_lines(capsys):
    report.Report().evaluation(0, 2.0, 2.0, False, "\n".join(f"line {i}" for i in range(9)))
    shown = capsys.readouterr().out
    assert "line 3" in shown
    assert "line 4" not in shown


def test_rows_come_back_as_they_were_written(tmp_path):
    report.write_rows(tmp_path, [{"step": 9}])
    report.write_rows(tmp_path, [{"step": 0, "val_loss": 1 / 3}, {"step": 1, "train_loss": 1e-30}])
    report.append_row(tmp_path, {"step": 2})
    assert run.read_metrics(tmp_path) == [
        {"step": 0, "val_loss": 1 / 3},
        {"step": 1, "train_loss": 1e-30},
        {"step": 2},
    ]


@pytest.mark.parametrize("rows", [[{"step": 0, "val_loss": 4.0}, {"step": 1, "train_loss": 3.9}], [ROW]])
def test_the_plot_is_a_png(rows, tmp_path):
    report.plot(rows, "runs/cpu: $text_1", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")
