"""The folder of a run: its checkpoints, and the states of trainings that are not finished."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from lddgan.checkpoint import (
    Model,
    TrainedAutoencoder,
    build_model,
    digest_of,
    load_autoencoder,
    load_checkpoint,
    save_checkpoint,
)
from lddgan.errors import BadInput
from lddgan.preset import Preset
from lddgan.training.state import load_state

AUTOENCODER_FILE: Final = "autoencoder.safetensors"
MODEL_FILE: Final = "model.safetensors"
RESULTS: Final = {"autoencoder": AUTOENCODER_FILE, "generator": MODEL_FILE}  # by name of the stage
STATE: Final = ".state.pt"  # suffix
AVERAGED: Final = "module."  # what the moving average puts before every name


def paths_of(folder: Path, stage: str) -> tuple[Path, Path]:
    """A stage's result and state. Raises BadInput if there is a result, and no later state."""
    result, state = folder / RESULTS[stage], folder / f"{stage}{STATE}"
    if result.exists() and not state.exists():
        raise BadInput(
            f"{result} is finished: there is nothing to resume; to train again, delete it or name "
            "another --out"
        )
    return result, state


def keep_autoencoder(folder: Path, trained: TrainedAutoencoder) -> None:
    """Keep the autoencoder beside the generator's state. Raises BadInput if another one is."""
    path = folder / AUTOENCODER_FILE
    if not path.exists():
        save_checkpoint(path, trained)
    elif digest_of(load_autoencoder(path)) != digest_of(trained):
        raise BadInput(f"{path} is another autoencoder than the one given; name another --out")


def load_model(path: Path) -> Model:
    """Load a checkpoint, or an unfinished generator: the moving average in its state so far.

    The autoencoder of a state lies beside it.  Raises BadInput.
    """
    if not path.name.endswith(STATE):
        return load_checkpoint(path)
    state = load_state(path)
    average = state["parts"].get("ema")
    if average is None:
        raise BadInput(f"{path} is the state of an autoencoder; it makes no images")
    generator = {k.removeprefix(AVERAGED): v for k, v in average.items() if k.startswith(AVERAGED)}
    trained = load_autoencoder(path.parent / AUTOENCODER_FILE)
    provenance = {"unfinished": str(path), "steps": state["step"]}
    preset = Preset.model_validate_json(state["run"]["preset"])
    return build_model(preset, generator, trained.autoencoder.state_dict(), provenance)
