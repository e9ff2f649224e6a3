"""The folder of a run: its checkpoints, the states of what is unfinished, a look at these."""

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
from lddgan.training.settings import Settings
from lddgan.training.state import load_state

AUTOENCODER_FILE: Final = "autoencoder.safetensors"
MODEL_FILE: Final = "model.safetensors"
STATE: Final = ".state.pt"  # suffix
AUTOENCODER_STATE: Final = f"autoencoder{STATE}"
GENERATOR_STATE: Final = f"generator{STATE}"
AVERAGED: Final = "module."  # what the moving average puts before every name


def unfinished(settings: Settings, result: str, state: str) -> None:
    """Raise BadInput if the run's `result` is there already, and its `state` is not."""
    path = settings.out / result
    if path.exists() and not (settings.out / state).exists():
        raise BadInput(
            f"{path} is finished: there is nothing to resume; to train anew, delete it or name "
            "another --out"
        )


def keep_autoencoder(folder: Path, stage: TrainedAutoencoder) -> None:
    """Keep the autoencoder beside the generator's state. Raises BadInput if another one is."""
    path = folder / AUTOENCODER_FILE
    if not path.exists():
        save_checkpoint(path, stage)
    elif digest_of(load_autoencoder(path)) != digest_of(stage):
        raise BadInput(f"{path} is another autoencoder than the one given; name another --out")


def load_model(path: Path) -> Model:
    """The model in a checkpoint, or what an unfinished generator's state would give.

    Raises BadInput.
    """
    return load_unfinished(path) if path.name.endswith(STATE) else load_checkpoint(path)


def load_unfinished(path: Path) -> Model:
    """The model that an unfinished generator's state would give: its moving average so far.

    `path` is the state, the autoencoder lies beside it.  Raises BadInput.
    """
    state = load_state(path)
    average = state["parts"].get("ema")
    if average is None:
        raise BadInput(f"{path} is the state of an autoencoder; it makes no images")
    generator = {k.removeprefix(AVERAGED): v for k, v in average.items() if k.startswith(AVERAGED)}
    stage = load_autoencoder(path.parent / AUTOENCODER_FILE)
    provenance = {"unfinished": str(path), "steps": state["step"]}
    preset = Preset.model_validate_json(state["run"]["preset"])
    return build_model(preset, generator, stage.autoencoder.state_dict(), provenance)
