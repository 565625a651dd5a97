"""nanoGPT as a contestant, read from a clone of the user's own; nothing of it is kept here.

python bench/nanogpt.py PATH PRESET eager|compiled|sample
"""

import importlib.util
import sys
from pathlib import Path

import race
import torch

from jaxgpt import presets


def load(path: str):
    """The module `model.py` of the clone at `path`."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(path) / "model.py")
    if spec is None or not (Path(path) / "model.py").is_file():
        raise SystemExit(f"{path} is no clone of nanoGPT: it has no model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    return module


def build(path: str, model):
    """Its GPT at the size of `model`, a `jaxgpt.ModelConfig`."""
    module = load(path)
    names = ("block_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
    return module.GPT(module.GPTConfig(vocab_size=65, **{name: getattr(model, name) for name in names}))


def training_step(path: str, preset: str, compiled: bool):
    """Its training step, as its bench.py and train.py have it: draw a batch, forward, backward, clip, AdamW."""
    config = presets.preset(preset)
    torch.manual_seed(config.seed)
    tokens = torch.randint(65, (1_003_854,))
    model = build(path, config.model)
    betas = (config.beta1, config.beta2)
    optimizer = model.configure_optimizers(config.weight_decay, config.learning_rate, betas, "cpu")
    forward = torch.compile(model) if compiled else model
    B, T = config.batch_size, config.model.block_size

    def step():
        starts = torch.randint(len(tokens) - T, (B,))
        x = torch.stack([tokens[i : i + T] for i in starts])
        y = torch.stack([tokens[i + 1 : i + 1 + T] for i in starts])
        _, loss = forward(x, y)
        loss.backward()
        if config.grad_clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def sampling(path: str, preset: str, tokens: int, samples: int):
    model = build(path, presets.preset(preset).model).eval()
    prompt = torch.zeros((samples, 1), dtype=torch.long)
    return lambda: model.generate(prompt, tokens)


if __name__ == "__main__":
    path, preset, what, *numbers = sys.argv[1:]
    if what == "sample":
        race.serve(lambda: race.one_by_one(sampling(path, preset, *map(int, numbers))))
    else:
        race.serve(lambda: race.one_by_one(training_step(path, preset, compiled=what == "compiled")))
