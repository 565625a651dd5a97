"""The command `sample.py`: what it asks of a run, and what it prints."""

import json

import numpy as np
import pytest

from jaxgpt.cli import sample
from jaxgpt.runs import pretrained, run


@pytest.fixture
def here(whole, tmp_path, monkeypatch):
    """A folder with a run, which is the newest."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "cpu").symlink_to(whole.path)
    return tmp_path


def printed(capsys, *arguments: str) -> str:
    assert sample.main(["--tokens", "30", *arguments]) == 0
    return capsys.readouterr().out


def test_an_object_a_line_has_all_that_a_program_needs(here, capsys, whole):
    lines = printed(capsys, "--prompt", "ROMEO:", "--samples", "2", "--json").splitlines()
    rows = [json.loads(line) for line in lines]
    expected = whole.completions("ROMEO:", tokens=30, samples=2, temperature=0.8)
    assert [list(row) for row in rows] == [["prompt", "text", "tokens", "logprobs", "finish_reason"]] * 2
    for row, one in zip(rows, expected, strict=True):
        assert (row["prompt"], row["text"], row["finish_reason"]) == ("ROMEO:", one.text, "length")
        assert row["tokens"] == one.tokens.tolist()
        np.testing.assert_allclose(row["logprobs"], one.logprobs, atol=1e-6)


def test_what_is_printed_for_programs_is_ascii_whatever_the_text(here, capsys, monkeypatch):
    odd = run.Completion("é\n\ud800", "日", np.array([1]), np.array([-0.5], np.float32), "stop")
    monkeypatch.setattr(run.Run, "completions", lambda *_, **__: [odd])
    out = printed(capsys, "--json")
    assert out.isascii()
    assert out.count("\n") == 1
    assert json.loads(out) == {
        "prompt": "é\n\ud800",
        "text": "日",
        "tokens": [1],
        "logprobs": [-0.5],
        "finish_reason": "stop",
    }


def test_writing_stops_before_any_of_several_texts(here, capsys, whole):
    text = whole.generate("ROMEO:", tokens=30, temperature=0.8)
    stop = text[20:22]
    assert printed(capsys, "--prompt", "ROMEO:", "--stop", "###", stop) == text[: text.index(stop, 6)] + "\n"
    row = json.loads(printed(capsys, "--prompt", "ROMEO:", "--stop", stop, "--json"))
    assert (row["text"], row["finish_reason"]) == (text[6 : text.index(stop, 6)], "stop")


def test_several_files_are_several_prompts_each_as_if_it_were_alone(here, capsys):
    (here / "one.txt").write_text("ROMEO:", "utf-8")
    (here / "two.txt").write_text("the night is", "utf-8")
    alone = [printed(capsys, "--prompt-file", name) for name in ("one.txt", "two.txt")]
    headings = [f"{'─' * 24} {i}\n" for i in (1, 2)]
    both = printed(capsys, "--prompt-file", "one.txt", "two.txt")
    assert both == headings[0] + alone[0] + headings[1] + alone[1]
    rows = [json.loads(line) for line in printed(capsys, "--prompt-file", "one.txt", "two.txt", "--json").splitlines()]
    assert [row["prompt"] + row["text"] + "\n" for row in rows] == alone


def test_a_prompt_in_a_file_is_one_prompt_whatever_its_lines(here, capsys):
    (here / "prompt.txt").write_text("ROMEO:\nmy lord\n\nJULIET:\n")
    rows = [json.loads(line) for line in printed(capsys, "--prompt-file", "prompt.txt", "--json").splitlines()]
    assert [row["prompt"] for row in rows] == ["ROMEO:\nmy lord\n\nJULIET:\n"]


def test_the_type_of_the_weights_can_be_chosen(here, capsys, monkeypatch):
    asked = []
    cast = run.Run.cast
    monkeypatch.setattr(run.Run, "cast", lambda self, weights: asked.append(weights) or cast(self, weights))
    printed(capsys, "--weights", "bfloat16")
    assert asked[-1] == "bfloat16"
    assert sample.main(["--weights", "int8"]) == 2
    assert "--weights is one of float32, bfloat16, float16, not 'int8'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gpt2", "gpt2-xl", "someone/model", "theirs"])
def test_a_model_of_others_is_asked_for_by_its_folder_or_its_name(name, here, capsys, whole, monkeypatch):
    (here / "theirs").mkdir()
    asked = []
    monkeypatch.setattr(pretrained, "load_pretrained", lambda *what: asked.append(what) or whole)
    printed(capsys, "--run", name)
    assert [(str(path), which) for path, which in asked] == [(name, "newest")]


@pytest.mark.parametrize("slip", ["cpu", "runs/cpuu"])
def test_a_slip_in_a_runs_name_is_told_with_the_runs_that_there_are(slip, here, capsys):
    assert sample.main(["--run", slip]) == 2
    assert f"{slip} is not a run: it has no config.json (runs here: runs/cpu)" in capsys.readouterr().err
