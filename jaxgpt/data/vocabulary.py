"""What all tokenizers check: texts, tokens, and the size of a vocabulary."""

from collections.abc import Iterable, Sequence

import numpy as np

from jaxgpt.errors import UserError


def token_type(vocab_size: int) -> type[np.integer]:
    """The type of tokens: two bytes where they fit."""
    return np.uint16 if vocab_size <= 2**16 else np.int32


def checked(tokens: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    """Tokens (T,) as int64. Raises `UserError` for one that is not from 0 to `vocab_size - 1`."""
    tokens = np.asarray(tokens, dtype=np.int64)
    outside = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if outside.size:
        raise UserError(
            f"token {outside[0]} is outside the vocabulary of {vocab_size}: "
            "decode with the tokenizer that the model was trained with"
        )
    return tokens


def check_size(given: int, actual: int, what: str) -> None:
    """Raises `UserError` for a `vocab_size` that is given, not 0, and not what it must be; `what` says why it must."""
    if given not in (0, actual):
        raise UserError(f"`vocab_size` is {given}, but {what}: leave it out")


def several(texts: str | Iterable[str]) -> Iterable[str]:
    """Texts, of which one alone may come as it is."""
    return (texts,) if isinstance(texts, str) else texts


def not_utf8(character: str) -> UserError:
    """The error for half a surrogate pair, as which Python reads a byte that is not UTF-8."""
    is_byte = "\udc80" <= character <= "\udcff"
    what = f"the byte 0x{ord(character) - 0xDC00:02x}" if is_byte else "half a character"
    return UserError(f"the text is not UTF-8 (it has {what}): convert it to UTF-8")
