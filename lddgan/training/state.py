"""Training state: a file apart from the checkpoint, from which an interrupted run goes on.

All randomness of a step is a function of (seed, stage, step), so the state needs no generator's
state, and a run that was interrupted ends with the same bits as one that was not.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from lddgan.checkpoint import check_tensors, some
from lddgan.errors import BadInput, OutOfMemory, why_invalid
from lddgan.files import atomic_write
from lddgan.memory import is_out_of_memory
from lddgan.preset import Preset, flat, names

SAVE_SECONDS: Final = 60.0  # between two savings, at least
SAVE_SHARE: Final = 0.05  # of the time at most goes into saving
COSINE: Final = "the cosine of the learning rates"  # what set_rate does, for people
TOTAL: Final = "number of steps"  # of a run's settings, the one that may change
NOTHING: Final = "none"  # the digest of the weights that a run began with, if it began anew
DIGEST: Final = 64  # characters of one, which say nothing to people


class Keeper:
    """Saves the state of one stage to `path` about once a minute; if `resume`, loads it first.

    `run` describes the run, by name of the setting; what is "none" in it need not be repeated.
    Raises BadInput for a state of another run.
    """

    def __init__(self, path: Path, run: Mapping[str, str], resume: bool) -> None:
        self.path, self.run = path, dict(run)
        self.first, self.seconds = 0, 0.0  # step to start at, time spent until the last saving
        self.parts: dict[str, Any] = {}  # state dicts of that step
        self.total: int | None = None  # steps that the resumed run was to have
        self.since, self.cost = time.monotonic(), 0.0  # the last saving, seconds that it took
        if resume:
            state = load_state(path)
            begun = [key for key, value in run.items() if value == NOTHING]
            self.run |= {key: state["run"].get(key, NOTHING) for key in begun}
            check_run(path, state["run"], self.run)
            self.first, self.seconds, self.parts = state["step"], state["seconds"], state["parts"]
            self.total = state["total"]
        self.kept = self.first  # the step after which it was last saved

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self.since >= max(SAVE_SECONDS, self.cost / SAVE_SHARE)

    @property
    def elapsed(self) -> float:
        """Seconds spent so far, those before a resumption included."""
        return self.seconds + time.monotonic() - self.since

    def keep(self, step: int, parts: dict[str, Any]) -> None:
        """Save the state after `step` steps, atomically. Raises LddganError if the disk fails."""
        self.seconds, self.since = self.elapsed, time.monotonic()
        buffer = io.BytesIO()
        torch.save({"run": self.run, "step": step, "seconds": self.seconds, "parts": parts}, buffer)
        atomic_write(self.path, buffer.getbuffer())
        self.kept, self.cost = step, time.monotonic() - self.since


def load_state(path: Path) -> dict[str, Any]:
    """Load the state in `path`, with its "preset" and "total". Raises BadInput if it is damaged."""
    if not path.is_file():
        raise BadInput(f"{path} does not exist or is not a file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not {"run", "step", "seconds", "parts"} <= state.keys():
            raise KeyError("run")
        preset = Preset.model_validate_json(state["run"]["preset"])
        return {**state, "preset": preset, "total": int(state["run"][TOTAL])}
    except ValidationError as error:
        cause = why_invalid(error, "the preset")
        raise BadInput(f"{path} carries no readable preset: {cause}") from error
    except (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, AttributeError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory(f"the CPU has too little memory to load {path}") from error
        raise BadInput(
            f"{path} is not a readable training state; to train from the start, delete it"
        ) from error


def check_run(path: Path, found: Mapping[str, str], run: Mapping[str, str]) -> None:
    """Raise BadInput, naming settings and values, if a state belongs to another run.

    Only the number of steps may differ.
    """
    was, now = settings_in(found), settings_in(run)
    differs = [
        f"another {name}" + (f": {value}, it was {was.get(name)}" if len(value) != DIGEST else "")
        for name, value in now.items()
        if was.get(name, NOTHING) != value
    ]
    if differs:
        raise BadInput(
            f"{path} belongs to a run with {some(differs)}; repeat its settings (--steps and "
            "--epochs alone may change), or start in another --out"
        )


def settings_in(run: Mapping[str, str]) -> dict[str, str]:
    """What must not change, by name, with each value of the preset as `--set` takes it."""
    preset = Preset.model_validate_json(run["preset"])
    values = flat(preset.model_dump(mode="json"))
    leaves = {name: values[name] for name in names(values)}
    return (
        {"dataset": preset.name}
        | {name: value for name, value in run.items() if name not in ("preset", TOTAL)}
        | {k: v if isinstance(v, str) else json.dumps(v) for k, v in leaves.items()}
    )


def progress_of(step: int, total: int) -> dict[str, Any]:
    """What the provenance of weights says of how far they have been trained."""
    unfinished = {"unfinished": f"{step:,} of {total:,} steps"} if step < total else {}
    return {"steps": step} | unfinished


def begin_with(network: nn.Module, tensors: Mapping[str, Tensor], stage: str) -> None:
    """Give a network its first weights. Raises BadInput as `check_tensors`."""
    shapes = {name: v.shape for name, v in network.state_dict().items()}
    check_tensors(tensors, shapes, f"{stage} to begin with")
    network.load_state_dict(tensors)


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
