"""A field's type, bounds and description are read where they stand."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgpt import fields
from jaxgpt.fields import Bounds, Count, FieldInfo, Plain, Share, Texts


@dataclass(frozen=True)
class Example(Plain):
    size: Count = 3
    """How
    many."""
    share: Share = 0.5
    """Of all."""
    kind: Literal["one", "two"] = "one"
    """Which."""
    on: bool = True
    data: Texts = "here"
    """Where."""
    small: Annotated[float, Bounds(above=-1, greatest=2.5)] = 0.0


def test_fields_are_described_in_the_order_in_which_they_are_written():
    assert list(fields.describe(Example).values()) == [
        FieldInfo("size", int, 3, "How many."),
        FieldInfo("share", float, 0.5, "Of all."),
        FieldInfo("kind", ("one", "two"), "one", "Which."),
        FieldInfo("on", bool, True, ""),
        FieldInfo("data", Texts, "here", "Where."),
        FieldInfo("small", float, 0.0, ""),
    ]


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"size": np.int64(2)}, 2),
        ({"size": jnp.int32(2)}, 2),
        ({"share": np.float32(0.25)}, 0.25),
        ({"data": Path("a") / "b"}, "a/b"),
        ({"data": ["a", Path("b")]}, ("a", "b")),
        ({"on": np.bool_(False)}, False),
    ],
    ids=str,
)
def test_values_of_other_libraries_become_pythons_own(given, taken):
    value = getattr(Example(**given), next(iter(given)))
    assert (value, type(value)) == (taken, type(taken))
    assert fields.type_problems(Example(**given)) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"size": "3"}, "`size` is a whole number, not '3'"),
        ({"size": 3.0}, "`size` is a whole number, not 3.0"),
        ({"size": True}, "`size` is a whole number, not True"),
        ({"share": float("nan")}, "`share` is a finite number, not nan"),
        ({"share": False}, "`share` is a finite number, not False"),
        ({"kind": "three"}, "`kind` is one of one, two, not 'three'"),
        ({"kind": ["one"]}, "`kind` is one of one, two, not ('one',)"),
        ({"on": 1}, "`on` is true or false, not 1"),
        ({"data": 7}, "`data` is a text, not 7"),
        ({"data": ["a", 7]}, "`data` is a text, not ('a', 7)"),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_named(given, said):
    assert fields.type_problems(Example(**given)) == [said]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"size": 0}, "`size` must be 1 or more, not 0"),
        ({"size": 2**31}, "`size` must be at most 2,147,483,647, not 2147483648"),
        ({"share": 1}, "`share` must be below 1, not 1"),
        ({"share": -0.1}, "`share` must be 0 or more, not -0.1"),
        ({"small": -1}, "`small` must be above -1, not -1"),
        ({"small": 3}, "`small` must be at most 2.5, not 3"),
    ],
    ids=str,
)
def test_a_number_out_of_bounds_is_told_the_bound_that_it_breaks(given, said):
    assert fields.bound_problems(Example(**given)) == [said]


def test_numbers_at_their_bounds_are_taken():
    assert fields.bound_problems(Example(size=2**31 - 1, share=0, small=2.5)) == []


def test_a_huge_value_does_not_make_a_huge_message():
    (said,) = fields.type_problems(Example(size="x" * 10**7))
    assert len(said) < 200


def test_the_closest_name_is_suggested_and_otherwise_all_are():
    assert fields.suggest("siz", ["size", "share"]) == "'siz': did you mean 'size'?"
    assert fields.suggest("colour", ["size", "share"]) == "'colour' (there are size, share)"


def test_values_are_read_from_text():
    kinds = {"3": int, "-1e-3": float, "False": bool, "two": ("one", "two"), "None": str}
    assert [fields.from_text(text, kind) for text, kind in kinds.items()] == [3, -1e-3, False, "two", "None"]
    for text, kind in {"3.5": int, "many": float, "yes": bool, "three": ("one", "two"), "9" * 5000: int}.items():
        with pytest.raises(ValueError):
            fields.from_text(text, kind)
