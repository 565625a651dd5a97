"""A text shows what is certain, stops where it should, and keeps its tokens."""

import numpy as np
import pytest

from jaxgpt.data.tokenizer import CharTokenizer
from jaxgpt.runs.completion import Writing


class Ending(CharTokenizer):
    """Its # is no character: it is the end of a text."""

    @property
    def end_of_text(self):
        return self.characters.index("#")


TOKENIZER = Ending(" #adenorst")


def write(text: str, n: int, stop: tuple[str, ...] = ()) -> tuple[Writing, list[str]]:
    """What is shown of `text` when it comes `n` tokens at a time, and at its end."""
    writing, tokens = Writing(TOKENIZER, stop), TOKENIZER.encode(text)
    steps = [tokens[i : i + n] for i in range(0, len(tokens), n)]
    return writing, [*(writing.add(step, -step.astype(np.float32)) for step in steps), writing.end()]


@pytest.mark.parametrize("n", [1, 2, 3, 50])
@pytest.mark.parametrize(
    ("text", "stop", "shown", "tokens"),
    [
        ("a nose", (), "a nose", "a nose"),
        ("a nose#rest", (), "a nose", "a nose#"),
        ("#rest", (), "", "#"),
        ("a nose and", ("ose",), "a n", "a nose"),
        ("a nose and", ("rrr", "and", "se"), "a no", "a nose"),
        ("a nose and", ("se and", "and"), "a no", "a nose and"),  # both are complete at once: before the earlier one
        ("nonosense", ("nose",), "no", "nonose"),  # the beginning of a stop text within another
        ("a nose", ("a",), "", "a"),
        ("a nos", ("nose",), "a nos", "a nos"),  # at the end it is decided
        ("a nos#e", ("nose",), "a nos", "a nos#"),
        ("dear dear", ("near",), "dear dear", "dear dear"),
    ],
)
def test_a_text_is_what_comes_before_its_stop_in_pieces_of_any_size(text, stop, shown, tokens, n):
    writing, pieces = write(text, n, stop)
    assert writing.text == "".join(pieces) == shown
    completion = writing.completion("prompt")
    assert (completion.prompt, completion.text) == ("prompt", shown)
    assert TOKENIZER.decode(completion.tokens) == tokens
    np.testing.assert_array_equal(completion.logprobs, -TOKENIZER.encode(tokens).astype(np.float32))
    assert completion.finish_reason == ("stop" if writing.stopped else "length")
    assert writing.stopped == (shown != tokens)


def test_what_may_begin_a_stop_text_is_held_back_until_it_is_decided():
    assert write("an ande", 1, ("and",))[1] == ["", "", "an ", "", "", "", "", ""]
    assert write("tender", 1, ("dent",))[1] == ["t", "e", "n", "", "", "der", ""]
    assert write("ten", 1, ("nose",))[1] == ["t", "e", "", "n"]


def test_a_text_that_may_begin_no_stop_text_is_shown_at_once():
    assert write("tender", 2, ("sss",))[1] == ["te", "nd", "er", ""]


def test_nothing_is_shown_after_the_stop():
    writing, _ = write("ten#", 2)
    assert writing.add(TOKENIZER.encode("era")) == ""
    assert writing.end() == ""
    assert writing.text == "ten"


class Half:
    """A decoder that keeps everything back until it is asked for the rest."""

    def decode(self, tokens):
        return ""

    def flush(self):
        return "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("last", ["a", "#"])
def test_half_a_character_at_the_end_is_shown(last, monkeypatch):
    monkeypatch.setattr(Ending, "decoder", lambda self: Half())
    writing, pieces = write(f"a{last}", 1)
    assert writing.text == "".join(pieces) == "\N{REPLACEMENT CHARACTER}"
