"""A run for other programs: a folder that Hugging Face's transformers reads, or a file for llama.cpp."""

import json
import os
import shutil
from pathlib import Path
from typing import Any
from uuid import uuid4

from jaxgpt.errors import UserError
from jaxgpt.files import reason, shown
from jaxgpt.model import gguf, huggingface
from jaxgpt.model.build import params_of
from jaxgpt.runs.run import Run

FORMATS = ("huggingface", "gguf")
GGUF = "model.gguf"

CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [jaxgpt]
---

A GPT of {n_layer} layers, {n_head} heads and {n_embd} channels, for texts of up to {block_size} tokens, exported from
jaxgpt at step {step}.

```python
from transformers import AutoTokenizer, {loader}

tokenizer = AutoTokenizer.from_pretrained({path!r}{trust})
model = {loader}.from_pretrained({path!r}{trust})
tokens = tokenizer({start!r}, return_tensors="pt")
print(tokenizer.decode(model.generate(**tokens, max_new_tokens={new}, do_sample=True)[0]))
```
"""


def export(run: Run, to: str | os.PathLike[str], format: str = "huggingface") -> Path:
    """Writes a run for other programs.

    As "huggingface": config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json and
    README.md, for transformers' GPT2LMHeadModel; or, where that cannot hold the model, with modeling_jaxgpt.py for
    AutoModelForCausalLM with trust_remote_code. `jaxgpt.from_huggingface` reads it, too. As "gguf": model.gguf, for
    llama.cpp.

    Args:
        run: from `jaxgpt.train`, `jaxgpt.load` or `jaxgpt.from_huggingface`.
        to: the folder, new or empty. If something fails, it is left empty.
        format: "huggingface" or "gguf".

    Returns:
        The folder, as an absolute path.

    Raises:
        UserError: for a folder that is taken, another format, and what the format cannot hold.
        OSError: when a file cannot be written.
    """
    to = Path(os.path.abspath(os.path.expanduser(to)))
    if format not in FORMATS:
        raise UserError(f"`format` is {' or '.join(FORMATS)}, not {format!r}")
    if run.config.model.architecture != "gpt":
        raise UserError(f"{run.config.model.architecture} is a rung of the ladder, which only jaxgpt has: export a gpt")
    try:
        if to.exists() and any(to.iterdir()):
            raise UserError(f"{shown(to)} is not empty, and nothing is overwritten: choose another `to`")
        to.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as problem:
        raise UserError(f"{shown(to)} cannot be made ({reason(problem)}): choose another `to`") from problem
    partial = to / f".{uuid4().hex}.part"
    partial.mkdir()
    try:
        {"huggingface": _huggingface, "gguf": _gguf}[format](run, partial, to)
        for file in sorted(partial.iterdir()):
            file.rename(to / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return to


def _huggingface(run: Run, folder: Path, to: Path) -> None:
    end, model = run.tokenizer.end_of_text, run.config.model
    loader = huggingface.write(folder, model, params_of(run.model), end)
    run.tokenizer.save(folder / "tokenizer.json")
    described: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,  # or "a ," would become "a,"
        "model_max_length": model.block_size,
        "model_input_names": ["input_ids", "attention_mask"],  # older versions would add token types
    }
    if end is not None:
        described |= dict.fromkeys(("bos_token", "eos_token"), run.tokenizer.decode([end]))
    (folder / "tokenizer_config.json").write_text(json.dumps(described, indent=2) + "\n", "utf-8")
    card = CARD.format(
        **vars(model),
        step=f"{run.step:,}",
        loader=loader,
        path=to.name,
        trust="" if loader == "GPT2LMHeadModel" else ", trust_remote_code=True",
        start=run.tokenizer.start,
        new=model.block_size // 2,
    )
    (folder / "README.md").write_text(card, "utf-8")


def _gguf(run: Run, folder: Path, to: Path) -> None:
    run.tokenizer.save(folder / "tokenizer.json")
    tokenizer = json.loads((folder / "tokenizer.json").read_bytes())
    (folder / "tokenizer.json").unlink()
    gguf.write(folder / GGUF, run.config.model, params_of(run.model), tokenizer, run.tokenizer.end_of_text)
