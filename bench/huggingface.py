"""Hugging Face's GPT-2 as a contestant: `generate` with its cache of keys and values, random weights, no network.

python bench/huggingface.py PRESET TOKENS SAMPLES [NAME=VALUE ...]
"""

import sys

import race
import torch
from recipe import recipe
from transformers import GPT2Config, GPT2LMHeadModel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
torch.backends.cuda.matmul.allow_tf32 = True  # as XLA and nanoGPT have it


def sampling(preset: str, tokens: int, samples: int, *changes: str):
    """Its sampling of `tokens` new tokens for each of `samples`, at the size of `preset` with `changes`.

    It cannot slide its window: it gets as many positions as the text needs, and looks at all of them.
    """
    model = recipe(preset, *changes).model
    config = GPT2Config(
        vocab_size=model.vocab_size,
        n_positions=1 + tokens,
        n_embd=model.n_embd,
        n_layer=model.n_layer,
        n_head=model.n_head,
        bos_token_id=None,
        eos_token_id=None,  # so that no text ends early
    )
    gpt = GPT2LMHeadModel(config).eval().to(DEVICE)
    prompt = torch.zeros((samples, 1), dtype=torch.long, device=DEVICE)
    options = {"do_sample": True, "top_k": 0, "use_cache": True, "pad_token_id": 0}

    def run():
        text = gpt.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, **options).cpu()
        assert text.shape == (samples, 1 + tokens)

    return run


if __name__ == "__main__":
    preset, tokens, samples, *changes = sys.argv[1:]
    race.serve(lambda: race.one_by_one(sampling(preset, int(tokens), int(samples), *changes)))
