"""What a training writes about itself while it runs: losses, and pictures of how far it is."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lddgan.errors import BadInput
from lddgan.extras import require
from lddgan.files import atomic_write, utf8_name, writing
from lddgan.pictures import Pixels, grid, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES: Final = 1000  # of losses in a run, about
SMOOTHED_SHARE: Final = 0.03  # of all points, which a point of the smooth line averages
MARKED_POINTS: Final = 60  # curves of more points get a smooth line instead of marks
DPI: Final = 130


class Line(NamedTuple):
    """Mean losses, by name, of the steps since the line before."""

    step: int  # the last of them, counted from 0
    losses: dict[str, float]

    def as_json(self) -> bytes:
        """One line: {"step": 99, "g": 0.7}"""
        return json.dumps({"step": self.step} | self.losses).encode() + b"\n"


class TrainingLog(AbstractContextManager["TrainingLog"]):
    """Losses and pictures of one stage, as files in its folder.

        <stage>.losses.jsonl         means over intervals of steps, one JSON object per line
        <stage>.losses.png           the same as curves, drawn at the end
        samples/<stage>-0001000.png  grids of images
        tensorboard/<stage>/         both, for `tensorboard --logdir FOLDER/tensorboard`

    `first` is the step to begin with, of `total`; what an earlier run wrote about it and later
    steps is dropped.  Raises LddganError if TensorBoard or matplotlib is missing or the folder
    cannot be written to, BadInput if the earlier run's losses are damaged.
    """

    def __init__(self, folder: Path, stage: str, first: int, total: int) -> None:
        self.folder, self.stage, self.total = folder, stage, total
        self.path = folder / f"{stage}.losses.jsonl"
        self.every = max(1, total // LINES)  # steps that a line averages
        self.since: dict[str, list[float]] = {}  # losses of the steps since the last line
        require("tensorboard", "matplotlib")
        lines = read_losses(self.path) if first > 0 else []
        atomic_write(self.path, b"".join(line.as_json() for line in lines if line.step < first))
        from torch.utils.tensorboard import SummaryWriter

        place = folder / "tensorboard" / stage
        with writing(place), ExitStack() as opened:
            place.mkdir(parents=True, exist_ok=True)
            name = opened.enter_context(utf8_name(place))  # it opens its file again and again
            # Hides all that the folder holds of `first` and later steps: hence one per stage.
            self.writer = SummaryWriter(name, purge_step=first)
            self.opened = opened.pop_all()

    def __exit__(self, *error: object) -> None:
        """Close the files; losses since the last whole interval are lost."""
        with writing(self.folder / "tensorboard"), self.opened:
            self.writer.close()

    def note(self, step: int, losses: Mapping[str, float]) -> None:
        """Write the losses, by name, of step `step` (from 0); to be called after every step.

        A loss may be absent: means are over the steps that have it.
        """
        for name, value in losses.items():
            self.since.setdefault(name, []).append(value)
        done = step + 1
        if done % self.every and done != self.total:
            return
        line = Line(step, {name: sum(values) / len(values) for name, values in self.since.items()})
        self.since.clear()
        with writing(self.path):
            with self.path.open("ab") as file:
                file.write(line.as_json())
            for name, value in line.losses.items():
                self.writer.add_scalar(f"{self.stage}/{name}", value, step)
            self.writer.flush()

    def add_picture(self, step: int, images: Pixels) -> None:
        """Write a grid of uint8 [N,H,W,3], made after `step` steps."""
        picture, path = grid(images), self.folder / "samples" / f"{self.stage}-{step:07d}.png"
        atomic_write(path, png(picture))
        with writing(path):
            last = max(0, step - 1)  # a run resumed at `step` hides what is there from `step` on
            self.writer.add_image(f"{self.stage}/samples", picture, last, dataformats="HWC")
            self.writer.flush()

    def finish(self) -> None:
        """Draw the losses if there are any."""
        lines = read_losses(self.path)
        if any(line.losses for line in lines):
            buffer = io.BytesIO()
            figure = losses_figure(self.stage, lines)
            figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
            atomic_write(self.path.with_suffix(".png"), buffer.getbuffer())


def read_losses(path: Path) -> list[Line]:
    """Read the lines in `path`: none if it does not exist, and no half-written last one.

    Raises BadInput if another line is damaged.
    """
    if not path.exists():
        return []
    rows = path.read_bytes().splitlines()
    lines = []
    for number, row in enumerate(rows, start=1):
        try:
            losses = json.loads(row)
            lines.append(Line(losses.pop("step"), losses))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number < len(rows):
                told = f"{path}: line {number} holds no losses"
                raise BadInput(f"{told}; mend it, or delete the file") from error
    return lines


def losses_figure(title: str, lines: Sequence[Line]) -> Figure:
    """A panel for each loss, one below the other; there must be one at least."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for line in lines for name in line.losses))
    figure = Figure(figsize=(7, 1.9 * len(names) + 0.6), layout="constrained")
    figure.suptitle(f"losses of the {title}", fontsize=10)
    panels = figure.subplots(len(names), sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(panels, names, strict=True):
        steps, values = zip(
            *((line.step, line.losses[name]) for line in lines if name in line.losses), strict=True
        )
        last = values[-1]
        if len(steps) <= MARKED_POINTS:
            axes.plot(steps, values, ".-")
        else:
            smooth = smoothed(values, round(SMOOTHED_SHARE * len(values)))
            axes.plot(steps, values, "C0", alpha=0.3)
            axes.plot(steps, smooth, "C0")
            last = float(smooth[-1])
        axes.set_title(f"last: {last:.3g}", loc="right", fontsize=8)
        axes.set_ylabel(name)
        if min(values) > 0 and max(values) > 100 * min(values):
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel("step")
    return figure


def smoothed(values: Sequence[float], width: int) -> NDArray[np.float64]:
    """At each point the mean of it and up to `width` // 2 values on either side."""
    window = np.ones(width // 2 * 2 + 1)
    counts = np.convolve(np.ones(len(values)), window, "same")
    return np.convolve(values, window, "same") / counts
