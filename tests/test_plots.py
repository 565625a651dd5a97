"""Pictures of what a model does with a text: all of it is there, and every text can be drawn."""

import dataclasses
import subprocess
import sys
import warnings

import numpy as np
import pytest
from models import changed, noisy

import jaxgpt
from jaxgpt import UserError
from jaxgpt.data.tokenizer import CharTokenizer
from jaxgpt.runs.run import Run

TEXT = "ROMEO:\nso the"


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def labels(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def test_every_head_has_a_square(whole):
    figure = jaxgpt.plots.attention(whole, TEXT)
    assert [axes.get_title() for axes in figure.axes] == ["head 0", "head 1"]
    assert figure.axes[0].get_ylabel() == "layer 0"
    for axes, weights in zip(figure.axes, whole.attention(TEXT)[0], strict=True):
        drawn = axes.images[0].get_array()
        np.testing.assert_array_equal(drawn.filled(0), weights)
        assert drawn.mask[np.triu_indices(13, 1)].all()  # the future is blank, and not a weight of 0
        assert drawn.mask.sum() == 13 * 12 / 2


def test_one_head_has_the_text_on_both_axes(whole):
    axes, _ = jaxgpt.plots.attention(whole, TEXT, layer=0, head=1).axes
    np.testing.assert_array_equal(axes.images[0].get_array().filled(0), whole.attention(TEXT)[0, 1])
    assert labels(axes.xaxis) == labels(axes.yaxis) == list("ROMEO:⏎so␣the")


def test_a_layer_or_a_head_that_is_not_there_is_told(whole, tmp_path):
    with pytest.raises(UserError, match="`head` is a whole number from 0 to 1, or None for all, not 2"):
        jaxgpt.plots.attention(whole, TEXT, head=2)
    with pytest.raises(UserError, match="`layer` is a whole number from 0 to 0"):
        jaxgpt.plots.attention(whole, TEXT, layer=-1)
    config = changed(architecture="bigram")
    bigram = Run(tmp_path, jaxgpt.TrainConfig(model=config), CharTokenizer("\n abcdefghi"), noisy(config), 0)
    with pytest.raises(UserError, match="a bigram has no attention"):
        jaxgpt.plots.attention(bigram, "abc")


def test_the_losses_lie_behind_their_characters(whole):
    axes, _ = jaxgpt.plots.losses(whole, TEXT).axes
    assert texts(axes) == list("ROMEO:⏎so the")
    colours = axes.images[0].get_array()
    np.testing.assert_allclose(colours[0, 1:7], whole.losses(TEXT)[:6])
    np.testing.assert_allclose(colours[1, :6], whole.losses(TEXT)[6:])
    assert np.isnan(colours.filled(np.nan)[0, 0])  # nothing predicts the first
    assert axes.get_title() == f"loss {whole.losses(TEXT).mean():.3f} nats a character"


def test_the_lens_shows_what_each_layer_would_predict(whole):
    axes, _ = jaxgpt.plots.logit_lens(whole, TEXT).axes
    likeliest = whole.logit_lens(TEXT).argmax(-1)
    expected = whole.tokenizer.decode(likeliest.reshape(-1)).replace(" ", "␣").replace("\n", "⏎")
    assert "".join(texts(axes)) == expected
    hits = (likeliest[:, :-1] == whole.tokenizer.encode(TEXT)[1:]).sum()
    assert len(axes.patches) == hits
    assert labels(axes.yaxis) == ["embeddings", "after block 0"]


@pytest.fixture
def strange(whole) -> Run:
    """The run with characters that nobody expects."""
    n = whole.tokenizer.vocab_size
    characters = "\0\t\n\x1b $%\\^_{}\x85\u200b\u202e日\U0001f469" + "".join(map(chr, range(0x41, 0x41 + n)))
    return dataclasses.replace(whole, tokenizer=CharTokenizer("".join(sorted(characters[:n]))))


def test_any_text_can_be_drawn_as_a_png(strange):
    text = "".join(strange.tokenizer.characters[:16])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for draw in (jaxgpt.plots.attention, jaxgpt.plots.losses, jaxgpt.plots.logit_lens):
            assert draw(strange, text)._repr_png_().startswith(b"\x89PNG\r\n")
        assert jaxgpt.plots.attention(strange, text, 0, 0)._repr_png_().startswith(b"\x89PNG\r\n")


def test_importing_jaxgpt_imports_neither_jax_nor_matplotlib():
    program = "import sys, jaxgpt; sys.exit(bool({'jax', 'matplotlib'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
