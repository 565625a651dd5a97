"""Fields of a dataclass: bounds that stand in their types, descriptions that stand below them, values from text.

    n_layer: Count = 4
    \"\"\"Number of blocks.\"\"\"

So a rule is said once, where the field is, and config files, the command line and messages follow it.
"""

import ast
import dataclasses
import difflib
import inspect
import math
import numbers
import os
import textwrap
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NamedTuple

LONGEST_SHOWN = 80  # characters of a wrong value that a message shows


class Bounds(NamedTuple):
    """The least and the greatest value that a number may have, or what it must stay above and below."""

    least: float = -math.inf
    greatest: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def complaint(self, value: float) -> str:
        """What `value` must be and is not; nothing where it is within the bounds."""
        if value < self.least:
            return f"{self.least:,} or more"
        if value <= self.above:
            return f"above {self.above:,}"
        if value > self.greatest:
            return f"at most {self.greatest:,}"
        return f"below {self.below:,}" if value >= self.below else ""


INT32 = 2**31 - 1  # counts are int32 on a device
Count = Annotated[int, Bounds(least=1, greatest=INT32)]
CountOrZero = Annotated[int, Bounds(least=0, greatest=INT32)]
Positive = Annotated[float, Bounds(above=0)]
PositiveOrZero = Annotated[float, Bounds(least=0)]
Share = Annotated[float, Bounds(least=0, below=1)]
Texts = str | tuple[str, ...]


class Plain:
    """A base for dataclasses whose values are of Python's own types: numbers of NumPy and JAX, paths, and lists are
    taken for what they are."""

    def __post_init__(self):
        for f in dataclasses.fields(typing.cast(Any, self)):
            object.__setattr__(self, f.name, _plain(getattr(self, f.name)))


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if getattr(value, "shape", None) == ():
        return value.item()
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else value


class FieldInfo(NamedTuple):
    """One field, for people."""

    name: str
    type: Any  # int, float, bool, str, Texts, or the tuple of the texts that may be chosen
    default: Any
    help: str


def describe(config: type) -> dict[str, FieldInfo]:
    """The fields of a dataclass by name, in the order in which they are written."""
    help_of = _descriptions(config)
    return {f.name: FieldInfo(f.name, _kind(f.type), f.default, help_of[f.name]) for f in dataclasses.fields(config)}


def _descriptions(config: type) -> dict[str, str]:
    """The text below each field, which Python itself forgets."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(config))).body
    assert isinstance(tree, ast.ClassDef)
    texts = {}
    for statement, following in zip(tree.body, [*tree.body[1:], ast.Pass()], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            texts[statement.target.id] = " ".join(str(_text(following)).split())
    return texts


def _text(statement: ast.stmt) -> Any:
    is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return statement.value.value if is_text else ""  # type: ignore


def from_text(text: str, kind: Any) -> Any:
    """The value that `text` stands for, of the type that a `FieldInfo` has. Raises `ValueError` if it is none."""
    if isinstance(kind, tuple) and text not in kind:
        raise ValueError(f"{text} is none of {kind}")
    if kind is bool:
        return bool(("false", "true").index(text.lower()))
    return kind(text) if kind in (int, float) else text


def type_problems(config: Any) -> list[str]:
    """A sentence for each field of a dataclass with a value of another type."""
    found = []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if not _is(value, f.type):
            found.append(expected(f.name, _kind(f.type), value))
    return found


def bound_problems(config: Any) -> list[str]:
    """A sentence for each field of a dataclass with a number that is out of bounds."""
    found = []
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        bounds = typing.get_args(f.type)[1] if typing.get_origin(f.type) is Annotated else Bounds()
        if isinstance(value, int | float) and (complaint := bounds.complaint(value)):
            found.append(f"`{f.name}` must be {complaint}, not {shown(value)}")
    return found


def _kind(annotation: Any) -> Any:
    """The type without its bounds, or the tuple of the texts that may be chosen: see `FieldInfo.type`."""
    if typing.get_origin(annotation) is Literal:
        return typing.get_args(annotation)
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation


def _is(value: Any, annotation: Any) -> bool:
    kind = _kind(annotation)
    if isinstance(kind, tuple):
        return value in kind
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is float:
        return isinstance(value, int | float) and abs(value) <= 1e308
    if kind == Texts:
        return isinstance(value, str) or (isinstance(value, tuple) and all(isinstance(v, str) for v in value))
    return isinstance(value, kind)


def expected(name: str, kind: Any, value: Any) -> str:
    """What a field of this type takes, and does not get."""
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text", Texts: "a text"}
    what = (
        f"one of {', '.join(kind)}"
        if isinstance(kind, tuple)
        else words.get(kind, f"a {getattr(kind, '__name__', kind)}")
    )
    return f"`{name}` is {what}, not {shown(value)}"


def shown(value: Any) -> str:
    """`value` for a message, never too long."""
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def suggest(name: str, names: Iterable[str]) -> str:
    """`'lerning_rate': did you mean 'learning_rate'?`, for messages."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"{shown(name)}: did you mean {close[0]!r}?" if close else f"{shown(name)} (there are {', '.join(names)})"
