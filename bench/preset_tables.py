"""The presets as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bench.cost import CostRow
from bench.tables import ABSENT, grouped, show, shown
from lddgan.preset import Preset

COST_LEGEND: Final = (
    "M: million parameters; paper: Table 2, and for the U-ViT Table 11, decoder included",
    "GMAC: 10^9 multiply-adds of one generator call, of the decoder, of one image (T calls and the "
    "decoder), counted in the networks",
    "MiB: peak of one image in PyTorch fp32, eager, on this CPU, above that of the loaded networks",
    "not compared: Table 2's parameters of LDDGAN, and its multiply-adds and memory, which are not "
    "in this repository",
    "not to be reproduced from the released configurations: the U-ViT's depth and width, which "
    "are not published and were chosen to come near Table 11",
)
PAPER_LEGEND: Final = (
    "FID, recall and s/100, seconds for a batch of 100 on its GPU, are the paper's; "
    "`lddgan presets --cost` measures parameters, multiply-adds and memory"
)


def print_presets(presets: Sequence[Preset]) -> None:
    """Write the table of `lddgan presets`."""
    heads = "preset|image|latent|T|generator|autoencoder|FID|recall|s/100|in"
    said = ((preset.name, preset.paper.differences) for preset in presets if preset.paper)
    notes = [PAPER_LEGEND, *grouped(said, len(presets))]
    show("", heads.split("|"), map(preset_cells, presets), notes)


def preset_cells(preset: Preset) -> list[str]:
    """One preset's text, in the order of the columns."""
    sizes = ["x".join(map(str, shape)) for shape in (preset.image_shape, preset.latent_shape)]
    cells = [preset.name, *sizes, str(preset.steps), preset.generator.kind, preset.autoencoder.kind]
    if (paper := preset.paper) is None:
        return cells + [ABSENT] * 4
    figures = [shown(value, ".2f") for value in (paper.fid, paper.recall, paper.seconds)]
    return [*cells, *figures, paper.source]


def print_costs(rows: Sequence[CostRow]) -> None:
    """Write the table of `lddgan presets --cost`."""
    heads = "preset|G\nM|decoder\nM|both\nM|paper\nM|G\nGMAC|decoder\nGMAC|image\nGMAC|image\nMiB"
    missing = ((row.name, f"no memory: {row.no_memory}") for row in rows if row.no_memory)
    notes = grouped(missing, len(rows))
    show("", heads.split("|"), map(cost_cells, rows), COST_LEGEND, notes)


def cost_cells(row: CostRow) -> list[str]:
    """One preset's cost, in the order of the columns."""
    cost = row.cost
    parts = (cost.generator_parameters, cost.decoder_parameters)
    macs = (cost.generator_macs, cost.decoder_macs, row.macs_per_image)
    return [
        row.name,
        *(f"{n / 1e6:.2f}" for n in (*parts, sum(parts))),
        shown(row.paper.parameters if row.paper else None, ".2f"),
        *(f"{n / 1e9:.{2 if n < 1e11 else 0}f}" for n in macs),
        shown(row.memory_mib),
    ]
