"""What the README tells people to type works."""

import json
import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import zstandard

import jaxgpt
from jaxgpt.cli import sample, train
from jaxgpt.runs.export import export

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
LINES = [line.split("  #")[0] for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]
COMMANDS = [part.strip() for line in LINES for part in line.split("&&")]
SMALL = "--n-layer 1 --n-head 1 --n-embd 8 --block-size 8 --batch-size 2 --max-steps 2 --eval-windows 2 --dropout 0"
FEW = ["--batch-size", "2", "--max-steps", "2", "--eval-windows", "2"]  # of weights that are small already
SHAKESPEARE = (
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\nKING RICHARD:\nWhat, is it you?\n\n"
    "ROMEO:\nIt is, it is I, my lord. To be, or not to be.\n\n"
) * 20


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the files that the commands name, and the small text instead of tiny Shakespeare."""
    monkeypatch.chdir(tmp_path)
    for folder in ("books", "huge"):
        Path(folder).mkdir()
    for name in ("my_novel.txt", "other.txt", "books/one.txt"):
        Path(name).write_text(SHAKESPEARE, "utf-8")
    lines = zstandard.compress((json.dumps({"text": SHAKESPEARE}) + "\n").encode())
    for name in ("notes.jsonl.zst", "huge/one.jsonl.zst"):
        Path(name).write_bytes(lines)
    monkeypatch.setattr("jaxgpt.data.tiny_shakespeare.load", lambda: SHAKESPEARE)


@pytest.fixture
def hub(here, monkeypatch):
    """A hub whose models are all one small model, which is in runs/cpu, too."""
    assert train.main(small("python train.py --preset cpu")) == 0
    folder = export(jaxgpt.load("runs/cpu"), "on the hub")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    merges = [(b"i", b"t"), (b" ", b"i"), (b" i", b"s")]
    monkeypatch.setattr("jaxgpt.data.gpt2_vocabulary.load", lambda: merges)


def small(command: str) -> list[str]:
    """The arguments of a train.py command, and small sizes."""
    return [*shlex.split(command)[2:], *shlex.split(SMALL)]


@pytest.mark.slow
def test_the_commands_work_in_turn(hub, capsys):
    for command in COMMANDS:
        arguments = shlex.split(command.replace("4096", "270"))
        if arguments[:2] == ["python", "train.py"]:
            sizes = FEW if "--from" in arguments else ["--max-steps", "3"] if "--resume" in arguments else SMALL.split()
            assert train.main([*arguments[2:], *sizes]) == 0, command
        elif arguments[:2] == ["python", "sample.py"]:
            assert sample.main([*arguments[2:], "--tokens", "9"]) == 0, command
        elif arguments[:2] == ["python", "-m"] and arguments[2] != "venv":
            assert import_module(arguments[2]).main(arguments[3:]) == 0, command
    assert "error" not in capsys.readouterr().err


def test_the_python_example_works(here, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    sizes = dict(
        zip(SMALL.replace("--", "").replace("-", "_").split()[::2], map(int, SMALL.split()[1::2]), strict=True)
    )
    sizes.pop("dropout")
    real = jaxgpt.preset
    monkeypatch.setattr(jaxgpt, "preset", lambda name, **changes: real(name, **{**changes, **sizes}))
    names = {}
    exec(example, names)
    assert "ROMEO:" in capsys.readouterr().out
    assert names["logits"].shape == (1, 6, names["run"].tokenizer.vocab_size)


def test_the_files_that_the_readme_names_exist():
    for name in re.findall(r"requirements[\w-]*\.txt|docs/[\w.-]+", README):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"`(\w+\.py)`", README):
        assert (ROOT / name).is_file() or list((ROOT / "jaxgpt").rglob(name)), name


def test_the_places_that_contributing_names_exist():
    contributing = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    named = re.findall(r"`(\w+)` (?:there|in) `?([\w/]+\.py)", contributing)
    assert {("TOKENIZERS", "data/tokenizer.py"), ("ARCHITECTURES", "model/build.py")} <= set(named)
    for name, file in named:
        assert re.search(rf"^(class|def)? ?{name}\b", (ROOT / "jaxgpt" / file).read_text("utf-8"), re.MULTILINE), name
    for name in re.findall(r"`((?:jaxgpt/)?\w+/(?:\w+\.py)?)`", contributing):
        assert (ROOT / name).exists() or (ROOT / "jaxgpt" / name).exists(), name
