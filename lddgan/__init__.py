"""Latent denoising diffusion GANs: train, export, and sample as fast as the machine allows.

    import lddgan
    engine = lddgan.open_engine("exports/lsun")
    images = engine.sample(count=100, seed=0)  # uint8 [100,H,W,3]

Public names are imported when first used; sampling needs no torch.
"""

from __future__ import annotations

import os
from importlib import import_module

__version__ = "0.1.0"

TYPE_CHECKING = False  # that of typing: `lddgan` is to hear Ctrl-C from its first moment
if TYPE_CHECKING:
    from typing import Any

    from engine.registry import open_engine as open_engine
    from engine.sampler import Sampler as Sampler
    from engine.slots import Address as Address
    from engine.slots import sample_at as sample_at
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

# In the wheel engine/ and export/ are in this folder, in the repository beside it (hatch_build.py).
PREFIX = "lddgan." if os.path.isdir(os.path.join(os.path.dirname(__file__), "engine")) else ""
MODULES = {  # module -> the public names that it defines
    "lddgan.checkpoint": ("Model", "load_checkpoint", "save_checkpoint"),
    "lddgan.diffusion": ("sample",),
    "lddgan.errors": ("BadInput", "LddganError"),
    "lddgan.noise": ("sampler_noise",),
    "lddgan.preset": ("Preset",),
    "lddgan.presets": ("PRESETS", "get_preset"),
    "lddgan.published.reader": ("import_published",),
    f"{PREFIX}engine.registry": ("open_engine",),
    f"{PREFIX}engine.sampler": ("Sampler",),
    f"{PREFIX}engine.slots": ("Address", "sample_at"),
    f"{PREFIX}export.bundle": ("open_bundle",),
    f"{PREFIX}export.exporter": ("export_bundle",),
}
PUBLIC = {name: module for module, names in MODULES.items() for name in names}
__all__ = sorted(PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'lddgan' has no attribute '{name}'")
    value = getattr(import_module(PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
