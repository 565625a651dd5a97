"""The field `mesh`: what is one."""

import pytest

from jaxgpt import UserError, preset
from jaxgpt.config import validate
from jaxgpt.device import mesh


@pytest.mark.parametrize(
    "text, sizes",
    [
        ("", (1, 1, 1)),
        ("data=4", (4, 1, 1)),
        ("tensor=2,data=3", (3, 1, 2)),
        ("fsdp=-1,data=2,tensor=1", (2, -1, 1)),
    ],
)
def test_an_axis_that_is_not_named_has_one_device(text, sizes):
    assert tuple(mesh.parse(text).values()) == sizes


@pytest.mark.parametrize(
    "text",
    [
        *("4", "data", "data=", "data=0", "data=-2", "data=1.5", "data=²", "data=99999999999", "model=2"),
        *("data=2,data=2", "data=2,", ",data=2", "data=2;fsdp=2", "data=2, fsdp=2", "data=2\n"),
    ],
)
def test_anything_else_is_refused_before_it_is_run(text):
    with pytest.raises(UserError, match="`mesh` is as data=4,fsdp=2 with the axes data, fsdp, tensor, not"):
        validate(preset("cpu", mesh=text))


def test_one_axis_at_most_takes_what_is_left():
    assert mesh.fit("fsdp=-1,tensor=2", 9) == {"data": 1, "fsdp": 4, "tensor": 2}
    with pytest.raises(UserError, match="only one axis"):
        validate(preset("cpu", mesh="data=-1,fsdp=-1"))
