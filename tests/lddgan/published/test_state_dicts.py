"""Generators as others saved them: wrapped, prefixed, averaged, as safetensors; and strangers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel

from lddgan.checkpoint import load_checkpoint, save_checkpoint
from lddgan.errors import BadInput
from lddgan.networks.registry import create
from lddgan.published.reader import import_published
from lddgan.published.shapes import Part
from lddgan.published.state_dicts import is_average, networks_in, read_state
from tests import published_files as files
from tests.published_files import Tiny, network_state

VAE = "autoencoder"


def saved(tiny: Tiny, content: Any, name: str = "theirs.pt") -> Path:
    torch.save(content, tiny.folder / name)
    return tiny.folder / name


def taken(tiny: Tiny, content: Any, **given: Any) -> Any:
    """The provenance of an import that takes exactly the generator."""
    model = tiny.load(generator=saved(tiny, content), **given)
    assert files.same_state(model.generator, tiny.state)
    return model.provenance


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.module._orig_mod.module.",
        "_orig_mod.generator.module.",
        "netG_ema.module.",
        "model._orig_mod.",
        "model.netG.",
        "_forward_module.model.module.generator._orig_mod.",
        "netG.netG.",
        "state_dict.",
    ],
)
def test_prefixes_are_taken_off(tiny: Tiny, prefix: str) -> None:
    taken(tiny, files.prefixed(prefix, tiny.state))


@pytest.mark.parametrize("prefix", ["netG.layer.", "layer.", "modulemodule."])
def test_other_prefixes_are_not(tiny: Tiny, prefix: str) -> None:
    path = saved(tiny, files.prefixed(prefix, tiny.state))
    tiny.refuses("theirs.pt holds no generator", f"{prefix}all_modules", generator=path)


def test_a_name_of_many_prefixes_is_read_in_no_time() -> None:
    name = "ema_ema." * 40 + "x"  # "ema_" and "ema", or "ema" and "_ema"
    assert list(networks_in({name: torch.zeros(1)}, Path("a.pth"))[""]) == [name]


@pytest.mark.parametrize(
    "prefix", ["", "_orig_mod.", "vae.module.", "module.autoencoder.", "ae.model."]
)
def test_prefixes_of_an_autoencoder(tiny: Tiny, prefix: str) -> None:
    path = saved(tiny, files.prefixed(prefix, tiny.autoencoder | files.LOSS))
    assert files.same_state(tiny.load(autoencoder=path).autoencoder, tiny.autoencoder)


@pytest.mark.parametrize("other", ["module.", ""])
def test_two_wrappings_of_one_network_are_refused(tiny: Tiny, other: str) -> None:
    state = files.prefixed("_orig_mod.", tiny.state)
    state[f"{other}z_transform.1.bias"] = state.pop("_orig_mod.z_transform.1.bias")
    tiny.refuses("mixes two networks", f"{other}z_transform", generator=saved(tiny, state))


def test_the_average_of_torch_is_one(tiny: Tiny) -> None:
    network = create("generator", tiny.preset)
    network.load_state_dict(tiny.state)
    known = taken(tiny, {"model_ema": AveragedModel(network).state_dict(), "epoch": 3})
    assert known["ema"] and known["generator"]["left_out"] == {"model_ema": 1}
    known = taken(tiny, AveragedModel(network).state_dict())
    assert known["generator"]["left_out"] == {"n_averaged": 1}


@pytest.mark.parametrize(("raw", "average"), [("net", "G_ema"), ("netG_dict", "average")])
def test_the_average_is_preferred_and_told(tiny: Tiny, raw: str, average: str) -> None:
    other = network_state(tiny.preset, "generator", salt="raw")
    known = taken(tiny, {raw: other, average: files.prefixed("module.", tiny.state)})
    assert known["ema"]
    assert known["notes"] == [f"theirs.pt: took the moving average under {average}, not {raw}"]
    assert known["generator"]["left_out"] == {raw: len(other)}
    known = taken(tiny, {raw: tiny.state, average: other}, use_raw=True)
    assert not known["ema"]


def test_averages_are_known_by_their_keys() -> None:
    averages = "generatorEMA emaG gema netGEMA EMAModel shadow swa g_running state_dict_ema ema.0.9"
    assert all(map(is_average, [*averages.split(), "online.ema_model", "ema.module"]))
    others = "netG G schema swap ema.online_model model_raw non_ema state_dict.generator"
    assert not any(map(is_average, ["", *others.split()]))


def test_an_average_beside_its_network_in_the_state_of_an_average(tiny: Tiny) -> None:
    other = network_state(tiny.preset, "generator", salt="raw")
    ema = files.prefixed("online_model.", other) | files.prefixed("ema_model.", tiny.state)
    known = taken(tiny, {"model": other, "ema": ema | {"initted": torch.tensor([True])}})
    assert known["generator"]["weights"] == "ema.ema_model (the moving average)"


@pytest.mark.parametrize(("prefix", "key"), [("", "state_dict"), ("model.", "state_dict.model")])
def test_the_average_of_latent_diffusion_is_preferred(tiny: Tiny, prefix: str, key: str) -> None:
    raw = files.prefixed(prefix, network_state(tiny.preset, VAE, salt="raw") | files.LOSS)
    average = {name.replace(".", ""): tensor for name, tensor in tiny.autoencoder.items()}
    ema = files.prefixed("model_ema.", average | {"decay": torch.tensor(0.9)})
    path = files.lightning_file(tiny.folder / "ae.ckpt", raw | ema)
    model = tiny.load(autoencoder=path)
    assert files.same_state(model.autoencoder, tiny.autoencoder)
    told = f"ae.ckpt: took the moving average under {key}.model_ema, not {key}"
    assert model.provenance["notes"] == [told]
    model = tiny.load(autoencoder=path, keys=[key])
    assert model.provenance["notes"] == [f"ae.ckpt: took {key}, not {key}.model_ema"]
    del ema["model_ema.encoderconv_inbias"]
    model = tiny.load(autoencoder=files.lightning_file(path, raw | ema))
    assert model.provenance["notes"] == [
        "ae.ckpt: its moving average is incomplete and was left out"
    ]


def test_an_average_that_is_a_list_is_told(tiny: Tiny) -> None:
    ema = {"decay": 0.9, "shadow_params": list(tiny.state.values()), "collected_params": None}
    [told, _] = taken(tiny, {"model": tiny.state, "ema": ema})["notes"]
    assert told == "theirs.pt: a moving average of another form, a list, is there and was not taken"


def test_a_single_network_of_a_wrapper_may_be_no_average(tiny: Tiny) -> None:
    known = taken(tiny, {"model": {"state_dict": tiny.state}, "step": 9})
    assert not known["ema"]
    assert known["notes"] == [
        "theirs.pt: took model.state_dict, which may not be the moving average"
    ]


def test_several_without_a_preference_need_a_key(tiny: Tiny) -> None:
    other = network_state(tiny.preset, "generator", salt="other")
    content = {"best": {"net": tiny.state, "loss": 0.5}, "last": {"net": other}}
    path = saved(tiny, content)
    tiny.refuses("holds 2 generators: best.net, last.net", "--key", generator=path)
    taken(tiny, content, keys=["best.net"])
    tiny.refuses("holds 2 generators", generator=path, keys=["worst"])
    tiny.refuses(
        "no file has the key worst",
        "best.net, last.net",
        generator=path,
        keys=["best.net", "worst"],
    )
    content = {"ema_0.99": tiny.state, "ema_0.999": other}
    tiny.refuses("holds 2 generators: ema_0.99, ema_0.999", generator=saved(tiny, content))


def test_a_key_that_is_not_there_names_those_that_are(tiny: Tiny) -> None:
    path = saved(tiny, {"G": tiny.state, "D": {"start_conv.weight": torch.zeros(1)}})
    tiny.refuses("no file has the key ema; there are G, D", generator=path, keys=["ema"])
    tiny.refuses(
        "theirs.pt holds no generator: its tensors are start_conv", generator=path, keys=["D"]
    )


def test_keys_of_a_file_that_holds_both_networks(tiny: Tiny) -> None:
    other = {part: network_state(tiny.preset, part, salt="ema") for part in ("generator", VAE)}
    content = {"G": tiny.state, "G_ema": other["generator"], "vae": tiny.autoencoder}
    path = saved(tiny, content | {"vae_ema": other[VAE]})
    for keys in (["G", "vae"], ["G"], ["vae"]):
        model = tiny.load(generator=path, autoencoder=path, keys=keys)
        generator = tiny.state if "G" in keys else other["generator"]
        assert files.same_state(model.generator, generator)
        autoencoder = tiny.autoencoder if "vae" in keys else other[VAE]
        assert files.same_state(model.autoencoder, autoencoder)
    tiny.refuses("are the two files swapped?", generator=tiny.ckpt, keys=["state_dict"])


def test_a_whole_gan_in_one_state_dict(tiny: Tiny) -> None:
    state = files.prefixed("netG.", tiny.state) | {"netD.start_conv.weight": torch.zeros(1)}
    known = taken(tiny, {"state_dict": state})
    assert known["generator"]["left_out"] == {"state_dict": 1}
    state |= files.prefixed("netG_ema.", network_state(tiny.preset, "generator", salt="ema"))
    known = taken(tiny, state, keys=["netG"])
    assert known["generator"]["left_out"] == {"netD": 1, "netG_ema": len(tiny.state)}


def test_raw_weights_with_an_optimiser_are_not_taken_for_the_average(tiny: Tiny) -> None:
    raw = network_state(tiny.preset, "generator", salt="raw")
    optimizer = files.optimizer_state(raw, tiny.state)
    known = taken(tiny, {"netG": raw, "optimizerG": optimizer, "args": {"num_timesteps": 2}})
    assert known["ema"] and known["differs_from_preset"] == {"steps": 2}
    path = saved(tiny, {"netG": raw, "optimizerG": files.optimizer_state(raw, None)})
    tiny.refuses("averages of 0", "its netG is not the average", generator=path)


def test_tensors_of_a_device_that_is_not_here_are_read(tiny: Tiny) -> None:
    files.rewrite_pickle(tiny.netg, b"cpu", b"mps")
    assert files.same_state(tiny.load().generator, tiny.state)


# ---- safetensors ----


def test_bare_safetensors_are_imported_by_their_content(tiny: Tiny) -> None:
    half = {name: tensor.half() for name, tensor in tiny.state.items()}
    save_file(half, tiny.folder / "G.bin", metadata={"format": "pt"})
    save_file(files.prefixed("vae.", tiny.autoencoder), tiny.folder / "vae.safetensors")
    model = tiny.load(generator=tiny.folder / "G.bin", autoencoder=tiny.folder / "vae.safetensors")
    assert files.same_state(model.generator, {k: v.float() for k, v in half.items()})
    assert files.same_state(model.autoencoder, tiny.autoencoder)
    misnamed = saved(tiny, tiny.state, "pickle.safetensors")
    assert files.same_state(tiny.load(generator=misnamed).generator, tiny.state)


@pytest.mark.parametrize("alone", [False, True])
def test_ours_without_metadata_is_told(tiny: Tiny, alone: bool) -> None:
    state = load_file(save_checkpoint(tiny.folder / "m.safetensors", tiny.load()))
    state = {k: v for k, v in state.items() if k.startswith("autoencoder.") or not alone}
    path = tiny.folder / "again.safetensors"
    save_file(state, path, metadata={"format": "pt"})
    for part in ("generator", "autoencoder"):
        tiny.refuses("lddgan checkpoint", "metadata", "is missing", **{part: path})
    with pytest.raises(BadInput, match=r"its metadata .* is missing"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["in_blocks.0.norm1.style.weight", "mid_block.attn.qkv.weight"], "a U-ViT"),
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "a LoRA"),
        (["unet.mid_block.attentions.0.to_k.lora_A.weight"], "a LoRA"),
        (["time_embedding.linear_1.weight", "down_blocks.0.resnets.0.conv1.weight"], "a U-Net of"),
        (["cond_stage_model.transformer.x", "first_stage_model.encoder.x"], "a whole Stable"),
        (["conditioner.embedders.0.x", "model.diffusion_model.out.2.bias"], "a whole Stable"),
        (["model.diffusion_model.out.2.bias"], "a U-Net of latent diffusion"),
        (["transformer.single_transformer_blocks.0.x"], "a diffusion transformer"),
        (["text_model.embeddings.position_embedding.weight"], "an encoder of text"),
    ],
)
@pytest.mark.parametrize("part", ["generator", "autoencoder"])
def test_strangers_are_refused_for_what_they_are(
    tmp_path: Path, names: list[str], what: str, part: Part
) -> None:
    path = tmp_path / "download.safetensors"
    save_file({name: torch.zeros(1) for name in names}, path)
    with pytest.raises(BadInput, match=f"download.safetensors is {what}.*, not the {part}"):
        read_state(path, part, ())


def test_nothing_was_published_for_the_digits(tiny: Tiny) -> None:
    with pytest.raises(BadInput, match="nothing was published for digits"):
        import_published("digits", tiny.netg, tiny.ckpt)
