"""What the README tells people to type works."""

import re
import shlex
from pathlib import Path

import pytest

import jaxgpt
from jaxgpt.cli import sample, train

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
LINES = [line.split("  #")[0] for block in re.findall(r"```sh\n(.*?)```", README, re.S) for line in block.splitlines()]
COMMANDS = [part.strip() for line in LINES for part in line.split("&&")]
SMALL = "--n-layer 1 --n-head 1 --n-embd 8 --block-size 8 --batch-size 2 --max-steps 2 --eval-windows 2 --dropout 0"
SHAKESPEARE = "KING RICHARD:\nWhat, is it you?\n\nROMEO:\nIt is, it is I, my lord.\n\n" * 40


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the text that the commands are run on, instead of tiny Shakespeare."""
    monkeypatch.chdir(tmp_path)
    Path("my_novel.txt").write_text(SHAKESPEARE, "utf-8")
    monkeypatch.setattr("jaxgpt.data.tiny_shakespeare.load", lambda: SHAKESPEARE)


def small(command: str) -> list[str]:
    """The arguments of a train.py command, and small sizes."""
    return [*shlex.split(command)[2:], *shlex.split(SMALL)]


@pytest.mark.slow
def test_the_commands_for_training_sampling_and_resuming_work_in_turn(here, capsys):
    for command in COMMANDS:
        if command.startswith("python train.py") and "--resume" not in command:
            assert train.main(small(command)) == 0, command
    assert train.main(["--resume", "--max-steps", "3", "--out", "runs/speedrun"]) == 0
    for command in COMMANDS:
        if command.startswith("python sample.py"):
            assert sample.main([*shlex.split(command)[2:], "--tokens", "9"]) == 0, command
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
