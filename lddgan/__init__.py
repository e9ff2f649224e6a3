"""Latent denoising diffusion GANs: train, export, and sample as fast as the machine allows.

    import lddgan
    engine = lddgan.open_engine("exports/lsun")
    images = engine.sample(count=100, seed=0)  # uint8 [100,H,W,3]

Public names are imported when first used; sampling needs no torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from engine.registry import open_engine as open_engine
    from engine.sampler import Sampler as Sampler
    from export.bundle import open_bundle as open_bundle
    from export.exporter import export_bundle as export_bundle
    from lddgan.checkpoint import Model as Model
    from lddgan.checkpoint import load_checkpoint as load_checkpoint
    from lddgan.checkpoint import save_checkpoint as save_checkpoint
    from lddgan.diffusion import sample as sample
    from lddgan.errors import BadInput as BadInput
    from lddgan.errors import LddganError as LddganError
    from lddgan.noise import sampler_noise as sampler_noise
    from lddgan.preset import Preset as Preset
    from lddgan.presets import PRESETS as PRESETS
    from lddgan.presets import get_preset as get_preset
    from lddgan.published.reader import import_published as import_published

PUBLIC = {  # name -> module that defines it
    "BadInput": "lddgan.errors",
    "LddganError": "lddgan.errors",
    "Model": "lddgan.checkpoint",
    "PRESETS": "lddgan.presets",
    "Preset": "lddgan.preset",
    "Sampler": "engine.sampler",
    "export_bundle": "export.exporter",
    "get_preset": "lddgan.presets",
    "import_published": "lddgan.published.reader",
    "load_checkpoint": "lddgan.checkpoint",
    "open_bundle": "export.bundle",
    "open_engine": "engine.registry",
    "sample": "lddgan.diffusion",
    "sampler_noise": "lddgan.noise",
    "save_checkpoint": "lddgan.checkpoint",
}
__all__ = sorted(PUBLIC)

SIBLINGS = ("export", "engine", "bench", "cli")  # installed beside this package


def _refuse_hidden_siblings() -> None:
    """Raise ImportError naming a file of the user's that hides one of our modules."""
    home = Path(__file__).resolve().parent.parent
    for name in SIBLINGS:
        spec = importlib.util.find_spec(name)
        found = Path(spec.origin).resolve() if spec is not None and spec.origin else None
        if found is not None and found not in (home / name / "__init__.py", home / f"{name}.py"):
            raise ImportError(
                f"{found} hides lddgan's module '{name}' ({home / name}); rename that file, or "
                "run Python from another folder"
            )


_refuse_hidden_siblings()


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'lddgan' has no attribute '{name}'")
    value = getattr(importlib.import_module(PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
