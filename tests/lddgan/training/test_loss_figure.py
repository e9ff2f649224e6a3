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


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (2, 2, 1), (3, 2, 2), (7, 4, 2)])
def test_there_is_a_panel_for_each_loss(count: int, rows: int, columns: int) -> None:
    names = [f"loss {number}" for number in range(count)]
    lines = [Line(step, dict.fromkeys(names, 1.0 * step)) for step in (3, 7, 11)]
    figure = losses_figure(STAGE, lines)
    assert [axes.get_title("left") for axes in figure.axes] == names
    assert [axes.get_title("right") for axes in figure.axes] == ["last: 11"] * count
    for place, axes in enumerate(figure.axes):
        spec = axes.get_subplotspec()
        assert (spec.rowspan.start, spec.colspan.start) == divmod(place, columns)
        assert spec.get_geometry()[:2] == (rows, columns)
        (line,) = axes.lines
        assert list(line.get_xdata()) == list(line.get_ydata()) == [3, 7, 11]
        low, high = axes.get_xlim()
        assert -1 < low < 0 and 11 < high < 12
        labelled = axes.xaxis.get_tick_params()["labelbottom"]
        assert labelled == (place >= count - columns)  # nothing below it
    assert figure.get_supxlabel() == "step"
    assert figure.get_suptitle() == "losses of the generator"


def test_a_single_point_is_visible(tmp_path: Path) -> None:
    panel = panel_of({400: 2.0})
    (line,) = panel.lines
    assert list(line.get_xdata()) == [400] and line.get_marker() == "o"
    assert panel.get_ylim()[0] < 2 < panel.get_ylim()[1]
    figure = losses_figure(STAGE, [Line(0, {"x": 2.0})])
    low, high = figure.axes[0].get_xlim()
    assert low < 0 < high and figure.axes[0].lines[0].get_marker() == "o"
    figure.savefig(tmp_path / "one.png")


def test_a_late_loss_begins_where_it_begins_on_the_steps_of_all() -> None:
    lines = [Line(step, {"g": 1.0} | ({"d": 2.0} if step >= 30 else {})) for step in range(50)]
    first, second = losses_figure(STAGE, lines).axes
    assert list(second.lines[0].get_xdata()) == list(range(30, 50))
    assert first.get_xlim() == second.get_xlim()


def test_a_loss_of_all_steps_but_few_points_has_them_marked() -> None:
    few = panel_of(dict.fromkeys(range(MARKED_POINTS), 1.0))
    many = panel_of(dict.fromkeys(range(MARKED_POINTS + 1), 1.0))
    assert [line.get_marker() for line in few.lines] == ["o"]
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


@pytest.mark.parametrize(
    ("last", "said"),
    [(0.69314, "0.693"), (19867.4, "19,867"), (-1234.0, "-1,234"), (3e-7, "3e-07")],
)
def test_the_last_value_is_readable(last: float, said: str) -> None:
    assert panel_of({999: last}).get_title("right") == f"last: {said}"


def test_many_points_have_a_smooth_line_over_them() -> None:
    panel = panel_of({step: float(step % 2) for step in range(1000)})
    raw, smooth = panel.lines
    assert raw.get_alpha() < 0.5 and smooth.get_alpha() is None
    assert list(raw.get_ydata()) == [0.0, 1.0] * 500
    assert np.ptp(smooth.get_ydata()[20:]) < 0.1
    assert panel.get_title("right") == f"last: {smooth.get_ydata()[-1]:.3g}"


def test_smoothing_keeps_the_beginning() -> None:
    values = [9.0, 3.0, 0.0, 6.0, 3.0, 0.0]
    assert smoothed(values, 4).tolist() == pytest.approx([9, 4, 21 / 5, 12 / 5, 9 / 4, 3])
    assert smoothed(values, 0).tolist() == smoothed(values, 1).tolist() == values
