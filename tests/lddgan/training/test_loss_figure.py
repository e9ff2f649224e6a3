"""The curves of a training's losses, as matplotlib draws them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lddgan.training.log import MARKED_POINTS, Line, losses_figure, smoothed

STAGE = "generator"


def panel_of(values: Mapping[int, float], more: Mapping[str, float] | None = None) -> Any:
    """The panel of loss `x`, noted at some of 1000 steps."""
    lines = [Line(step, {"x": values[step]} if step in values else {}) for step in range(1000)]
    lines[-1].losses.update(more or {})
    return losses_figure(STAGE, lines).axes[0]


def test_there_is_a_panel_for_each_loss() -> None:
    names = ["g", "d", "r1"]
    lines = [Line(step, dict.fromkeys(names, 1.0 * step)) for step in (3, 7, 11)]
    figure = losses_figure(STAGE, lines)
    assert [axes.get_ylabel() for axes in figure.axes] == names
    for axes in figure.axes:
        (line,) = axes.lines
        assert list(line.get_xdata()) == list(line.get_ydata()) == [3, 7, 11]
    assert figure.get_suptitle() == "losses of the generator"


def test_a_single_point_is_visible(tmp_path: Path) -> None:
    panel = panel_of({400: 2.0})
    (line,) = panel.lines
    assert list(line.get_xdata()) == [400] and line.get_marker() == "."
    assert panel.get_ylim()[0] < 2 < panel.get_ylim()[1]
    figure = losses_figure(STAGE, [Line(0, {"x": 2.0})])
    low, high = figure.axes[0].get_xlim()
    assert low < 0 < high and figure.axes[0].lines[0].get_marker() == "."
    figure.savefig(tmp_path / "one.png")


def test_a_late_loss_begins_where_it_begins_on_the_steps_of_all() -> None:
    lines = [Line(step, {"g": 1.0} | ({"d": 2.0} if step >= 30 else {})) for step in range(50)]
    first, second = losses_figure(STAGE, lines).axes
    assert list(second.lines[0].get_xdata()) == list(range(30, 50))
    assert first.get_xlim() == second.get_xlim()


def test_a_loss_of_all_steps_but_few_points_has_them_marked() -> None:
    few = panel_of(dict.fromkeys(range(MARKED_POINTS), 1.0))
    many = panel_of(dict.fromkeys(range(MARKED_POINTS + 1), 1.0))
    assert [line.get_marker() for line in few.lines] == ["."]
    assert [line.get_marker() for line in many.lines] == ["None", "None"]


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1.0, 100.0], "linear"),
        ([1.0, 101.0], "log"),
        ([0.0, 1000.0], "linear"),
        ([-1.0, 1000.0], "linear"),
        ([2.0], "linear"),
        ([1e-9, 1e-4], "log"),
    ],
)
def test_wide_positive_losses_have_a_logarithmic_axis(values: list[float], scale: str) -> None:
    assert panel_of(dict(enumerate(values))).get_yscale() == scale


def test_many_points_have_a_smooth_line_over_them() -> None:
    panel = panel_of({step: float(step % 2) for step in range(1000)})
    raw, smooth = panel.lines
    assert raw.get_alpha() < 0.5 and smooth.get_alpha() is None
    assert list(raw.get_ydata()) == [0.0, 1.0] * 500
    assert np.ptp(smooth.get_ydata()[20:]) < 0.1
    assert panel.get_title("right") == f"last: {smooth.get_ydata()[-1]:.3g}"


def test_smoothing_averages_what_is_there_on_both_sides() -> None:
    values = [9.0, 3.0, 0.0, 6.0, 3.0, 0.0]
    assert smoothed(values, 4).tolist() == pytest.approx([4, 4.5, 21 / 5, 12 / 5, 9 / 4, 3])
    assert smoothed(values, 0).tolist() == smoothed(values, 1).tolist() == values
