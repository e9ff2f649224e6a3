"""How a training is run; what is trained is in the preset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lddgan.data.feed import Feed, Order
from lddgan.data.images import Images, OnBad, read_unmirrored
from lddgan.errors import BadInput
from lddgan.files import sha256_of_bytes
from lddgan.noise import MAX_INDEX
from lddgan.preset import Preset
from lddgan.progress import Log, to_stderr
from lddgan.text import quoted
from lddgan.training.ranks import Ranks, rows_of
from lddgan.training.state import progress_of


@dataclass(frozen=True)
class Settings:
    """How one stage is run. Raises BadInput for epochs and steps together, or another seed."""

    out: Path  # folder of what the run writes
    seed: int = 0
    epochs: int | None = None  # in all; None: the resumed run's, or the preset's
    steps: int | None = None  # instead of epochs
    resume: bool = False
    keep_every: int | None = None  # steps between two snapshots; None: no snapshots
    discard_state: bool = False  # at the end
    device: str | None = None  # None: a GPU if there is one
    workers: int = 0  # processes that read images
    on_bad: OnBad = "stop"
    accumulate: int = 1  # parts of a process's batch whose gradients are summed
    bf16: bool = False  # autocast; the losses stay float32
    channels_last: bool = False
    compile: bool = False
    source: str = ""  # where the images are, for the provenance
    command: Sequence[str] = ()
    log: Log = to_stderr

    def __post_init__(self) -> None:
        if self.epochs is not None and self.steps is not None:
            raise BadInput("give epochs or steps, not both")
        if not 0 <= self.seed <= MAX_INDEX:
            raise BadInput(f"seed is {self.seed}, and must be in 0..2^63-1")

    def rows(self, ranks: Ranks, batch: int, group: int) -> torch.Tensor:
        """The rows of each batch that this process takes, part by part, int64. Raises BadInput.

        Images of one `group` stay together.
        """
        parts = ranks.world * self.accumulate
        mine = range(ranks.rank * self.accumulate, (ranks.rank + 1) * self.accumulate)
        return torch.cat([rows_of(part, parts, batch, group) for part in mine])

    def feed(self, images: Images, ranks: Ranks, batch: int, group: int, flip: bool) -> Feed:
        """Open this process's share of the batches. Raises BadInput if there are too few images."""
        return Feed(
            images,
            Order(len(images), batch, self.seed, flip),
            self.rows(ranks, batch, group),
            workers=self.workers,
            on_bad=self.on_bad,
            log=self.log,
            pinned=ranks.device.type == "cuda",
        )

    def autocast(self, device: torch.device) -> torch.autocast:
        """The context in which networks compute: bfloat16 if `bf16`."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.bf16)

    def layout(self) -> dict[str, Any]:
        """Options of `nn.Module.to` that give a network its memory layout."""
        return {"memory_format": torch.channels_last} if self.channels_last else {}

    def run(self, preset: Preset, images: Images) -> dict[str, str]:
        """What must be the same where a run is resumed, by name. Raises BadInput."""
        some = read_unmirrored(images, [0, len(images) // 2, len(images) - 1]).values
        return {
            "seed": str(self.seed),
            "number of images": str(len(images)),
            "set of images": sha256_of_bytes(some.numpy().tobytes()),
            "precision": "bfloat16" if self.bf16 else "float32",
            "preset": preset.model_dump_json(),
        }

    def provenance(self, count: int, step: int, total: int, seconds: float) -> dict[str, Any]:
        """Where weights come from: the provenance in their checkpoint, after `step` steps."""
        return {
            "command": " ".join(map(quoted, self.command)),
            "data": self.source,
            "seed": self.seed,
            "images": count,
            **progress_of(step, total),
            "seconds": round(seconds),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
