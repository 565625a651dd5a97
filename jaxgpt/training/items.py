"""The parts of a training state as a checkpoint has them, by name; and as older checkpoints had them.

Format 2: `params`, `ema_params` where there is a moving average, `opt_state`, and the numbers in `counters`.
Format 1: `params` was the moving average where there was one, and `rest` the state without it.
"""

from typing import Any

from jaxgpt.runs.run import FORMAT
from jaxgpt.training.step import TrainState


def of_state(state: TrainState, format: int = FORMAT) -> dict[str, Any]:
    """The items of a state, or of its shapes."""
    if format == 1:
        return {"params": state.eval_params, "rest": _rest(state)}
    items = {"params": state.params, "opt_state": state.opt_state}
    items["counters"] = {"step": state.step, "skipped": state.skipped, "loss_scale": state.loss_scale}
    return items | ({"ema_params": state.ema_params} if state.ema_params else {})


def to_state(items: dict[str, Any], format: int = FORMAT) -> TrainState:
    """The state of which these are the items."""
    if format == 1:
        rest = dict(items["rest"])
        average = rest.pop("average", ())
        params = rest.pop("params")
        if average == {}:  # the weights are the trained ones, and `params` is their average
            return TrainState(params=params, ema_params=items["params"], **rest)
        return TrainState(params=items["params"], ema_params=(), **rest)
    counters = items["counters"]
    return TrainState(
        counters["step"],
        items["params"],
        items.get("ema_params", ()),
        items["opt_state"],
        counters["loss_scale"],
        counters["skipped"],
    )


def _rest(state: TrainState) -> dict[str, Any]:
    rest = {"step": state.step, "opt_state": state.opt_state, "loss_scale": state.loss_scale, "skipped": state.skipped}
    return rest | ({"params": state.params, "average": {}} if state.ema_params else {"params": {}})
