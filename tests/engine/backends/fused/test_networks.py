"""The fused networks compute what lddgan/networks does: plain PyTorch stands for the kernels."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from engine.backends.fused.networks import (
    FusedHaarDown,
    FusedHaarUp,
    FusedImage,
    FusedResidualBlock,
    FusedStep,
    Lookup,
    in_precision,
)
from engine.backends.fused.reference import PLAIN
from engine.backends.fused.run import DTYPES, FusedBackend
from engine.backends.torch.run import TorchBackend
from engine.sampler import Sampler
from export.modules import DecoderToImage, GeneratorStep
from export.rewrites.generator import StepTable, Styles
from export.rewrites.upsampling import Phases
from export.rewrites.winograd import WinogradConv
from lddgan.checkpoint import Model
from lddgan.names import Precision
from lddgan.networks.haar import Haar, InverseHaar
from lddgan.networks.layers import FirDown, FirUp
from lddgan.networks.wavelet import WaveletNcsnpp
from lddgan.noise import sampler_noise
from tests.conftest import TINY
from tests.small import small_model

BATCH = 3
FUNCTIONS = [name for name in PLAIN._fields if name != "errors"]


LATENT = ("tiny_model", "tiny_vq_model")
FIXED = ("small-pixels", "small-wavelet")


@pytest.fixture(scope="module", params=LATENT)
def latent_model(request: pytest.FixtureRequest) -> Model:
    """A tiny model whose decoder has layers."""
    return shaken(request.getfixturevalue(request.param))


@pytest.fixture(scope="module", params=[*LATENT, *FIXED])
def model(request: pytest.FixtureRequest) -> Model:
    if request.param in FIXED:
        return shaken(small_model(request.param))
    return shaken(request.getfixturevalue(request.param))


def shaken(model: Model) -> Model:
    """A copy in which every bias, scale and shift does something."""
    found = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(3)
    layers = nn.ModuleList([found.generator, *found.autoencoder.decoding[1:]])
    for parameter in layers.parameters():
        spread = 0.3 if parameter.ndim == 1 else 0.05
        parameter.data += spread * torch.randn(parameter.shape, generator=generator)
    return found


@pytest.fixture
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def sampler(backend: FusedBackend | TorchBackend, model: Model, chunk: int = BATCH) -> Sampler:
    return Sampler(backend, model.preset, random_weights=True, chunk=chunk)


def relative(found: Tensor, true: Tensor) -> float:
    assert found.shape == true.shape and found.dtype == true.dtype
    return float((found - true).abs().max() / true.abs().max())


def noise_of(model: Model) -> tuple[np.ndarray, ...]:
    preset = model.preset
    drawn = sampler_noise(
        5, 0, BATCH, latent_shape=preset.latent_shape, nz=preset.generator.nz, steps=preset.steps
    )
    return tuple(drawn)


# ---- the same function ----


def test_sampler_agrees_with_the_torch_engine(model: Model) -> None:
    fused, true = (
        sampler(FusedBackend(model, "fp32"), model),
        sampler(TorchBackend(model, "cpu"), model),
    )
    made, expected = fused.make_from(*noise_of(model)), true.make_from(*noise_of(model))
    assert relative(made.x_0, expected.x_0) <= 1e-5
    assert made.image.dtype == torch.uint8 and made.image.is_contiguous()
    assert expected.image.float().std() > 10
    assert int((made.image.int() - expected.image.int()).abs().max()) <= 1


@pytest.mark.usefixtures("_inference")
def test_every_step_agrees(model: Model) -> None:
    x_T, z, noise = map(torch.from_numpy, noise_of(model))
    true, fused = (
        GeneratorStep(model.generator, model.preset),
        FusedStep(model.generator, model.preset, PLAIN),
    )
    for t in range(model.preset.steps):
        step = torch.tensor([t], dtype=torch.int32)
        x_next = true(x_T, step, z[0], noise[0])
        assert relative(fused(x_T, step, z[0], noise[0]), x_next) <= 1e-5


@pytest.mark.usefixtures("_inference")
def test_decoder_agrees_before_it_is_rounded(latent_model: Model) -> None:
    model, latent = latent_model, torch.from_numpy(noise_of(latent_model)[0])
    fused = FusedImage(model.autoencoder, model.preset, PLAIN)
    found = fused.decoder(fused.to_decoder(latent))
    assert relative(found, model.autoencoder.decode(latent)) <= 1e-5
    image = DecoderToImage(model.autoencoder, model.preset)(latent)
    assert int((fused(latent).int() - image.int()).abs().max()) <= 1


def test_the_model_itself_is_not_changed(model: Model) -> None:
    networks = nn.ModuleList([model.generator, model.autoencoder])
    before, layers = copy.deepcopy(networks.state_dict()), list(networks.modules())
    FusedBackend(model, "fp16")
    after = networks.state_dict()
    assert after.keys() == before.keys() and list(networks.modules()) == layers
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_decoder_works_in_chunks(model: Model) -> None:
    backend = FusedBackend(model, "fp32")
    x_0 = torch.from_numpy(noise_of(model)[0])
    whole = backend.decode(x_0)
    sizes: list[int] = []
    backend.decoder.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    parts = backend.decode_in(x_0, 2)
    assert sizes == [2, 1]
    assert int((whole.int() - parts.int()).abs().max()) <= 1


# ---- what makes it fast ----


def test_no_bias_is_added_in_a_pass_of_its_own_inside_the_blocks(latent_model: Model) -> None:
    model = latent_model
    generator = FusedStep(model.generator, model.preset, PLAIN).step.generator.generator
    decoder = FusedImage(model.autoencoder, model.preset, PLAIN).decoder
    ends = {generator.all_modules[2], generator.all_modules[-1], decoder.conv_in, decoder.conv_out}
    for network in (generator, decoder):
        for name, layer in network.named_modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and "Conv2d_0" not in name:
                assert (layer.bias is not None) == (layer in ends), name


def test_of_a_wavelet_block_only_the_high_bands_have_a_bias_of_their_own() -> None:
    model = small_model("small-wavelet")
    step = FusedStep(model.generator, model.preset, PLAIN)
    blocks = [layer for layer in step.modules() if isinstance(layer, FusedResidualBlock)]
    assert {FusedHaarDown, FusedHaarUp} < {type(block) for block in blocks}
    for name, layer in nn.ModuleList(blocks).named_modules():
        if isinstance(layer, nn.Conv2d):
            assert (layer.bias is not None) == name.endswith("convH_0"), name


def test_no_norm_or_filter_of_pytorch_is_left(model: Model) -> None:
    called: list[str] = []

    def named(name: str, function):  # type: ignore[no-untyped-def]
        def call(*given, **options):  # type: ignore[no-untyped-def]
            called.append(name)
            return function(*given, **options)

        return call

    ops = PLAIN._replace(**{name: named(name, getattr(PLAIN, name)) for name in FUNCTIONS})
    backend = FusedBackend(model, "fp32", ops)
    replaced = (nn.GroupNorm, FirDown, FirUp, Haar, InverseHaar)
    assert not [layer for layer in backend.generator.modules() if isinstance(layer, replaced)]
    assert not [layer for layer in backend.decoder.modules() if isinstance(layer, nn.GroupNorm)]
    sampler(backend, model).sample(1)
    # With one halving: the block that enlarges, h and its skip; and in the pyramid.  In the middle
    # of the wavelet network are two blocks, of which the second is called at half the resolution.
    filters = {"fir_up": 2, "fir_down": 3}
    if isinstance(model.generator, WaveletNcsnpp):
        filters = {"inverse_haar": 2 + 2, "haar": 2 + 2}  # to get smaller h alone: a skip is a mean
    codes = {"nearest_code": 1} if model.preset.autoencoder.has_codes else {}
    calls = {name: count * model.preset.steps for name, count in filters.items()} | codes
    assert {name: called.count(name) for name in {*called} - {"group_norm", "add_"}} == calls


@pytest.mark.parametrize("batch", [1, 2])
def test_every_image_between_convolutions_is_channels_last(model: Model, batch: int) -> None:
    """PyTorch takes some tensors of one image for contiguous ones."""

    def checking(function):  # type: ignore[no-untyped-def]
        def call(*given, **options):  # type: ignore[no-untyped-def]
            images = [one for one in given if isinstance(one, Tensor) and one.ndim == 4]
            assert all(one.is_contiguous(memory_format=torch.channels_last) for one in images)
            made = function(*given, **options)
            return tuple(map(laid_out, made)) if isinstance(made, tuple) else laid_out(made)

        return call

    def laid_out(made: Tensor) -> Tensor:
        return made.contiguous(memory_format=torch.channels_last)

    ops = PLAIN._replace(
        **{name: checking(getattr(PLAIN, name)) for name in FUNCTIONS if name != "nearest_code"}
    )
    images = sampler(FusedBackend(model, "fp32", ops), model).sample(batch, seed=1)
    assert images.std() > 10


def test_the_skip_is_convolved_where_it_is_smaller(model: Model) -> None:
    backend = FusedBackend(model, "fp32")
    small = model.preset.latent_size // 2
    sides: list[int] = []
    for layer in backend.generator.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
            same = layer.in_channels == layer.out_channels  # of a block that changes the resolution
            layer.register_forward_pre_hook(
                lambda _, given, same=same: sides.append(given[0].shape[-1]) if same else None
            )
    sampler(backend, model).sample(1)
    assert sides == [small, small] * model.preset.steps


def test_fused_computes_four_of_the_rewrites(latent_model: Model) -> None:
    model = latent_model
    kinds = {
        "transposed-upsampling": nn.ConvTranspose2d,
        "phased-upsampling": Phases,
        "codebook": Lookup,
        "styles": Styles,
        "step-table": StepTable,
        "winograd": WinogradConv,
    }
    networks = nn.ModuleList(
        [
            FusedStep(model.generator, model.preset, PLAIN),
            FusedImage(model.autoencoder, model.preset, PLAIN),
        ]
    )
    layers = list(networks.modules())
    taken = {name for name, kind in kinds.items() if any(isinstance(one, kind) for one in layers)}
    codebook = {"codebook"} if model.preset.autoencoder.kind == "vq" else set()
    assert taken == {"transposed-upsampling", "styles", "step-table"} | codebook


def test_upsampling_is_one_transposed_convolution(latent_model: Model) -> None:
    model = latent_model
    decoder = FusedImage(model.autoencoder, model.preset, PLAIN).decoder
    found = [layer for layer in decoder.modules() if isinstance(layer, nn.ConvTranspose2d)]
    assert len(found) == len(model.preset.autoencoder.ch_mult) - 1
    assert not [layer for layer in decoder.modules() if isinstance(layer, nn.Upsample)]


# ---- fp16 and bf16 ----


@pytest.mark.parametrize(("precision", "least"), [("fp16", 40), ("bf16", 30)])
def test_half_makes_the_same_picture(model: Model, precision: Precision, least: float) -> None:
    true = sampler(TorchBackend(model, "cpu"), model).run(*noise_of(model)).astype(int)
    half = sampler(FusedBackend(model, precision), model).run(*noise_of(model)).astype(int)
    off = np.abs(half - true)
    assert off.max() > 0  # different arithmetic
    if not model.preset.autoencoder.has_codes:  # a code that flips is another picture
        assert 10 * np.log10(255**2 / np.mean(off**2)) >= least


@pytest.mark.usefixtures("_inference")
def test_bf16_takes_values_that_fp16_cannot_hold(tiny_model: Model) -> None:
    decoder = copy.deepcopy(tiny_model.autoencoder)
    decoder.decoder.conv_in.weight.data *= 1e6  # the normalisations after it take that out again
    latent = torch.from_numpy(noise_of(tiny_model)[0])
    true, half, bf16 = (
        in_precision(FusedImage(decoder, tiny_model.preset, PLAIN), dtype).decoder(latent)
        for dtype in (torch.float32, torch.float16, torch.bfloat16)
    )
    assert not half.isfinite().all()
    assert relative(bf16.float(), true) < 0.05


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_products_are_half_and_added_values_float32(model: Model, half: torch.dtype) -> None:
    precision = next(name for name, dtype in DTYPES.items() if dtype == half)
    backend = FusedBackend(model, precision)
    networks = nn.ModuleList([backend.generator, backend.decoder])
    for layer in networks.modules():
        wanted = (
            half if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear) else torch.float32
        )
        own = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
        assert {tensor.dtype for tensor in own} <= {wanted}, layer
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            assert layer.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("_inference")
def test_lookup_is_the_quantiser_and_the_convolution_after_it(tiny_vq_model: Model) -> None:
    autoencoder = tiny_vq_model.autoencoder
    quantiser = autoencoder.quantize
    assert quantiser is not None
    lookup = Lookup(quantiser.embedding.weight, autoencoder.post_quant_conv, PLAIN)
    latent = torch.randn(2, 3, 8, 8) / 600
    true = autoencoder.post_quant_conv(quantiser(latent))
    assert relative(lookup(latent), true) <= 1e-6


def test_these_models_have_what_is_folded(model: Model) -> None:
    """Both resamplings, a shortcut after an upsampling, attention in both networks."""
    assert len(model.preset.generator.ch_mult) == 2
    assert len(TINY.generator.ch_mult) == 2 and len(set(TINY.autoencoder.ch_mult)) == 2
    assert (model.preset.latent_size >> 1) in model.preset.generator.attention
