"""The commands as a person types them: what they print, and one clear line where something is wrong."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import jaxgpt
from jaxgpt.cli import sample, train
from jaxgpt.runs import run

ROOT = Path(__file__).parent.parent
# without PYTHONUNBUFFERED, as most people run it
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
SMALL = """
    --data text.txt --n-layer 1 --n-head 2 --n-embd 8 --block-size 16 --batch-size 2 --max-steps 2
    --warmup-steps 1 --eval-interval 1 --eval-windows 4 --sample-tokens 8
""".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory) -> Path:
    """A folder to work in: text.txt, the run of `SMALL` at runs/cpu, and what the command said of it in said.txt."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(text, "utf-8")
    with pytest.MonkeyPatch.context() as patch, (folder / "said.txt").open("w") as said:
        patch.chdir(folder)
        patch.setattr(sys, "stdout", said)
        assert train.main(["--preset", "cpu", *SMALL]) == 0
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A copy of that folder, worked in."""
    here = shutil.copytree(trained, tmp_path / "here")
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def empty(text, tmp_path, monkeypatch):
    """A folder with text.txt and no run, worked in."""
    (tmp_path / "text.txt").write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(capsys):
    """`refused(command, arguments)`: the one line that a command says on standard error, to exit with 2."""

    def refused(command, arguments) -> str:
        assert command.main(arguments) == 2
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
    monkeypatch.setenv("XLA_FLAGS", "")  # which another process would try


# What cannot be


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--preset cpuu", ["no preset 'cpuu': did you mean 'cpu'?"]),
        ("--lerning-rate 1", ["there is no flag --lerning-rate: did you mean --learning-rate?"]),
        (
            "--max-steps many --n_embd 1.5 --dropout=x",
            ["--max-steps", "'many'", "--n-embd", "'1.5'", "--dropout", "'x'"],
        ),
        ("--n-head 3 --max-steps 0 --dropout 1", ["--n-head (3)", "--max-steps", "--dropout"]),
        ("--learning-rate nan", ["--learning-rate", "nan"]),
        ("--learning-rate -1e-3", ["--learning-rate", "-0.001"]),
        ("--seed -1", ["--seed must be 0 or more, not -1"]),
        ("--warmup-steps 1000000000000", ["--warmup-steps must be at most", "1000000000000"]),
        ("--warmup-steps " + "9" * 400, ["--warmup-steps must be at most", "999..."]),
        ("--vocab-size 3", ["--vocab-size is 3", "the text has"]),
        ("--block-size 4000", ["too short", "--block-size 4000", "smaller --block-size"]),
        ("--data missing.txt", ["missing.txt", "--data"]),
        ("--data empty.txt", ["no text in empty.txt", "--data"]),
        ("--data folder", ["folder", ".txt or .jsonl files", "--data"]),
        ("--out taken", ["taken exists and is not overwritten", "choose another --out, or --resume it"]),
        ("--out text.txt", ["text.txt", "choose another --out"]),
        ("--out text.txt/run", ["text.txt/run", "Not a directory", "choose another --out"]),
        ("--out dangling", ["dangling", "choose another --out"]),
        ("--out runs/a --resume runs/b", ["--resume and --out name two runs: leave out one"]),
        ("--resume", ["there is no run in runs/"]),
        ("--resume --preset cp", ["no preset 'cp': did you mean 'cpu'?"]),
        ("--resume --preset t4", ["there is no run of preset 't4' in runs/"]),
        ("--resume taken", ["taken is not a run"]),
        ("--resume --out taken", ["taken is not a run"]),
    ],
)
def test_train_refuses_what_cannot_be(arguments, said, empty, refused):
    (empty / "empty.txt").write_text(" \n")
    (empty / "folder").mkdir()
    (empty / "taken").mkdir()
    (empty / "taken" / "thesis.txt").touch()
    (empty / "dangling").symlink_to("nowhere")
    small = [] if "--resume" in arguments else ["--preset", "cpu", *SMALL]
    line = refused(train, [*small, *arguments.split()])
    assert [words for words in said if words not in line] == []
    assert not (empty / "runs").exists()
    assert [path.name for path in (empty / "taken").iterdir()] == ["thesis.txt"]


def test_train_refuses_a_file_in_the_place_of_runs(empty, refused):
    (empty / "runs").touch()
    assert "choose another --out" in refused(train, ["--preset", "cpu", *SMALL])


def test_train_names_its_sources_where_it_has_no_network_and_no_cache(empty, no_network, refused):
    line = refused(train, ["--preset", "cpu"])
    for words in ("tiny Shakespeare", "cache/tinyshakespeare.txt", "http", "--data"):
        assert words in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--prompt", ""], ["the --prompt is empty"]),
        (["--prompt", "RO#EO%"], ["'#'", "'%'"]),
        (["--prompt", "RO\udce9"], ["the prompt is not UTF-8 text at byte 2"]),  # as Python reads a Latin-1 terminal
        (["--prompt", "x", "--prompt-file", "text.txt"], ["--prompt and --prompt-file are two prompts"]),
        (["--prompt-file", "missing.txt"], ["missing.txt cannot be read (No such file or directory)"]),
        (["--prompt-file", "runs"], ["runs cannot be read (Is a directory)"]),
        (["--prompt-file", "latin.txt"], ["the prompt is not UTF-8 text at byte 1"]),
        (["--tokens", "0"], ["--tokens", "0"]),
        (["--samples", "0"], ["--samples", "0"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (
            ["--temperature", "-1", "--top-k", "-2", "--top-p", "0", "--min-p", "2"],
            ["--temperature", "--top-k", "--top-p", "--min-p"],
        ),
        (["--checkpoint", "worst"], ["--checkpoint is one of newest, best"]),
        (["--temprature", "1"], ["there is no flag --temprature: did you mean --temperature?"]),
        (["--run", "elsewhere"], ["elsewhere is not a run", "runs/cpu"]),
        (["--run", "None"], ["None is not a run"]),
    ],
)
def test_sample_refuses_what_cannot_be(arguments, said, here, refused):
    (here / "latin.txt").write_bytes("Pâté".encode("latin-1"))
    line = refused(sample, arguments)
    assert [words for words in said if words not in line] == []


def test_a_few_runs_are_named_and_not_all(here, refused):
    for i in range(100):
        shutil.copytree("runs/cpu", f"runs/copy-{i}", ignore=shutil.ignore_patterns("checkpoints"))
    line = refused(sample, ["--run", "notarun"])
    assert line.count("runs/copy") < 10
    assert "more" in line


def test_sample_without_any_run_says_so(empty, refused):
    assert "there is no run in runs/ yet" in refused(sample, [])


# Training


@pytest.fixture
def asked(monkeypatch) -> list:
    """What the library is asked to train, instead of training it."""
    asked = []
    for name in ("train", "resume"):
        monkeypatch.setattr(f"jaxgpt.training.train.{name}", lambda what, **how: asked.append((what, how)))
    return asked


def test_train_tells_of_the_run_in_plain_text(trained):
    said = (trained / "said.txt").read_text("utf-8")
    for words in ("device", "dtype", "parameters", "text.txt", "runs/cpu, 2 steps", "val loss"):
        assert words in said
    assert said.count("val loss") == 3  # after each update, and the best of them
    assert said.endswith("\n    python sample.py --run runs/cpu --tokens 500\n    python -m jaxgpt.inside runs/cpu\n")
    assert "\x1b" not in said


def test_every_flag_reaches_the_run(empty, asked):
    several = [
        "--data",
        "a.txt",
        "~/b.txt",
        "--bias",
        "True",
        "--no-tie-head",
        "--dtype=float32",
        "--learning_rate",
        "1e-2",
    ]
    assert train.main(["--preset", "cpu", *SMALL, *several]) == 0
    ((config, how),) = asked
    assert config == jaxgpt.preset(
        "cpu",
        data=("a.txt", "~/b.txt"),
        bias=True,
        tie_head=False,
        dtype="float32",
        learning_rate=0.01,
        n_layer=1,
        n_head=2,
        n_embd=8,
        block_size=16,
        batch_size=2,
        max_steps=2,
        warmup_steps=1,
        eval_interval=1,
        eval_windows=4,
        sample_tokens=8,
    )
    assert how["out"] == empty / "runs" / "cpu"
    assert how["stop"].exit_on_second_ctrl_c


def test_a_run_is_put_where_it_is_asked_to_be(empty, asked, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(empty))
    for out in ("--out=~/$x [1]", "--out=./中文", "--out=-x"):
        assert train.main(["--preset", "cpu", out]) == 0
    assert [how["out"].name for _, how in asked] == ["$x [1]", "中文", "-x"]
    assert {how["out"].parent for _, how in asked} == {empty}
    said = capsys.readouterr().out
    for quoted in ("--run '$x [1]'", "--run '中文'", "--run ./-x"):
        assert quoted in said


@pytest.mark.parametrize(("platform", "preset"), [("cpu", "speedrun"), ("gpu", "t4")])
def test_the_preset_suits_the_machine(platform, preset, empty, asked, monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: platform)
    assert train.main([]) == 0
    assert asked[0][0] == jaxgpt.preset(preset)


@pytest.mark.parametrize("preset", [None, "t4"])
def test_help_shows_every_field_with_the_presets_default(preset, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert train.main(["--help", *(["--preset", preset] if preset else [])]) == 0
    page = capsys.readouterr().out
    config = jaxgpt.preset(preset or "speedrun")
    for name, value in {**vars(config), **vars(config.model)}.items():
        if name != "model":
            called = "from" if name == "init_from" else name
            flag = f"--[no-]{called}" if isinstance(value, bool) else f"--{called} "
            assert flag.replace("_", "-") in page
    assert " ".join(f"Number of updates of the weights. [{config.max_steps}]".split()) in " ".join(page.split())
    for flag in ("--out PATH", "--resume [PATH]", "-h, --help"):
        assert flag in page


# Going on


def test_resume_names_the_flags_that_may_not_change(here, refused):
    line = refused(train, ["--resume", "--n-layer", "4", "--seed", "3", "--max-steps", "9"])
    assert "runs/cpu goes on as it was: leave out --n-layer, --seed, or start a new run" in line
    assert "--max-steps must be" in refused(train, ["--resume", "--max-steps", "0"])


def test_resume_takes_the_flags_that_the_run_has(here, refused):
    assert "runs/cpu has done its 2 steps; to go on, give a larger --max-steps" in refused(train, ["--resume", *SMALL])


@pytest.mark.parametrize(
    ("arguments", "resumed"),
    [
        (["--resume"], "newer"),
        (["--resume", "--preset", "cpu"], "cpu"),
        (["--resume", "runs/cpu"], "cpu"),
        (["--resume=runs/cpu"], "cpu"),
        (["--resume", "runs/cpu", "--out", "runs/cpu"], "cpu"),
        (["--resume", "--out", "runs/cpu"], "cpu"),
    ],
)
def test_resume_finds_its_run(arguments, resumed, here, refused):
    shutil.copytree("runs/cpu", "runs/newer")
    config = json.loads(Path("runs/newer/config.json").read_text())
    Path("runs/newer/config.json").write_text(json.dumps(config | {"preset": "t4"}))
    os.utime("runs/cpu/metrics.jsonl", (1000, 1000))
    shutil.copytree("runs/cpu", "runs/damaged")
    Path("runs/damaged/config.json").write_text("{")
    os.utime("runs/damaged/metrics.jsonl", (900, 900))
    assert f"runs/{resumed}" in refused(train, arguments)


def test_resume_passes_on_what_may_change(here, asked):
    assert train.main(["--resume", "runs/cpu", "--max-steps", "3", "--data", "moved.txt", "--n-layer", "1"]) == 0
    ((path, how),) = asked
    assert path == here / "runs" / "cpu"
    assert (how["max_steps"], how["data"]) == (3, "moved.txt")
    assert how["stop"].exit_on_second_ctrl_c


def test_a_run_that_cannot_write_any_more_says_what_stands(here, monkeypatch, capsys):
    def resume(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "runs/cpu/metrics.jsonl")

    monkeypatch.setattr("jaxgpt.training.train.resume", resume)
    assert train.main(["--resume"]) == 1
    line = capsys.readouterr().err
    assert line.startswith("error: runs/cpu/metrics.jsonl: Read-only file system (choose a place")
    assert line.endswith("The last checkpoint stands; to go on, then: python train.py --resume runs/cpu\n")


# Sampling


def sampled(capsys, *arguments: str) -> str:
    assert sample.main(["--tokens", "30", *arguments]) == 0
    return capsys.readouterr().out


def test_the_same_seed_gives_the_same_text(here, capsys):
    text = sampled(capsys, "--seed", "5")
    assert len(text) == 30 + len("\n")
    assert sampled(capsys, "--seed", "5") == text
    assert sampled(capsys, "--seed", "6") != text
    assert sampled(capsys, "--seed", "5", "--temperature", "0") != text


def test_a_prompt_comes_from_a_flag_a_pipe_or_a_file(here, capsys, monkeypatch):
    text = sampled(capsys, "--prompt", "ROMEO:\nmy lord")
    assert text.startswith("ROMEO:\nmy lord")
    assert len(text) == len("ROMEO:\nmy lord") + 30 + len("\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ROMEO:\r\nmy lord")))
    assert sampled(capsys, "--prompt", "-") == text
    (here / "prompt.txt").write_bytes("\ufeffROMEO:\nmy lord".encode())
    assert sampled(capsys, "--prompt-file", "prompt.txt") == text
    (here / "prompt.txt").write_text("ROMEO:\n")
    assert sampled(capsys, "--prompt-file", "prompt.txt") == sampled(capsys, "--prompt", "ROMEO:\n")
    assert sampled(capsys, "--prompt", "None").startswith("None")  # a word like any other


def test_several_samples_are_told_apart(here, capsys):
    texts = sampled(capsys, "--prompt", "ROMEO:", "--samples", "3").split("────")
    assert sum("ROMEO:" in text for text in texts) == 3
    assert len({text[text.index("ROMEO:") :] for text in texts if "ROMEO:" in text}) == 3


def test_the_text_is_shown_as_it_comes(here, monkeypatch):
    class Screen(io.StringIO):
        shown = ()

        def flush(self):
            self.shown += (self.getvalue(),)

    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    assert sample.main(["--tokens", "40", "--prompt", "ROMEO:"]) == 0
    assert len(set(screen.shown)) >= 4
    assert screen.shown[0].startswith("ROMEO:")
    assert len(screen.shown[0]) < 20


def test_the_best_checkpoint_can_be_asked_for(here, monkeypatch):
    asked = []
    load = run.load
    monkeypatch.setattr(run, "load", lambda *arguments: asked.append(arguments) or load(*arguments))
    assert sample.main(["--tokens", "1"]) == 0
    assert sample.main(["--tokens", "1", "--run", "runs/cpu", "--checkpoint", "best"]) == 0
    assert asked == [(None, "newest"), (Path("runs/cpu"), "best")]


def test_a_reader_who_has_seen_enough_is_no_error(here, monkeypatch, capfd):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert sample.main(["--tokens", "30"]) == 0
    assert capfd.readouterr().err == ""


# Processes of their own


def start(command: str, *arguments: str, **how) -> subprocess.Popen:
    """`python COMMAND.py ARGUMENTS`, with pipes for what it says."""
    arguments = (sys.executable, str(ROOT / f"{command}.py"), *arguments)
    return subprocess.Popen(
        arguments, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how
    )


def test_a_damaged_checkpoint_is_one_line(here):
    for file in (here / "runs" / "cpu" / "checkpoints" / "2").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with start("sample", "--tokens", "5") as process:
        out, err = process.communicate()
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: ")
    assert "runs/cpu/checkpoints/2" in err
    assert err.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="nohup is not of Windows")
@pytest.mark.filterwarnings("ignore:os.fork")  # JAX fears for the child, which becomes another program
def test_a_run_outlives_its_terminal_and_its_reader_and_saves_when_it_is_told_to_stop(empty):
    """`nohup python train.py | head -1 &`, Ctrl-C, the terminal is closed; later `kill` by a launcher, twice."""

    def ignore():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    metrics = empty / "runs" / "cpu" / "metrics.jsonl"

    def rows() -> int:
        return metrics.read_text().count("\n") if metrics.exists() else 0

    def wait_for(count: int) -> None:
        while process.poll() is None and rows() < count:
            time.sleep(0.02)

    endless = ["--max-steps", "1000000", "--eval-interval", "1000000", "--log-interval", "1"]
    with start("train", "--preset", "cpu", *SMALL, *endless, preexec_fn=ignore) as process:
        assert "device" in process.stdout.readline()
        process.stdout.close()
        wait_for(2)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGINT):
            process.send_signal(number)
        wait_for(rows() + 5)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        err = process.stderr.read()
    assert process.returncode == 128 + signal.SIGTERM
    assert err.startswith("stopping and saving after this step")
    assert "To go on:\n\n    python train.py --resume runs/cpu\n" in err
    assert err.count("\n") == 4
    assert jaxgpt.load("runs/cpu").step > 1
