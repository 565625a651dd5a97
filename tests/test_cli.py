"""The commands as a person types them: what they print, and one clear line where something is wrong."""

import io
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import jaxgpt
from jaxgpt.cli import train as cli
from jaxgpt.runs import run

ROOT = Path(__file__).parent.parent
# without PYTHONUNBUFFERED, as most people run it
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
SMALL = """
    --data text.txt --n-layer 3 --n-head 2 --n-embd 8 --block-size 16 --batch-size 2 --max-steps 2
    --warmup-steps 1 --eval-interval 1 --eval-windows 4 --sample-tokens 8
""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory) -> Path:
    """A folder to work in: text.txt, and the run of `SMALL` at runs/cpu."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(text, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.train(["--preset", "cpu", *SMALL]) == 0
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A copy of that folder, worked in."""
    here = shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def empty(text, tmp_path, monkeypatch):
    """A folder with text.txt and no run, worked in; a test that makes one there fails."""
    (tmp_path / "text.txt").write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not run.RUNS.exists()


@pytest.fixture
def refused(capsys):
    """`refused(command, arguments)`: the one line that a command says on standard error, to exit with 2."""

    def refused(command, arguments) -> str:
        assert command(arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1
        return err

    return refused


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Neither a way out nor a cache."""

    def fail(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    monkeypatch.setattr(subprocess, "run", fail)
    monkeypatch.setenv("JAXGPT_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--preset cpuu", ["no preset 'cpuu': did you mean 'cpu'?"]),
        (
            "--max-steps many --n_embd 1.5 --dropout=x",
            ["--max-steps", "'many'", "--n-embd", "'1.5'", "--dropout", "'x'"],
        ),
        ("--max-steps x --dtype int8", ["--max-steps", "'x'", "--dtype takes one of auto", "'int8'"]),
        ("--learning-rate", ["--learning-rate", "expected one argument"]),
        ("--resume --preset cp", ["no preset 'cp': did you mean 'cpu'?"]),
        ("--n-head 3 --max-steps 0 --dropout 1", ["n_head (3)", "max_steps", "dropout"]),
        ("--learning-rate nan", ["learning_rate", "nan"]),
        ("--seed -1", ["seed must be 0 or more, not -1"]),
        ("--vocab-size 3", ["vocab_size is 3", "the text has"]),
        ("--block-size 4000", ["too short", "block_size 4000", "--block-size"]),
        ("--data missing.txt", ["missing.txt", "pass a text file"]),
        ("--data empty.txt", ["empty.txt holds no text"]),
        ("--data latin.txt", ["latin.txt is not UTF-8"]),
        ("--data folder", ["folder has no .txt files"]),
        ("--out taken", ["taken exists and is not overwritten", "--out"]),
        ("--resume", ["there is no run in runs/"]),
        ("--resume --preset t4", ["there is no run of preset 't4' in runs/"]),
        ("--resume --out taken", ["taken is not a run"]),
    ],
)
def test_train_refuses_what_cannot_be(arguments, said, empty, refused):
    (empty / "empty.txt").write_text(" \n")
    (empty / "latin.txt").write_bytes("Pâté".encode("latin-1"))
    (empty / "folder").mkdir()
    (empty / "taken").mkdir()
    line = refused(cli.train, [*SMALL, *arguments.split()] if "--resume" not in arguments else arguments.split())
    assert [words for words in said if words not in line] == []
    assert not any((empty / "taken").iterdir())


def test_train_names_its_sources_where_it_has_no_network_and_no_cache(empty, no_network, refused):
    line = refused(cli.train, ["--preset", "cpu"])
    for words in ("cannot get tiny Shakespeare", "cache/tinyshakespeare.txt", "http", "--data"):
        assert words in line


@pytest.mark.parametrize(
    ("command", "typed", "meant"),
    [(cli.train, "--lerning-rate", "--learning-rate"), (cli.sample, "--temprature", "--temperature")],
)
def test_an_unknown_flag_suggests_the_right_one(command, typed, meant, empty, capsys):
    with pytest.raises(SystemExit) as stop:
        command([typed, "1"])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert typed in err
    assert meant in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments", [["--max-steps"], ["--max-steps", "many", "--dtype", "int8"], ["--learning-rate", "-1e-3"]]
)
def test_a_flag_that_cannot_be_read_is_named(arguments, empty, capsys):
    try:
        code = cli.train(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompt", ""], ["the prompt is empty"]),
        (["--prompt", "RO#EO%"], ["'#', '%'"]),
        (["--tokens", "0"], ["tokens", "not 0"]),
        (["--samples", "0"], ["samples", "0"]),
        (["--seed", "-1"], ["seed", "-1"]),
        (["--temperature", "-1", "--top-k", "-2", "--top-p", "0", "--min-p", "2"], ["temp", "top_k", "top_p", "min_p"]),
        (["--run", "elsewhere"], ["elsewhere is not a run", "runs/cpu"]),
    ],
)
def test_sample_refuses_what_cannot_be(arguments, said, here, refused):
    line = refused(cli.sample, arguments)
    assert [words for words in said if words not in line] == []


def test_sample_without_any_run_says_how_to_make_one(empty, refused):
    assert "there is no run in runs/ yet: python train.py makes one" in refused(cli.sample, [])


def test_a_damaged_checkpoint_is_one_line(here):
    for file in (here / "runs" / "cpu" / "checkpoints" / "2" / "params" / "d").iterdir():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    command = [sys.executable, str(ROOT / "sample.py"), "--tokens", "5"]
    done = subprocess.run(command, cwd=here, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the checkpoint runs/cpu/checkpoints/2 cannot be read")
    assert done.stderr.count("\n") == 1


def test_train_tells_of_the_run_in_plain_text(empty_of_runs, capsys):
    assert cli.train(["--preset", "cpu", *SMALL, "--out", "mine"]) == 0
    out, err = capsys.readouterr()
    for words in ("device", "dtype", "parameters", "text.txt", "mine, 2 steps", "val loss", "sample.py --run mine"):
        assert words in out
    assert out.count("val loss") == 4  # before, after each update, and the best of them
    assert "\x1b" not in out
    assert err == ""


@pytest.fixture
def empty_of_runs(text, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)


def test_every_flag_reaches_the_run(here):
    config = jaxgpt.load("runs/cpu").config
    assert config.preset == "cpu"
    assert config.data == "text.txt"
    assert (config.model.n_layer, config.model.n_head, config.model.n_embd, config.model.block_size) == (3, 2, 8, 16)
    assert (config.batch_size, config.max_steps, config.warmup_steps, config.eval_interval) == (2, 2, 1, 1)
    assert (config.eval_windows, config.sample_tokens) == (4, 8)
    assert config.model.bias is False  # not given: the preset's


def test_resume_refuses_changed_flags_and_a_finished_run(here, refused):
    line = refused(cli.train, ["--resume", "--n-layer", "4", "--data", "other.txt", "--max-steps", "9"])
    assert "leave out data, n_layer, or start a new run" in line
    assert "runs/cpu has done its 2 steps" in refused(cli.train, ["--resume", *SMALL])
    assert "max_steps" in refused(cli.train, ["--resume", "--max-steps", "0"])


def test_resume_goes_on_with_the_newest_run_or_the_newest_of_a_preset(here, refused):
    shutil.copytree("runs/cpu", "runs/newer")
    config = json.loads(Path("runs/newer/config.json").read_text())
    Path("runs/newer/config.json").write_text(json.dumps(config | {"preset": "t4"}))
    os.utime("runs/cpu/metrics.jsonl", (1000, 1000))
    assert "runs/newer has done" in refused(cli.train, ["--resume"])
    assert "runs/cpu has done" in refused(cli.train, ["--resume", "--preset", "cpu"])
    assert "runs/cpu has done" in refused(cli.train, ["--resume", "--out", "runs/cpu"])


def test_resume_trains_a_finished_run_for_longer(here, capsys):
    assert cli.train(["--resume", "--max-steps", "3"]) == 0
    assert "going on after step 2" in capsys.readouterr().out
    assert jaxgpt.load("runs/cpu").step == 3


def test_the_same_seed_gives_the_same_text(here, capsys):
    def sampled(*arguments) -> str:
        assert cli.sample(["--tokens", "30", *arguments]) == 0
        return capsys.readouterr().out

    text = sampled("--seed", "5")
    assert len(text) == 30 + len("\n")
    assert sampled("--seed", "5") == text
    assert sampled("--seed", "6") != text
    assert sampled("--seed", "5", "--temperature", "0") != text


def test_the_text_begins_with_the_prompt(here, capsys):
    assert cli.sample(["--prompt", "ROMEO:\n", "--tokens", "9"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("ROMEO:\n")
    assert len(text) == len("ROMEO:\n") + 9 + len("\n")


def test_several_samples_are_told_apart(here, capsys):
    assert cli.sample(["--prompt", "ROMEO:", "--tokens", "9", "--samples", "3"]) == 0
    texts = capsys.readouterr().out.split("────")
    assert sum("ROMEO:" in text for text in texts) == 3
    assert len({text[text.index("ROMEO:") :] for text in texts if "ROMEO:" in text}) == 3


def test_the_text_is_shown_as_it_comes(here, monkeypatch):
    class Screen(io.StringIO):
        shown = ()

        def flush(self):
            self.shown += (self.getvalue(),)

    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    assert cli.sample(["--tokens", "40", "--prompt", "ROMEO:"]) == 0
    assert len(set(screen.shown)) >= 4
    assert screen.shown[0].startswith("ROMEO:")
    assert len(screen.shown[0]) < 20


def test_the_best_checkpoint_can_be_asked_for(here, monkeypatch):
    asked = []
    load = run.load
    monkeypatch.setattr(run, "load", lambda *arguments: asked.append(arguments) or load(*arguments))
    assert cli.sample(["--tokens", "1"]) == 0
    assert cli.sample(["--tokens", "1", "--run", "runs/cpu", "--checkpoint", "best"]) == 0
    assert asked == [(None, "newest"), (Path("runs/cpu"), "best")]


@pytest.mark.parametrize("arguments", [["--tokens", "5000"], ["--tokens", "8", "--samples", "3"]])
def test_a_reader_who_has_seen_enough_ends_sampling_in_peace(arguments, here):
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "sample.py"), *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        if "--samples" not in arguments:
            process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
