"""Verification: figures by another path, what each broken engine is told, the record."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from engine.backends.ort import OrtBackend
from engine.gpu.driver import why_no_gpu
from engine.sampler import Sampler
from engine.verification import Verification, refuse, why_failed
from engine.verify import print_verification, verify_engine
from export.agreement import IMAGES
from export.bundle import open_bundle
from lddgan.checkpoint import Model
from lddgan.diffusion import posterior, posterior_sample
from lddgan.errors import LddganError, OutOfMemory
from lddgan.names import Precision
from lddgan.noise import sampler_noise
from lddgan.preset import Preset
from lddgan.torch_settings import exact_fp32
from tests.engine.broken_engines import (
    Jittering,
    NoneFit,
    NotANumber,
    OffByTwoAndThree,
    OneBitOff,
    OneBlankImage,
    OtherNoise,
    StaleGraph,
    ThreeFit,
    VeryWrongDecoder,
    WrongChain,
    WrongDecoder,
    WrongGenerator,
    WrongLastCall,
)

COUNT = 6  # images of most tests
# Rounding to fp16 depends on the order of sums, and that on the number of threads.
LARGEST, MEAN, PIXELS = 0.3, 0.15, 0.1  # relative
Array = NDArray[Any]


def sampler_of(kind: type[OrtBackend], folder: Path, precision: Precision = "fp32") -> Sampler:
    bundle = open_bundle(folder)
    return Sampler(kind(bundle, precision, "cpu"), bundle.preset, random_weights=True)


def verified(
    kind: type[OrtBackend],
    folder: Path,
    model: Model,
    precision: Precision = "fp32",
    **options: Any,
) -> Verification:
    sampler = sampler_of(kind, folder, precision)
    return verify_engine(sampler, model, images=COUNT, device="cpu", **options)


# ---- figures ----


@pytest.fixture(scope="module")
def half(tiny_bundle: Path, tiny_model: Model) -> Verification:
    return verified(OrtBackend, tiny_bundle, tiny_model, "fp16")


@torch.no_grad()
def true_steps(model: Model) -> list[Array]:
    """x_next of every call, by the functions of lddgan.diffusion."""
    x, z, noise = map(torch.from_numpy, noise_of(model.preset))
    steps = []
    for k, t in enumerate(reversed(range(model.preset.steps))):
        step = torch.full((COUNT,), t)
        x_0 = model.generator(x, step, z[k])
        x = posterior_sample(posterior(model.preset), x_0, x, step, noise[k])
        steps.append(x.numpy())
    return steps


@torch.no_grad()
def true_images(model: Model, x_0: Array) -> Array:
    pixels = model.decode(torch.from_numpy(x_0)).double()
    return np.rint((pixels.numpy() + 1) * 127.5).transpose(0, 2, 3, 1)


def noise_of(preset: Preset) -> tuple[Array, ...]:
    nz = preset.generator.nz
    return sampler_noise(0, 0, COUNT, latent_shape=preset.latent_shape, nz=nz, steps=preset.steps)


class Graphs:
    """The two graphs, run by ONNX Runtime and nothing of ours."""

    def __init__(self, folder: Path, precision: str) -> None:
        self.generator, self.decoder = (
            onnxruntime.InferenceSession(
                folder / f"{which}.{precision}.onnx", providers=["CPUExecutionProvider"]
            )
            for which in ("generator", "decoder")
        )

    def step(self, preset: Preset, k: int, x: Array) -> Array:
        _, z, noise = noise_of(preset)
        t = np.array([preset.steps - 1 - k], np.int32)
        return self.generator.run(None, {"x": x, "t": t, "z": z[k], "noise": noise[k]})[0]

    def image(self, x_0: Array) -> Array:
        return self.decoder.run(None, {"x_0": x_0})[0].astype(np.float64)


def errors(a: Array, b: Array) -> tuple[float, float]:
    """Largest and mean |a - b| of the range of b."""
    difference = np.abs(a.astype(np.float64) - b) / np.abs(b).max()
    return difference.max(), difference.mean()


def decibels(a: Array, b: Array) -> float:
    return 20 * np.log10(255 / np.sqrt(np.square(a - b).mean()))


def test_stages_are_compared_on_the_inputs_of_the_reference(
    half: Verification, tiny_bundle: Path, tiny_model: Model
) -> None:
    graphs, preset, steps = Graphs(tiny_bundle, "fp16"), tiny_model.preset, true_steps(tiny_model)
    inputs = [noise_of(preset)[0], *steps[:-1]]
    found = [errors(graphs.step(preset, k, x), steps[k]) for k, x in enumerate(inputs)]
    assert len(half.calls) == preset.steps == 3
    for call, (largest, mean) in zip(half.calls, found, strict=True):
        assert call.largest == pytest.approx(largest, rel=LARGEST)
        assert call.mean == pytest.approx(mean, rel=MEAN)
        assert 1e-6 < mean < largest < 1e-2, "fp16 is not fp32"
    assert half.generator_error == max(call.largest for call in half.calls)

    difference = np.abs(graphs.image(steps[-1]) - true_images(tiny_model, steps[-1]))
    assert half.decoder_levels == difference.max() > 0
    assert half.decoder_mean == pytest.approx(difference.mean(), rel=PIXELS)
    assert half.decoder_changed == pytest.approx((difference > 0).mean(), rel=PIXELS)
    assert half.decoder_psnr == pytest.approx(decibels(difference, 0 * difference), abs=0.5)


def test_whole_chain_is_compared(half: Verification, tiny_bundle: Path, tiny_model: Model) -> None:
    graphs, preset, steps = Graphs(tiny_bundle, "fp16"), tiny_model.preset, true_steps(tiny_model)
    x = noise_of(preset)[0]
    for k in range(preset.steps):
        x = graphs.step(preset, k, x)
    largest, mean = errors(x, steps[-1])
    assert half.latents.largest == half.chain_error == pytest.approx(largest, rel=LARGEST)
    assert half.latents.mean == pytest.approx(mean, rel=MEAN)
    ours, true = graphs.image(x), true_images(tiny_model, steps[-1])
    assert half.chain_psnr == pytest.approx(decibels(ours, true), abs=0.5)
    assert half.chain_changed == pytest.approx((ours != true).mean(), rel=PIXELS)
    assert half.passed and half.finite and half.noise_identical
    assert half.drawn_levels == 0 and half.code_flips == 0


def test_values_off_by_more_than_one_and_two_are_counted(
    tiny_bundle: Path, tiny_model: Model
) -> None:
    sound = verified(OrtBackend, tiny_bundle, tiny_model)
    assert sound.over_1 == sound.over_2 == 0
    found = verified(OffByTwoAndThree, tiny_bundle, tiny_model)
    values = COUNT * 32 * 32 * 3
    assert found.over_1 * values == pytest.approx(12)
    assert found.over_2 * values == pytest.approx(7)


def test_flipped_codes_are_counted(tiny_vq_bundle: Path, tiny_vq_model: Model) -> None:
    sampler = sampler_of(Jittering, tiny_vq_bundle)
    found = verify_engine(sampler, tiny_vq_model, images=COUNT, device="cpu")
    backend = sampler.backend
    ours = backend.download(sampler.make_from(*noise_of(tiny_vq_model.preset)).x_0)
    codebook = tiny_vq_model.autoencoder.quantize.embedding.weight.double().numpy()

    def codes(x_0: Array) -> Array:
        vectors = x_0.transpose(0, 2, 3, 1).reshape(-1, 3).astype(np.float64)
        vectors *= tiny_vq_model.preset.scale_factor
        return np.square(vectors[:, None] - codebook).sum(axis=2).argmin(axis=1)

    flips = (codes(ours) != codes(true_steps(tiny_vq_model)[-1])).mean()
    assert 0.01 < flips < 0.9
    assert found.code_flips == pytest.approx(flips, abs=2 / (COUNT * 64))  # ties in float32
    assert not found.passed, "fp32 limits the error of the generator"
    backend.precision = "fp16"
    judged = verify_engine(sampler, tiny_vq_model, images=COUNT, device="cpu")
    assert judged.code_flips == found.code_flips
    assert judged.chain_psnr < 40 < judged.decoder_psnr
    assert judged.passed, "in fp16 the decoder is judged on the same latents"


# ---- engines that pass ----


@pytest.mark.parametrize("kind", ["", "_vq"])
def test_ort_passes(request: pytest.FixtureRequest, kind: str) -> None:
    folder = request.getfixturevalue(f"tiny{kind}_bundle")
    model: Model = request.getfixturevalue(f"tiny{kind}_model")
    found = verify_engine(sampler_of(OrtBackend, folder), model, device="cpu")
    assert found.passed and found.why_failed is None
    refuse(found)
    assert found.images == IMAGES == 64 and found.seed == 0
    assert (found.engine, found.precision) == ("ort", "fp32")
    assert onnxruntime.__version__ in found.where
    assert torch.__version__ in found.reference and "fp32 on CPU" in found.reference
    assert found.generator_error < 1e-4 and found.decoder_levels <= 1


# ---- engines that are broken ----


AGAIN = "export the bundle again, or use another --engine"
FP32 = "use --precision fp32, or --engine fused --precision bf16"
BROKEN = {
    WrongDecoder: ("fp32", "decoder difference in grey levels is 3, the limit is 1", AGAIN),
    VeryWrongDecoder: ("fp16", "image PSNR in dB is 34.", FP32),
    WrongGenerator: ("fp32", "generator error is 0.0003, the limit is 0.0001", AGAIN),
    WrongLastCall: ("fp32", "generator error is 0.0003, the limit is 0.0001", AGAIN),
    NotANumber: ("fp16", "it gives NaN, Inf or an image of one value", FP32),
    OneBlankImage: ("fp32", "it gives NaN, Inf or an image of one value", AGAIN),
    WrongChain: ("fp32", "image difference in grey levels is ", AGAIN),
    OtherNoise: ("fp32", "the noise it draws is not that of lddgan.noise", "another --engine"),
    OneBitOff: ("fp32", "the noise it draws is not that of lddgan.noise", "another --engine"),
    StaleGraph: ("fp32", "drawn against given noise in grey levels is ", AGAIN),
}


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_broken_engine_is_refused_by_name(
    tiny_bundle: Path,
    tiny_model: Model,
    kind: type[OrtBackend],
) -> None:
    precision, wrong, remedy = BROKEN[kind]
    found = verified(kind, tiny_bundle, tiny_model, precision, at_once=3)  # two parts
    assert not found.passed
    assert found.why_failed.startswith(wrong)
    assert found.why_failed.endswith(f"; {remedy}") or found.why_failed.endswith(f" {remedy}")
    with pytest.raises(LddganError) as caught:
        refuse(found)
    assert str(caught.value) == (
        f"ort {precision} on {found.where} does not make PyTorch's images: {found.why_failed}"
    )


def test_finite_says_what_was_seen(tiny_bundle: Path, tiny_model: Model) -> None:
    found = verified(NotANumber, tiny_bundle, tiny_model, "fp16")
    assert not found.finite
    assert found.latents.largest == found.latents.mean == np.inf
    assert why_failed(found.model_copy(update={"finite": True})) is not None, "inf is no pass"


def test_model_without_images_is_not_the_engine_s_fault(
    tiny_bundle: Path, tiny_model: Model
) -> None:
    broken = copy.deepcopy(tiny_model)
    broken.generator.all_modules[0].bias.data[0] = torch.nan
    with pytest.raises(LddganError, match="PyTorch itself gives NaN"):
        verified(OrtBackend, tiny_bundle, broken)


# ---- memory ----


def test_parts_are_halved_when_memory_is_short(tiny_bundle: Path, tiny_model: Model) -> None:
    lines: list[str] = []
    sampler = sampler_of(ThreeFit, tiny_bundle)
    sampler.log = lines.append
    found = verify_engine(sampler, tiny_model, images=7, device="cpu", log=lines.append)
    assert lines[0] == "the GPU is full; going on with 3 images at once instead of 7"
    assert lines[-1].startswith("verifying: 7/7 images")
    assert found.passed and found.images == 7
    whole = verify_engine(sampler_of(OrtBackend, tiny_bundle), tiny_model, images=7, device="cpu")
    assert found.chain_levels <= whole.chain_levels + 1
    assert found.latents.mean == pytest.approx(whole.latents.mean, rel=0.5)


def test_no_memory_for_one_image_is_an_error(tiny_bundle: Path, tiny_model: Model) -> None:
    with pytest.raises(OutOfMemory, match="the GPU is full"):
        verified(NoneFit, tiny_bundle, tiny_model)


# ---- the record ----


PRODUCTS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)


def set_old(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)


def set_new(precision: str) -> None:
    torch.backends.cuda.matmul.fp32_precision = precision


@pytest.mark.parametrize(
    ("change", "precision"),
    [(set_old, "highest"), (set_old, "high"), (set_old, "medium"), (set_new, "tf32")],
)
def test_exact_fp32_leaves_every_setting_as_it_was(change, precision: str) -> None:
    def settings() -> list[Any]:
        found = [product.fp32_precision for product in PRODUCTS]
        old = [] if change is set_new else [torch.get_float32_matmul_precision()]
        return [*found, *old, torch.backends.cudnn.allow_tf32]

    start = [product.fp32_precision for product in PRODUCTS]
    change(precision)
    try:
        before = settings()
        with exact_fp32():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not PRODUCTS[0].allow_tf32 and not torch.backends.cudnn.allow_tf32
        assert settings() == before
    finally:
        torch.set_float32_matmul_precision("highest")
        for product, found in zip(PRODUCTS, start, strict=True):
            product.fp32_precision = found


def test_record_can_be_read_again(half: Verification) -> None:
    for record in (half, half.model_copy(update={"chain_psnr": float("inf")})):
        assert Verification.model_validate_json(record.model_dump_json()) == record
    older = half.model_dump_json(exclude={"int8_accepted_psnr", "int8_both_psnr"})
    assert Verification.model_validate_json(older) == half


def test_record_is_read_and_refused_without_torch(half: Verification) -> None:
    failed = half.model_copy(update={"why_failed": "it gives NaN"})
    program = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxruntime'): sys.modules[name] = None\n"
        "from engine.verification import Verification, refuse\n"
        "from lddgan.errors import LddganError\n"
        "try: refuse(Verification.model_validate_json(sys.stdin.read()))\n"
        "except LddganError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=failed.model_dump_json(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith("does not make PyTorch's images: it gives NaN\n")


def test_table_shows_figures_and_verdict(
    half: Verification, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    print_verification(half)
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].startswith("ort fp16 on CPU (ONNX Runtime")
    assert shown.rstrip().endswith("passed")
    for k, call in enumerate(half.calls, start=1):
        (line,) = [line for line in shown.splitlines() if f"generator, call {k}" in line]
        assert f"{call.largest:.1e}" in line and f"{call.mean:.1e}" in line
    assert f"{half.chain_psnr:.1f} dB" in shown
    assert f"6 images of seed 0 against {half.reference}, {half.date}" in shown

    print_verification(half.model_copy(update={"int8_both_psnr": 29.84}))
    *_, why_fp32, verdict = capsys.readouterr().out.splitlines()
    assert verdict == "passed"
    assert why_fp32 == (
        "the generator stays in fp32: with both graphs in 8 bits, images had 29.8 dB"
    )

    print_verification(half.model_copy(update={"why_failed": "it is [wrong]; use another"}))
    assert capsys.readouterr().out.rstrip().endswith("failed: it is [wrong]; use another")


# ---- a GPU ----


@pytest.mark.gpu
def test_reference_on_a_gpu_is_fp32(tiny_bundle: Path, tiny_model: Model) -> None:
    reason = why_no_gpu()
    if reason is not None or not torch.cuda.is_available():
        pytest.skip(reason or "torch is built without CUDA")
    model = copy.deepcopy(tiny_model)
    found = verify_engine(sampler_of(OrtBackend, tiny_bundle), model, images=COUNT, device="cuda")
    assert found.passed, found.why_failed
    assert found.generator_error < 2e-5, "TF32 would be off by 1e-3"
