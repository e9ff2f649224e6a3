"""What the presets cost, against the figures of the design."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from bench.cost import cost_table, count, measure_cost, memory_in_child, parameters
from bench.preset_tables import print_costs
from lddgan.errors import LddganError
from lddgan.networks.configs import UVitConfig
from lddgan.networks.vit import SelfAttention
from lddgan.presets import PRESETS, get_preset


def test_convolution_and_matrix_product() -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1)
    depthwise = nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1, groups=8)
    with torch.device("meta"):
        x, h = torch.empty(2, 3, 10, 10), torch.empty(2, 8, 5, 5)
        conv, depthwise = conv.to("meta"), depthwise.to("meta")
        assert count(conv, lambda: conv(x))[0] == 2 * 10 * 10 * 8 * 3 * 9
        assert count(conv, lambda: depthwise(h))[0] == 2 * 5 * 5 * 8 * 16
        assert count(conv, lambda: torch.empty(2, 5, 6) @ torch.empty(2, 6, 7))[0] == 2 * 5 * 6 * 7
    assert parameters(conv, None) == 8 * 3 * 9 + 8


def test_convolutions_read_their_input_and_write_their_output() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1, stride=2))
    _, moved = count(network, lambda: network(torch.empty(2, 3, 10, 10)))
    assert moved == 2 * (10 * 10 * (3 + 8) + 10 * 10 * 8 + 5 * 5 * 4)
    digits, lsun = (measure_cost(get_preset(name)) for name in ("digits", "lsun"))
    assert digits.generator_values < lsun.generator_values < lsun.decoder_values
    assert lsun.decoder_values > 6 * 2 * 128 * 256**2  # six convolutions of the last level alone


@pytest.mark.parametrize(
    ("name", "generator", "decoder"),
    [("cifar10", 1.67e9, 3.6e9), ("celeba_256", 27.3e9, 335e9), ("lsun", 9.0e9, 311e9)],
)
def test_cost_is_the_designs(name: str, generator: float, decoder: float) -> None:
    cost = measure_cost(get_preset(name))
    assert cost.generator_macs == pytest.approx(generator, rel=0.01)
    assert cost.decoder_macs == pytest.approx(decoder, rel=0.01)


def test_the_codebook_and_its_search_count() -> None:
    preset = get_preset("celeba_256")
    halved = preset.autoencoder.model_copy(update={"codes": preset.autoencoder.codes // 2})
    small = measure_cost(preset.model_copy(update={"autoencoder": halved}))
    cost = measure_cost(preset)
    assert cost.decoder_parameters - small.decoder_parameters == 4096 * 3
    assert cost.decoder_macs - small.decoder_macs == 64 * 64 * 4096 * 3


def test_attention_and_linear_layers_count() -> None:
    tokens, width = 65, 24
    with torch.device("meta"):
        layer, x = SelfAttention(width, heads=3), torch.empty(2, tokens, width)
    macs, moved = count(layer, lambda: layer(x))
    projections, products = 4 * tokens * width**2, 2 * tokens**2 * width
    assert macs == 2 * (projections + products)
    assert moved == 2 * tokens * (width + 3 * width + width + width)


@pytest.mark.parametrize("name", ["vit-tiny", "vit-mid", "vit-large"])
def test_a_transformer_is_counted_by_hand(name: str) -> None:
    cfg = get_preset(name).generator
    assert isinstance(cfg, UVitConfig)
    width, tokens, skips = cfg.width, 1 + 8 * 8, cfg.depth // 2
    block = tokens * (4 + 2 * 4) * width**2 + 2 * tokens**2 * width + 2 * cfg.z_emb_dim * 2 * width
    patches = 8 * 8 * 2 * (4 * 4 * width) + 16 * 16 * 4 * 4 * 9  # in and out, the last convolution
    mapping = cfg.nz * cfg.z_emb_dim + cfg.mapping_layers * cfg.z_emb_dim**2
    whole = cfg.depth * block + skips * tokens * 2 * width**2 + patches + mapping
    assert measure_cost(get_preset(name)).generator_macs == pytest.approx(whole, rel=1e-3)


@pytest.mark.parametrize("name", ["ddgan-cifar10", "wddgan-lsun"])
def test_pixels_and_haar_cost_nothing(name: str) -> None:
    cost = measure_cost(get_preset(name))
    assert (cost.decoder_parameters, cost.decoder_macs, cost.decoder_values) == (0, 0, 0)


def test_parameters_are_the_papers() -> None:
    """Table 2 to two decimals; Table 11, for which the sizes were chosen, within 2 %."""
    found = {}
    for name, preset in PRESETS.items():
        if preset.paper and preset.paper.parameters:
            cost = measure_cost(preset)
            found[name] = round((cost.generator_parameters + cost.decoder_parameters) / 1e6, 2)
    ddgan = {"ddgan-cifar10": 48.43, "ddgan-celeba_256": 39.73, "ddgan-lsun": 39.73}
    wddgan = {"wddgan-cifar10": 33.37, "wddgan-celeba_256": 31.49, "wddgan-lsun": 31.49}
    assert {name: found.pop(name) for name in ddgan | wddgan} == ddgan | wddgan
    table_11 = {"vit-tiny": 28.01, "vit-mid": 43.32, "vit-large": 56.17}
    assert found == pytest.approx(table_11, rel=0.02)


def test_memory_of_an_image_is_that_of_its_activations() -> None:
    memory, why_not = memory_in_child("digits")
    assert why_not is None and memory is not None
    largest = 4 * get_preset("digits").largest_activation / 2**20  # MiB
    assert 2 * largest < memory < 20 * largest  # read and written; the libraries' is much more


def test_costs_are_printed_beside_the_papers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.cost.PRESETS", {n: PRESETS[n] for n in ("digits", "wddgan-cifar10")})
    memory = {"digits": (1.25, None), "wddgan-cifar10": (None, "ended by signal 9 (SIGKILL)")}
    monkeypatch.setattr("bench.cost.memory_in_child", lambda name: memory[name])
    digits, wddgan = cost_table()
    assert digits.macs_per_image == 4 * digits.cost.generator_macs + digits.cost.decoder_macs
    print_costs([digits, wddgan])
    out = capsys.readouterr().out
    cells = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    assert cells["digits"] == ["0.61", "0.17", "0.78", "-", "0.01", "0.07", "0.12", "1.25"]
    wavelets = "33.37 0.00 33.37 33.37 1.67 0.00 6.67 -"
    assert cells["wddgan-cifar10"] == wavelets.split()
    assert "! wddgan-cifar10: no memory: ended by signal 9 (SIGKILL)" in out


def test_without_torch_there_is_no_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(LddganError, match="torch is not installed; pip install"):
        cost_table()
