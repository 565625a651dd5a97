"""From what a command does to its exit code and the one line that it says."""

import errno
import io
import os
import runpy
import sys
from pathlib import Path

import pytest

import jaxgpt
from jaxgpt.cli.command import program, run_command, say
from jaxgpt.cli.flags import HELP, Flag

ROOT = Path(__file__).parent.parent
GROUPS = {"all": [Flag("n_head", int, 4, "Heads."), Flag("out", Path, None, "A folder."), HELP]}


@pytest.fixture
def outcome(capsys):
    """`outcome(error)`: exit code and standard error of a command that ends so."""

    def outcome(error: BaseException | None, arguments=()) -> tuple[int, str]:
        def command(given):
            if error is not None:
                raise error

        code = run_command(command, GROUPS, list(arguments))
        return code, capsys.readouterr().err

    return outcome


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (None, 0, ""),
        (
            jaxgpt.UserError("`n_head` (3) is odd: choose another `out`"),
            2,
            "error: --n-head (3) is odd: choose another --out\n",
        ),
        (jaxgpt.Interrupted("stopped, in runs/x", 15), 143, "stopped, in runs/x\n"),
        (KeyboardInterrupt(), 130, ""),
        (BrokenPipeError(), 0, ""),
        (jaxgpt.Diverged("try fewer `n_head`"), 1, "error: try fewer --n-head\n"),
        (OSError("the checkpoint could not be written"), 1, "error: the checkpoint could not be written\n"),
        (MemoryError(), 1, "error: out of memory: try a smaller"),
        (
            RuntimeError("INTERNAL: Error dispatching computation: Out of memory allocating 256 bytes."),
            1,
            "error: out of memory: try a smaller",
        ),
    ],
)
def test_every_end_has_its_code_and_its_line(error, code, said, outcome):
    got, err = outcome(error)
    assert got == code
    assert err.startswith(said)
    assert err.count("\n") <= 1


@pytest.mark.parametrize(
    ("number", "code", "advice"),
    [
        (errno.ENOTDIR, 2, "choose another path"),
        (errno.EEXIST, 2, "choose another path"),
        (errno.EROFS, 1, "choose a place that you may write to"),
        (errno.EACCES, 1, "choose a place that you may write to"),
        (errno.ENOSPC, 1, "make room there"),
        (errno.EIO, 1, ""),
    ],
)
def test_an_error_of_the_system_comes_with_advice(number, code, advice, outcome):
    got, err = outcome(OSError(number, os.strerror(number), "runs/x"))
    assert got == code
    assert err.startswith(f"error: runs/x: {os.strerror(number)}")
    assert advice in err
    assert err.count("\n") == 1


def test_a_fault_of_the_code_keeps_its_traceback(outcome):
    with pytest.raises(RuntimeError, match="a bug"):
        outcome(RuntimeError("a bug"))


def test_wrong_flags_never_reach_the_command(outcome):
    code, err = outcome(AssertionError("it ran"), ["--n-haed", "3"])
    assert (code, err) == (2, "error: there is no flag --n-haed: did you mean --n-head?\n")


def test_a_stream_that_is_closed_is_no_error():
    stream = io.StringIO()
    stream.close()
    say("hello", stream)


def test_output_that_waits_for_a_closed_pipe_is_dropped():
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stream:
        stream.write("not yet flushed")
        say("hello", stream)
        stream.write("more")  # and closing it is no error


@pytest.mark.parametrize("name", ["train", "sample"])
def test_a_mistake_leaves_a_session_alive_that_runs_the_script(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--bogus"])
    with pytest.raises(SystemExit) as end:  # as %run in IPython
        runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: there is no flag --bogus: --help lists them\n"


def test_commands_are_called_as_they_are_installed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/work/train.py"])
    assert program("sample") == "python sample.py"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/jaxgpt-train"])
    assert program("sample") == "jaxgpt-sample"
