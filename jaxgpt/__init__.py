"""jaxgpt: a small GPT in JAX and Flax, to train, to sample, to read and to change.

>>> import jaxgpt
>>> run = jaxgpt.train(jaxgpt.preset("cpu", max_steps=500))
>>> print(run.generate("ROMEO:", tokens=200, temperature=0.8, seed=1))
"""

from jaxgpt.config import ModelConfig, TrainConfig, override
from jaxgpt.errors import UserError
from jaxgpt.fit import Diverged, Interrupted, resume, train
from jaxgpt.model import GPT
from jaxgpt.presets import PRESETS, preset
from jaxgpt.run import Run, load

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
