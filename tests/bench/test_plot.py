"""The pictures of a ladder: what is drawn is read from matplotlib's own objects."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from bench.plot import (
    DPI,
    INCHES,
    INT8,
    colour,
    draw,
    draw_ladder,
    fastest,
    ladder_figure,
    roofline_figure,
)
from bench.row import Row, results_file, write_rows
from engine.registry import find_engine
from lddgan.errors import LddganError
from tests.bench.test_ladder import CEILINGS, climbed

SIZE = (INCHES[0] * DPI, INCHES[1] * DPI)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """torch 3200 ms, ort 1600 ms, two that did not run, and 400 ms."""
    return climbed()


def axes_of(figure: Figure) -> Axes:
    (axes,) = figure.axes
    return axes


def test_the_bars_are_the_times_from_top_to_bottom(rows: list[Row]) -> None:
    axes = axes_of(ladder_figure(rows))
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    drawn = {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in bars}
    assert drawn == {0: pytest.approx(3200), 1: pytest.approx(1600), 4: pytest.approx(400)}
    assert [label.get_text() for label in axes.get_yticklabels()] == [row.rung for row in rows]
    bottom, top = axes.get_ylim()
    assert top < 0 < 4 < bottom and axes.get_xlim()[0] == 0
    texts = {round(text.get_position()[1]): text.get_text().strip() for text in axes.texts}
    assert texts == {
        0: "3,200 ms, 1.00x",
        1: "1,600 ms, 2.00x, equal",
        2: "did not run",
        3: "did not run",
        4: "400 ms, 8.00x, 14.0 dB",
    }
    assert bars[0].get_facecolor() != bars[1].get_facecolor()  # PyTorch and the rest


def test_eight_bits_have_a_colour_of_their_own(rows: list[Row]) -> None:
    assert colour(rows[1]) == find_engine("ort").color
    assert colour(rows[1].model_copy(update={"precision": "int8"})) == INT8


def test_the_roofline_shows_ceilings_and_the_fastest_rung(rows: list[Row]) -> None:
    best = fastest(rows)
    assert best.rung == "+ more"
    faster = best.model_copy(update={"precision": "int8"})  # not under this roof
    assert fastest([*rows, faster]) is best
    assert fastest([faster if row is best else row for row in rows]).rung == "ort"
    product, convolution, generator, decoder = axes_of(roofline_figure(rows)).lines
    for roof, peak in ((product, 2e-7), (convolution, 4e-7)):
        (left, ridge, right), (low, *flat) = roof.get_xdata(), roof.get_ydata()
        assert low == pytest.approx(left * 1e-6)  # 0.001 GB/s
        assert ridge == pytest.approx(peak / 1e-6) and flat == pytest.approx([peak, peak])
        assert left < min(best.intensity.values()) and right > max(best.intensity.values())
    for point, stage in ((generator, "generator"), (decoder, "decoder")):
        expected = (best.intensity[stage], best.tflops(stage))
        assert (*point.get_xdata(), *point.get_ydata()) == expected


def test_pictures_are_drawn_from_kept_rows_alone(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LddganError, match="holds no rows of the kind 'rung'"):
        draw("digits", None)
    write_rows(rows, results_file("digits", "cpu", "ladder"))
    paths = draw("digits", None)
    names = [f"{kind}-digits-cpu.png" for kind in ("ladder", "roofline")]
    assert paths == [Path("docs") / name for name in names]
    write_rows(rows, Path("mine") / "ladder.jsonl")
    assert draw("digits", Path("mine") / "ladder.jsonl") == [Path("mine") / name for name in names]
    for path in paths:
        with Image.open(path) as image:
            assert image.size == SIZE and len(set(image.convert("L").tobytes())) > 10


def test_without_ceilings_there_is_no_roofline(rows: list[Row], tmp_path: Path) -> None:
    unknown = CEILINGS.model_copy(update={"note": "ceilings not measured: full"})
    log: list[str] = []
    blind = [row.model_copy(update={"ceilings": unknown}) for row in rows]
    assert [path.name for path in draw_ladder(blind, tmp_path, log.append)] == [
        "ladder-digits-cpu.png"
    ]
    assert log == ["no roofline: ceilings not measured: full"]


def test_without_matplotlib_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*packages: str) -> None:
        raise LddganError(f"{packages[0]} is not installed")

    monkeypatch.setattr("bench.plot.require", missing)
    with pytest.raises(LddganError, match="matplotlib is not installed"):
        draw("digits", None)
