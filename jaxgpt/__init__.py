"""jaxgpt: a small GPT in JAX and Flax, to train, to sample, to read and to change.

>>> import jaxgpt
>>> run = jaxgpt.train(jaxgpt.preset("cpu", max_steps=500))
>>> print(run.generate("ROMEO:", tokens=200, temperature=0.8, seed=1))
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxgpt import plots as plots
    from jaxgpt.cli.process import setup as setup
    from jaxgpt.config import ModelConfig as ModelConfig
    from jaxgpt.config import TrainConfig as TrainConfig
    from jaxgpt.config import override as override
    from jaxgpt.errors import UserError as UserError
    from jaxgpt.model.gpt import GPT as GPT
    from jaxgpt.pages.page import Page as Page
    from jaxgpt.presets import PRESETS as PRESETS
    from jaxgpt.presets import preset as preset
    from jaxgpt.runs.completion import Completion as Completion
    from jaxgpt.runs.pretrained import from_huggingface as from_huggingface
    from jaxgpt.runs.run import Run as Run
    from jaxgpt.runs.run import load as load
    from jaxgpt.training.finetune import finetune as finetune
    from jaxgpt.training.loop import Diverged as Diverged
    from jaxgpt.training.signals import Interrupted as Interrupted
    from jaxgpt.training.train import resume as resume
    from jaxgpt.training.train import train as train

# Imported when they are asked for, as above: JAX alone takes a second, which `train.py --help` need not wait.
_MODULES = {
    "GPT": "model.gpt",
    "PRESETS": "presets",
    "Completion": "runs.completion",
    "Diverged": "training.loop",
    "Interrupted": "training.signals",
    "ModelConfig": "config",
    "Page": "pages.page",
    "Run": "runs.run",
    "TrainConfig": "config",
    "UserError": "errors",
    "finetune": "training.finetune",
    "from_huggingface": "runs.pretrained",
    "load": "runs.run",
    "override": "config",
    "preset": "presets",
    "resume": "training.train",
    "setup": "cli.process",
    "train": "training.train",
}
__all__ = [*_MODULES, "plots"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "plots":
        return import_module("jaxgpt.plots")
    if name not in _MODULES:
        raise AttributeError(f"module 'jaxgpt' has no attribute {name!r}")
    return getattr(import_module(f"jaxgpt.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
