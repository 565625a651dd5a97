"""A run for other programs: what is written, what is read back, and the command."""

import json
import re
from pathlib import Path

import gguf
import numpy as np
import pytest
from models import MODERN, changed, logits_of, noisy
from tokenizers import Tokenizer as Reader

import jaxgpt
from jaxgpt import UserError
from jaxgpt import export as command
from jaxgpt.data.bpe import BPETokenizer
from jaxgpt.data.tokenizer import CharTokenizer
from jaxgpt.runs import export as exports
from jaxgpt.runs.export import export
from jaxgpt.runs.pretrained import from_huggingface
from jaxgpt.runs.run import Run

HUGGINGFACE = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
CHARACTERS = CharTokenizer("\n abcdefghi")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def made(path: Path, **changes: object) -> Run:
    """A run that was never trained."""
    config = changed(**changes)
    return Run(path, jaxgpt.TrainConfig(model=config), CHARACTERS, noisy(config), 7)


def test_an_export_is_read_back_as_it_was(whole, tmp_path):
    to = export(whole, tmp_path / "out")
    assert to == tmp_path / "out"
    assert names(to) == HUGGINGFACE
    run = from_huggingface(to)
    assert (run.config.model, run.tokenizer) == (whole.config.model, whole.tokenizer)
    tokens = whole.tokenizer.encode("ROMEO:")[None]
    np.testing.assert_array_equal(logits_of(run.model, tokens), logits_of(whole.model, tokens))
    assert run.generate("ROMEO:", tokens=30, seed=1) == whole.generate("ROMEO:", tokens=30, seed=1)


def test_what_gpt2_has_not_travels_with_a_class_for_it(tmp_path):
    to = export(made(tmp_path, **MODERN), tmp_path / "out")
    assert names(to) == HUGGINGFACE | {"modeling_jaxgpt.py"}
    auto_map = json.loads((to / "config.json").read_text())["auto_map"]
    code = (to / "modeling_jaxgpt.py").read_text()
    for name in auto_map.values():
        assert re.search(rf"^class {name.removeprefix('modeling_jaxgpt.')}\(", code, re.M)
    assert "trust_remote_code=True" in (to / "README.md").read_text()


def test_the_tokenizer_travels_with_its_end_of_text(tmp_path):
    bpe = BPETokenizer.train("the night the night", 258)
    config = changed(vocab_size=bpe.vocab_size)
    to = export(Run(tmp_path, jaxgpt.TrainConfig(model=config), bpe, noisy(config), 0), tmp_path / "out")
    described = json.loads((to / "tokenizer_config.json").read_text())
    assert described["eos_token"] == "<|endoftext|>"
    assert json.loads((to / "config.json").read_text())["eos_token_id"] == bpe.end_of_text
    assert Reader.from_file(str(to / "tokenizer.json")).encode("the night").ids == bpe.encode("the night").tolist()


def test_without_an_end_of_text_there_is_none_for_others_either(tmp_path):
    """Where config.json says nothing, transformers would stop at GPT-2's."""
    to = export(made(tmp_path), tmp_path / "out")
    assert json.loads((to / "config.json").read_text())["eos_token_id"] is None
    assert "eos_token" not in json.loads((to / "tokenizer_config.json").read_text())


def test_a_gguf_is_one_file(tmp_path):
    to = export(made(tmp_path), tmp_path / "out", "gguf")
    assert names(to) == {"model.gguf"}
    assert len(gguf.GGUFReader(to / "model.gguf").tensors) == 28


def test_nothing_is_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine", "file").touch()
    Path("file").touch()
    with pytest.raises(UserError, match=r"^mine is not empty, and nothing is overwritten: choose another `to`$"):
        export(made(tmp_path), "mine")
    for taken in ("file", "file/below"):
        with pytest.raises(UserError, match=f"^{taken} cannot be made .*: choose another `to`$"):
            export(made(tmp_path), taken)
    assert names(tmp_path) == {"mine", "file"}


def test_what_fails_leaves_an_empty_folder_that_can_be_used_again(tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "CARD", "{no such field}")
    with pytest.raises(KeyError):
        export(made(tmp_path), tmp_path / "out")
    monkeypatch.undo()
    assert names(tmp_path / "out") == set()
    assert names(export(made(tmp_path), tmp_path / "out")) == HUGGINGFACE


@pytest.mark.parametrize(
    ("changes", "format", "said"),
    [
        ({}, "onnx", "`format` is huggingface or gguf, not 'onnx'"),
        ({"architecture": "head"}, "huggingface", "head is a rung of the ladder, which only jaxgpt has: export a gpt"),
        ({"architecture": "head"}, "gguf", "head is a rung of the ladder"),
        ({"activation": "relu"}, "gguf", "llama.cpp's gpt2 has no `activation` relu: train without"),
    ],
    ids=str,
)
def test_what_cannot_be_exported_is_one_line(changes, format, said, tmp_path):
    with pytest.raises(UserError) as caught:
        export(made(tmp_path, **changes), tmp_path / "out", format)
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


# The command


@pytest.fixture
def run_command(whole, tmp_path, monkeypatch, capsys):
    """The command in a folder with the whole run: its exit code, and what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("jaxgpt.cli.process.setup", lambda: None)
    Path("runs").mkdir()
    Path("runs", "whole").symlink_to(whole.path)

    def run(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        code = command.main(list(arguments))
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def test_the_command_says_what_it_wrote_and_how_to_load_it(run_command):
    code, said = run_command("runs/whole", "--to", "out", "--checkpoint", "best")
    assert code == 0
    assert said.splitlines() == [
        "runs/whole, step 8, is written to out",
        'transformers.GPT2LMHeadModel.from_pretrained("out")',
    ]
    assert names(Path("out")) == HUGGINGFACE


def test_the_command_takes_the_newest_run_and_folders_of_others(run_command):
    assert run_command("--to", "first")[0] == 0
    code, said = run_command("first", "--to", "second", "--format", "gguf")
    assert (code, said) == (0, "first, step 0, is written to second\nllama-cli -m second/model.gguf -n 100\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["runs/whole"], "error: --to is missing: the folder to write\n"),
        (["runs/whole", "--to", "runs"], "error: runs is not empty, and nothing is overwritten: choose another --to\n"),
        (["runs/whole", "--to", "x", "--format", "onnx"], "error: --format is one of huggingface, gguf, not 'onnx'\n"),
        (["nothing", "--to", "x"], "error: nothing is not a run: it has no config.json (runs here: runs/whole)\n"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_in_flags(arguments, said, run_command):
    code, printed = run_command(*arguments)
    assert code == 2
    assert printed.startswith(said)
    assert printed.count("\n") == 1


def test_help_explains_every_flag(run_command):
    code, page = run_command("--help")
    assert code == 0
    assert "python -m jaxgpt.export [RUN] --to FOLDER" in page
    assert {"--run PATH", "--to PATH", "--format huggingface|gguf", "--checkpoint newest|best"} <= set(
        re.findall(r"--[a-z]+ [A-Za-z|]+", page)
    )
