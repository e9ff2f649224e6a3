"""Published files become a Model: the recorded cases, what is left out, and what is refused."""

import itertools
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lddgan import architecture, diffusion
from lddgan.checkpoint import Model, load_checkpoint, save_checkpoint
from lddgan.errors import BadInput
from lddgan.presets import PRESETS, Preset, get_preset
from lddgan.published import expected_shapes, fit, import_autoencoder, import_published
from tests import published_files as files
from tests.published_files import network_state, official_state, recorded, tiny_preset, zero_state

TOLERANCE = 1e-4  # of the largest value (NETWORKS.md)


def deviation(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


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
    mean, logvar = cifar10.autoencoder.moments(case["image"])
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


# ---- a tiny model for the rest ----


@pytest.fixture
def tiny(tmp_path: Path) -> "Tiny":
    return Tiny(tmp_path)


class Tiny:
    """Files of the tiny preset, and the import with one of them exchanged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.preset = tiny_preset()
        self.state = network_state(self.preset, "generator")
        self.codec = network_state(self.preset, "autoencoder")
        self.netg = files.netg_file(folder / "netG_1.pth", self.state)
        self.ckpt = files.kl_file(folder / "kl.ckpt", self.codec)

    def load(self, **given: Any) -> Model:
        arguments = {"generator": self.netg, "autoencoder": self.ckpt} | given
        return import_published(arguments.pop("dataset", self.preset), **arguments)

    def refuses(self, *fragments: str, **given: Any) -> None:
        with pytest.raises(BadInput) as caught:
            self.load(**given)
        message = str(caught.value)
        assert all(fragment in message for fragment in fragments), message
        assert "\n" not in message
        assert len(message) < 500

    def refuses_generator(self, state: files.State, *fragments: str) -> None:
        path = files.netg_file(self.folder / "other.pth", state)
        self.refuses("other.pth", *fragments, generator=path)


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_names_with_and_without_module(tiny: Tiny, prefix: str) -> None:
    path = files.netg_file(tiny.folder / "g.pth", tiny.state, prefix)
    assert files.same_state(tiny.load(generator=path).generator, tiny.state)


def test_names_half_prefixed_are_refused(tiny: Tiny) -> None:
    path = files.netg_file(tiny.folder / "g.pth", tiny.state)
    state = torch.load(path, weights_only=True)
    state["all_modules.0.weight"] = state.pop("module.all_modules.0.weight")
    torch.save(state, path)
    tiny.refuses("mixes", "all_modules.0.weight", generator=path)


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


def test_autoencoder_as_a_plain_state_dict(tiny: Tiny) -> None:
    torch.save(tiny.codec, tiny.folder / "plain.pth")
    model = tiny.load(autoencoder=tiny.folder / "plain.pth")
    assert files.same_state(model.autoencoder, tiny.codec)


@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_numpy_scalars_of_either_age(tiny: Tiny, core: bytes) -> None:
    name = np.float64(1).__reduce__()[0].__module__.encode()  # type: ignore[index,union-attr]
    files.rewrite_pickle(tiny.ckpt, name, core + b".multiarray")
    assert files.same_state(tiny.load().autoencoder, tiny.codec)


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
    tiny.refuses("no averages", "netG_dict is not the average", "--raw-generator", generator=path)
    assert files.same_state(tiny.load(generator=path, use_raw=True).generator, tiny.state)


def test_training_state_with_half_an_average(tiny: Tiny) -> None:
    path = files.content_file(tiny.folder / "content.pth", tiny.state, tiny.state)
    content = torch.load(path, weights_only=False)
    del content["optimizerG"]["state"][3]["ema"]
    torch.save(content, path)
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


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("part", architecture.FACTS)
def test_facts_of_every_preset_are_read_off_its_shapes(name: str, part: str) -> None:
    preset = get_preset(name)
    shapes = {k: tuple(v) for k, v in expected_shapes(preset, part).items()}
    facts = architecture.FACTS[part](shapes)
    assert facts == architecture.preset_facts(preset, part)
    assert architecture.identify(facts, part) == f"the {name} {part}"


@settings(deadline=None, derandomize=True, database=None, max_examples=30)
@given(
    levels=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    blocks=st.integers(1, 3),
    attends=st.sets(st.integers(0, 3)),
    numbers=st.tuples(st.integers(1, 9), st.integers(0, 5), st.integers(1, 9)),
)
def test_facts_of_any_generator(
    levels: list[int], blocks: int, attends: set[int], numbers: tuple[int, int, int]
) -> None:
    nz, mapping_layers, z_emb_dim = numbers
    preset = tiny_preset()
    generator = preset.generator.model_copy(
        update={
            "nf": 8,
            "ch_mult": tuple(levels),
            "blocks": blocks,
            "attention": tuple(8 >> level for level in attends if level < len(levels)),
            "nz": nz,
            "mapping_layers": mapping_layers,
            "z_emb_dim": z_emb_dim,
        }
    )
    preset = preset.model_copy(update={"generator": generator})
    shapes = {k: tuple(v) for k, v in expected_shapes(preset, "generator").items()}
    assert architecture.generator_facts(shapes) == architecture.preset_facts(preset, "generator")


PUBLISHED = ("cifar10", "celeba_256", "lsun")


@pytest.mark.parametrize(("asked", "found"), [*itertools.permutations(PUBLISHED, 2)])
def test_another_data_set_is_refused_by_name(tmp_path: Path, asked: str, found: str) -> None:
    netg = files.netg_file(tmp_path / "g.pth", zero_state(f"{found}/generator"))
    with pytest.raises(BadInput, match=f"g.pth is the {found} generator; you asked for {asked}"):
        import_published(asked, netg, netg)
    codec = files.kl_file(tmp_path / "a.ckpt", zero_state(f"{found}/autoencoder"))
    with pytest.raises(BadInput, match=f"a.ckpt is the {found} autoencoder; you asked for {asked}"):
        import_autoencoder(get_preset(asked), codec)


@pytest.mark.parametrize(
    ("foreign", "asked", "message"),
    [
        ("ddgan-cifar10", "celeba_256", "a DDGAN generator for cifar10, which works on pixels"),
        ("ddgan-cifar10", "cifar10", "a DDGAN generator for cifar10"),
        ("ddgan-lsun", "lsun", "a DDGAN generator for celeba_256 or lsun"),
        ("wddgan-cifar10", "cifar10", "a WDDGAN generator for cifar10, which works on wavelet"),
        ("wddgan-celeba_256", "celeba_256", "a WDDGAN generator, which works on wavelet"),
        ("wddgan-small", "lsun", "a WDDGAN generator"),
    ],
)
def test_predecessors_are_refused_by_name(
    tmp_path: Path, foreign: str, asked: str, message: str
) -> None:
    state = zero_state(f"{foreign}/generator")
    with pytest.raises(BadInput, match=f"is {message}.*; you asked for {asked}"):
        fit(get_preset(asked), state, "generator", tmp_path / "netG.pth")


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
        name: torch.zeros(()).expand(shape)
        for name, shape in expected_shapes(lsun, "generator").items()
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
    tiny.refuses_generator(state, "not the tiny generator", "nf 24 (not 16)")
    other = changed_preset(tiny.preset, "codec", ch=64)
    path = files.kl_file(tiny.folder / "c.ckpt", network_state(other, "autoencoder"))
    tiny.refuses("not the tiny autoencoder", "ch 64 (not 32)", autoencoder=path)


def test_vq_codec_and_its_number_of_codes(tiny: Tiny) -> None:
    vq = tiny_preset(codec=tiny.preset.codec.model_copy(update={"kind": "vq", "codes": 40}))
    state = network_state(changed_preset(vq, "codec", codes=64), "autoencoder")
    path = files.latent_diffusion_file(tiny.folder / "vq.ckpt", state)
    model = tiny.load(dataset=vq, autoencoder=path)
    assert files.same_state(model.autoencoder, state)
    assert model.provenance["differs_from_preset"] == {"codec.codes": 64}
    tiny.refuses("1 tensors unexpected: quantize.embedding.weight", autoencoder=path)
    del state["quantize.embedding.weight"]
    path = files.latent_diffusion_file(tiny.folder / "vq.ckpt", state)
    tiny.refuses("1 tensors missing: quantize", dataset=vq, autoencoder=path)


# ---- tensors that are wrong ----


def test_missing_tensors_are_named(tiny: Tiny) -> None:
    names = [name for name in tiny.state if name.endswith("Conv_1.weight")]
    state = {name: tensor for name, tensor in tiny.state.items() if name not in names}
    tiny.refuses_generator(state, f"{len(names)} tensors missing", names[0], names[4])
    del tiny.state["all_modules.0.weight"]
    tiny.refuses_generator(tiny.state, "1 tensors missing: all_modules.0.weight")


def test_tensors_of_every_kind_are_needed(tiny: Tiny) -> None:
    for part, whole in (("generator", tiny.state), ("autoencoder", tiny.codec)):
        for name in list(whole)[::7]:
            path = tiny.folder / "cut.pth"
            torch.save(
                {k: torch.zeros(()).expand(v.shape) for k, v in whole.items() if k != name}, path
            )
            tiny.refuses("cut.pth", name, **{part: path})


def test_extra_tensors_are_named(tiny: Tiny) -> None:
    extra = {f"all_modules.5.extra_{i}": torch.zeros(1) for i in range(7)}
    tiny.refuses_generator(tiny.state | extra, "7 tensors unexpected", "extra_4 and 2 more")
    path = files.kl_file(tiny.folder / "a.ckpt", tiny.codec | {"lossy.weight": torch.zeros(1)})
    tiny.refuses("1 tensors unexpected: lossy.weight", autoencoder=path)
    state = files.prefixed("first_stage_model.", tiny.codec) | {"adapter.weight": torch.zeros(1)}
    path = files.lightning_file(tiny.folder / "a.ckpt", state)
    tiny.refuses("unknown purpose: adapter.weight", autoencoder=path)


def test_misshapen_tensors_are_named(tiny: Tiny) -> None:
    for name in ("all_modules.1.weight", "all_modules.2.weight", "z_transform.1.weight"):
        wrong = tiny.state | {name: torch.zeros(3, 3, 3)}
        tiny.refuses_generator(wrong, f"1 tensors misshapen: {name} is [3, 3, 3]")
    wrong = tiny.state | {"all_modules.0.bias": torch.zeros(3)}
    tiny.refuses_generator(wrong, "all_modules.0.bias is [3], not [64]")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_tensors_that_are_not_finite_are_named(tiny: Tiny, bad: float) -> None:
    tiny.state["all_modules.4.Conv_0.weight"][0, 0, 0, 0] = bad
    tiny.refuses_generator(tiny.state, "1 tensors with NaN or Inf: all_modules.4.Conv_0.weight")
    too_large = tiny.state | {"z_transform.1.bias": torch.full((24,), 1e300, dtype=torch.float64)}
    tiny.refuses_generator(too_large, "NaN or Inf")


@pytest.mark.parametrize(
    "odd",
    [
        torch.zeros(64, dtype=torch.int64),
        torch.zeros(64, dtype=torch.complex64),
        torch.zeros(64).to_sparse(),
        torch.zeros(64, device="meta"),
    ],
    ids=["integer", "complex", "sparse", "meta"],
)
def test_tensors_that_are_no_plain_floats_are_named(tiny: Tiny, odd: torch.Tensor) -> None:
    tiny.refuses_generator(tiny.state | {"all_modules.0.bias": odd}, "all_modules.0.bias")


# ---- files that are something else ----


def test_files_given_for_each_other(tiny: Tiny) -> None:
    tiny.refuses("an autoencoder, given as the generator", "swapped", generator=tiny.ckpt)
    tiny.refuses("a generator, given as the autoencoder", "swapped", autoencoder=tiny.netg)
    content = files.content_file(tiny.folder / "content.pth", tiny.state, tiny.state)
    tiny.refuses("a generator, given as the autoencoder", autoencoder=content)
    netd = files.netg_file(tiny.folder / "netD.pth", {"start_conv.weight": torch.zeros(1)})
    tiny.refuses("netD.pth is a discriminator", generator=netd)
    tiny.refuses("autoencoder", "--autoencoder", autoencoder=None)
    tiny.refuses("unknown data set 'lsum'", dataset="lsum")


def test_files_that_hold_no_state_dict(tiny: Tiny) -> None:
    path = tiny.folder / "x.pth"
    for content, fragment in (
        (torch.zeros(3), "holds a Tensor"),
        ({}, "no tensors"),
        ({"state_dict": 3}, "holds a int"),
        ({"model": {"w": torch.zeros(1)}, "epoch": 3}, "not tensors: model, epoch"),
        ({3: torch.zeros(1)}, "not tensors: 3"),
        ({"all_modules.\n\x1b[31m": torch.zeros(1)}, "not tensors: all_modules.??[31m"),
        ({"fc.weight": torch.zeros(1)}, "holds no generator: its tensors are fc.weight"),
    ):
        torch.save(content, path)
        tiny.refuses("x.pth", fragment, generator=path)


def test_missing_empty_and_foreign_files(tiny: Tiny) -> None:
    path = tiny.folder / "x.pth"
    tiny.refuses("x.pth does not exist", generator=path)
    tiny.refuses("is not a file", generator=tiny.folder)
    for data, fragment in (
        (b"", "empty (0 bytes): download it again"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "web page, not a checkpoint: download it again"),
        (b"\xef\xbb\xbf<HTML>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\x1f\x8b\x08\x00rest", "gzip"),
        (os.urandom(5000), "no checkpoint"),
        (b"PK\x03\x04 but nothing else", "damaged, cut"),
        (b"just words\n" * 20, "no checkpoint"),
        (b"\x80", "no checkpoint"),
    ):
        path.write_bytes(data)
        tiny.refuses("x.pth", fragment, generator=path)


def test_archives_are_to_be_unpacked(tiny: Tiny) -> None:
    path = tiny.folder / "celeba.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tiny.ckpt, "model.ckpt")
    tiny.refuses("zip archive of model.ckpt: unpack it", autoencoder=path)
    with tarfile.open(tiny.folder / "a.tar", "w") as archive:
        archive.add(tiny.ckpt, "model.ckpt")
    tiny.refuses("tar", "unpack it", autoencoder=tiny.folder / "a.tar")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_script_module_is_no_checkpoint(tiny: Tiny) -> None:
    path = tiny.folder / "script.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    tiny.refuses("TorchScript", generator=path)


def test_our_own_checkpoint_needs_no_import(tiny: Tiny) -> None:
    path = save_checkpoint(tiny.folder / "m.safetensors", tiny.load())
    tiny.refuses("already", "needs no import", generator=path)
    renamed = path.rename(tiny.folder / "netG.pth")
    tiny.refuses("already", generator=renamed)
    from safetensors.torch import save_file

    save_file(tiny.state, path)
    tiny.refuses("a safetensors file; import reads published", generator=path)


def test_unreadable_by_permission(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    tiny.refuses("cannot read", "netG_1.pth: Permission denied")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_cut_files(tiny: Tiny, share: float) -> None:
    data = tiny.netg.read_bytes()
    tiny.netg.write_bytes(data[: int(len(data) * share)])
    tiny.refuses("netG_1.pth", "damaged, cut")
    torch.save(tiny.state, tiny.netg, _use_new_zipfile_serialization=False)
    data = tiny.netg.read_bytes()
    tiny.netg.write_bytes(data[: int(len(data) * share)])
    tiny.refuses("netG_1.pth", "damaged, cut")


# ---- files that want to run something ----


class Bomb:
    """Pickles as a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


class Evaluated(Bomb):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"__import__('os').system({self.command!r})",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle 0", "pickle 2", "pickle 4", "pickle 5"])
@pytest.mark.parametrize(("bomb", "name"), [(Bomb, "system"), (Evaluated, "eval")])
def test_code_in_a_file_is_refused_by_name_and_never_run(
    tiny: Tiny, kind: str, bomb: type[Bomb], name: str
) -> None:
    trace = tiny.folder / "trace"
    state = tiny.state | {"all_modules.99.weight": bomb(f"touch {trace}")}
    path = tiny.folder / "bomb.pth"
    if kind.startswith("pickle"):
        path.write_bytes(
            pickle.dumps({"state_dict": state["all_modules.99.weight"]}, int(kind[-1]))
        )
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    tiny.refuses("bomb.pth asks to run", name, "nothing was run", generator=path)
    tiny.refuses("bomb.pth asks to run", name, "nothing was run", autoencoder=path)
    assert not trace.exists()


def test_allowed_names_run_nothing(tiny: Tiny) -> None:
    """Every name on the list, called with anything and given any state, is inert."""
    from lddgan.pickles import Inert, allowed_globals

    for stand_in, name in allowed_globals():  # type: ignore[misc]
        built = stand_in() if name == "argparse.Namespace" else stand_in("rm -rf /", 3, [])
        assert isinstance(built, Inert) or not vars(built), name
    with files.foreign_classes("some.library.Config") as foreign:
        torch.save({"state_dict": tiny.state, "config": foreign["Config"]()}, tiny.netg)
    tiny.refuses("'some.library.Config'", "refused")


@settings(deadline=None, derandomize=True, database=None, max_examples=150)
@given(data=st.data())
def test_changed_bytes_give_a_model_or_bad_input(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "netG.pth"
    whole = {"module.all_modules.0.weight": torch.zeros(3), "x": np.float64(2)}
    torch.save(whole, path, _use_new_zipfile_serialization=data.draw(st.booleans()))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with pytest.raises(BadInput):
        import_published(tiny_preset(), path, path)
