"""A text as it is written: from tokens to what may be shown, until the text is to stop."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxgpt.data.tokenizer import Tokenizer


class Completion(NamedTuple):
    """What a model wrote after a prompt."""

    prompt: str
    """The text that was continued."""
    text: str
    """The new text alone, up to where it stopped."""
    tokens: np.ndarray
    """(n,) int32, those that were drawn. The last may be what stopped the text, which is not in `text`: the
    tokenizer's `end_of_text`, or the token that completed a stop text."""
    logprobs: np.ndarray
    """(n,) float32, the logarithm of the probability that the model itself gave to each of them, before temperature and
    filters."""
    finish_reason: Literal["stop", "length"]
    """Whether it stopped by itself or has as many tokens as were asked for."""


class Writing:
    """One text on its way from tokens to a `Completion`. It stops at `end_of_text` and before a stop text.

    Args:
        tokenizer: whose tokens come.
        stop: the stop texts.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()):
        self.text = ""
        """All that may be shown by now."""
        self.stopped = False
        self._decoder = tokenizer.decoder()
        self._end_of_text = tokenizer.end_of_text
        self._stop = stop
        self._held = ""  # it may be the beginning of a stop text
        self._tokens: list[np.ndarray] = []
        self._logprobs: list[np.ndarray] = []

    def add(self, tokens: np.ndarray, logprobs: np.ndarray | None = None) -> str:
        """The next tokens (n,), of which none counts after the text has stopped -> the text that is certain by now and
        was not given before."""
        before = len(self.text)
        one_by_one = self._stop or self._end_of_text is not None  # it matters which of them stops the text
        taken = 0
        for part in tokens[:, None] if one_by_one else [tokens]:
            if self.stopped:
                break
            taken += len(part)
            if part[0] == self._end_of_text:
                self.end()
                self.stopped = True
            else:
                self._show(self._decoder.decode(part))
        self._tokens.append(tokens[:taken])
        if logprobs is not None:
            self._logprobs.append(logprobs[:taken])
        return self.text[before:]

    def end(self) -> str:
        """The rest of the text, when no more tokens come."""
        before = len(self.text)
        if not self.stopped:
            self._show(self._decoder.flush())
            self.text, self._held = self.text + self._held, ""
        return self.text[before:]

    def completion(self, prompt: str) -> Completion:
        """The whole, after its `end`. Every token must have come with its log-probability."""
        tokens, logprobs = np.concatenate(self._tokens), np.concatenate(self._logprobs)
        return Completion(prompt, self.text, tokens, logprobs, "stop" if self.stopped else "length")

    def _show(self, text: str) -> None:
        text = self._held + text
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            self.text, self._held = self.text + text[: min(found)], ""
            return
        beginnings = (stop[:n] for stop in self._stop for n in range(1, len(stop)))
        certain = len(text) - max((len(start) for start in beginnings if text.endswith(start)), default=0)
        self.text, self._held = self.text + text[:certain], text[certain:]
