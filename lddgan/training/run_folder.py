"""The folder of a run: its checkpoints, and the states from which its trainings go on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from lddgan.checkpoint import (
    Model,
    TrainedAutoencoder,
    build_model,
    digest_of,
    load_autoencoder,
    load_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from lddgan.errors import BadInput
from lddgan.training.state import load_state, progress_of

AUTOENCODER_FILE: Final = "autoencoder.safetensors"
MODEL_FILE: Final = "model.safetensors"
RESULTS: Final = {"autoencoder": AUTOENCODER_FILE, "generator": MODEL_FILE}  # by name of the stage
START_OPTIONS: Final = {AUTOENCODER_FILE: "--autoencoder", MODEL_FILE: "--init"}  # for its weights
STATE: Final = ".state.pt"  # suffix
AVERAGED: Final = "module."  # what the moving average puts before every name


def paths_of(folder: Path, stage: str, resume: bool) -> tuple[Path, Path]:
    """A stage's result and state. Raises BadInput if what is there does not suit `resume`."""
    result, state = folder / RESULTS[stage], folder / f"{stage}{STATE}"
    if result.exists() and not (resume and state.exists()):
        raise BadInput(finished(result, state))
    if state.exists() and not resume:
        ways = "go on with --resume, delete it, or name another --out"
        raise BadInput(f"{state} is the state of an unfinished run; {ways}")
    dependent = folder / f"generator{STATE}"
    if stage == "autoencoder" and dependent.exists() and not (folder / MODEL_FILE).exists():
        ways = "finish or delete it first, or go on in a copy of the folder"
        raise BadInput(f"{dependent} is unfinished and needs the autoencoder that is there; {ways}")
    if resume and not state.exists():
        raise BadInput(f"{state} does not exist: there is nothing to resume; drop --resume")
    return result, state


def steps_of(result: Path) -> int | None:
    """After how many steps a result was written; None if there is none, or it does not say."""
    return read_checkpoint(result)[2].get("steps") if result.exists() else None


def finished(result: Path, state: Path) -> str:
    """How a run that has its result can go on, for people."""
    steps = steps_of(result)
    told = f"{result} is finished" + ("" if steps is None else f" after {steps:,} steps")
    if state.exists():
        ways = f"to train anew, name another --out, or delete it and {state.name}"
        return f"{told}; `--resume --steps MORE` goes on to MORE steps in all; {ways}"
    start = f"where {START_OPTIONS[result.name]} {result} begins with its weights, or delete it"
    told += " and its state was discarded: there is nothing to resume"
    return f"{told}; name another --out, {start}"


def keep_autoencoder(folder: Path, trained: TrainedAutoencoder) -> None:
    """Keep the autoencoder beside the generator's state. Raises BadInput if another one is."""
    path = folder / AUTOENCODER_FILE
    if not path.exists():
        save_checkpoint(path, trained)
    elif digest_of(load_autoencoder(path)) != digest_of(trained):
        raise BadInput(f"{path} is another autoencoder than the one given; name another --out")


def load_model(path: Path) -> Model:
    """Load a checkpoint, or the moving average in a generator's state as a model.

    The autoencoder of a state, if one is learned, lies beside it.  Raises BadInput.
    """
    if not path.name.endswith(STATE):
        return load_checkpoint(path)
    state = load_state(path)
    generator, autoencoder = average_in(path, state), {}
    if state["preset"].autoencoder.learned:
        beside = path.with_name(AUTOENCODER_FILE)
        trained = load_autoencoder(beside)
        if digest_of(trained) != state["run"]["autoencoder"]:
            raise BadInput(f"{beside} is another autoencoder than {path} was trained with")
        autoencoder = trained.autoencoder.state_dict()
    provenance = progress_of(state["step"], state["total"])
    return build_model(state["preset"], generator, autoencoder, provenance)


def load_generator(path: Path) -> dict[str, Tensor]:
    """The generator's tensors in a checkpoint, or the average's in a state. Raises BadInput."""
    if path.name.endswith(STATE):
        return average_in(path, load_state(path))
    return load_checkpoint(path).generator.state_dict()


def average_in(path: Path, state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The moving average in the state of a generator. Raises BadInput for an autoencoder's."""
    average = state["parts"].get("ema")
    if average is None:
        raise BadInput(f"{path} is the state of an autoencoder; it makes no images")
    return {k.removeprefix(AVERAGED): v for k, v in average.items() if k.startswith(AVERAGED)}
