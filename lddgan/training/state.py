"""Training state: a file apart from the checkpoint, from which an interrupted run goes on.

All randomness of a step is a function of (seed, stage, step), so the state needs no generator's
state, and a run that was interrupted ends with the same bits as one that was not.
"""

from __future__ import annotations

import io
import math
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lddgan.errors import BadInput, LddganError
from lddgan.files import atomic_write

SAVE_SECONDS = 60.0  # between two savings


class Keeper:
    """Saves the state of one stage to `path` about once a minute, and starts from what is there.

    `run` describes the run; a state of another one is refused.  `first` is the step to start at,
    `parts` the state dicts saved then (None at the beginning), `seconds` the time spent so far.
    Raises BadInput rather than overwrite a state that the caller does not resume.
    """

    def __init__(self, path: Path, run: str, resume: bool) -> None:
        self.path, self.run = path, run
        self.first, self.seconds = 0, 0.0
        self.parts: dict[str, Any] | None = None
        self.since = time.monotonic()  # the last saving
        if path.exists():
            if not resume:
                raise BadInput(f"{path} is the state of an unfinished run; resume it or delete it")
            state = load_state(path, run)
            self.first, self.seconds, self.parts = state["step"], state["seconds"], state["parts"]

    def keep(self, step: int, last: bool, parts: Callable[[], dict[str, Any]]) -> None:
        """Save after `step` steps, if it is time to or this was the last one; atomic."""
        spent = time.monotonic() - self.since
        if spent < SAVE_SECONDS and not last:
            return
        self.since, self.seconds = time.monotonic(), self.seconds + spent
        buffer = io.BytesIO()
        state = {"run": self.run, "step": step, "seconds": self.seconds, "parts": parts()}
        torch.save(state, buffer)
        atomic_write(self.path, buffer.getbuffer())


def load_state(path: Path, run: str) -> dict[str, Any]:
    """The state in `path`. Raises BadInput if it is damaged or of another run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["run"]
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path} is not a readable training state; delete it to start anew"
        ) from error
    if found != run:
        raise BadInput(
            f"{path} belongs to a run with other settings (preset, seed, epochs or images); "
            "repeat them, or start in another folder"
        )
    return dict(state)


def seconds_in(path: Path) -> float:
    """Training time so far, over all resumptions, of the state in `path`."""
    return float(torch.load(path, map_location="cpu", weights_only=True)["seconds"])


def seed_step(seed: int, stage: int, step: int) -> None:
    """Seed torch's generators, on every device, for one step of one stage."""
    words = np.random.SeedSequence([seed, stage, step]).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]))


def rate_at(progress: float, rate: float, least: float | None) -> float:
    """Learning rate at a progress of 0..1: constant, or a cosine from `rate` down to `least`."""
    if least is None:
        return rate
    return least + (rate - least) * (1 + math.cos(math.pi * progress)) / 2


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def check_finite(losses: dict[str, Tensor], stage: str, step: int) -> dict[str, float]:
    """The losses as numbers. Raises LddganError naming stage and step if one is not finite."""
    values = {name: float(loss.detach()) for name, loss in losses.items()}
    for name, value in values.items():
        if not math.isfinite(value):
            raise LddganError(
                f"training the {stage} failed: its loss {name} is {value} at step {step}; "
                "lower the learning rate or check the images"
            )
    return values
