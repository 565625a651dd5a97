"""Flags as people type them, the page that explains them, and messages that name them."""

from pathlib import Path

import pytest

from jaxgpt.cli import flags
from jaxgpt.cli.flags import Flag
from jaxgpt.errors import UserError
from jaxgpt.fields import Texts

FLAGS = [
    Flag("n_layer", int, 4, "Number of blocks."),
    Flag("learning_rate", float, 0.001, "Peak learning rate; `n_layer` has no say in it, and `gpt` is a word."),
    Flag("bias", bool, True, "Whether there is one (https://arxiv.org/abs/1234567890/a-long-address-without-a-break)."),
    Flag("dtype", ("auto", "float32"), "auto", "Type of the matrix products."),
    Flag("prompt", str, None, "Text to continue."),
    Flag("out", Path, None, "Folder to make."),
    Flag("resume", flags.SWITCH, None, "Go on."),
    Flag("data", Texts, "tinyshakespeare", "Where the text is."),
]


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ([], {}),
        (["--n-layer", "6"], {"n_layer": 6}),
        (["--n_layer=6"], {"n_layer": 6}),
        (["--n-layer", "6", "--n-layer", "7"], {"n_layer": 7}),
        (["--learning-rate", "-1e-3"], {"learning_rate": -1e-3}),
        (["--learning-rate", "3"], {"learning_rate": 3.0}),
        (["--bias"], {"bias": True}),
        (["--no-bias"], {"bias": False}),
        (["--no_bias", "--n-layer", "1"], {"bias": False, "n_layer": 1}),
        (["--bias", "False"], {"bias": False}),
        (["--bias=true"], {"bias": True}),
        (["--dtype", "float32"], {"dtype": "float32"}),
        (["--prompt", "-and so"], {"prompt": "-and so"}),
        (["--prompt", "-and"], {"prompt": "-and"}),
        (["--prompt", "--and so"], {"prompt": "--and so"}),
        (["--prompt=--n-layer"], {"prompt": "--n-layer"}),
        (["--prompt", "-"], {"prompt": "-"}),
        (["--prompt", "None"], {"prompt": "None"}),
        (["--prompt", ""], {"prompt": ""}),
        (["--prompt", "a=b\n--c"], {"prompt": "a=b\n--c"}),
        (["--out", "-"], {"out": Path("-")}),
        (["--resume"], {"resume": True}),
        (["--resume", "--n-layer", "2"], {"resume": True, "n_layer": 2}),
        (["--resume", "runs/cpu"], {"resume": Path("runs/cpu")}),
        (["--data", "a.txt"], {"data": "a.txt"}),
        (["--data", "a.txt", "b c.txt", "--bias"], {"data": ("a.txt", "b c.txt"), "bias": True}),
        (["--data=a.txt", "b.txt"], {"data": ("a.txt", "b.txt")}),
        (["--help"], {"help": True}),
        (["--n-layer", "1", "-h"], {"n_layer": 1, "help": True}),
    ],
)
def test_flags_are_read_as_they_are_meant(arguments, given):
    assert flags.read(arguments, FLAGS) == given


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--lerning-rate", "1"], ["there is no flag --lerning-rate: did you mean --learning-rate?"]),
        (["--lerning_rate=1"], ["there is no flag --lerning_rate: did you mean --learning-rate?"]),
        (["--learning", "1"], ["there is no flag --learning:"]),  # no guessing from the beginning of a name
        (["--zzz"], ["there is no flag --zzz: --help lists them"]),
        (["-n", "3"], ["there is no flag -n:"]),
        (["--no-resume"], ["there is no flag --no-resume: did you mean --resume?"]),
        (["--n-layer"], ["--n-layer needs a value"]),
        (["--n-layer", "--bias"], ["--n-layer needs a value"]),
        (["--data", "--bias"], ["--data needs a value"]),
        (["--n-layer", "many"], ["--n-layer is a whole number, not 'many'"]),
        (["--n-layer="], ["--n-layer is a whole number, not ''"]),
        (["--n-layer", "9" * 5000], ["--n-layer is a whole number, not '999", "..."]),
        (["--learning-rate", "fast"], ["--learning-rate is a finite number, not 'fast'"]),
        (["--bias", "maybe"], ["--bias is true or false, not 'maybe'"]),
        (["--no-bias=true"], ["--no-bias takes no value"]),
        (["--dtype", "int8"], ["--dtype is one of auto, float32, not 'int8'"]),
        (["--out", ""], ["--out is a path, not ''"]),
        (["--resume="], ["--resume is a path, not ''"]),
        (["runs/cpu"], ["'runs/cpu' belongs to no flag"]),
        (["--prompt", "KING", "RICHARD"], ["'RICHARD' belongs to no flag (a value with spaces is put in quotes)"]),
        (["--x\n\x1b[31m", "1"], ["there is no flag --x\\n\\x1b[31m"]),
        (["--n-layer", "x", "--bais", "--out="], ["--n-layer is", "--bais: did you mean --bias?", "--out is"]),
    ],
)
def test_every_mistake_is_told_in_one_line(arguments, said):
    with pytest.raises(UserError) as error:
        flags.read(arguments, FLAGS)
    line = flags.spoken(str(error.value), FLAGS)
    assert [words for words in said if words not in line] == []
    assert "\n" not in line
    assert len(line) < 300


def test_the_library_is_put_into_the_words_of_the_command():
    message = "`n_layer` (3) must be below `learning_rate`; `n_head` and 'n_layer' stay as they are, and `bias`"
    assert flags.spoken(message, FLAGS) == (
        "--n-layer (3) must be below --learning-rate; `n_head` and 'n_layer' stay as they are, and --bias"
    )


@pytest.mark.parametrize("columns", [40, 80, 120, 300])
def test_the_page_fits_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = flags.page("A command.", {"some": FLAGS[:4], "others": [*FLAGS[4:], flags.HELP]}).splitlines()
    too_long = [line for line in lines if len(line) > min(columns, 120) and "https" not in line]
    assert too_long == []
    for name in (
        "n-layer N",
        "learning-rate X",
        "[no-]bias",
        "dtype auto|float32",
        "prompt TEXT",
        "resume [PATH]",
        "help",
    ):
        assert any(f"--{name}" in line for line in lines), name


def test_the_page_shows_defaults_and_speaks_of_flags(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    page = flags.page("A command.", {"all": FLAGS}, {"n_layer": 12})
    assert "Number of blocks. [12]" in page
    assert "--n-layer has no say in it, and `gpt` is a word. [0.001]" in " ".join(page.split())
    assert "Text to continue.\n" in page
    assert "[tinyshakespeare]" in page
