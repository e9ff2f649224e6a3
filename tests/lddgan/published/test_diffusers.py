"""Autoencoders of diffusers, against what diffusers 0.42.1 computed with the same weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lddgan.checkpoint import build_autoencoder, random_tensor
from lddgan.errors import BadInput
from lddgan.preset import Preset, with_values
from lddgan.presets import get_preset
from lddgan.published.diffusers import renamed
from lddgan.published.reader import import_autoencoder, import_published
from lddgan.training.inputs import open_autoencoder
from tests.published_files import TOLERANCE, Tiny, deviation, recorded, tiny_preset

CASE = recorded("diffusers_autoencoder")
DESCRIBED = json.loads(bytes(CASE["described"].tolist()))
CONFIG: dict[str, Any] = DESCRIBED["config"]
STATE = {k: torch.from_numpy(random_tensor(k, tuple(v))) for k, v in DESCRIBED["shapes"].items()}
PRESET = with_values(tiny_preset(), {"autoencoder.ch_mult": (1, 2)})
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def folder_of(
    folder: Path, state: Mapping[str, Tensor] = STATE, config: object = CONFIG, suffix: str = ""
) -> Path:
    """A folder as diffusers writes it; with the suffix ".bin" a pickle."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if suffix == ".bin":
        torch.save(dict(state), folder / "diffusion_pytorch_model.bin")
    else:
        save_file(dict(state), folder / "diffusion_pytorch_model.safetensors")
    return folder


def refused(path: Path, *words: str, preset: Preset = PRESET) -> None:
    with pytest.raises(BadInput) as caught:
        import_autoencoder(preset, path)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("given", ["", "config.json", "diffusion_pytorch_model.safetensors"])
@torch.no_grad()
def test_it_computes_what_diffusers_computes(tmp_path: Path, given: str) -> None:
    part = import_autoencoder(PRESET, folder_of(tmp_path) / given)
    network = build_autoencoder(part.preset, part.tensors, part.record).autoencoder
    mean, logvar = network.moments(CASE["image"]).chunk(2, dim=1)
    assert deviation(mean, CASE["mean"]) < TOLERANCE
    assert deviation(logvar, CASE["logvar"]) < TOLERANCE
    assert deviation(network.decode(CASE["mean"]), CASE["decoded"]) < TOLERANCE
    assert part.preset == PRESET
    [told] = part.record["notes"]
    assert "scaling_factor 0.5 is not used" in told


def test_a_training_takes_it_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = open_autoencoder(folder_of(tmp_path), PRESET, None)
    assert trained.preset == PRESET
    assert "scale_factor stays 1; `lddgan train-autoencoder" in capsys.readouterr().out
    with pytest.raises(BadInput, match="no file has the key ema; there are none"):
        open_autoencoder(tmp_path, PRESET, ["ema"])


def test_a_pickle_with_the_old_names_of_attention_is_the_same(tmp_path: Path) -> None:
    old = {}
    for name, tensor in STATE.items():
        for new, before in OLD_NAMES.items():
            name = name.replace(f".{new}.", f".{before}.")
        old[name] = tensor
    assert old.keys() != STATE.keys()
    expected = import_autoencoder(PRESET, folder_of(tmp_path / "new")).tensors
    found = import_autoencoder(PRESET, folder_of(tmp_path / "old", old, suffix=".bin")).tensors
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_levels_of_the_decoder_are_counted_from_the_image() -> None:
    deep = renamed(
        {f"decoder.up_blocks.{i}.resnets.2.norm1.bias": torch.tensor(i) for i in range(4)}
    )
    assert {name: int(tensor) for name, tensor in deep.items()} == {
        f"decoder.up.{3 - i}.block.2.norm1.bias": i for i in range(4)
    }


def test_without_its_config_the_tensors_decide(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "vae.safetensors")
    part = import_autoencoder(PRESET, tmp_path / "vae.safetensors")
    assert part.record["notes"] == [
        "vae.safetensors: there is no config.json beside it; it was judged by its tensors"
    ]
    (tmp_path / "vae.json").write_text(json.dumps(CONFIG | {"act_fn": "gelu"}))
    refused(tmp_path / "vae.safetensors", 'act_fn is "gelu", not "silu"')


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"block_out_channels": [32, 64, 64]}, "block_out_channels is [32, 64, 64], not [32, 64]"),
        ({"latent_channels": 16}, "latent_channels is 16, not 4"),
        ({"_class_name": "AutoencoderTiny"}, '_class_name is "AutoencoderTiny"'),
        ({"norm_num_groups": 16}, "norm_num_groups is 16, not 32"),
        ({"scaling_factor": "large"}, "config.json is no config of diffusers"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    tmp_path: Path, said: dict[str, Any], words: str
) -> None:
    refused(folder_of(tmp_path, config=CONFIG | said), words)


@pytest.mark.parametrize("text", ["{", "[1]", ""])
def test_a_damaged_config_is_named(tmp_path: Path, text: str) -> None:
    (folder_of(tmp_path) / "config.json").write_text(text)
    refused(tmp_path, "config.json is no")


def test_all_that_differs_from_a_preset_is_said_at_once(tmp_path: Path) -> None:
    no_attention = {k: v for k, v in STATE.items() if "blocks.1.attentions" not in k}
    refused(folder_of(tmp_path, no_attention), "tensors missing: encoder.down.1.attn.0.norm.weight")
    words = "block_out_channels is [32, 64], not [128, 256]", "no tanh"
    refused(tmp_path, *words, preset=get_preset("cifar10"))
    refused(
        tmp_path, "celeba_256", '"AutoencoderKL", not "VQModel"', preset=get_preset("celeba_256")
    )


def test_vq_models_of_diffusers_have_their_codes(tmp_path: Path) -> None:
    vq = with_values(PRESET, {"autoencoder.kind": "vq"})
    state = STATE | {"quantize.embedding.weight": torch.randn(48, 4)}
    state |= {"quant_conv.weight": torch.randn(4, 4, 1, 1), "quant_conv.bias": torch.randn(4)}
    state |= {"encoder.conv_out.weight": torch.randn(4, 64, 3, 3)}
    state |= {"encoder.conv_out.bias": torch.randn(4)}
    part = import_autoencoder(vq, folder_of(tmp_path, state, CONFIG | {"_class_name": "VQModel"}))
    assert part.preset == with_values(vq, {"autoencoder.codes": 48})
    assert torch.equal(
        part.tensors["quantize.embedding.weight"], state["quantize.embedding.weight"]
    )


def test_what_an_incomplete_one_lacks_is_named(tmp_path: Path) -> None:
    decoder = {name: tensor for name, tensor in STATE.items() if not name.startswith("encoder.")}
    missing = f"has {len(STATE) - len(decoder)} tensors missing: encoder.conv_in.weight"
    refused(folder_of(tmp_path, decoder), missing)


def test_a_whole_model_with_it_is_told(tiny: Tiny, tmp_path: Path) -> None:
    model = import_published(PRESET, tiny.netg, folder_of(tmp_path / "vae"))
    assert len(model.provenance["notes"]) == 1
    refused(tmp_path, "holds no diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("suffix", [".fp16.safetensors", ".fp16.bin"])
def test_a_half_precision_variant_alone_is_taken(tmp_path: Path, suffix: str) -> None:
    folder = folder_of(tmp_path, suffix=Path(suffix).suffix)
    variant = folder / f"diffusion_pytorch_model{suffix}"
    [written] = folder.glob("diffusion_pytorch_model.*")
    written.rename(variant)
    assert import_autoencoder(PRESET, folder).record["file"] == variant.name
