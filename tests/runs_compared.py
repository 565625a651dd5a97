"""How two runs are compared."""

import jax
import numpy as np

import jaxgpt
from jaxgpt.model import build


def leaves(of: jaxgpt.Run) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(build.params_of(of.model))]


def assert_same_weights(one: jaxgpt.Run, other: jaxgpt.Run) -> None:
    """Bit for bit."""
    assert all(np.array_equal(a, b) for a, b in zip(leaves(one), leaves(other), strict=True))


def untimed(rows: list[dict]) -> list[dict]:
    """The rows without what differs from run to run."""
    return [{k: v for k, v in row.items() if k not in ("step_seconds", "tokens_per_second")} for row in rows]
