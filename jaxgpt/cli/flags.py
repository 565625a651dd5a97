"""Flags of a command: read once from the command line, and explained by --help."""

import difflib
import re
import shutil
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxgpt.errors import UserError
from jaxgpt.fields import FieldInfo, Texts, expected, from_text, shown

# Named as in Python: `n_layer` is --n-layer, and --n_layer. Beside the types of a field a flag may have `Path` and
# SWITCH. A default that is None is not shown.
Flag = FieldInfo
SWITCH = bool | Path  # a path, or True where none follows

Groups = dict[str, list[Flag]]  # under the headings that --help shows
HELP = Flag("help", bool, None, "Show this page.")
METAVARS = {int: " N", float: " X", str: " TEXT", Path: " PATH", Texts: " TEXT ...", SWITCH: " [PATH]"}
METAVARS_BY_NAME = {
    "data": " PATH ...",
    "prompt_file": " PATH ...",
    "init_from": " PATH",
    "distributed": " [HOST:PORT,N,I]",
}
ALIASES = {"init_from": "from"}  # what a flag is called where its field's name, a word of Python's, can't be
HELP_COLUMN = 28
NARROW = 70  # columns of a terminal in which descriptions stand below their flags


def read(arguments: list[str], flags: Iterable[Flag], positional: str | None = None) -> dict[str, Any]:
    """The flags that are given, by name, with values of their types; of one that is given twice, the last.

    What follows a flag is its value, with a dash in front or not, unless it looks like a flag itself: two dashes
    and a word. Such a value can be given as `--prompt=--word`.

    Args:
        positional: the flag that the first argument belongs to, if it is no flag: `export RUN` is `export --run RUN`.

    Raises:
        UserError: that names every mistake: flags that do not exist, values that are missing or of a wrong type.
    """
    known = {flag.name: flag for flag in (*flags, HELP)}
    given: dict[str, Any] = {}
    problems, rest = [], list(arguments)
    if positional and rest and not rest[0].startswith("-"):
        rest.insert(0, _typed(positional))
    while rest:
        argument = rest.pop(0)
        typed, equals, text = ("--help" if argument == "-h" else argument).partition("=")
        if not typed.startswith("-"):
            problems.append(f"{shown(argument)} belongs to no flag (a value with spaces is put in quotes)")
            continue
        flag, texts = _find(typed, known)
        texts += [text] if equals else []
        most = 1 if flag and flag.type != Texts else len(arguments)
        while rest and len(texts) < most and not _looks_like_flag(rest[0]):
            texts.append(rest.pop(0))
        try:
            if flag is None:
                raise UserError(_unknown(typed, known))
            given[flag.name] = _value(flag, texts)
        except UserError as problem:
            problems.append(str(problem))
    if problems:
        raise UserError("; ".join(problems))
    return given


def _looks_like_flag(argument: str) -> bool:
    return re.fullmatch(r"--[A-Za-z][\w-]*(=.*)?", argument, re.DOTALL) is not None


def _find(typed: str, known: dict[str, Flag]) -> tuple[Flag | None, list[str]]:
    """The flag that was typed, and the value that its name implies: `--no-bias` is `--bias false`."""
    name = typed.removeprefix("--").replace("-", "_")
    name = next((field for field, alias in ALIASES.items() if alias == name), name)
    positive = known.get(name.removeprefix("no_"))
    if name not in known and positive and positive.type is bool:
        return positive, ["false"]
    return known.get(name), []


def _unknown(typed: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(typed.strip("-").replace("-", "_"), known, n=1)
    return f"there is no flag {shown(typed)[1:-1]}: " + (
        f"did you mean `{close[0]}`?" if close else "--help lists them"
    )


def _value(flag: Flag, texts: list[str]) -> Any:
    """The value of a flag that is followed by `texts`."""
    name, kind = flag.name, flag.type
    if not texts and kind not in (bool, SWITCH):
        raise UserError(f"`{name}` needs a value")
    if not texts:
        return True
    if kind == Texts:
        return texts[0] if len(texts) == 1 else tuple(texts)
    if len(texts) > 1:
        raise UserError(f"--no-{_typed(name)[2:]} takes no value")
    (text,) = texts
    if kind in (Path, SWITCH):
        if not text or "\0" in text:  # the former would be the current folder
            raise UserError(f"`{name}` is a path, not {shown(text)}")
        return Path(text)
    try:
        return from_text(text, kind)
    except ValueError as problem:
        raise UserError(expected(name, kind, text)) from problem


def _typed(name: str) -> str:
    return f"--{ALIASES.get(name, name).replace('_', '-')}"


def spoken(text: str, flags: Iterable[Flag]) -> str:
    """A message of the library in the words of a command: `n_layer` becomes --n-layer where that is a flag."""
    typed = {f"`{flag.name}`": _typed(flag.name) for flag in flags}
    return re.sub("`[a-z_0-9]+`", lambda name: typed.get(name[0], name[0]), text)


def page(about: str, groups: Groups, defaults: dict[str, Any] | None = None) -> str:
    """What --help prints, as wide as the terminal.

    Args:
        about: what the command does.
        groups: its flags.
        defaults: those that are not the flags' own.
    """
    width = min(shutil.get_terminal_size().columns, 120)
    lines = [textwrap.fill(paragraph, width) + "\n" for paragraph in about.split("\n\n")]
    for heading, flags in groups.items():
        lines.append(f"{heading}:")
        for flag in flags:
            default = (defaults or {}).get(flag.name, flag.default)
            shown = "" if default in (None, "") else f" [{str(default).lower() if flag.type is bool else default}]"
            lines += _entry(_synopsis(flag), flag.help + shown, width)
        lines.append("")
    return spoken("\n".join(lines), [flag for flags in groups.values() for flag in flags])


def _synopsis(flag: Flag) -> str:
    if flag is HELP:
        return "-h, --help"
    if flag.type is bool:
        return f"--[no-]{_typed(flag.name)[2:]}"
    if isinstance(flag.type, tuple):
        return f"{_typed(flag.name)} {'|'.join(flag.type)}"
    return _typed(flag.name) + METAVARS_BY_NAME.get(flag.name, METAVARS[flag.type])


def _entry(synopsis: str, text: str, width: int) -> list[str]:
    """A flag and its description: beside it where there is room, otherwise below it."""
    column = HELP_COLUMN if width >= NARROW else 6
    wrapped = textwrap.wrap(text, max(width - column, 20), break_on_hyphens=False, break_long_words=False)
    below = [" " * column + line for line in wrapped]
    if len(synopsis) + 4 > column:
        return [f"  {synopsis}", *below]
    return [f"  {synopsis}".ljust(column) + wrapped[0], *below[1:]]
