"""Checkpoints, by Orbax: written in the background, the newest and the best kept.

A checkpoint has three parts: `params` (the state's `weights`), `rest` (optimiser and counters), and `progress`,
a small JSON object. To sample, only the first is read.
"""

import contextlib
import logging
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from jaxgpt.errors import UserError
from jaxgpt.training.step import TrainState

logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax tells of every file it opens,
logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # and of every task that a damaged file ends


class Checkpoints:
    """The checkpoints of one run, in `folder`. Use as a context: leaving it waits for the last write."""

    def __init__(self, folder: Path):
        def val_loss(metrics):
            return metrics["val_loss"]

        keep = [policies.LatestN(1), policies.BestN(get_metric_fn=val_loss, reverse=True, n=1)]
        options = ocp.CheckpointManagerOptions(
            best_fn=val_loss,
            best_mode="min",
            preservation_policy=policies.AnyPreservationPolicy(keep),
        )
        self.folder = folder
        with _damage_is_told(folder):
            self.manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, exception, *_) -> None:
        with _failure_is_told(self.folder) if exception is None else contextlib.suppress(Exception):
            self.manager.close()

    def save(self, state: TrainState, progress: dict[str, Any], val_loss: float = math.inf) -> None:
        """Starts to write `state`; the least `val_loss` makes the best checkpoint, none is never the best."""
        if math.isnan(val_loss):  # compares with nothing
            val_loss = math.inf
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.weights),
            rest=ocp.args.StandardSave(_rest(state)),
            progress=ocp.args.JsonSave(progress),
        )
        with _failure_is_told(self.folder):
            self.manager.save(int(state.step), args=items, metrics={"val_loss": val_loss}, force=True)

    def restore(self, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint, laid out as `like` (shapes are enough) on this machine's device."""
        parts = self._read(
            self._step("newest"),
            params=ocp.args.StandardRestore(_on_device(like.weights)),
            rest=ocp.args.StandardRestore(_on_device(_rest(like))),
            progress=ocp.args.JsonRestore(),
        )
        return like._replace(**parts["rest"] | {_name_of_weights(like): parts["params"]}), parts["progress"]

    def restore_params(self, like: Any, which: str = "newest") -> tuple[Any, int]:
        """The weights alone, and their step; `which` is "newest" or "best"."""
        step = self._step(which)
        return self._read(step, params=ocp.args.StandardRestore(_on_device(like)))["params"], step

    def _step(self, which: str) -> int:
        step = self.manager.best_step() if which == "best" else self.manager.latest_step()
        if step is None:
            raise UserError(f"{self.folder} has no checkpoint yet: train for longer, or choose another run")
        return step

    def _read(self, step: int, **items) -> dict[str, Any]:
        with _damage_is_told(self.folder / str(step)):
            return self.manager.restore(step, args=ocp.args.Composite(**items))


@contextlib.contextmanager
def _failure_is_told(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of the write that is begun, or of the one before it
        free = shutil.disk_usage(folder).free / 2**20
        raise OSError(
            f"a checkpoint could not be written to {folder} ({free:,.0f} MiB free there); the one before it is kept"
        ) from error


@contextlib.contextmanager
def _damage_is_told(folder: Path) -> Iterator[None]:
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    except Exception as error:  # Orbax has no exception of its own for a file that is not as it wrote it
        # The hook stays: what Orbax's threads leave half done would print tracebacks until the program ends.
        raise UserError(
            f"the checkpoint {folder} cannot be read, it seems damaged; "
            "remove that folder to fall back on an earlier one, if there is one"
        ) from error
    sys.unraisablehook = hook


def _name_of_weights(state: TrainState) -> str:
    """The field that `state.weights` is."""
    return "average" if state.average else "params"


def _rest(state: TrainState) -> dict[str, Any]:
    """All but the weights; without an average as it was before there could be one, so that old runs go on."""
    rest = state._asdict() | {_name_of_weights(state): {}}
    if not state.average:
        del rest["average"]
    return rest


def _on_device(like: Any) -> Any:
    """`like` as shapes and types, to be put on this machine's first device whatever device wrote them."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), like)
