"""What each preset costs: parameters, multiply-adds and traffic, counted in the networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lddgan.extras import why_missing
from lddgan.frozen import Frozen
from lddgan.preset import Paper, Preset
from lddgan.presets import PRESETS

if TYPE_CHECKING:
    from torch import nn


class Cost(Frozen):
    """Of both networks, per image; the decoder's includes the codebook and its search."""

    generator_parameters: int
    decoder_parameters: int
    generator_macs: int  # multiply-adds of one call, attention included
    decoder_macs: int
    generator_values: int  # that the convolutions of one call read and write, weights apart
    decoder_values: int


def known_cost(preset: Preset) -> Cost | None:
    """The cost of a preset. Returns None without torch."""
    return measure_cost(preset) if why_missing("torch") is None else None


def measure_cost(preset: Preset) -> Cost:
    """Count on the meta device, where only shapes are computed. Needs torch."""
    import torch

    from lddgan.networks.registry import create

    with torch.device("meta"):
        generator = create("generator", preset).eval()
        autoencoder = create("autoencoder", preset).eval()
        x = torch.empty(1, *preset.latent_shape)
        t, z = torch.zeros(1, dtype=torch.int32), torch.empty(1, preset.generator.nz)
        generator_macs, generator_values = count(generator, lambda: generator(x, t, z))
        decoder_macs, decoder_values = count(autoencoder, lambda: autoencoder.decode(x))
    return Cost(
        generator_parameters=parameters(generator),
        decoder_parameters=parameters(*autoencoder.decoding, autoencoder.quantize),
        generator_macs=generator_macs,
        decoder_macs=decoder_macs,
        generator_values=generator_values,
        decoder_values=decoder_values,
    )


def parameters(*modules: nn.Module | None) -> int:
    """Number of learnt values."""
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


def count(network: nn.Module, compute: Callable[[], Any]) -> tuple[int, int]:
    """Multiply-adds of `compute`, and values that the convolutions of `network` read and write."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    moved: list[int] = []

    def note(_: nn.Module, given: tuple[Any, ...], made: Any) -> None:
        moved.append(given[0].numel() + made.numel())

    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(note)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        compute()
    return counter.get_total_flops() // 2, sum(moved)


class PresetRow(Frozen):
    """One line of `lddgan presets`."""

    name: str
    image: tuple[int, int, int]  # [3,H,W]
    latent: tuple[int, int, int]  # [C,h,w]
    steps: int  # T
    downsampling: int  # f
    cost: Cost | None  # None without torch
    macs_per_image: int | None  # T generator calls and the decoder
    paper: Paper | None
    not_measured: str | None  # why there is no cost


def preset_table() -> list[PresetRow]:
    """Every preset with its cost; without torch each row says why it has none."""
    why_not = why_missing("torch")
    return [
        PresetRow(
            name=preset.name,
            image=preset.image_shape,
            latent=preset.latent_shape,
            steps=preset.steps,
            downsampling=preset.autoencoder.factor,
            cost=(cost := known_cost(preset)),
            macs_per_image=preset.steps * cost.generator_macs + cost.decoder_macs if cost else None,
            paper=preset.paper,
            not_measured=why_not,
        )
        for preset in PRESETS.values()
    ]
