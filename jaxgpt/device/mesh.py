"""The field `mesh`: how many devices work on what, as in `data=4,fsdp=2`.

    data    every device has all weights and some rows of the batch
    fsdp    every device has some rows of the batch and a part of each weight, and gathers the others' when it needs
            them: fully sharded data parallel (Zhao et al. 2023, https://arxiv.org/abs/2304.11277; Rajbhandari et al.
            2019, https://arxiv.org/abs/1910.02054)
    tensor  every device has some heads, and some of the MLP's channels (Shoeybi et al. 2019,
            https://arxiv.org/abs/1909.08053)

Their product is the number of devices that work. One of them may be -1: as many as there are.
"""

import math
import re

from jaxgpt.errors import UserError
from jaxgpt.fields import shown

DATA, FSDP, TENSOR = AXES = "data", "fsdp", "tensor"


def parse(text: str) -> dict[str, int]:
    """The size of every axis, 1 for those that `text` does not name.

    Raises:
        UserError: for what is no mesh.
    """
    sizes = dict.fromkeys(AXES, 1)
    given = re.findall(r"(\w+)=(-1|[1-9][0-9]{0,8})(?:,|$)", text)
    if ",".join(map("=".join, given)) != text or len(dict(given)) < len(given) or not dict(given).keys() <= set(AXES):
        raise UserError(f"`mesh` is as data=4,fsdp=2 with the axes {', '.join(AXES)}, not {shown(text)}")
    sizes |= {axis: int(size) for axis, size in given}
    if list(sizes.values()).count(-1) > 1:
        raise UserError(f"only one axis of `mesh` can be -1, as many as there are: not {shown(text)}")
    return sizes


def fit(text: str, devices: int) -> dict[str, int]:
    """The size of every axis, where there are so many devices.

    Raises:
        UserError: where they are too few.
    """
    sizes = parse(text)
    asked = math.prod(size for size in sizes.values() if size > 0)
    if asked > devices:
        raise UserError(f"`mesh` {text} needs {asked} devices, and there {'is' if devices == 1 else 'are'} {devices}")
    return {axis: devices // asked if size == -1 else size for axis, size in sizes.items()}
