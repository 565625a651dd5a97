"""The line that tells how far a long text is: right, and only where there is something to wait for."""

from types import SimpleNamespace

import pytest

from jaxgpt.runs import progress, report
from jaxgpt.runs.progress import Progress
from jaxgpt.runs.report import Report


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A time that stands until it is moved."""
    time = SimpleNamespace(now=0.0)
    time.monotonic = lambda: time.now
    monkeypatch.setattr(progress, "time", time)
    monkeypatch.setattr(report, "time", time)
    return time


def test_a_text_that_is_read_in_a_moment_is_read_in_silence(clock, capsys):
    told = Progress(Report(), "encoding", "MB")
    for second in range(2):
        clock.now = second
        told(10**6, 10**6)
    assert capsys.readouterr().out == ""


def test_how_much_is_done_how_fast_and_how_long_it_will_take(clock, capsys):
    told = Progress(Report(), "encoding", "MB")
    for second in range(90):
        clock.now = second
        told(second * 10**6, 400 * 10**6)
    assert capsys.readouterr().out.splitlines() == [
        "encoding 8%  6 min 09 s left  1.0 MB/s",
        "encoding 16%  5 min 38 s left  1.0 MB/s",
    ]


def test_what_was_done_before_takes_no_time(clock, capsys):
    told = Progress(Report(), "encoding", "MB", done=300 * 10**6)
    clock.now = 50.0
    told(350 * 10**6, 400 * 10**6)
    assert capsys.readouterr().out == "encoding 88%  50 s left  1.0 MB/s\n"


def test_an_unknown_length_is_no_trouble_and_quiet_is_quiet(clock, capsys):
    clock.now = 0.0
    told, quiet = Progress(Report(), "encoding", "MB"), Progress(Report(quiet=True), "encoding", "MB")
    clock.now = 50.0
    told(50 * 10**6, 0)
    assert capsys.readouterr().out == "encoding 0%  0 s left  1.0 MB/s\n"
    quiet(50 * 10**6, 100 * 10**6)
    assert capsys.readouterr().out == ""
