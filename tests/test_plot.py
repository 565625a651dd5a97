"""The picture of a run can always be drawn."""

import warnings

import matplotlib.axes
import pytest

from jaxgpt.runs.plot import plot

ROWS = [{"step": 0, "val_loss": 4.0}, {"step": 1, "train_loss": 3.9}, {"step": 2, "val_loss": 3.0}]


@pytest.mark.parametrize(
    "rows",
    [ROWS, ROWS[:2], ROWS[1:2], [], [{"step": 1, "train_loss": None}, {"step": 1, "val_loss": None}]],
    ids=["a run", "one evaluation", "none", "nothing", "not finite"],
)
@pytest.mark.parametrize("title", ["runs/cpu: text", "a_$x_$.txt: $^$", "日本 \udcff \n 100%"])
def test_the_plot_is_a_png_whatever_the_name(rows, title, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot(rows, title, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_the_untrained_model_is_a_point_and_not_a_part_of_the_line(tmp_path, monkeypatch):
    lines = []
    draw = matplotlib.axes.Axes.plot
    monkeypatch.setattr(
        matplotlib.axes.Axes, "plot", lambda self, x, y, **how: lines.append((x, y)) or draw(self, x, y, **how)
    )
    plot([*ROWS, {"step": 4, "val_loss": 2.5}], "run", tmp_path / "loss.png")
    assert lines == [((1,), (3.9,)), ((2, 4), (3.0, 2.5)), ((0,), (4.0,))]


def test_without_an_evaluation_of_the_untrained_model_the_line_has_them_all(tmp_path, monkeypatch):
    lines = []
    draw = matplotlib.axes.Axes.plot
    monkeypatch.setattr(
        matplotlib.axes.Axes, "plot", lambda self, *xy, **how: lines.append(xy) or draw(self, *xy, **how)
    )
    plot([*ROWS[1:], {"step": 4, "val_loss": 2.5}], "run", tmp_path / "loss.png")
    assert lines == [((1,), (3.9,)), ((2, 4), (3.0, 2.5)), ()]
