"""jaxgpt: a small GPT in JAX and Flax, to train, to sample, to read and to change.

>>> import jaxgpt
>>> run = jaxgpt.train(jaxgpt.preset("cpu", max_steps=500))
>>> print(run.generate("ROMEO:", tokens=200, temperature=0.8, seed=1))
"""

from jaxgpt.config import ModelConfig, TrainConfig, override
from jaxgpt.errors import UserError
from jaxgpt.model.gpt import GPT
from jaxgpt.presets import PRESETS, preset
from jaxgpt.runs.run import Run, load
from jaxgpt.training.loop import Diverged, Interrupted, resume, train

__all__ = [
    "GPT",
    "PRESETS",
    "Diverged",
    "Interrupted",
    "ModelConfig",
    "Run",
    "TrainConfig",
    "UserError",
    "load",
    "override",
    "preset",
    "resume",
    "train",
]
