"""Presets of one's own: what can be changed, what is refused and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from lddgan.errors import BadInput
from lddgan.networks.configs import UVitConfig
from lddgan.preset import (
    Preset,
    flat,
    names,
    parsed,
    resized,
    with_loss,
    with_values,
)
from lddgan.presets import PRESETS, get_preset

DIGITS = get_preset("digits")
ALL = pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))


def differences(a: Preset, b: Preset) -> dict[str, Any]:
    """What b has where it differs from a, by name."""
    one, other = flat(a.model_dump()), flat(b.model_dump())
    return {name: value for name, value in other.items() if one.get(name, "absent") != value}


# ---- single values ----


@pytest.mark.parametrize(
    ("name", "given", "held"),
    [
        ("generator.nf", 32, 32),
        ("generator.ch_mult", [1, 2], (1, 2)),
        ("training.lr_g", 1, 1.0),
        ("training.delta", None, None),
        ("training.flip", True, True),
        ("autoencoder_training.betas", [0.5, 0.9], (0.5, 0.9)),
        ("autoencoder.kind", "none", "none"),
        ("steps", 2, 2),
        ("beta_max", 20.0, 20.0),
    ],
)
def test_one_value_is_changed_and_nothing_else(name: str, given: Any, held: Any) -> None:
    before = DIGITS.model_dump_json()
    found = differences(DIGITS, with_values(DIGITS, {name: given}))
    assert found == {name: held} and type(found[name]) is type(held)
    assert DIGITS.model_dump_json() == before


def test_several_values_are_judged_together() -> None:
    changes = {
        "image_size": 64,
        "latent_size": 16,
        "autoencoder.kind": "vq",
        "autoencoder.codes": 16,
    }
    assert differences(DIGITS, with_values(DIGITS, changes)) == changes
    assert with_values(DIGITS, {}) == DIGITS
    for name in ("image_size", "autoencoder.codes"):
        with pytest.raises(BadInput):
            with_values(DIGITS, {name: changes[name]})


@pytest.mark.parametrize(
    "name",
    [
        "generator.widht",
        "generatr.nf",
        "nf",
        "generator",  # a section
        "autoencoder_training",
        "generator.nf.x",
        "generator.",
        ".nf",
        "",
        "steps.x",
    ],
)
def test_an_unknown_name_lists_the_known_ones(name: str) -> None:
    with pytest.raises(BadInput) as caught:
        with_values(DIGITS, {name: 1})
    said = str(caught.value)
    assert said.startswith(f"there is no setting '{name}'; there are ") and "\n" not in said
    listed = said.partition("there are ")[2].split(", ")
    assert listed == names(DIGITS.model_dump())


def test_a_section_that_a_preset_lacks_has_no_values() -> None:
    lacking = DIGITS.model_copy(update={"autoencoder_training": None})
    with pytest.raises(BadInput, match=r"there is no setting 'autoencoder_training\.lr'"):
        with_values(lacking, {"autoencoder_training.lr": 1e-3})


@ALL
def test_every_listed_name_can_be_set(preset: Preset) -> None:
    own = flat(preset.model_dump(exclude={"name", "paper"}))
    assert names(preset.model_dump()) == list(own)
    for name, value in own.items():
        assert with_values(preset, {name: value}) == preset


def test_a_model_keeps_its_name() -> None:
    with pytest.raises(BadInput, match="there is no setting 'name'"):
        with_values(DIGITS, {"name": "lsun"})


def test_what_the_paper_reports_cannot_be_set() -> None:
    lsun = get_preset("lsun")
    assert lsun.paper is not None and not any("paper" in name for name in names(lsun.model_dump()))
    with pytest.raises(BadInput, match=r"there is no setting 'paper\.fid'"):
        with_values(lsun, {"paper.fid": 0.1})


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("generator.nf", "wide", "generator.nf: .*valid integer"),
        ("generator.nf", 1.5, "generator.nf: .*valid integer"),
        ("generator.nf", None, "generator.nf: .*valid integer"),
        ("generator.nf", {}, "generator.nf: .*valid integer"),
        ("generator.ch_mult", 3, "generator.ch_mult: .*valid tuple"),
        ("training.betas", [0.5], r"training.betas.*: "),
        ("training.flip", "perhaps", "training.flip: .*valid boolean"),
        ("autoencoder.kind", "gan", "autoencoder: kind 'gan' is unknown; there are kl, vq, none"),
        ("autoencoder.kind", {}, "autoencoder: kind {} is unknown; there are kl, vq, none"),
        ("generator.kind", "vit", "generator: kind 'vit' is unknown; there are ncsnpp"),
        ("discriminator.kind", None, "discriminator: kind None is unknown; there are small, large"),
        ("autoencoder.ch", 48, "autoencoder: ch 48 is no multiple of groups 32"),
        (
            "generator.nf",
            130,
            "generator: nf 130 .* cannot be cut into 32",
        ),
        ("steps", 9, "steps 9 is outside 2..8"),
        ("image_size", 48, "latent_size 8 is not image_size 48 / 4"),
        ("generator.ch_mult", [1] * 5, "latent_size 8 is no multiple of 16"),
        ("discriminator.layers", 5, "layers 5 is above 4"),
        ("beta_max", -1.0, "beta_max: .*greater than 0"),
        ("beta_max", 1e9, "beta_max: .*less than or equal to 100"),
        ("beta_min", 7.0, "beta_min 7.0 is above beta_max 6.0"),
        ("training.delta", float("inf"), "training.delta: .*finite"),
        ("autoencoder_training.kl_weight", float("nan"), "kl_weight: .*finite|greater"),
    ],
)
def test_an_invalid_value_is_one_sentence(name: str, value: Any, said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        with_values(DIGITS, {name: value})
    assert "\n" not in str(caught.value) and "pydantic" not in str(caught.value)


# ---- text of the command line ----


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("32", 32),
        ("5e-4", 5e-4),
        ("true", True),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ('"kl"', "kl"),
        ("kl", "kl"),
        ("True", "True"),  # no JSON: text, which the preset then judges
        ("a=b", "a=b"),
        ("", ""),
    ],
)
def test_values_are_json_or_else_text(text: str, value: Any) -> None:
    found = parsed([f"generator.nf={text}", "steps=4"])
    assert found == {"generator.nf": value, "steps": 4}
    assert type(found["generator.nf"]) is type(value)


def test_the_last_of_two_values_counts() -> None:
    assert parsed(["steps=2", "steps=3"]) == {"steps": 3} and parsed([]) == {}


@pytest.mark.parametrize("text", ["generator.nf", "", "32"])
def test_a_setting_without_a_value_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=f"'{text}' is no setting; write generator.nf=32"):
        parsed([text])


@pytest.mark.parametrize(
    ("dataset", "name", "value", "there"),
    [
        ("cifar10", "generator.attention", [8, 5], "16, 8, 4"),
        ("digits", "autoencoder.attention", [64], "32, 16, 8"),
    ],
)
def test_attention_where_no_layer_is_is_refused(
    dataset: str, name: str, value: list[int], there: str
) -> None:
    with pytest.raises(BadInput, match=f"^{name} is .*, but the resolutions are {there}$"):
        with_values(get_preset(dataset), {name: value})


def test_attention_at_every_resolution_that_occurs() -> None:
    attention = {"generator.attention": [8, 16, 4], "autoencoder.attention": [32]}
    assert with_values(get_preset("cifar10"), attention).generator.attention == (8, 16, 4)  # type: ignore[attr-defined]


# ---- another size ----


@pytest.mark.parametrize(
    ("dataset", "size", "latent"),
    [("cifar10", 64, 32), ("celeba_256", 64, 16), ("lsun", 128, 16), ("digits", 48, 12)],
)
def test_the_latents_shrink_with_the_images(dataset: str, size: int, latent: int) -> None:
    found = differences(get_preset(dataset), resized(get_preset(dataset), size))
    assert found == {"image_size": size, "latent_size": latent}


@ALL
def test_its_own_size_changes_nothing(preset: Preset) -> None:
    assert resized(preset, preset.image_size) == preset


def test_image_size_and_other_values_are_checked_together() -> None:
    found = resized(get_preset("ddgan-lsun"), 32, {"discriminator.layers": 4})
    assert (found.image_size, found.latent_size, found.discriminator.layers) == (32, 32, 4)


@pytest.mark.parametrize(
    ("dataset", "size", "said"),
    [
        (
            "lsun",
            100,
            "image_size 100 is no multiple of 8, by which the kind 'kl' divides it",
        ),
        ("wddgan-lsun", 33, "image_size 33 is no multiple of 2, by which the kind 'haar' divides"),
        ("ddgan-lsun", 96, "choose an image_size that 64 divides, or fewer levels"),
        ("digits", 30, "image_size 30 is no multiple of 4"),
        ("digits", 0, "image_size: .*greater than or equal to 1"),
        ("digits", -32, "image_size: .*greater than or equal to 1"),
        ("lsun", 64, "latent_size 8 is no multiple of 16"),  # the discriminator halves four times
        ("celeba_256", 68, "latent_size 17 is no multiple of 16"),
    ],
)
def test_sizes_that_cannot_be_halved_are_refused(dataset: str, size: int, said: str) -> None:
    with pytest.raises(BadInput, match=said) as caught:
        resized(get_preset(dataset), size)
    assert "\n" not in str(caught.value)


# ---- another regularisation ----


@pytest.mark.parametrize(
    ("dataset", "kind", "changes"),
    [
        ("digits", "kl", {}),
        ("digits", "none", {"autoencoder.kind": "none"}),
        ("digits", "vq", {"autoencoder.kind": "vq", "autoencoder.codes": 8192}),
        ("celeba_256", "vq", {}),
        ("celeba_256", "kl", {"autoencoder.kind": "kl"}),
        ("celeba_256", "none", {"autoencoder.kind": "none"}),
    ],
)
def test_only_vq_has_codes(dataset: str, kind: Any, changes: dict[str, Any]) -> None:
    preset = get_preset(dataset)
    found = with_values(preset, {"autoencoder.kind": kind})
    assert differences(preset, found) == changes
    assert ("autoencoder.codes" in names(found.model_dump())) == (kind == "vq")


def test_a_codebook_of_ones_own_size_is_kept() -> None:
    own = with_values(get_preset("celeba_256"), {"autoencoder.codes": 16})
    assert with_values(own, {"autoencoder.kind": "vq"}) == own


def test_another_kind_needs_the_values_that_have_no_default() -> None:
    sizes = {"generator.width": 24, "generator.depth": 3, "generator.heads": 3}
    found = with_values(get_preset("lsun"), {"generator.kind": "u-vit"} | sizes).generator
    assert found == UVitConfig(width=24, depth=3, heads=3, nz=100, mapping_layers=3)
    with pytest.raises(BadInput, match=r"generator\.width: Input should be a valid integer"):
        with_values(get_preset("lsun"), {"generator.kind": "u-vit"})
    for width in (2, 25):  # too few, or odd, for sines and cosines of the step
        with pytest.raises(BadInput, match=r"generator\.width: Input should be "):
            with_values(get_preset("vit-tiny"), {"generator.width": width})


PIXELS = {"autoencoder.kind": "pixels", "latent_channels": 3, "latent_size": 32}
KL = {"autoencoder.kind": "kl", "autoencoder.ch_mult": (1, 2), "latent_size": 16}


@pytest.mark.parametrize(
    ("dataset", "changes", "message"),
    [
        ("cifar10", PIXELS, "cannot be pixels in cifar10: start from a model that is without an"),
        ("ddgan-cifar10", KL, "cannot be kl in ddgan-cifar10: start from a model that is trained"),
    ],
)
def test_a_learned_autoencoder_is_not_exchanged_for_none(
    dataset: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        with_values(get_preset(dataset), changes)


# ---- another loss ----


@ALL
@pytest.mark.parametrize("delta", [None, 0.0, 2.5])
def test_the_three_losses(preset: Preset, delta: float | None) -> None:
    own = preset.training.delta
    if own is None and delta is None:
        with pytest.raises(BadInput, match=f"{preset.name} has none of its own"):
            with_loss(preset, "weighted", delta)
        return
    weighted = with_loss(preset, "weighted", delta)
    assert weighted.training.reconstruction
    assert weighted.training.delta == (own if delta is None else delta)
    plain = with_loss(preset, "reconstruction", None)
    assert plain.training.reconstruction and plain.training.delta is None
    alone = with_loss(preset, "adversarial", None)
    assert not alone.training.reconstruction
    for loss, found in (("weighted", weighted), ("reconstruction", plain), ("adversarial", alone)):
        assert found.loss == loss
        assert differences(preset, found).keys() <= {"training.reconstruction", "training.delta"}
        assert with_loss(weighted, loss, None).loss == loss


def test_the_losses_of_the_presets_are_those_of_the_papers_table() -> None:
    found = {name: preset.loss for name, preset in PRESETS.items()}
    assert found == {
        "cifar10": "weighted",
        "celeba_256": "weighted",
        "lsun": "adversarial",
        "digits": "weighted",
        "emoji": "weighted",
        "ddgan-cifar10": "adversarial",
        "ddgan-celeba_256": "adversarial",
        "ddgan-lsun": "adversarial",
        "wddgan-cifar10": "reconstruction",
        "wddgan-celeba_256": "reconstruction",
        "wddgan-lsun": "reconstruction",
        "vit-tiny": "weighted",
        "vit-mid": "weighted",
        "vit-large": "weighted",
    }


@pytest.mark.parametrize("loss", ["adversarial", "reconstruction"])
def test_delta_belongs_to_weighted_learning(loss: Any) -> None:
    with pytest.raises(BadInput, match=f"delta belongs to the loss 'weighted', not to '{loss}'"):
        with_loss(DIGITS, loss, 6.0)


def test_weighted_learning_needs_a_delta() -> None:
    without = with_loss(DIGITS, "reconstruction", None)
    with pytest.raises(BadInput, match="the loss 'weighted' needs --delta: digits has none"):
        with_loss(without, "weighted", None)
    assert with_loss(without, "weighted", 1.0) == DIGITS
