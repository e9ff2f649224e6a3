"""Ladders as pictures: bars, a roofline, and speed against batch size. Nothing is measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bench.ladder import (
    Found,
    LadderRow,
    Site,
    heading,
    ladder_file,
    likeness,
    newest_ladder,
)
from bench.report import engine_name, hardware, newest, number
from bench.roofline import Device
from bench.row import RESULTS, BenchRow, kept_rows
from lddgan.extras import require
from lddgan.progress import Log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOCS = Path("docs")  # in the repository
INCHES: Final = (9.0, 5.5)
DPI: Final = 150
COLOURS: Final = {  # of engines
    "torch": "#8a8a8a",
    "torch-compile": "#5a5a5a",
    "ort": "#2b6cb0",
    "openvino": "#0987a0",
    "fused": "#b7791f",
    "trt": "#2f855a",
}
INT8: Final = "#6b46c1"
BOTH: Final[tuple[Device, ...]] = ("cuda", "cpu")


class Stage(NamedTuple):
    """A network of a rung on the roofline."""

    label: str
    intensity: float  # FLOP per byte
    tflops: float


def draw(dataset: str, out: Path | None, log: Log = lambda _: None) -> list[Path]:
    """Draw the newest ladder of every device as PNGs into DOCS, or the one in `out` beside it.

    `log` hears what could not be drawn and why.  Raises BadInput if there is no ladder,
    LddganError without matplotlib.
    """
    require("matplotlib")
    kept = [path for path in (ladder_file(dataset, device) for device in BOTH) if path.exists()]
    paths = [out] if out is not None else kept or [ladder_file(dataset, "cpu")]
    folder = DOCS if out is None else out.parent
    return [made for path in paths for made in draw_ladder(newest_ladder(path), folder, log)]


def draw_ladder(rows: Sequence[LadderRow], folder: Path, log: Log) -> list[Path]:
    """The pictures of one ladder: ladder-lsun-cpu.png, roofline-lsun-cpu.png, batch-lsun-cpu.png"""
    site = rows[0].site
    figures = {"ladder": ladder_figure(rows)}
    if site.ceilings.note is not None:
        log(f"no roofline: {site.ceilings.note}")
    else:
        figures["roofline"] = roofline_figure(rows)
    alike = alike_rows(site)
    if len({row.batch for row in alike}) > 1:
        figures["batch"] = batch_figure(alike)
    else:
        where = hardware(site.machine)
        log(
            f"no speed against batch size: {RESULTS} has no rows of two batch sizes of "
            f"{site.dataset} on {where}"
        )
    of = ladder_file(site.dataset, site.device).stem.removeprefix("ladder-")
    return [save(figure, folder / f"{kind}-{of}.png") for kind, figure in figures.items()]


def alike_rows(site: Site) -> list[BenchRow]:
    """The newest rows of `lddgan bench` of the same model and hardware."""
    where = hardware(site.machine)
    return [
        row
        for row in newest(kept_rows(RESULTS))
        if row.dataset == site.dataset and hardware(row.machine) == where
    ]


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path


def blank(title: str) -> tuple[Figure, Axes]:
    """A figure with one plot."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def ladder_figure(rows: Sequence[LadderRow]) -> Figure:
    """Horizontal bars, the baseline on top: milliseconds of the whole (`bench.timing.Trial`)."""
    figure, axes = blank(heading(rows[0].site))
    for place, row in enumerate(rows):
        if row.found is None:
            axes.text(0, place, " did not run", va="center", fontsize=8, color="#c53030")
            continue
        axes.barh(place, milliseconds(row.found), color=colour(row.found))
        axes.text(milliseconds(row.found), place, beside(row.found), va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row.rung for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.set_xlim(left=0)
    axes.set_xlabel("ms for the batch (median), times as fast as the baseline, PSNR of the images")
    return figure


def milliseconds(found: Found) -> float:
    return found.measured.times.whole.p50


def beside(found: Found) -> str:
    """What stands beside a bar: time, ratio, and how near the images are."""
    said = [f"{number(milliseconds(found))} ms", f"{found.ratio:.2f}x"]
    if found.agreement is not None:
        said.append(likeness(found.agreement) + (" dB" if found.agreement.psnr else ""))
    return " " + ", ".join(said)


def colour(found: Found) -> str:
    """Of the bar of a rung."""
    side = found.measured
    return INT8 if side.precision == "int8" else COLOURS[side.engine]


def roofline_figure(rows: Sequence[LadderRow]) -> Figure:
    """Generator and decoder of the fastest rung of the ceilings' precision, under them.

    A rate is of the network as published, so that a rung which needs fewer operations for the same
    images may pass a ceiling.  The ceilings must be known.
    """
    site, ceilings = rows[0].site, rows[0].site.ceilings
    assert ceilings.matmul_tflops and ceilings.convolution_tflops and ceilings.copy_gb_per_second
    best = fastest(rows)
    points = stages(best)
    figure, axes = blank(f"{heading(site)}\nthe fastest in its precision: {best.rung}")
    copied = ceilings.copy_gb_per_second / 1e3  # TB/s
    roofs = {
        f"{ceilings.precision} matrix product, measured": (ceilings.matmul_tflops, "-"),
        f"{ceilings.precision} 3x3 convolution {ceilings.convolution}, measured": (
            ceilings.convolution_tflops,
            "--",
        ),
    }
    seen = [point.intensity for point in points] + [peak / copied for peak, _ in roofs.values()]
    left, right = min(seen) / 4, max(seen) * 4
    for label, (peak, style) in roofs.items():
        xs, ys = [left, peak / copied, right], [left * copied, peak, peak]
        axes.plot(xs, ys, style, color="black", label=label)
    for point, marker in zip(points, "os", strict=True):
        label = f"{point.label}: {number(point.tflops)} TFLOP/s"
        axes.plot(point.intensity, point.tflops, marker, markersize=9, label=label)
    axes.set(xscale="log", yscale="log", ylabel="TFLOP/s, of the network as published")
    axes.set_xlabel("FLOP per byte that the published convolutions read and write")
    axes.legend(fontsize=8, loc="lower right")
    return figure


def fastest(rows: Sequence[LadderRow]) -> LadderRow:
    """The rung that took the least time with numbers of the ceilings' kind, or with any."""
    ran = [row for row in rows if row.found]
    precision = rows[0].site.ceilings.precision
    same = [row for row in ran if row.found and row.found.measured.precision == precision]
    return min(same or ran, key=_milliseconds)


def _milliseconds(row: LadderRow) -> float:
    assert row.found is not None
    return milliseconds(row.found)


def stages(row: LadderRow) -> list[Stage]:
    """Both networks of a rung."""
    assert row.found is not None
    reached, (generator, decoder) = row.found.measured.achieved, row.found.intensity
    assert reached is not None  # a ladder needs torch, which counts the cost
    return [
        Stage("generator", generator, reached.generator_tflops),
        Stage("decoder", decoder, reached.decoder_tflops),
    ]


def batch_figure(rows: Sequence[BenchRow]) -> Figure:
    """Images per second of every engine, and of PyTorch, by batch size."""
    figure, axes = blank(f"{rows[0].dataset}, {hardware(rows[0].machine)}")
    for name, points in by_engine(rows).items():
        axes.plot(*zip(*sorted(points.items()), strict=True), marker="o", label=name)
    axes.set(xscale="log", xlabel="images per batch", ylabel="images/s (median)")
    axes.set_ylim(bottom=0)
    batches = sorted({row.batch for row in rows})
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.xaxis.minorticks_off()
    axes.legend(fontsize=8)
    return figure


def by_engine(rows: Sequence[BenchRow]) -> dict[str, dict[int, float]]:
    """Engine -> batch -> images/s; the baseline, measured beside each, is of the newest row."""
    found: dict[str, dict[int, float]] = {}
    for row in sorted(rows, key=lambda row: row.date):
        sides: tuple[Any, ...] = (row.engine, row.baseline)
        for side in sides:
            if side is not None:
                found.setdefault(engine_name(side), {})[row.batch] = side.images_per_second
    return found
