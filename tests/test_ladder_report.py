"""`python -m jaxgpt.ladder`: the climb, its figures, its report, and what is told before it begins."""

from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest

import jaxgpt
from jaxgpt import ladder
from jaxgpt.data import batches
from jaxgpt.ladder import END, PUBLISHED, START, Result
from jaxgpt.model.ladder import RUNGS
from jaxgpt.presets import preset


@pytest.fixture(scope="module", autouse=True)
def patched(text):
    """One rung, and a small text in the place of tiny Shakespeare; the process stays as it is."""
    small = {"batch_size": 4, "eval_windows": 64, "sample_tokens": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder, "RUNGS", {"bigram": RUNGS["bigram"]})
        patch.setattr(ladder, "preset", lambda name, **changes: preset(name, **small, **changes))
        patch.setattr("jaxgpt.data.tiny_shakespeare.load", lambda: text)
        patch.setattr("jaxgpt.cli.process.setup", lambda: None)
        patch.setattr("jaxgpt.training.loop.plot", lambda *_: None)
        yield


@pytest.fixture
def here(tmp_path, monkeypatch) -> None:
    """In a folder of its own."""
    monkeypatch.chdir(tmp_path)


PAGE = f"# Figures\n\n{START}\nold ones\n{END}\n\nThe end.\n"


@pytest.fixture(scope="module")
def climbed(tmp_path_factory) -> Path:
    """A folder where the rung was climbed with two seeds, and the figures put into a page that was there."""
    folder = tmp_path_factory.mktemp("climbed")
    (folder / "page.md").write_text(PAGE, "utf-8")
    arguments = ["--seeds", "2", "--max-steps", "3", "--out", f"{folder}/out", "--report", f"{folder}/page.md"]
    assert ladder.main(arguments) == 0
    return folder


@pytest.fixture(scope="module")
def runs(climbed) -> list[jaxgpt.Run]:
    return [jaxgpt.load(climbed / "out" / name) for name in ("bigram", "bigram-seed1338")]


def rows(page: str) -> dict[str, list[str]]:
    """The table's rows by their first cell."""
    cells = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {name: rest for name, *rest in cells}


def test_a_rung_is_trained_with_every_seed(climbed, runs):
    assert {path.name for path in (climbed / "out").iterdir()} == {"bigram", "bigram-seed1338"}
    assert [(run.config.preset, run.config.seed, run.step) for run in runs] == [
        ("bigram", 1337, 3),
        ("bigram", 1338, 3),
    ]


def test_the_table_has_the_losses_of_the_runs_beside_the_published_ones(climbed, runs):
    published, ours, difference, whole, parameters, _ = rows((climbed / "page.md").read_text("utf-8"))["bigram"]
    assert published == "2.47 / 2.49"
    assert parameters == f"{runs[0].config.model.vocab_size ** 2:,}"
    final = [run.metrics[-1]["final_val_loss"] for run in runs]
    assert whole.split(" / ")[1] == f"{mean(final):.3f} ± {stdev(final):.3f}"
    ours, difference = ([float(cell.split(" ± ")[0]) for cell in cells.split(" / ")] for cells in (ours, difference))
    assert ours[1] == pytest.approx(mean(final), abs=0.1)  # random windows of the same split
    np.testing.assert_allclose(difference, np.subtract(ours, PUBLISHED["bigram"]), atol=0.0011)


def test_the_losses_are_those_of_the_model(runs, text):
    table = np.asarray(runs[0].model.table.embedding[...], np.float64)
    scores = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
    parts = batches.split(runs[0].tokenizer.encode(text))
    train, val = (-scores[part[:-1], part[1:]].mean() for part in parts)
    losses = ladder.measure(runs[0])
    assert (losses["whole train"], losses["whole val"]) == pytest.approx((train, val), abs=1e-5)
    assert (losses["train"], losses["val"]) == pytest.approx((train, val), abs=0.1)
    assert losses["train"] != losses["whole train"]


def test_the_report_is_put_between_the_marks_with_samples_and_a_picture(climbed, runs):
    page = (climbed / "page.md").read_text("utf-8")
    assert page.startswith(f"# Figures\n\n{START}\n| rung | published |")
    assert page.endswith(f"```\n{END}\n\nThe end.\n")
    assert "old ones" not in page
    assert "mean ± standard deviation of 2 seeds" in page
    assert f"`bigram`\n\n```text\n{runs[0].generate(tokens=300, seed=1).strip()}\n```\n" in page
    assert "(page.png)" in page
    assert (climbed / "page.png").read_bytes().startswith(b"\x89PNG")


def test_all_rungs_are_climbed_and_the_terminal_shows_the_report(here, capsys, monkeypatch):
    monkeypatch.setattr(ladder, "RUNGS", {name: RUNGS[name] for name in ("bigram", "head")})
    assert ladder.main(["--max-steps", "3"]) == 0
    page, printed = Path("runs/ladder/ladder.md").read_text("utf-8"), capsys.readouterr().out
    assert page.startswith(f"{START}\n| rung")
    assert page.endswith(f"{END}\n")
    assert "one seed" in page
    assert Path("runs/ladder/ladder.png").exists()
    assert list(rows(page)) == ["rung", "---", "bigram", "head"]
    for name in ("bigram", "head"):
        assert jaxgpt.load(f"runs/ladder/{name}").config.model.architecture == name
        for cell in (f"── {name} ──", *rows(page)[name]):
            assert cell in printed
    assert printed.endswith("written to runs/ladder/ladder.md\n")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--seeds", "0"], "--seeds must be 1 or more, not 0"),
        (["--seeds", "many"], "--seeds is a whole number, not 'many'"),
        (["--max-steps", "0"], "--max-steps must be 1 or more, not 0"),
        (["--seed", "2"], "there is no flag --seed: did you mean --seeds?"),
        (["--out", "taken"], "taken exists and is not overwritten: choose another --out"),
        (["--out", "file.txt"], "file.txt exists and is not overwritten: choose another --out"),
        (["--report", "p.md"], f"--report has the line {START} and no {END} after it: add that where the figures end"),
        (["--report", "binary"], "binary is not UTF-8 text: choose another --report"),
        (["--report", "taken"], "taken: Is a directory (choose another path)"),
        (["--report", "a.png"], "--report is a markdown file, which has its picture beside it, not a.png"),
        (["--report", "file.txt/p.md"], "file.txt: File exists (choose another path)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_told_in_one_line_before_anything_is_trained(arguments, message, here, capsys, monkeypatch):
    monkeypatch.setattr(ladder, "train", None)
    Path("taken").mkdir()
    Path("taken", "file").touch()
    Path("file.txt").touch()
    Path("p.md").write_text(f"my page\n{START}\nmy figures\n")
    Path("binary").write_bytes(b"\xff")
    assert ladder.main(arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert Path("p.md").read_text() == f"my page\n{START}\nmy figures\n"


def test_help_names_every_flag(capsys):
    assert ladder.main(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(flag in page for flag in ("--out", "--seeds", "--max-steps", "--report"))


@pytest.mark.parametrize(
    "page, expected",
    [
        ("", f"{START}\nnew\n{END}\n"),
        ("text", f"text\n\n{START}\nnew\n{END}\n"),
        ("text\n", f"text\n\n{START}\nnew\n{END}\n"),
        (f"a\n{START}\nold\n{END}\nb\n", f"a\n{START}\nnew\n{END}\nb\n"),
        (f"a\n{START}{END}", f"a\n{START}\nnew\n{END}"),
    ],
    ids=["empty", "no line break", "no marks", "marks", "nothing between"],
)
def test_figures_are_put_between_the_marks_and_all_else_stays(page, expected):
    assert ladder.between_marks(page, "new\n") == expected
    assert ladder.between_marks(expected, "new\n") == expected


def test_every_rung_has_a_published_loss():
    assert list(PUBLISHED) == list(RUNGS)


def test_one_seed_has_no_spread():
    losses = {"train": 2.5, "val": 2.25}
    assert Result("bigram", losses=[losses]).loss("val") == "2.250"
    assert Result("bigram", losses=[losses, {"train": 2.5, "val": 2.75}]).loss("val") == "2.500 ± 0.354"
