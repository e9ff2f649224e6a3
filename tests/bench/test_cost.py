"""What the presets cost, against the figures of the design."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bench.cost import count, measure_cost, parameters, preset_table
from lddgan.presets import get_preset


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


def test_a_row_adds_up() -> None:
    (row,) = (row for row in preset_table() if row.name == "digits")
    assert row.cost is not None
    assert row.macs_per_image == 4 * row.cost.generator_macs + row.cost.decoder_macs
    assert (row.image, row.latent, row.downsampling) == ((3, 32, 32), (4, 8, 8), 4)
    assert row.not_measured is None and row.paper is None


def test_the_codebook_and_its_search_count(monkeypatch: pytest.MonkeyPatch) -> None:
    preset = get_preset("celeba_256")
    halved = preset.autoencoder.model_copy(update={"codes": preset.autoencoder.codes // 2})
    small = measure_cost(preset.model_copy(update={"autoencoder": halved}))
    cost = measure_cost(preset)
    assert cost.decoder_parameters - small.decoder_parameters == 4096 * 3
    assert cost.decoder_macs - small.decoder_macs == 64 * 64 * 4096 * 3


def test_without_torch_the_cost_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.cost.why_missing", lambda _: "torch is not installed")
    for row in preset_table():
        assert row.cost is None and row.macs_per_image is None
        assert row.not_measured == "torch is not installed"
