"""What each preset costs: parameters and multiply-adds, measured from the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lddgan.extras import why_missing
from lddgan.frozen import Frozen
from lddgan.preset import Paper, Preset
from lddgan.presets import PRESETS

if TYPE_CHECKING:
    from rich.table import Table
    from torch import nn

    from lddgan.networks.autoencoder import Autoencoder
    from lddgan.networks.generator import Generator

ABSENT = "-"
COLUMNS = (
    "preset",
    "latent",
    "T",
    "G\nM",
    "dec.\nM",
    "G\nGMAC",
    "dec.\nGMAC",
    "image\nGMAC",
    "FID",
    "recall",
    "s/100",
)
LEGEND = (
    "M: million parameters. GMAC: 10^9 multiply-adds of one generator call, of the decoder, of one "
    "image (T calls and the decoder), measured from the networks. The rest is the paper's:"
)


class Cost(Frozen):
    """Of one network; the decoder's includes the codebook and its search."""

    generator_parameters: int
    decoder_parameters: int
    generator_macs: int  # multiply-adds of one call for one image, attention included
    decoder_macs: int


class Traffic(Frozen):
    """Values that the convolutions of a network read and write for one image, weights apart."""

    generator: int  # of one call
    decoder: int


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
    """Every preset with what it costs; without torch a row says why its cost is left out."""
    missing = why_missing("torch")
    return [preset_row(preset, missing) for preset in PRESETS.values()]


def preset_row(preset: Preset, missing: str | None = None) -> PresetRow:
    """The line of one preset; `missing` says why its cost cannot be measured."""
    cost = measure_cost(preset) if missing is None else None
    return PresetRow(
        name=preset.name,
        image=preset.image_shape,
        latent=preset.latent_shape,
        steps=preset.steps,
        downsampling=preset.autoencoder.factor,
        cost=cost,
        macs_per_image=preset.steps * cost.generator_macs + cost.decoder_macs if cost else None,
        paper=preset.paper,
        not_measured=missing,
    )


class Networks(NamedTuple):
    """Both networks on the meta device, where shapes are all that is computed."""

    generator: Generator
    autoencoder: Autoencoder
    step: Callable[[], Any]  # one call for one image
    decode: Callable[[], Any]


def on_meta(preset: Preset) -> Networks:
    """The networks of a preset without weights. Needs torch."""
    import torch

    from lddgan.networks.registry import create_autoencoder, create_generator

    with torch.device("meta"):
        generator = create_generator(preset).eval()
        autoencoder = create_autoencoder(preset).eval()
        x_t = torch.empty(1, *preset.latent_shape)
        t = torch.zeros(1, dtype=torch.int32)
        z = torch.empty(1, preset.generator.nz)

    def step() -> Any:
        with torch.device("meta"):
            return generator(x_t, t, z)

    def decode() -> Any:
        with torch.device("meta"):
            return autoencoder.decode(x_t)

    return Networks(generator, autoencoder, step, decode)


def measure_cost(preset: Preset) -> Cost:
    """Count parameters and multiply-adds on the meta device: nothing is computed. Needs torch."""
    generator, autoencoder, step, decode = on_meta(preset)
    return Cost(
        generator_parameters=parameters(generator),
        decoder_parameters=parameters(*autoencoder.decoding, autoencoder.quantize),
        generator_macs=multiply_adds(step),
        decoder_macs=multiply_adds(decode),
    )


def measure_traffic(preset: Preset) -> Traffic:
    """Count what the convolutions read and write, on the meta device. Needs torch."""
    generator, autoencoder, step, decode = on_meta(preset)
    return Traffic(
        generator=values_moved(generator, step), decoder=values_moved(autoencoder, decode)
    )


def values_moved(network: nn.Module, compute: Callable[[], Any]) -> int:
    """Values that go in and out of the network's convolutions during `compute`."""
    import torch

    moved: list[int] = []

    def note(_: nn.Module, given: tuple[Any, ...], made: Any) -> None:
        moved.append(given[0].numel() + made.numel())

    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(note)
    with torch.no_grad():
        compute()
    return sum(moved)


def parameters(*modules: nn.Module | None) -> int:
    """Number of learnt values."""
    return sum(p.numel() for module in modules if module is not None for p in module.parameters())


def multiply_adds(compute: Callable[[], Any]) -> int:
    """Multiply-adds of the convolutions and matrix products in `compute`."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        compute()
    return counter.get_total_flops() // 2


def print_preset_table(rows: Sequence[PresetRow]) -> None:
    """Write the table to standard output."""
    from rich.console import Console

    console = Console()
    console.print(rendered(rows))
    console.print(LEGEND, highlight=False)
    for row in rows:
        if row.paper is not None:
            console.print(
                f"{row.name}: {row.paper.source}; {row.paper.differences}", highlight=False
            )
    for reason in sorted({row.not_measured for row in rows if row.not_measured}):
        console.print(f"no cost: {reason}", markup=False)


def rendered(rows: Sequence[PresetRow]) -> Table:
    """The rows for people."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in COLUMNS:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*preset_cells(row))
    return table


def preset_cells(row: PresetRow) -> list[str]:
    """One row's text, in the order of COLUMNS."""
    cost, paper = row.cost, row.paper
    cells = [row.name, "x".join(map(str, row.latent)), str(row.steps)]
    if cost is None or row.macs_per_image is None:
        cells += [ABSENT] * 5
    else:
        cells += [f"{n / 1e6:.2f}" for n in (cost.generator_parameters, cost.decoder_parameters)]
        macs = (cost.generator_macs, cost.decoder_macs, row.macs_per_image)
        cells += [f"{n / 1e9:.{2 if n < 1e11 else 0}f}" for n in macs]
    if paper is None:
        return cells + [ABSENT] * 3
    return cells + [f"{n:.2f}" for n in (paper.fid, paper.recall, paper.seconds)]
