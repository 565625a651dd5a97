"""Hugging Face's tokenizer.json, as far as jaxgpt writes and reads it: byte-level BPE, and characters as words.

The format is that of the library `tokenizers`, which takes no fields but its own. What a file asks for that jaxgpt does
not do is an error, since tokens other than those a model was trained on would go unnoticed.
"""

import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxgpt.errors import UserError

# How GPT-2 cuts a text into pre-tokens, which no token crosses.
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# In a file, each byte is a printable character: its own where it has one, as in GPT-2's vocabulary.
PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
BYTES = (*PRINTABLE, *(byte for byte in range(256) if byte not in PRINTABLE))  # in the order of GPT-2's tokens
CHARACTERS = {byte: chr(byte if i < len(PRINTABLE) else 256 + i - len(PRINTABLE)) for i, byte in enumerate(BYTES)}
BYTE_OF = {character: byte for byte, character in CHARACTERS.items()}

Merge = tuple[bytes, bytes]


class ByteLevel(NamedTuple):
    """A byte-level BPE."""

    vocab: tuple[bytes, ...]
    """What each token stands for."""
    merges: tuple[Merge, ...]
    """Pairs of tokens that become one, the first before the others. Each gives another token."""
    special: tuple[int, ...]
    """The tokens that no text encodes to, such as <|endoftext|>."""
    pattern: str
    """The regular expression of a pre-token; empty where the text is not cut into any."""


def characters(vocab: str) -> dict[str, Any]:
    """The file of a tokenizer whose tokens are the characters of `vocab`, in their order."""
    any_character = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    model = {"type": "WordLevel", "vocab": {character: i for i, character in enumerate(vocab)}, "unk_token": "<unk>"}
    return _file([], any_character, {"type": "Fuse"}, model)


def byte_level(bpe: ByteLevel) -> dict[str, Any]:
    """The file of a byte-level BPE."""
    names = [token.decode() if i in bpe.special else written(token) for i, token in enumerate(bpe.vocab)]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": token, "content": names[token], **flags, "special": True} for token in bpe.special]
    bytes_alone = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    if bpe.pattern == GPT2_PATTERN:
        pre_tokenizer = {**bytes_alone, "use_regex": True}
    elif bpe.pattern:
        split = {"type": "Split", "pattern": {"Regex": bpe.pattern}, "behavior": "Isolated", "invert": False}
        pre_tokenizer = {"type": "Sequence", "pretokenizers": [split, bytes_alone]}
    else:
        pre_tokenizer = bytes_alone
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "vocab": {name: i for i, name in enumerate(names)},
        "merges": [f"{written(left)} {written(right)}" for left, right in bpe.merges],
    }
    return _file(added, pre_tokenizer, bytes_alone, model)


def read_characters(content: dict[str, Any]) -> str | None:
    """The inverse of `characters`; None for a file of another kind. Raises `UserError` if it is damaged."""
    model = _object(content.get("model"))
    if model.get("type") != "WordLevel":
        return None
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or list(vocab.values()) != [*range(len(vocab))] or set(map(len, vocab)) != {1}:
        raise UserError("its words are not characters that are numbered from 0")
    for name, ours in characters("").items():
        if name in ("normalizer", "pre_tokenizer", "added_tokens") and content.get(name, ours) != ours:
            raise UserError(f"its {name} is {reprlib.repr(content[name])}, which is not supported for characters")
    return "".join(vocab)


def read_merges(content: dict[str, Any]) -> list[Any] | None:
    """The merges of a file as they are there; None for a file of another kind than BPE."""
    model = _object(content.get("model"))
    merges = model.get("merges")
    return merges if isinstance(merges, list) and model.get("type", "BPE") == "BPE" else None


def read_byte_level(content: dict[str, Any]) -> ByteLevel | None:
    """The byte-level BPE in a file, whoever wrote it; None for a file of another kind.

    Raises:
        UserError: if it is damaged, or asks for something that jaxgpt does not do.
    """
    merges, model = read_merges(content), _object(content.get("model"))
    if merges is None:
        return None
    wanted = {name: model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")}
    for name, value in {"normalizer": content.get("normalizer"), **wanted}.items():
        if value:
            raise UserError(f"its {name} is {reprlib.repr(value)}, which is not supported: it must be null")
    return _vocabulary(model.get("vocab"), merges, _special(content), _pattern(content.get("pre_tokenizer")))


def merges_of(text: str) -> list[str]:
    """The merges in a merges.txt, or vocab.bpe, as OpenAI called it."""
    first, *lines = text.split("\n")
    return [line for line in ([] if first.startswith("#version") else [first]) + lines if line]


def content_of(ids: Any, merges: list[str], special: str) -> dict[str, Any]:
    """A vocab.json and the merges beside it as the tokenizer.json that would say the same of a model like GPT-2."""
    added = [{"id": ids[special], "content": special, "special": True}] if special in _object(ids) else []
    model = {"type": "BPE", "vocab": ids, "merges": merges}
    return _file(added, {"type": "ByteLevel", "add_prefix_space": False}, {"type": "ByteLevel"}, model)


def written(token: bytes) -> str:
    """A token's bytes as the characters that stand for them in a file."""
    return "".join(map(CHARACTERS.__getitem__, token))


def read(name: str) -> bytes:
    """The inverse of `written`. Raises `UserError` for a text that stands for no bytes."""
    try:
        return bytes(map(BYTE_OF.__getitem__, name))
    except KeyError as problem:
        raise UserError(f"its token {reprlib.repr(name)} is not made of bytes") from problem


def _file(added: list[Any], pre_tokenizer: Any, decoder: Any, model: dict[str, Any]) -> dict[str, Any]:
    nothing = dict.fromkeys(("truncation", "padding"))
    steps = {"normalizer": None, "pre_tokenizer": pre_tokenizer, "post_processor": None, "decoder": decoder}
    return {"version": "1.0", **nothing, "added_tokens": added, **steps, "model": model}


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _vocabulary(ids: Any, merges: list[Any], special: dict[str, int], pattern: str) -> ByteLevel:
    """The parts as one: `ids` of all tokens but the `special` ones, which may be there, too."""
    ids = _object(ids) | special
    if not all(type(i) is int for i in ids.values()):
        raise UserError("its vocabulary is no object of tokens and their numbers")
    if sorted(ids.values()) != [*range(len(ids))]:
        raise UserError(f"its {len(ids)} tokens are not numbered from 0 on, each with a number of its own")
    if missing := set(CHARACTERS.values()) - (ids.keys() - special.keys()):
        raise UserError(f"its vocabulary lacks a byte, {reprlib.repr(min(missing))}")
    tokens = {name: name.encode() if name in special else read(name) for name in sorted(ids, key=ids.__getitem__)}
    pairs = tuple(_pair(merge, tokens) for merge in merges)
    _check_merges(pairs, {token for name, token in tokens.items() if name not in special})
    return ByteLevel(tuple(tokens.values()), pairs, tuple(sorted(special.values())), pattern)


def _special(content: dict[str, Any]) -> dict[str, int]:
    special, tokens = {}, content.get("added_tokens") or []
    for added in tokens if isinstance(tokens, list) else [tokens]:
        match added:
            case {"id": int(token), "content": str(name), "special": True} if name.isprintable():
                special[name] = token
            case _:
                raise UserError(f"its added token {reprlib.repr(added)} is not supported: it must be a special token")
    return special


def _pattern(pre_tokenizer: Any) -> str:
    """The regular expression of the pre-tokens, if the file asks for one and then for bytes."""
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": [{"type": "Split"} as split, {"type": "ByteLevel"} as level]}:
            match split:
                case {"pattern": {"Regex": str(pattern)}, "behavior": "Isolated"} if not split.get("invert"):
                    if not level.get("use_regex", True) and not level.get("add_prefix_space", True):
                        return pattern
        case {"type": "ByteLevel"} as level if not level.get("add_prefix_space", True):
            return GPT2_PATTERN if level.get("use_regex", True) else ""
    raise UserError(f"its pre_tokenizer is not supported: {reprlib.repr(pre_tokenizer)}")


def _pair(merge: Any, tokens: dict[str, bytes]) -> Merge:
    match merge.split(" ") if isinstance(merge, str) else merge:
        case [str(left), str(right)] if left in tokens and right in tokens:
            return tokens[left], tokens[right]
    raise UserError(f"its merge {reprlib.repr(merge)} is no pair of tokens")


def _check_merges(merges: Sequence[Merge], tokens: set[bytes]) -> None:
    """Merges are applied by the rank of what they give (as tiktoken does), which is the same as by their own order as
    long as each gives another token, and no earlier merge tears its parts apart. Learnt merges are always so."""
    rank = {bytes([byte]): byte for byte in BYTES}
    parts = {byte: (byte, byte) for byte in BYTES}
    by_parts: dict[tuple[int, int], int] = {}
    for left, right in merges:
        new, pair = left + right, (rank.get(left, -1), rank.get(right, -1))
        if new in rank or new not in tokens or -1 in pair or not _survives(*pair, by_parts, parts):
            raise UserError(f"its merge of {reprlib.repr(left)} and {reprlib.repr(right)} contradicts the others")
        rank[new] = by_parts[pair] = len(rank)
        parts[rank[new]] = pair


def _survives(left: int, right: int, by_parts: dict[tuple[int, int], int], parts: dict[int, tuple[int, int]]) -> bool:
    """Whether two tokens side by side stay whole: undone merge by merge, the latest first, no earlier one crosses."""
    limit = len(parts)
    while True:
        if by_parts.get((left, right), limit) < limit:
            return False
        if left > right:
            limit, left = left, parts[left][1]
            if left == limit:
                limit, right = right + 1, parts[right][0]
                if right + 1 == limit:
                    return True
        else:
            limit, right = right + 1, parts[right][0]
            if right + 1 == limit:
                limit, left = left, parts[left][1]
                if left == limit:
                    return True
