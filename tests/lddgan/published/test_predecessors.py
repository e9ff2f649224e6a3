"""Published files of DDGAN and WDDGAN: recorded cases, data sets of equal shapes, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lddgan.checkpoint import load_checkpoint, save_checkpoint
from lddgan.errors import BadInput
from lddgan.preset import Preset, with_values
from lddgan.presets import PRESETS, get_preset
from lddgan.published.reader import fit, import_published
from tests import published_files as files
from tests import test_cli
from tests.published_files import (
    TOLERANCE,
    deviation,
    network_state,
    official_keys,
    official_state,
    recorded,
    same_state,
    small_wavelet,
    zero_state,
)
from tests.test_cli import refused

lddgan = test_cli.lddgan  # the fixture

BIG = [f"{family}-{data}" for family in ("ddgan", "wddgan") for data in ("celeba_256", "lsun")]
CHOICES = {
    "ddgan-celeba_256": "steps 2, not 4",
    "ddgan-lsun": "steps 4, not 2",
    "wddgan-celeba_256": "steps 2, not 4; bands LL LH HL HH, not LL HL LH HH",
    "wddgan-lsun": "steps 4, not 2; bands LL HL LH HH, not LL LH HL HH",
}


def choice(file: str, name: str, decides: str = "") -> str:
    """What import says where the other data set of a family has the same shapes."""
    family, data = name.split("-")
    other = {"celeba_256": "lsun", "lsun": "celeba_256"}[data]
    taken = f"{file} has the shapes of {family}-{other} too: taken as {name}, as asked"
    return f"{taken} ({decides})" if decides else taken


def content_of(path: Path, state: files.State) -> Path:
    """A training state whose average alone is `state`."""
    raw = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in state.items()}
    return files.content_file(path, raw, state, num_timesteps=4)


# ---- what is read ----


SMALL_WAVELET = with_values(small_wavelet(), {"steps": 4})


@pytest.mark.parametrize(
    ("name", "preset", "write"),
    [
        ("ddgan-cifar10", get_preset("ddgan-cifar10"), files.netg_file),
        ("wddgan-cifar10", get_preset("wddgan-cifar10"), content_of),
        ("wddgan-small", SMALL_WAVELET, files.netg_file),
        ("wddgan-small", SMALL_WAVELET, content_of),
    ],
)
@torch.no_grad()
def test_published_file_gives_the_recorded_output(
    tmp_path: Path, name: str, preset: Preset, write: Callable[[Path, files.State], Path]
) -> None:
    path = write(tmp_path / "g.pth", official_state(f"{name}/generator"))
    model = import_published(preset, path)
    case = recorded(f"{name}_generator")
    assert deviation(model.generator(case["x_t"], case["t"], case["z"]), case["x0"]) < TOLERANCE
    assert model.preset == preset
    assert model.provenance["ema"] and model.provenance["notes"] == []
    assert "autoencoder" not in model.provenance


@pytest.mark.parametrize("name", ["ddgan-lsun", "wddgan-lsun"])
@torch.no_grad()
def test_256x256_gives_what_a_second_implementation_gave(tmp_path: Path, name: str) -> None:
    """Cases of tests/reference/second_ncsnpp.py, of which every few pixels are kept."""
    path = files.netg_file(tmp_path / "g.pth", official_state(f"{name}/generator"))
    model, case = import_published(name, path), recorded(f"{name}_generator")
    draw = np.random.default_rng(int(case["seed"])).standard_normal
    x_t = torch.from_numpy(draw((1, *model.preset.latent_shape), np.float32))
    x_0 = model.generator(x_t, case["t"], case["z"])
    stride = int(case["stride"])
    assert deviation(x_0[:, :, ::stride, ::stride], case["x0"]) < TOLERANCE


@pytest.mark.parametrize("name", BIG)
def test_full_key_list_loads_and_the_choice_is_told(tmp_path: Path, name: str) -> None:
    path = files.netg_file(tmp_path / "netG_475.pth", zero_state(f"{name}/generator"))
    model = import_published(name, path)
    assert model.preset == get_preset(name)
    assert list(model.generator.state_dict()) == list(official_keys()[f"{name}/generator"])
    assert model.provenance["notes"] == [choice("netG_475.pth", name, CHOICES[name])]


# ---- small models under the names of the big ones ----


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, Preset]:
    """The presets for 256x256 with small networks, in the place of the real ones."""
    sizes = {"discriminator.layers": 3, "generator.nf": 16, "generator.ch_mult": (1, 1, 2)}
    for name in BIG:
        preset = get_preset(name)
        factor = preset.autoencoder.factor
        own = sizes | {"image_size": 32 * factor, "latent_size": 32, "generator.nz": 9}
        monkeypatch.setitem(PRESETS, name, with_values(preset, own))
    return PRESETS


def netg(preset: Preset, path: Path = Path("netG_1.pth")) -> Path:
    return files.netg_file(path, network_state(preset, "generator"))


@pytest.mark.parametrize(
    ("name", "steps", "expected"),
    [
        ("ddgan-lsun", 4, [choice("c.pth", "ddgan-lsun")]),  # the file decides the steps
        (
            "wddgan-celeba_256",
            4,
            [
                "steps is 4, where the wddgan-celeba_256 preset has 2",
                choice("c.pth", "wddgan-celeba_256", "bands LL LH HL HH, not LL HL LH HH"),
            ],
        ),
    ],
)
def test_steps_of_a_training_state_are_no_choice(
    small: dict[str, Preset], tmp_path: Path, name: str, steps: int, expected: list[str]
) -> None:
    state = network_state(small[name], "generator")
    path = files.content_file(tmp_path / "c.pth", state, state, num_timesteps=steps)
    model = import_published(name, path)
    assert model.preset.steps == steps
    assert model.provenance["notes"] == expected


def test_numbers_of_its_own_leave_the_choice(small: dict[str, Preset], tmp_path: Path) -> None:
    own = with_values(small["ddgan-lsun"], {"generator.nz": 7, "generator.blocks": 1})
    path = netg(own, tmp_path / "g.pth")
    model = import_published("ddgan-lsun", path)
    assert model.preset == own
    assert model.provenance["notes"][2:] == [choice("g.pth", "ddgan-lsun", "steps 4, not 2")]
    with pytest.raises(
        BadInput,
        match=r"the ddgan-celeba_256 or ddgan-lsun generator \(with nz 7, blocks 1\); you asked",
    ):
        import_published("wddgan-lsun", path)


@pytest.mark.parametrize("name", ["ddgan-lsun", "wddgan-lsun"])
@torch.no_grad()
def test_model_without_autoencoder_survives_its_checkpoint(
    small: dict[str, Preset], tmp_path: Path, name: str
) -> None:
    model = import_published(name, netg(small[name], tmp_path / "g.pth"))
    path = save_checkpoint(tmp_path / "m.safetensors", model)
    again = load_checkpoint(path)
    assert again.preset == model.preset and again.provenance == model.provenance
    assert same_state(again.generator, model.generator.state_dict())
    x_0 = torch.rand(1, *model.preset.latent_shape)
    assert torch.equal(again.decode(x_0), model.decode(x_0))

    save_file(load_file(path), path)  # without metadata it is a generator with a prefix
    with pytest.raises(BadInput, match="is not an lddgan checkpoint"):
        load_checkpoint(path)
    bare = import_published(name, path)
    assert same_state(bare.generator, model.generator.state_dict())
    told = "m.safetensors: took generator, which may not be the moving average"
    assert bare.provenance["notes"][0] == told


def test_command_imports_without_autoencoder(lddgan: Any, small: dict[str, Preset]) -> None:
    given = ("import", "--dataset", "wddgan-lsun", "--generator", netg(small["wddgan-lsun"]))
    outcome = lddgan(*given, "--out", "m.safetensors")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines() == [
        "generator: taken from netG file (the moving average)",
        choice("netG_1.pth", "wddgan-lsun", CHOICES["wddgan-lsun"]),
        "m.safetensors: a wddgan-lsun model",
    ]
    assert load_checkpoint("m.safetensors").preset == small["wddgan-lsun"]


@pytest.mark.parametrize(
    ("name", "kind"), [("ddgan-lsun", "'pixels'"), ("wddgan-celeba_256", "'haar'")]
)
def test_command_refuses_an_autoencoder_for_none(
    lddgan: Any, small: dict[str, Preset], name: str, kind: str
) -> None:
    given = ("import", "--dataset", name, "--generator", netg(small[name]))
    outcome = lddgan(*given, "--autoencoder", "vae.ckpt", "--out", "m.safetensors")
    words = (f"{name} takes no autoencoder", f"of the kind {kind}", "leave out --autoencoder")
    refused(outcome, *words)
    assert not Path("m.safetensors").exists()


def test_command_needs_the_autoencoder_of_latents(
    lddgan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"name": "lsun", "paper": get_preset("lsun").paper}
    monkeypatch.setitem(PRESETS, "lsun", files.tiny_preset(**own))
    given = ("import", "--dataset", "lsun", "--generator", netg(get_preset("lsun")))
    refused(lddgan(*given, "--out", "m.safetensors"), "lsun needs the autoencoder", "--autoencoder")
    assert not Path("m.safetensors").exists()


# ---- another family, another data set ----


@pytest.mark.parametrize(
    ("file", "asked", "found"),
    [
        ("ddgan-cifar10", "wddgan-cifar10", "ddgan-cifar10"),
        ("ddgan-cifar10", "ddgan-lsun", "ddgan-cifar10"),
        ("ddgan-cifar10", "celeba_256", "ddgan-cifar10"),
        ("ddgan-lsun", "wddgan-lsun", "ddgan-celeba_256 or ddgan-lsun"),
        ("ddgan-lsun", "ddgan-cifar10", "ddgan-celeba_256 or ddgan-lsun"),
        ("ddgan-celeba_256", "celeba_256", "ddgan-celeba_256 or ddgan-lsun"),
        ("wddgan-cifar10", "ddgan-cifar10", "wddgan-cifar10"),
        ("wddgan-cifar10", "wddgan-lsun", "wddgan-cifar10"),
        ("wddgan-cifar10", "cifar10", "wddgan-cifar10"),
        ("wddgan-celeba_256", "ddgan-celeba_256", "wddgan-celeba_256 or wddgan-lsun"),
        ("wddgan-lsun", "lsun", "wddgan-celeba_256 or wddgan-lsun"),
        ("cifar10", "wddgan-cifar10", "cifar10"),
        ("cifar10", "ddgan-lsun", "cifar10"),
        ("lsun", "wddgan-lsun", "lsun"),
    ],
)
def test_another_family_is_refused_by_name(file: str, asked: str, found: str) -> None:
    state = zero_state(f"{file}/generator")
    said = f"g.pth is the {found} generator; you asked for {asked}$"
    with pytest.raises(BadInput, match=said):
        fit(get_preset(asked), state, "generator", Path("g.pth"))


def test_u_vit_has_no_published_files(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no published generator of the kind 'u-vit' is known"):
        import_published("vit-tiny", tmp_path / "netG.pth")
