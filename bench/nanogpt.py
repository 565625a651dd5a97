"""nanoGPT as a contestant, read from a clone of the user's own; nothing of it is kept here.

python bench/nanogpt.py PATH eager|compiled PRESET [NAME=VALUE ...]
python bench/nanogpt.py PATH sample PRESET TOKENS SAMPLES [NAME=VALUE ...]

On a GPU if PyTorch finds one, with what nanoGPT's train.py and sample.py do there: autocast, TF32, fused AdamW, and the
next batch on its way, from pinned memory, while the GPU is busy.
"""

import importlib.util
import sys
from pathlib import Path

import race
import torch
from recipe import recipe

from jaxgpt.config import ModelConfig, TrainConfig

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


def load(path: str):
    """The module `model.py` of the clone at `path`."""
    spec = importlib.util.spec_from_file_location("nanogpt_model", Path(path) / "model.py")
    if spec is None or not (Path(path) / "model.py").is_file():
        raise SystemExit(f"{path} is no clone of nanoGPT: it has no model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = module
    spec.loader.exec_module(module)
    return module


def build(path: str, model: ModelConfig):
    """Its GPT at the size of `model`."""
    module = load(path)
    names = ("vocab_size", "block_size", "n_layer", "n_head", "n_embd", "dropout", "bias")
    return module.GPT(module.GPTConfig(**{name: getattr(model, name) for name in names})).to(DEVICE)


def product_type(dtype: str) -> torch.dtype:
    """Of the matrix products. "auto" is float32 on a CPU, and on a GPU what it is good at, as in train.py."""
    if dtype != "auto":
        return getattr(torch, dtype)
    if DEVICE == "cpu":
        return torch.float32
    # Without emulation: with it, PyTorch calls bfloat16 supported on a T4, too.
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def autocast(dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32)


def batches(config: TrainConfig):
    """Batches of a random text without end, on their way to the device."""
    tokens = torch.randint(config.model.vocab_size, (1_003_854,))
    B, T = config.batch_size, config.model.block_size
    while True:
        starts = torch.randint(len(tokens) - T, (B,))
        xy = (torch.stack([tokens[i + later : i + later + T] for i in starts]) for later in (0, 1))
        yield tuple(part.pin_memory().to(DEVICE, non_blocking=True) for part in xy) if DEVICE == "cuda" else tuple(xy)


def training_step(path: str, compiled: bool, config: TrainConfig):
    """Its training steps, as its train.py makes them: forward, draw a batch, backward, clip, AdamW."""
    torch.manual_seed(config.seed)
    model = build(path, config.model)
    betas = (config.beta1, config.beta2)
    optimizer = model.configure_optimizers(config.weight_decay, config.learning_rate, betas, DEVICE)
    forward = torch.compile(model) if compiled else model
    dtype, drawn = product_type(config.dtype), batches(config)
    scaler = torch.amp.GradScaler(DEVICE, enabled=dtype == torch.float16)
    x, y = next(drawn)

    def run(n: int):
        nonlocal x, y
        for i in range(n):
            with autocast(dtype):
                _, loss = forward(x, y)
            x, y = next(drawn)
            scaler.scale(loss).backward()
            if config.grad_clip:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            if i % config.log_interval == 0 or i == n - 1:
                loss.item()  # waits for the GPU

    return run


def sampling(path: str, preset: str, tokens: int, samples: int, *changes: str):
    """Its `generate`, in the type that its sample.py would take."""
    model = build(path, recipe(preset, *changes).model).eval()
    prompt = torch.zeros((samples, 1), dtype=torch.long, device=DEVICE)

    def run():
        with autocast(product_type("auto")):
            model.generate(prompt, tokens).cpu()

    return run


if __name__ == "__main__":
    path, what, *more = sys.argv[1:]
    if what == "sample":
        preset, tokens, samples, *changes = more
        race.serve(lambda: race.one_by_one(sampling(path, preset, int(tokens), int(samples), *changes)))
    else:
        race.serve(lambda: training_step(path, what == "compiled", recipe(*more)))
