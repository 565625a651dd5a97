"""The page of a run: as a value, in a notebook, and by the command."""

import html
import json
import re
from pathlib import Path

import pytest

import jaxgpt
from jaxgpt import inside as command
from jaxgpt.pages import record
from jaxgpt.runs.export import export


@pytest.fixture(scope="module")
def page(whole) -> jaxgpt.Page:
    return whole.inside("ROMEO:")


def data_of(content: str) -> dict:
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', content, re.S)
    return json.loads(data)


def test_a_page_is_one_file_that_holds_all_it_needs(page, tmp_path):
    saved = page.save(tmp_path / "page.html")
    content = saved.read_text("utf-8")
    assert content == page.html and content.startswith("<!doctype html>")
    assert data_of(content)["prompt"] == "ROMEO:"
    assert re.findall(r'(?:src|href)="(?!#)|^import |@import|url\(', content, re.M) == []


def test_a_page_is_shown_in_a_line(page):
    assert re.fullmatch(r"<Page of run, 0\.\d MB: page\.save\('inside\.html'\) writes it>", repr(page))


def test_a_notebook_shows_the_page_in_a_frame_that_cannot_touch_it(page):
    shown = page._repr_html_()
    (source,) = re.findall(r'srcdoc="([^"]*)"', shown)
    assert html.unescape(source) == page.html
    assert 'sandbox="allow-scripts"' in shown and 'width="100%"' in shown


# The command


@pytest.fixture
def run_command(whole, page, copy, tmp_path, monkeypatch, capsys):
    """The command in a folder with a run at runs/whole: its exit code, and what it prints. Every page is the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxgpt.cli.process.setup", lambda: None)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    asked = []
    monkeypatch.setattr(jaxgpt.Run, "inside", lambda self, prompt=None: asked.append(prompt) or page)
    Path("runs").mkdir()
    copy.rename("runs/whole")

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = command.main(list(arguments))
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    run.asked = asked
    return run


def test_the_command_writes_the_page_into_the_runs_folder_and_says_how_to_open_it(run_command, page, tmp_path):
    code, said = run_command("--prompt", "ROMEO:")
    assert code == 0
    size = f"{len(page.content) / 1e6:.1f} MB"
    first, last = said.splitlines()
    assert re.fullmatch(r"runs/whole, step 8: a page of about 0\.\d MB, with the model in it", first)
    address = (tmp_path / "runs" / "whole" / "inside.html").as_uri()
    assert last.startswith(f"runs/whole/inside.html, {size}, is written: open {address} in a browser")
    assert Path("runs/whole/inside.html").read_bytes() == page.content
    assert run_command.asked == ["ROMEO:"]
    assert jaxgpt.load("runs/whole").step == 8  # it is a run still


def test_an_earlier_page_is_replaced_and_nothing_else(run_command, page):
    there = Path("runs/whole/inside.html")
    assert run_command()[0] == run_command()[0] == 0
    there.write_text("mine")
    code, said = run_command()
    assert (code, said) == (
        2,
        "error: runs/whole/inside.html is there already, and is no page of jaxgpt's: name another file as --to\n",
    )
    assert there.read_text() == "mine"
    there.unlink()
    there.symlink_to("../../elsewhere.html")
    assert run_command()[0] == 2 and not Path("elsewhere.html").exists()
    Path("mine.html").write_text("mine")
    assert run_command("runs/whole", "--to", "mine.html")[0] == 0
    assert Path("mine.html").read_bytes() == page.content


def test_a_page_of_somebody_elses_model_is_written_here(run_command, whole):
    export(whole, "theirs")
    before = sorted(Path("theirs").iterdir())
    code, said = run_command("theirs", "--checkpoint", "best")
    assert code == 0 and "theirs-inside.html" in said
    assert Path("theirs-inside.html").is_file()
    assert sorted(Path("theirs").iterdir()) == before


def test_what_of_a_prompt_is_not_shown_is_told(run_command):
    code, said = run_command("--prompt", "the night is young and so are we")
    assert (code, said.splitlines()[0]) == (0, "of the prompt's 32 characters, the page shows the last 16")


def test_a_model_that_is_too_large_for_the_page_is_told(run_command, monkeypatch):
    monkeypatch.setattr(record, "MOST_LIVE", 0)
    code, said = run_command()
    assert code == 0 and "with what the model does with one text: it is too large itself\n" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompt", ""], "error: the --prompt is a text of a character at least, not ''\n"),
        (["--prompt", "é"], "error: the training text did not contain 'é'"),
        (["--to", "runs"], "error: runs is a folder: name a file in it as --to\n"),
        (["--to", "no/page.html"], "error: there is no folder no: make it, or name another --to\n"),
        (["nothing"], "error: nothing is not a run: it has no config.json (runs here: runs/whole)\n"),
        (["--promt", "x"], "error: there is no flag --promt: did you mean --prompt?\n"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_in_flags_and_writes_nothing(arguments, said, run_command):
    code, printed = run_command(*arguments)
    assert code == 2
    assert printed.startswith(said)
    assert printed.count("\n") == 1
    assert not list(Path().rglob("*.html"))


def test_help_says_where_the_page_goes(run_command):
    code, page = run_command("--help")
    assert code == 0
    assert "python -m jaxgpt.inside [RUN]" in page
    assert "inside.html in the run's folder" in " ".join(page.split())
