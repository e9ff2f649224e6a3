"""Training state: a file apart from the checkpoint, from which an interrupted run goes on.

All randomness of a step is a function of (seed, stage, step), so the state needs no generator's
state, and a run that was interrupted ends with the same bits as one that was not.
"""

from __future__ import annotations

import io
import math
import pickle
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from lddgan.errors import BadInput
from lddgan.files import atomic_write
from lddgan.preset import Preset

SAVE_SECONDS: Final = 60.0  # between two savings, at least
SAVE_SHARE: Final = 0.05  # of the time at most goes into saving


class Keeper:
    """Saves the state of one stage to `path` about once a minute, and loads the one that is there.

    `run` describes the run, by name of the setting.  Raises BadInput for a state of another run, or
    if there is a state and `resume` is False, or there is none and it is True.
    """

    def __init__(self, path: Path, run: Mapping[str, str], resume: bool) -> None:
        self.path, self.run = path, dict(run)
        self.first, self.seconds = 0, 0.0  # step to start at, time spent so far
        self.parts: dict[str, Any] = {}  # state dicts of that step
        self.since, self.cost = time.monotonic(), 0.0  # the last saving, seconds that it took
        if path.exists():
            if not resume:
                raise BadInput(
                    f"{path} is the state of an unfinished run; go on with --resume, delete it, or "
                    "name another --out"
                )
            state = load_state(path)
            check_run(path, state["run"], self.run)
            self.first, self.seconds, self.parts = state["step"], state["seconds"], state["parts"]
        elif resume:
            raise BadInput(f"{path} does not exist: there is nothing to resume; drop --resume")
        self.kept = self.first  # the step after which it was last saved

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self.since >= max(SAVE_SECONDS, self.cost / SAVE_SHARE)

    def keep(self, step: int, parts: dict[str, Any]) -> None:
        """Save the state after `step` steps, atomically. Raises LddganError if the disk fails."""
        now = time.monotonic()
        seconds = self.seconds + now - self.since
        buffer = io.BytesIO()
        torch.save({"run": self.run, "step": step, "seconds": seconds, "parts": parts}, buffer)
        atomic_write(self.path, buffer.getbuffer())
        self.kept, self.seconds = step, seconds
        self.since, self.cost = now, time.monotonic() - now


def load_state(path: Path) -> dict[str, Any]:
    """Load the state in `path`. Raises BadInput if it is missing or damaged."""
    if not path.is_file():
        raise BadInput(f"{path} does not exist or is not a file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not {"run", "step", "seconds", "parts"} <= state.keys():
            raise KeyError("run")
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, AttributeError) as error:
        raise BadInput(
            f"{path} is not a readable training state; to train from the start, delete it"
        ) from error
    return dict(state)


def check_run(path: Path, found: Mapping[str, str], run: Mapping[str, str]) -> None:
    """Raise BadInput, naming the difference, if a state belongs to another run."""
    with suppress(KeyError, ValidationError):  # the preset as this version writes it
        found = {**found, "preset": Preset.model_validate_json(found["preset"]).model_dump_json()}
    differs = [key for key in run if found.get(key) != run[key]]
    if differs:
        raise BadInput(
            f"{path} belongs to a run with another {' and '.join(differs)}; repeat its settings, "
            "or start in another --out"
        )


def on_cpu(network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network on the CPU, as a checkpoint holds them."""
    return {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}


def seed_step(seed: int, stage: int, step: int, rank: int = 0) -> None:
    """Seed torch's generators, on every device, for one step of one stage (of one process)."""
    words = [seed, stage, step, *([rank] if rank else [])]
    torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0]))


def set_rate(
    optimizer: torch.optim.Optimizer, progress: float, rate: float, least: float | None
) -> None:
    """Set the learning rate at a progress of 0..1: constant, or a cosine from `rate` to `least`."""
    if least is not None:
        rate = least + (rate - least) * (1 + math.cos(math.pi * progress)) / 2
    for group in optimizer.param_groups:
        group["lr"] = rate
