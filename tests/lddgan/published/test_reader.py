"""Published files become a Model: the recorded cases, what is left out, and what is refused."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lddgan import diffusion
from lddgan.checkpoint import Model, load_checkpoint, save_checkpoint, shapes_of
from lddgan.errors import BadInput
from lddgan.preset import Preset, with_values
from lddgan.presets import PRESETS, get_preset
from lddgan.published.ncsnpp import own_numbers
from lddgan.published.reader import family_of, fit, import_published
from lddgan.published.shapes import Part
from tests import published_files as files
from tests.published_files import (
    TOLERANCE,
    Tiny,
    deviation,
    network_state,
    official_state,
    recorded,
    tiny_preset,
    zero_state,
)

# ---- the recorded cases, through files in the published formats ----


@pytest.fixture(scope="module")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("cifar10")
    return import_published(
        "cifar10",
        files.netg_file(folder / "netG_1.pth", official_state("cifar10/generator")),
        files.kl_file(folder / "kl.ckpt", official_state("cifar10/autoencoder")),
    )


@pytest.fixture(scope="module")
def lsun(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The decoder has the recorded weights, the rest is zero."""
    folder = tmp_path_factory.mktemp("lsun")
    codec = zero_state("lsun/autoencoder") | {
        name: tensor
        for part in ("decoder.", "post_quant_conv.")
        for name, tensor in official_state("lsun/autoencoder", only=part).items()
        if name.startswith(part)
    }
    return import_published(
        "lsun",
        files.netg_file(folder / "netG_625.pth", zero_state("lsun/generator")),
        files.latent_diffusion_file(folder / "model.ckpt", codec),
    )


@torch.no_grad()
def test_cifar10_generator_is_the_recorded_one(cifar10: Model) -> None:
    case = recorded("cifar10_generator")
    assert deviation(cifar10.generator(case["x_t"], case["t"], case["z"]), case["x0"]) < TOLERANCE


@torch.no_grad()
def test_cifar10_autoencoder_is_the_recorded_one(cifar10: Model) -> None:
    case = recorded("cifar10_autoencoder")
    mean, logvar = cifar10.autoencoder.moments(case["image"]).chunk(2, dim=1)
    assert deviation(cifar10.autoencoder.decode(case["latent"]), case["decoded"]) < TOLERANCE
    assert deviation(mean, case["mean"]) < TOLERANCE
    assert deviation(logvar, case["logvar"]) < TOLERANCE


@torch.no_grad()
def test_cifar10_sampler_is_the_recorded_one(cifar10: Model) -> None:
    case = recorded("cifar10_sampler")
    x_0 = diffusion.sample(cifar10.generator, cifar10.preset, case["x_T"], case["z"], case["noise"])
    assert deviation(x_0, case["x_0"]) < TOLERANCE
    assert cifar10.preset.scale_factor == case["scale_factor"]


@torch.no_grad()
def test_lsun_decoder_is_the_recorded_one(lsun: Model) -> None:
    case = recorded("lsun_decoder_small")
    assert deviation(lsun.autoencoder.decode(case["latent"]), case["decoded"]) < TOLERANCE


def test_celeba_256_loads_strictly(tmp_path: Path) -> None:
    model = import_published(
        "celeba_256",
        files.netg_file(tmp_path / "netG.pth", zero_state("celeba_256/generator")),
        files.latent_diffusion_file(tmp_path / "vq.ckpt", zero_state("celeba_256/autoencoder")),
    )
    assert model.preset == get_preset("celeba_256")
    assert list(model.generator.state_dict()) == list(files.official_keys()["celeba_256/generator"])
    assert model.autoencoder.quantize is not None


def test_provenance_tells_where_everything_went(lsun: Model) -> None:
    known = lsun.provenance
    assert known["dataset"] == "lsun"
    assert known["ema"]
    assert known["generator"]["file"] == "netG_625.pth"
    assert len(known["generator"]["sha256"]) == len(known["autoencoder"]["sha256"]) == 64
    assert known["generator"]["left_out"] == {}
    assert known["autoencoder"]["left_out"] == {
        "first_stage_model.loss.": 3,
        "model.diffusion_model.": 2,
        "model_ema.": 2,
        "cond_stage_model.": 1,
        "betas": 1,
        "alphas_cumprod": 1,
        "scale_factor": 1,
        "callbacks": 1,
        "optimizer_states": 1,
    }
    assert known["differs_from_preset"] == {}
    assert known["notes"] == []


# ---- the ways a file may be written ----


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_become_float32(tiny: Tiny, dtype: torch.dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in tiny.state.items()}
    model = tiny.load(generator=files.netg_file(tiny.folder / "g.pth", state))
    assert files.same_state(model.generator, {k: v.float() for k, v in state.items()})


def test_parameters_and_shared_storage_are_read(tiny: Tiny) -> None:
    joined = torch.cat([tensor.flatten() for tensor in tiny.state.values()])
    views = joined.split([tensor.numel() for tensor in tiny.state.values()])
    state = {
        name: torch.nn.Parameter(view.view(tensor.shape))
        for (name, tensor), view in zip(tiny.state.items(), views, strict=True)
    }
    model = tiny.load(generator=files.netg_file(tiny.folder / "g.pth", state))
    assert files.same_state(model.generator, tiny.state)


def test_reads_the_format_before_zip(tiny: Tiny) -> None:
    path = tiny.folder / "legacy.pth"
    torch.save(files.prefixed("module.", tiny.state), path, _use_new_zipfile_serialization=False)
    assert files.same_state(tiny.load(generator=path).generator, tiny.state)


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_numpy_scalars_of_either_age(tiny: Tiny, core: bytes) -> None:
    name = np.float64(1).__reduce__()[0].__module__.encode()  # type: ignore[index,union-attr]
    files.rewrite_pickle(tiny.ckpt, name, core + b".multiarray")
    assert files.same_state(tiny.load().autoencoder, tiny.autoencoder)


def test_reading_leaves_no_trace_in_torch(tiny: Tiny) -> None:
    before = torch.serialization.get_safe_globals()
    tiny.load()
    assert torch.serialization.get_safe_globals() == before


def test_an_imported_model_survives_its_checkpoint(tiny: Tiny) -> None:
    model = tiny.load()
    again = load_checkpoint(save_checkpoint(tiny.folder / "m.safetensors", model))
    assert again.provenance == model.provenance
    assert files.same_state(again.generator, tiny.state)


# ---- content.pth ----


def test_the_average_is_taken_from_a_training_state(tiny: Tiny) -> None:
    average = network_state(tiny.preset, "generator", salt="average")
    path = files.content_file(tiny.folder / "content.pth", tiny.state, average)
    model = tiny.load(generator=path)
    assert files.same_state(model.generator, average)
    assert model.provenance["ema"]
    left_out = model.provenance["generator"]["left_out"]
    assert left_out == {
        "netG_dict": len(tiny.state),
        "netD_dict": 1,
        "optimizerG": 3 * len(tiny.state),
    }


def test_raw_weights_only_when_asked(tiny: Tiny) -> None:
    average = network_state(tiny.preset, "generator", salt="average")
    path = files.content_file(tiny.folder / "content.pth", tiny.state, average)
    model = tiny.load(generator=path, use_raw=True)
    assert files.same_state(model.generator, tiny.state)
    assert not model.provenance["ema"]
    assert "not the moving average" in model.provenance["notes"][0]


def test_training_state_without_average(tiny: Tiny) -> None:
    path = files.content_file(tiny.folder / "content.pth", tiny.state, None)
    tiny.refuses(
        "averages of 0 of ", "netG_dict is not the average", "--raw-generator", generator=path
    )
    assert files.same_state(tiny.load(generator=path, use_raw=True).generator, tiny.state)


def test_training_state_with_half_an_average(tiny: Tiny) -> None:
    ema = dict(list(tiny.state.items())[1:])
    path = files.content_file(tiny.folder / "content.pth", tiny.state, ema)
    tiny.refuses(f"{len(tiny.state) - 1} of {len(tiny.state)}", generator=path)


def test_steps_of_the_training_arguments_win(tiny: Tiny) -> None:
    path = files.content_file(tiny.folder / "c.pth", tiny.state, tiny.state, num_timesteps=2)
    model = tiny.load(generator=path)
    assert model.preset.steps == 2
    assert model.provenance["differs_from_preset"] == {"steps": 2}
    assert model.provenance["notes"] == ["steps is 2, where the tiny preset has 4"]
    path = files.content_file(tiny.folder / "c.pth", tiny.state, tiny.state, num_timesteps=1000)
    tiny.refuses("1000", "2..8", generator=path)


# ---- which network a file holds ----


GENERATORS = [name for name in PRESETS if not name.startswith("vit-")]
AUTOENCODERS = [name for name in PRESETS if "ddgan" not in name]
OF_EQUAL_SHAPES = (
    *(f"{family}-celeba_256 or {family}-lsun generator" for family in ("ddgan", "wddgan")),
    "cifar10 or vit-tiny or vit-mid or vit-large autoencoder",
)


@pytest.mark.parametrize(
    ("part", "name"),
    [("generator", name) for name in GENERATORS] + [("autoencoder", name) for name in AUTOENCODERS],
)
def test_presets_are_identified_by_their_shapes(part: Part, name: str) -> None:
    preset = get_preset(name)
    family = family_of(preset, part)
    shapes = {k: tuple(v) for k, v in shapes_of(preset, part).items()}
    assert family.variant(preset, shapes) == preset
    assert not family.misfits(preset, shapes)
    all_words = [words for words in OF_EQUAL_SHAPES if {name, part} <= set(words.split())]
    assert family.identify(shapes) == f"the {(all_words or [f'{name} {part}'])[0]}"


@settings(deadline=None, derandomize=True, database=None, max_examples=15)
@given(
    levels=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    attends=st.sets(st.integers(0, 3)),
    blocks=st.integers(1, 3),
    numbers=st.tuples(st.integers(1, 9), st.integers(0, 5)),
)
def test_own_numbers_of_any_generator(
    levels: list[int], attends: set[int], blocks: int, numbers: tuple[int, int]
) -> None:
    attention = tuple(8 >> level for level in attends if level < len(levels))
    sizes = {"nf": 8, "ch_mult": tuple(levels), "attention": attention}
    preset = changed_preset(tiny_preset(), "generator", **sizes)
    own = dict(zip(("nz", "mapping_layers"), numbers, strict=True)) | {"blocks": blocks}
    shapes = shapes_of(changed_preset(preset, "generator", **own), "generator")
    assert own_numbers({k: tuple(v) for k, v in shapes.items()}, preset) == own


PUBLISHED = ("cifar10", "celeba_256", "lsun")


@pytest.mark.parametrize(("asked", "found"), [*itertools.permutations(PUBLISHED, 2)])
@pytest.mark.parametrize("part", ["generator", "autoencoder"])
def test_another_data_set_is_refused_by_name(part: Part, asked: str, found: str) -> None:
    state = zero_state(f"{found}/{part}")
    said = f"x.pth is the {found}[a-z- ]* {part}; you asked for {asked}$"
    with pytest.raises(BadInput, match=said):
        fit(get_preset(asked), state, part, Path("x.pth"))


def test_another_data_set_is_refused_by_the_import(tmp_path: Path) -> None:
    netg = files.netg_file(tmp_path / "g.pth", zero_state("lsun/generator"))
    with pytest.raises(BadInput, match=r"g.pth is the lsun generator; you asked for cifar10"):
        import_published("cifar10", netg, netg)


def changed_preset(preset: Preset, section: str, **changes: Any) -> Preset:
    whole = preset.model_dump()
    whole[section] |= changes
    return Preset.model_validate(whole)


@pytest.mark.parametrize(
    "changes", [{"nz": 50}, {"nz": 25, "mapping_layers": 4}, {"blocks": 2}, {"mapping_layers": 1}]
)
def test_a_variant_of_the_generator_is_taken_and_told(
    tiny: Tiny, tmp_path: Path, changes: dict[str, int]
) -> None:
    lsun = changed_preset(get_preset("lsun"), "generator", **changes)
    zeros = {
        name: torch.zeros(()).expand(shape) for name, shape in shapes_of(lsun, "generator").items()
    }
    assert fit(get_preset("lsun"), zeros, "generator", tmp_path / "g.pth") == lsun

    own = changed_preset(tiny.preset, "generator", **changes)
    state = network_state(own, "generator")
    model = tiny.load(generator=files.netg_file(tmp_path / "g.pth", state))
    assert model.preset == own
    assert files.same_state(model.generator, state)
    told = {f"generator.{key}": value for key, value in changes.items()}
    assert model.provenance["differs_from_preset"] == told
    assert len(model.provenance["notes"]) == len(changes)


def test_a_variant_of_another_data_set_is_still_that_one(tmp_path: Path) -> None:
    state = zero_state("cifar10/generator")
    state["z_transform.1.weight"] = torch.zeros(()).expand(256, 100)
    with pytest.raises(
        BadInput, match=r"the cifar10 generator \(with nz 100\); you asked for lsun"
    ):
        fit(get_preset("lsun"), state, "generator", tmp_path / "g.pth")


def test_a_network_of_no_known_kind_is_described(tiny: Tiny) -> None:
    other = changed_preset(tiny.preset, "generator", nf=24)
    state = network_state(other, "generator")
    tiny.refuses_generator(state, "not the tiny generator, nor another known one")
    other = changed_preset(tiny.preset, "autoencoder", ch=64)
    path = files.kl_file(tiny.folder / "c.ckpt", network_state(other, "autoencoder"))
    tiny.refuses("not the tiny autoencoder", autoencoder=path)


def test_vq_codec_and_its_number_of_codes(tiny: Tiny) -> None:
    changes = {"autoencoder.kind": "vq", "autoencoder.codes": 40}
    vq = with_values(tiny.preset, changes)
    state = network_state(changed_preset(vq, "autoencoder", codes=64), "autoencoder")
    path = files.latent_diffusion_file(tiny.folder / "vq.ckpt", state)
    model = tiny.load(dataset=vq, autoencoder=path)
    assert files.same_state(model.autoencoder, state)
    assert model.provenance["differs_from_preset"] == {"autoencoder.codes": 64}
    tiny.refuses("1 tensors unexpected: quantize.embedding.weight", autoencoder=path)
    del state["quantize.embedding.weight"]
    path = files.latent_diffusion_file(tiny.folder / "vq.ckpt", state)
    tiny.refuses("1 tensors missing: quantize", dataset=vq, autoencoder=path)


def test_a_codebook_on_the_meta_device_imports_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """`normal_` imports torch._dynamo there, which takes seconds."""
    monkeypatch.setattr(torch.nn.init, "normal_", None)
    preset = with_values(tiny_preset(), {"autoencoder.kind": "vq", "autoencoder.codes": 7})
    assert shapes_of(preset, "autoencoder")["quantize.embedding.weight"] == (7, 4)
