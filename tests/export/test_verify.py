"""What verification measures, what it refuses, and that the graphs agree by another path."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export.agreement import (
    changed,
    grey_levels,
    is_sound,
    mean_error,
    mean_levels,
    psnr,
    relative_error,
)
from export.bundle import Agreement
from export.exporter import export_bundle
from export.verify import code_flips, refuse_disagreement
from lddgan.checkpoint import Model, random_tensor
from lddgan.diffusion import sample
from lddgan.errors import LddganError
from lddgan.presets import get_preset
from tests.bundles import EXPORT_SECONDS, exported_by_command
from tests.reference import weights

REFERENCE = Path(__file__).parents[1] / "reference"

# ---- measures, in closed form ----


def test_relative_error_is_of_the_range() -> None:
    b = np.array([1.0, -4.0, 2.0], np.float32)
    assert relative_error(b, b) == 0
    assert relative_error(b + np.array([0, 0, 0.5], np.float32), b) == 0.125
    for bad in (np.nan, np.inf):
        assert relative_error(np.array([1, bad, 2], np.float32), b) == np.inf


def test_grey_levels_do_not_wrap_around() -> None:
    black, white = np.zeros((1, 2, 2, 3), np.uint8), np.full((1, 2, 2, 3), 255, np.uint8)
    assert grey_levels(black, white) == grey_levels(white, black) == 255
    one = black.copy()
    one[0, 1, 1, 2] = 1
    assert grey_levels(black, one) == grey_levels(one, black) == 1
    assert changed(black, one) == 1 / 12
    assert changed(black, black) == 0


def test_psnr_in_closed_form() -> None:
    a = np.full((2, 4, 4, 3), 100, np.uint8)
    assert psnr(a, a) == np.inf
    assert psnr(a, a + 1) == pytest.approx(20 * np.log10(255))
    quarter = a.copy()
    quarter[:, :2, :2] -= 10  # mse 25
    assert psnr(a, quarter) == pytest.approx(10 * np.log10(255**2 / 25))


def test_mean_error_is_of_the_range() -> None:
    b = np.array([1.0, -4.0, 2.0, 0.0], np.float32)
    assert mean_error(b, b) == 0
    assert mean_error(b + np.array([0, 0, -0.5, 1.5], np.float32), b) == 0.125
    for bad in (np.nan, np.inf):
        assert mean_error(np.array([1, bad, 2, 0], np.float32), b) == np.inf


def test_values_further_off_than_some_levels_are_counted() -> None:
    a = np.full((1, 2, 2, 3), 200, np.uint8)
    b = a.copy()
    b.reshape(-1)[:4] = (201, 198, 203, 0)
    assert [changed(a, b, levels) for levels in (0, 1, 2, 3, 200)] == [
        4 / 12,
        3 / 12,
        2 / 12,
        1 / 12,
        0,
    ]
    assert mean_levels(a, b) == mean_levels(b, a) == (1 + 2 + 3 + 200) / 12


def test_sound_is_finite_and_not_of_one_value() -> None:
    x_0 = np.zeros((2, 4, 8, 8), np.float32)
    images = np.zeros((2, 4, 4, 3), np.uint8)
    images[:, 0, 0, 0] = 1
    digits, pixels = get_preset("digits"), get_preset("ddgan-cifar10")
    assert is_sound(x_0, images, digits)
    for bad in (np.nan, -np.inf):
        broken = x_0.copy()
        broken[1, 2, 3, 4] = bad
        assert not is_sound(broken, images, digits) and not is_sound(broken, images, pixels)
    images[1] = 9
    assert not is_sound(x_0, images, digits)
    assert is_sound(x_0, images, pixels), "a decoder without layers makes no NaN"


@pytest.mark.parametrize("flips", [0, 1, 5, 64])
def test_code_flips_are_counted_exactly(tiny_vq_model: Model, flips: int) -> None:
    codebook = tiny_vq_model.autoencoder.quantize.embedding.weight.numpy()
    generator = np.random.default_rng(flips)
    codes = generator.integers(0, 600, 64)  # every position of one latent [3,8,8]
    other = codes.copy()
    where = generator.choice(64, flips, replace=False)
    other[where] = (codes[where] + generator.integers(1, 600, flips)) % 600
    a, b = (
        (codebook[c].T.reshape(1, 3, 8, 8) / tiny_vq_model.preset.scale_factor).astype(np.float32)
        for c in (codes, other)
    )
    assert code_flips(tiny_vq_model, a, b) == flips / 64


def test_a_kl_model_has_no_codes_to_flip(tiny_model: Model) -> None:
    a = np.zeros((1, 4, 8, 8), np.float32)
    assert code_flips(tiny_model, a, a + 9) == 0


# ---- limits ----

GOOD = Agreement(
    batches=(1,),
    generator_error=1e-4,
    decoder_levels=1,
    decoder_changed=0.0255,
    decoder_psnr=60.0,
    chain_error=1e-3,
    chain_levels=1,
    chain_changed=0.5,
    chain_psnr=60.0,
    code_flips=0.0,
)
GOOD_HALF = GOOD.model_copy(
    update={"generator_error": 2e-2, "chain_psnr": 40.0, "fp16_psnr": 40.0, "fp16_largest": 9.0}
)
NAN = float("nan")
PASSED = {  # precision, what is changed, what the message names
    "generator": ("fp32", {"generator_error": 1.01e-4}, "generator error is 0.000101"),
    "decoder": ("fp32", {"decoder_levels": 2}, "decoder difference in grey levels is 2"),
    "changed": ("fp32", {"decoder_changed": 0.026}, "share of changed decoder values is 0.026"),
    "chain": ("fp32", {"chain_error": 1.01e-3}, "error of x_0 after all steps is 0.00101"),
    "images": ("fp32", {"chain_levels": 2}, "image difference in grey levels is 2"),
    "flips": ("fp32", {"code_flips": 1.1e-3}, "share of VQ codes that differ is 0.0011"),
    "not a number": ("fp32", {"generator_error": NAN}, "generator error is nan"),
    "infinite": ("fp32", {"chain_error": float("inf")}, "error of x_0 after all steps is inf"),
    "fp16 generator": ("fp16", {"generator_error": 2.1e-2}, "generator error is 0.021"),
    "fp16 images": ("fp16", {"chain_psnr": 39.9}, "image PSNR in dB is 39.9"),
    "fp16 psnr": ("fp16", {"chain_psnr": NAN}, "image PSNR in dB is nan"),
    "fp16 dtypes": ("fp16", {"fp16_psnr": 39.0}, "PSNR in dB at the graph's own dtypes is 39"),
    "fp16 unmeasured": ("fp16", {"fp16_psnr": None}, "at the graph's own dtypes is 0"),
    "fp16 decoder": (
        "fp16",
        {"code_flips": 0.2, "decoder_psnr": 39.0},
        "image PSNR in dB is 39",
    ),
}


@pytest.mark.parametrize("case", PASSED)
def test_each_limit_is_refused_by_name(case: str) -> None:
    precision, update, named = PASSED[case]
    found = (GOOD if precision == "fp32" else GOOD_HALF).model_copy(update=update)
    with pytest.raises(LddganError) as caught:
        refuse_disagreement(found, precision)
    assert f"the {precision} graphs disagree with PyTorch: " in str(caught.value)
    assert named in str(caught.value)


def test_values_at_the_limits_pass() -> None:
    refuse_disagreement(GOOD, "fp32")
    refuse_disagreement(GOOD_HALF, "fp16")


def test_a_few_flipped_codes_excuse_the_image_and_nothing_else() -> None:
    flipped = GOOD.model_copy(update={"code_flips": 1e-3, "chain_levels": 90})
    refuse_disagreement(flipped, "fp32")
    in_half = GOOD_HALF.model_copy(update={"code_flips": 0.3, "chain_psnr": 20.0})
    refuse_disagreement(in_half, "fp16")


# ---- a graph that is not the network ----


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("tampered", [None, "generator", "decoder"])
def test_tampered_graph_is_not_published(
    tiny_bundle: Path,
    tiny_model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tampered: str | None,
) -> None:
    def reuse(module, spec, path: Path, most: int) -> None:
        model = onnx.load(tiny_bundle / path.name)
        if path.name.split(".")[0] == tampered:
            perturb(model)
        onnx.save(model, path)

    monkeypatch.setattr("export.to_onnx.export_graph", reuse)
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_bundle, folder)
    before = content(folder)
    if tampered is None:  # the control: what refuses below is the perturbation
        export_bundle(tiny_model, folder, ["fp32"])
        assert set(content(folder)) < set(before)
    else:
        with pytest.raises(LddganError, match=r"disagree with PyTorch.*nothing was published"):
            export_bundle(tiny_model, folder, ["fp32"])
        assert content(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def perturb(model: onnx.ModelProto) -> None:
    """One weight of one convolution in the middle, by a tenth."""
    weights_of = {weight.name: weight for weight in model.graph.initializer}
    convolutions = [
        weights_of[node.input[1]]
        for node in model.graph.node
        if node.op_type == "Conv" and node.input[1] in weights_of
    ]
    weight = convolutions[len(convolutions) // 2]
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0] += 0.1
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))


# ---- agreement, measured without export.verify ----


def run_graphs(folder: Path, precision: str, x: np.ndarray, z: np.ndarray, noise: np.ndarray):
    """(x_0, image) by ONNX Runtime alone."""
    generator, decoder = (
        onnxruntime.InferenceSession(
            folder / f"{which}.{precision}.onnx", providers=["CPUExecutionProvider"]
        )
        for which in ("generator", "decoder")
    )
    for k, t in enumerate(range(len(z) - 1, -1, -1)):
        feed = {"x": x, "t": np.array([t], np.int32), "z": z[k], "noise": noise[k]}
        (x,) = generator.run(["x_next"], feed)
    return x, decoder.run(["image"], {"x_0": x})[0]


def drawn(model: Model, batch: int) -> Iterator[np.ndarray]:
    preset, generator = model.preset, np.random.default_rng(batch)
    for shape in (
        (batch, *preset.latent_shape),
        (preset.steps, batch, preset.generator.nz),
        (preset.steps, batch, *preset.latent_shape),
    ):
        yield generator.standard_normal(shape, np.float32)


@torch.no_grad()
def in_torch(model: Model, x: np.ndarray, z: np.ndarray, noise: np.ndarray):
    x_0 = sample(model.generator, model.preset, *map(torch.from_numpy, (x, z, noise)))
    pixels = model.decode(x_0).numpy().astype(np.float64)
    return x_0.numpy(), np.rint((pixels + 1) * 127.5).transpose(0, 2, 3, 1).astype(int)


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
@pytest.mark.parametrize("kind", ["", "_vq"])
def test_graphs_are_the_networks(request, kind: str, batch: int) -> None:
    model: Model = request.getfixturevalue(f"tiny{kind}_model")
    x_T, z, noise = drawn(model, batch)
    x_0, image = run_graphs(request.getfixturevalue(f"tiny{kind}_bundle"), "fp32", x_T, z, noise)
    true_x_0, true_image = in_torch(model, x_T, z, noise)
    assert np.abs(x_0 - true_x_0).max() < 1e-4 * np.abs(true_x_0).max()
    assert image.shape == (batch, 32, 32, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - true_image).max() <= 1
    assert true_image.std() > 10, "the images have content"


def test_fp16_graphs_are_the_networks_within_40_db(tiny_model: Model, tiny_bundle: Path) -> None:
    x_T, z, noise = drawn(tiny_model, 3)
    x_0, image = run_graphs(tiny_bundle, "fp16", x_T, z, noise)
    true_x_0, true_image = in_torch(tiny_model, x_T, z, noise)
    assert 0 < np.abs(x_0 - true_x_0).max() < 2e-2 * np.abs(true_x_0).max()
    assert 20 * np.log10(255 / np.sqrt(np.square(image - 1.0 * true_image).mean())) >= 40


# ---- the recorded sampler ----


def test_random_tensors_follow_the_rule_of_the_recorded_cases() -> None:
    keys = json.loads((REFERENCE / "official_keys.json").read_text())
    for entry in ("cifar10/generator", "cifar10/autoencoder"):
        for name, shape in keys[entry].items():
            expected = weights.value(name, tuple(shape))
            assert np.array_equal(random_tensor(name, tuple(shape)), expected), name


@pytest.mark.full
@pytest.mark.timeout(EXPORT_SECONDS)
def test_exported_cifar10_gives_the_recorded_latents() -> None:
    path = exported_by_command("cifar10") / "exports" / "cifar10" / "generator.fp32.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with np.load(REFERENCE / "cifar10_sampler.npz") as case:
        x, expected = case["x_T"], case["x_0"]
        for k in range(4):
            t = np.array([3 - k], np.int32)
            feed = {"x": x, "t": t, "z": case["z"][k], "noise": case["noise"][k]}
            (x,) = session.run(None, feed)
    assert np.abs(x - expected).max() < 1e-3 * np.abs(expected).max()
