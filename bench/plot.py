"""Ladders as pictures: bars and a roofline. Measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.row import Row, newest_session, results_file
from bench.tables import ladder_title, number, psnr
from engine.registry import DEVICES, find_engine
from lddgan.extras import require
from lddgan.progress import Log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INCHES: Final = (9.0, 5.5)
DPI: Final = 150
INT8: Final = "#6b46c1"
MARKERS: Final = {"generator": "o", "decoder": "s"}


def draw(dataset: str, out: Path | None, log: Log = lambda _: None) -> list[Path]:
    """Draw the newest ladder of every device as PNGs into docs/, or the one in `out` beside it.

    `log` gets why there is no roofline. Raises LddganError without a ladder or matplotlib.
    """
    require("matplotlib")
    kept = [results_file(dataset, device, "ladder") for device in DEVICES]
    paths = [out] if out is not None else [path for path in kept if path.exists()] or kept[-1:]
    folder = Path("docs") if out is None else out.parent
    ladders = [newest_session(path, "rung") for path in paths]
    return [made for rows in ladders for made in draw_ladder(rows, folder, log)]


def draw_ladder(rows: Sequence[Row], folder: Path, log: Log) -> list[Path]:
    """Draw ladder-lsun-cpu.png and, if there are ceilings, roofline-lsun-cpu.png."""
    first = rows[0]
    figures = {"ladder": ladder_figure(rows)}
    if first.ceilings is None or first.ceilings.note is not None:
        log(f"no roofline: {first.ceilings.note if first.ceilings else 'no ceilings'}")
    else:
        figures["roofline"] = roofline_figure(rows)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for kind, figure in figures.items():
        name = results_file(first.dataset, first.device or "cpu", kind)
        paths.append(folder / name.with_suffix(".png").name)
        figure.savefig(paths[-1], dpi=DPI, metadata={"Software": None})
    return paths


def blank(title: str) -> tuple[Figure, Axes]:
    """A figure with one plot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def ladder_figure(rows: Sequence[Row]) -> Figure:
    """Horizontal bars, the baseline on top: milliseconds of the whole (`bench.timing.Trial`)."""
    figure, axes = blank(ladder_title(rows[0]))
    for place, row in enumerate(rows):
        if row.why_not is not None:
            axes.text(0, place, " did not run", va="center", fontsize=8, color="#c53030")
            continue
        axes.barh(place, row.whole_ms, color=colour(row))
        axes.text(row.whole_ms, place, beside(row), va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row.rung or "" for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.set_xlim(left=0)
    axes.set_xlabel("ms for the batch (median), times as fast as the baseline, PSNR of the images")
    return figure


def beside(row: Row) -> str:
    """The text beside a bar: time, ratio, and how near the images are."""
    said = [f"{number(row.whole_ms)} ms", f"{row.ratio:.2f}x"]
    if row.psnr is not None:
        said.append(psnr(row) + (" dB" if row.psnr < float("inf") else ""))
    return " " + ", ".join(said)


def colour(row: Row) -> str:
    """The colour of a rung's bar."""
    return INT8 if row.precision == "int8" else find_engine(row.engine).color


def roofline_figure(rows: Sequence[Row]) -> Figure:
    """Generator and decoder of the fastest rung in the ceilings' precision, under the ceilings.

    A rate is of the network as published, so a rung that needs fewer operations for the same
    images may pass a ceiling. The ceilings must be known.
    """
    ceilings, best = rows[0].ceilings, fastest(rows)
    assert ceilings and ceilings.matmul_tflops and ceilings.convolution_tflops
    assert ceilings.copy_gb_per_second
    figure, axes = blank(f"{ladder_title(best)}\nthe fastest in its precision: {best.rung}")
    copied = ceilings.copy_gb_per_second / 1e3  # TB/s
    roofs = (
        ("matrix product", ceilings.matmul_tflops, "-"),
        (f"3x3 convolution {ceilings.convolution}", ceilings.convolution_tflops, "--"),
    )
    seen = [*best.intensity.values(), *(peak / copied for _, peak, _ in roofs)]
    left, right = min(seen) / 4, max(seen) * 4
    for name, peak, style in roofs:
        xs, ys = [left, peak / copied, right], [left * copied, peak, peak]
        axes.plot(xs, ys, style, color="black", label=f"{ceilings.precision} {name}, measured")
    for stage, intensity in best.intensity.items():
        rate = best.tflops(stage) or 0.0
        label = f"{stage}: {number(rate)} TFLOP/s"
        axes.plot(intensity, rate, MARKERS[stage], markersize=9, label=label)
    axes.set(xscale="log", yscale="log", ylabel="TFLOP/s, of the network as published")
    axes.set_xlabel("FLOP per byte that the published layers read and write")
    axes.legend(fontsize=8, loc="lower right")
    return figure


def fastest(rows: Sequence[Row]) -> Row:
    """The fastest rung in the ceilings' precision, or in any if none ran in it."""
    ran = [row for row in rows if row.why_not is None]
    same = [row for row in ran if row.ceilings and row.precision == row.ceilings.precision]
    return min(same or ran, key=lambda row: row.whole_ms)
