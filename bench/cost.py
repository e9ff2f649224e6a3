"""What each preset costs: parameters, multiply-adds, traffic, and the memory of one image.

All but the memory is counted in the networks. The memory is measured in a process for each preset:
`python -m bench.cost NAME`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from bench.machine import memory_mib, run_child
from lddgan.extras import require, why_missing
from lddgan.frozen import Frozen
from lddgan.preset import Paper, Preset
from lddgan.presets import PRESETS, get_preset
from lddgan.progress import Meter

if TYPE_CHECKING:
    from torch import nn

PROGRAM: Final = (  # with this, glibc gives back a tensor's memory as soon as it is freed
    *("env", "MALLOC_MMAP_THRESHOLD_=65536"),
    *(sys.executable, "-m", f"{__package__}.cost"),
)
MAX_SECONDS: Final = 600.0  # for one process
FIRST: Final = "digits"  # its image is made before, so that what PyTorch loads is not counted


class Cost(Frozen):
    """Of both networks, per image; the decoder's includes the codebook and its search."""

    generator_parameters: int
    decoder_parameters: int
    generator_macs: int  # multiply-adds of one call, attention included
    decoder_macs: int
    generator_values: int  # that the layers of one call read and write, weights apart
    decoder_values: int


def known_cost(preset: Preset) -> Cost | None:
    """The cost of a preset. Returns None without torch."""
    return measure_cost(preset) if why_missing("torch") is None else None


@cache
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
    """Multiply-adds of `compute`, and values that layers of `network` read and write.

    Layers are those with matrices: convolutions, and the linear ones of which a U-ViT is made.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    moved: list[int] = []

    def note(_: nn.Module, given: tuple[Any, ...], made: Any) -> None:
        moved.append(given[0].numel() + made.numel())

    for layer in network.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            layer.register_forward_hook(note)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        compute()
    return counter.get_total_flops() // 2, sum(moved)


class CostRow(Frozen):
    """One line of `lddgan presets --cost`."""

    name: str
    cost: Cost
    macs_per_image: int  # T generator calls and the decoder
    memory_mib: float | None  # `memory_of_image`
    no_memory: str | None  # why there is none
    paper: Paper | None


def cost_table() -> list[CostRow]:
    """Every preset with its cost, and with the memory of an image. Needs torch."""
    require("torch", "safetensors")
    rows = []
    with Meter("measuring", 0, len(PRESETS), None, unit="presets") as meter:
        for preset in PRESETS.values():
            cost, (memory, why_not) = measure_cost(preset), memory_in_child(preset.name)
            row = CostRow(
                name=preset.name,
                cost=cost,
                macs_per_image=preset.steps * cost.generator_macs + cost.decoder_macs,
                memory_mib=memory,
                no_memory=why_not,
                paper=preset.paper,
            )
            rows.append(row)
            meter.advance(1)
    return rows


def memory_in_child(name: str) -> tuple[float | None, str | None]:
    """`memory_of_image` in a process of its own, or why there is none."""
    with tempfile.TemporaryFile("w+") as said:
        why_not = run_child((*PROGRAM, name), MAX_SECONDS, stdout=said)
        said.seek(0)
        return (float(said.read()), None) if why_not is None else (None, why_not)


def memory_of_image(name: str) -> float | None:
    """Peak MiB of one image in PyTorch fp32, eager, on the CPU, above the loaded networks.

    To be called in a process of its own. The libraries' own memory is left out.
    Returns None where the system does not tell.
    """
    from engine.registry import open_model
    from lddgan.checkpoint import random_model

    for preset in map(get_preset, (FIRST, name)):
        sampler = open_model(random_model(preset), device="cpu")
        loaded = memory_mib("VmRSS")
        sampler.sample(1)
    peak = memory_mib("VmHWM")
    return None if loaded is None or peak is None else peak - loaded


if __name__ == "__main__":
    if (found := memory_of_image(sys.argv[1])) is None:
        sys.exit("this system does not tell the memory of a process")
    print(found)
