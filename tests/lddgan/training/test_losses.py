"""The autoencoder's adversarial, quantisation and perceptual losses, against other computations."""

import shutil
import sys
import warnings
from collections import OrderedDict
from copy import deepcopy
from http.client import IncompleteRead
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch.autograd import gradcheck
from torch.func import functional_call
from torch.nn import functional as F

import lddgan.extras as extras_module
from lddgan.errors import BadInput, LddganError
from lddgan.networks.patch_discriminator import PatchDiscriminator
from lddgan.networks.quantiser import straight_through, vq_losses
from lddgan.training.codec_losses import (
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
)
from lddgan.training.perceptual import VGG_URL, load_perceptual
from tests.needs import needs

WIDTHS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256)}
WIDTHS |= {14: (256, 256), 17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512)}
WIDTHS |= {26: (512, 512), 28: (512, 512)}  # number of the convolution in torchvision's vgg16
TAPS, POOLS = (3, 8, 15, 22, 29), (4, 9, 16, 23)  # of the same: relu1_2 to relu5_3, max pooling
REMEDIES = (VGG_URL, "--vgg FILE", "--perceptual-weight 0")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def doubles(*shape):
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


# Adversarial loss.


def test_hinge_losses_in_closed_form():
    real = torch.tensor([2.0, 0.5, -1.0, 1.0]).view(2, 1, 1, 2)  # 1 - D: clipped, 0.5, 2, 0
    fake = torch.tensor([-3.0, 0.25, -1.0, 2.0]).view(2, 1, 1, 2)  # 1 + D: clipped, 1.25, 0, 3
    assert hinge_discriminator_loss(real, fake).item() == (2.5 / 4 + 4.25 / 4) / 2
    assert hinge_generator_loss(fake).item() == 1.75 / 4
    zero = torch.zeros(3, 1, 2, 2)
    assert hinge_discriminator_loss(zero, zero).item() == 1
    assert hinge_discriminator_loss(zero + 1, zero - 1).item() == 0  # nothing left to learn


def test_gradients_of_the_hinge_losses():
    assert gradcheck(hinge_discriminator_loss, (doubles(2, 1, 3, 3), doubles(2, 1, 3, 3)))
    assert gradcheck(hinge_generator_loss, (doubles(2, 1, 3, 3),))


def test_adaptive_weight_of_a_quadratic():
    # nll = a/2 |w|^2 has gradient a w, g = c.w has gradient c: the weight is a |w| / (|c| + 1e-4).
    w, c = doubles(4, 3, 3, 3), torch.randn(4, 3, 3, 3, dtype=torch.float64)
    (nll,) = torch.autograd.grad(1.7 * w.square().sum() / 2, w, create_graph=True)
    (g,) = torch.autograd.grad((c * w).sum(), w)
    weight = adaptive_weight(nll, g)
    expected = 1.7 * sum(v**2 for v in w.flatten().tolist()) ** 0.5
    expected /= sum(v**2 for v in c.flatten().tolist()) ** 0.5 + 1e-4
    assert weight.shape == () and not weight.requires_grad
    assert weight.item() == pytest.approx(expected, rel=1e-12)


def test_adaptive_weight_stays_within_its_bounds():
    one, zero = torch.ones(4), torch.zeros(4)
    assert adaptive_weight(one, zero).item() == 1e4  # 2 / 1e-4 is more
    assert adaptive_weight(0.25 * one, zero).item() == pytest.approx(0.5 / 1e-4)
    assert adaptive_weight(zero, one).item() == 0
    assert adaptive_weight(zero, zero).item() == 0
    assert adaptive_weight(one * torch.nan, one).isnan()  # for the check of losses to see


# Quantisation.


def test_straight_through_has_the_codes_value_and_the_latents_gradient():
    latent, quantised = 1e3 * doubles(2, 3, 4, 4), doubles(2, 3, 4, 4)
    latent.retain_grad()
    through = straight_through(latent, quantised)
    assert torch.equal(through, quantised)
    factor = torch.randn_like(through)
    (factor * through).sum().backward()
    assert torch.equal(latent.grad, factor) and quantised.grad is None


def test_vq_losses_in_closed_form():
    latent = torch.tensor([1.0, -2.0]).view(1, 2, 1, 1)
    quantised = torch.tensor([0.0, 2.0]).view(1, 2, 1, 1)  # squares of 1 and 4: mean 8.5
    assert [v.item() for v in vq_losses(latent, quantised, beta=0.25)] == [8.5, 2.125]
    assert [v.item() for v in vq_losses(latent, quantised, beta=1.0)] == [8.5, 8.5]
    assert [v.item() for v in vq_losses(latent, latent, beta=0.25)] == [0, 0]


def test_each_vq_loss_moves_one_side():
    latent, quantised = doubles(2, 3, 2, 2), doubles(2, 3, 2, 2)
    assert gradcheck(lambda e: vq_losses(latent, e, 0.25)[0], (quantised,))
    assert gradcheck(lambda z: vq_losses(z, quantised, 0.4)[1], (latent,))
    codebook, commitment = vq_losses(latent, quantised, 0.25)
    assert torch.autograd.grad(codebook, latent, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(commitment, quantised, allow_unused=True) == (None,)


# Patch discriminator.


@pytest.mark.parametrize(("size", "patches"), [(32, 2), (64, 6), (256, 30)])
def test_patches(size, patches):
    discriminator = PatchDiscriminator(width=64 if size == 32 else 8)
    with torch.no_grad():
        assert discriminator(torch.randn(2, 3, size, size)).shape == (2, 1, patches, patches)


def test_widths_groups_and_initial_weights():
    parts = list(PatchDiscriminator().net)
    convs = [m for m in parts if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in parts if isinstance(m, torch.nn.GroupNorm)]
    assert [m.out_channels for m in convs] == [64, 128, 256, 512, 1]
    assert [m.stride[0] for m in convs] == [2, 2, 2, 1, 1]
    assert all(m.kernel_size == (4, 4) and m.padding == (1, 1) for m in convs)
    assert [(m.num_groups, m.num_channels) for m in norms] == [(32, 128), (32, 256), (32, 512)]
    assert [m.negative_slope for m in parts if isinstance(m, torch.nn.LeakyReLU)] == [0.2] * 4
    for conv in convs:
        deviation = 6 * 0.02 / (2 * conv.weight.numel()) ** 0.5  # of a deviation, six times
        assert conv.weight.std().item() == pytest.approx(0.02, abs=deviation)
        assert abs(conv.weight.mean().item()) < 6 * 0.02 / conv.weight.numel() ** 0.5
        assert not conv.bias.any()
    deep = [m.out_channels for m in PatchDiscriminator(2, 5).net if isinstance(m, torch.nn.Conv2d)]
    assert deep == [2, 4, 8, 16, 16, 16, 1]


@pytest.mark.parametrize("width", [2, 3, 4, 5, 12, 48, 64])
def test_narrow_discriminators_keep_two_channels_in_a_group(width):
    for module in PatchDiscriminator(width).net:
        if isinstance(module, torch.nn.GroupNorm):
            assert module.num_groups <= 32 and module.num_channels >= 2 * module.num_groups


def test_gradients_of_the_patch_discriminator():
    # 16 pixels are too few for three halvings; the weights are widened so that all logits matter.
    discriminator = PatchDiscriminator(width=4, layers=2).double()
    names = [name for name, _ in discriminator.named_parameters()]
    weights = [5 * p.detach() + 0.1 * torch.randn_like(p) for p in discriminator.parameters()]

    def logits(image, *parameters):
        return functional_call(discriminator, dict(zip(names, parameters, strict=True)), image)

    inputs = (doubles(2, 3, 16, 16), *(w.requires_grad_() for w in weights))
    assert logits(*inputs).shape == (2, 1, 2, 2) and logits(*inputs).std() > 0.1
    assert gradcheck(logits, inputs, fast_mode=True)


def test_a_logit_sees_seventy_pixels():
    discriminator = PatchDiscriminator(width=4)
    for index, module in enumerate(discriminator.net):  # which see the whole image
        if isinstance(module, torch.nn.GroupNorm):
            discriminator.net[index] = torch.nn.Identity()
    discriminator.double()
    image = doubles(1, 3, 128, 128)
    logits = discriminator(image)
    row, column = 6, 5
    (gradient,) = torch.autograd.grad(logits[0, 0, row, column], image)
    rows, columns = gradient[0].abs().sum(dim=0).nonzero().unbind(dim=1)
    top, left = 8 * row - 23, 8 * column - 23  # strides of 2^3; pads of 1 + 2 + 4 + 8 + 8 pixels
    assert (rows.min(), rows.max()) == (top, top + 69)
    assert (columns.min(), columns.max()) == (left, left + 69)
    assert len(rows) == 70 * 70

    outside = torch.ones(128, 128, dtype=torch.bool)
    outside[top : top + 70, left : left + 70] = False
    with torch.no_grad():
        far = discriminator(image + 10 * outside)
        assert far[0, 0, row, column] == logits[0, 0, row, column]
        assert not torch.equal(far, logits)
        for y, x in ((top, left), (top + 69, left + 69)):
            near = image.clone()
            near[:, :, y, x] += 10
            assert discriminator(near)[0, 0, row, column] != logits[0, 0, row, column]


def test_logits_do_not_depend_on_the_other_images():
    discriminator = PatchDiscriminator(width=8).train()
    image = torch.randn(3, 3, 32, 32, requires_grad=True)
    logits = discriminator(image)
    other = torch.cat([image[:1], 100 * torch.randn(2, 3, 32, 32) + 7])
    assert torch.equal(discriminator(other)[0], logits[0])
    torch.testing.assert_close(discriminator(image[:1])[0], logits[0])
    (gradient,) = torch.autograd.grad(logits[0].sum(), image)
    assert gradient[0].any() and not gradient[1:].any()


# Perceptual distance.


@pytest.fixture(scope="module")
def vgg():
    """torchvision's names and shapes, random values; the last features are faint, not zero."""
    random = torch.Generator().manual_seed(1)
    tensors = OrderedDict()
    for number, (inputs, outputs) in WIDTHS.items():
        draw = torch.randn(outputs, inputs, 3, 3, generator=random)
        tensors[f"features.{number}.weight"] = draw * (2 / (9 * inputs)) ** 0.5
        tensors[f"features.{number}.bias"] = 0.1 * torch.randn(outputs, generator=random)
    for name in ("features.28.weight", "features.28.bias"):
        tensors[name] *= 1e-4
    return tensors


@pytest.fixture(scope="module")
def vgg_file(vgg, tmp_path_factory):
    """As torchvision's own: parameters, in torch's older format, with a classifier."""
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    state = OrderedDict((k, torch.nn.Parameter(v)) for k, v in vgg.items())
    state["classifier.0.bias"] = torch.zeros(4096)
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture(scope="module")
def perceptual(vgg_file):
    if find_spec("lpips") is None:
        pytest.skip("lpips is not installed")
    return load_perceptual(vgg_file, "cpu")


@pytest.fixture(scope="module")
def lpips():
    """The package; of another build of torchvision, what it does not use is made up."""
    if find_spec("lpips") is None:
        pytest.skip("lpips is not installed")
    try:
        import lpips
    except RuntimeError:
        for name in ("nms", "qnms"):
            schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", schema)
        import lpips
    return lpips


@pytest.fixture
def pair():
    image = torch.rand(3, 3, 48, 32) * 2 - 1
    return image, (image + 0.3 * torch.randn_like(image)).clamp(-1, 1)


def shipped_weights():
    """The lin layers in the package lpips, found without importing it."""
    folder = next(Path(p) / "lpips" for p in sys.path if (Path(p) / "lpips/weights").is_dir())
    state = torch.load(folder / "weights/v0.1/vgg.pth", map_location="cpu", weights_only=True)
    return [state[f"lin{number}.model.1.weight"].flatten() for number in range(5)]


def by_hand(vgg, image, decoded):
    """LPIPS [B] in float64: features, unit length, weighted squared differences, mean, sum."""
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64).view(3, 1, 1)
    h = (torch.stack([image, decoded]).double() - shift) / scale
    two, batch = h.shape[:2]
    h, weights, total = h.flatten(0, 1), shipped_weights(), 0.0
    for number in range(30):
        if number in WIDTHS:
            weight, bias = (vgg[f"features.{number}.{k}"].double() for k in ("weight", "bias"))
            h = F.conv2d(h, weight, bias, padding=1)
        elif number in POOLS:
            h = F.max_pool2d(h, 2)
        else:
            h = h.clamp(min=0)
        if number in TAPS:
            length = (h**2).sum(dim=1, keepdim=True).sqrt() + 1e-10
            a, b = (h / length).unflatten(0, (two, batch))
            weight = weights[TAPS.index(number)].double()
            total = total + torch.einsum("c,bchw->bhw", weight, (a - b) ** 2).mean(dim=(1, 2))
    return total


def test_lpips_by_hand(perceptual, vgg, pair):
    image, decoded = pair
    decoded.requires_grad_()
    found, expected = perceptual(image, decoded), by_hand(vgg, image, decoded)
    assert found.shape == (3,) and found.dtype == torch.float32 and (expected > 0.02).all()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)
    gradients = [torch.autograd.grad(v.sum(), decoded)[0] for v in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3 * gradients[1].abs().max().item())


def test_gradients_of_lpips(perceptual, monkeypatch):
    # In float64, of which `blocks` would make float32: finite differences are too rough in that.
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    double = deepcopy(perceptual).double()
    image = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
    decoded = image + 0.3 * torch.randn_like(image)
    inputs = (image.requires_grad_(), decoded.requires_grad_())
    gradients = torch.autograd.grad(double(*inputs).sum(), inputs)
    step = 1e-6
    for number, gradient in enumerate(gradients):
        for direction in (gradient / gradient.norm(), torch.randn_like(gradient)):
            ends = []
            for sign in (-1, 1):
                moved = [v.detach() for v in inputs]
                moved[number] = moved[number] + sign * step * direction
                ends.append(double(*moved).sum())
            torch.testing.assert_close(
                (ends[1] - ends[0]) / (2 * step),
                (gradient * direction).sum(),
                rtol=1e-5,
                atol=1e-5 * gradient.norm().item(),
            )


def test_lpips_of_the_package(perceptual, vgg, pair, lpips):
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")  # torchvision's, about `pretrained`
        theirs = lpips.LPIPS(net="vgg", version="0.1", pnet_rand=True, verbose=False)
    for name, parameter in theirs.net.named_parameters():  # slice1.0.weight
        parameter.data.copy_(vgg[f"features.{name.partition('.')[2]}"])
    with torch.no_grad():
        torch.testing.assert_close(perceptual(*pair), theirs(*pair).flatten(), rtol=1e-5, atol=1e-7)


def test_names_and_shapes_are_torchvisions(vgg, lpips):
    with torch.device("meta"):
        from torchvision.models import vgg16

        features = vgg16().features
    theirs = {f"features.{k}": v.shape for k, v in features.state_dict().items()}
    assert theirs == {k: v.shape for k, v in vgg.items()}


def test_equal_images_have_no_distance(perceptual, pair):
    image, decoded = pair
    assert not perceptual(image, image).any()
    torch.testing.assert_close(perceptual(image, decoded), perceptual(decoded, image))
    image.requires_grad_()
    perceptual(image, image.detach()).sum().backward()
    assert not image.grad.any()


def test_lpips_is_frozen(perceptual, pair):
    image, decoded = pair
    assert not perceptual.training
    assert not any(p.requires_grad for p in perceptual.parameters())
    decoded.requires_grad_()
    perceptual(image, decoded).sum().backward()
    assert decoded.grad.abs().amax(dim=(1, 2, 3)).all()
    assert all(p.grad is None for p in perceptual.parameters())


def test_lpips_is_float32_under_autocast(perceptual, pair):
    expected = perceptual(*pair)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(perceptual(*pair), expected)
        assert perceptual(pair[0], pair[1].bfloat16()).dtype == torch.float32
    assert torch.equal(perceptual(*(v.double() for v in pair)), expected)


@needs("lpips")
def test_gradient_where_no_feature_is_left(vgg, pair, tmp_path):
    dark = {k: v.clone() for k, v in vgg.items()}
    dark["features.28.bias"] -= 1e3  # relu5_3 is zero everywhere, of length zero
    torch.save(dark, tmp_path / "dark.pth")
    image, decoded = pair
    decoded.requires_grad_()
    distance = load_perceptual(tmp_path / "dark.pth", "cpu")(image, decoded)
    distance.sum().backward()
    assert distance.isfinite().all() and decoded.grad.isfinite().all() and decoded.grad.any()


def test_vgg_as_safetensors(perceptual, vgg, pair, tmp_path):
    save_file(dict(vgg), tmp_path / "vgg.safetensors")
    loaded = load_perceptual(tmp_path / "vgg.safetensors", "cpu")
    assert torch.equal(loaded(*pair), perceptual(*pair))


@needs("lpips")
def test_loading_draws_no_random_numbers(vgg_file):
    before = torch.get_rng_state()
    load_perceptual(vgg_file, "cpu")
    assert torch.equal(torch.get_rng_state(), before)


# What a user may do wrong.


def refused(path, kind=BadInput):
    with pytest.raises(kind) as caught:
        load_perceptual(path, "cpu")
    message = str(caught.value)
    assert "\n" not in message and all(part in message for part in REMEDIES)
    return message


@needs("lpips")
def test_missing_and_truncated_files(vgg, vgg_file, tmp_path):
    assert "does not exist" in refused(tmp_path / "none.pth")
    assert "does not exist" in refused(tmp_path / "none.safetensors")
    assert "not a file" in refused(tmp_path)
    (tmp_path / "cut.pth").write_bytes(vgg_file.read_bytes()[:1_000_000])
    assert "damaged, cut" in refused(tmp_path / "cut.pth")
    save_file({"features.0.bias": vgg["features.0.bias"]}, tmp_path / "whole")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole").read_bytes()[:-1])
    assert "not a whole safetensors file" in refused(tmp_path / "cut.safetensors")
    (tmp_path / "page.pth").write_text("<!doctype html><html></html>")
    assert "web page" in refused(tmp_path / "page.pth")


@needs("lpips")
@pytest.mark.parametrize(
    ("name", "value", "cause"),
    [
        ("features.28.weight", None, "1 tensors missing: features.28.weight"),
        ("features.0.weight", torch.zeros(64, 3, 3), "features.0.weight is [64, 3, 3], not [64,"),
        ("features.5.bias", torch.full((128,), torch.nan), "with NaN or Inf: features.5.bias"),
        ("features.7.bias", torch.zeros(128, dtype=torch.int64), "not plain floats: features.7.b"),
        ("features.10.bias", "text", "not plain floats: features.10.bias"),
    ],
)
def test_wrong_tensors(vgg, tmp_path, name, value, cause):
    changed = {k: v for k, v in vgg.items() if k != name}
    if value is not None:
        changed[name] = value
    torch.save(changed, tmp_path / "wrong.pth")
    assert cause in refused(tmp_path / "wrong.pth")


@needs("lpips")
def test_files_of_something_else(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    assert "no state dict but a list" in refused(tmp_path / "list.pth")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "resnet.pth")
    assert "26 tensors missing" in refused(tmp_path / "resnet.pth")


@needs("lpips")
@pytest.mark.parametrize(
    "error",
    [
        URLError("no route to host"),
        TimeoutError("timed out"),
        IncompleteRead(b"half"),
        RuntimeError('invalid hash value (expected "397923af", got "00")'),
    ],
)
def test_failing_download(monkeypatch, tmp_path, error):
    def download(*_arguments):
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    message = refused(None, LddganError)
    assert str(error) in message and "download failed" in message


def test_download_happens_once(monkeypatch, tmp_path, vgg_file, perceptual, pair):
    asked = []

    def download(url, path, sha256):
        asked.append((url, sha256))
        shutil.copy(vgg_file, path)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        assert torch.equal(load_perceptual(None, "cpu")(*pair), perceptual(*pair))
    assert asked == [(VGG_URL, "397923af")]
    assert (tmp_path / "hub/checkpoints/vgg16-397923af.pth").is_file()  # where torchvision looks


def test_without_the_package(monkeypatch, vgg_file):
    monkeypatch.setattr(extras_module, "find_spec", lambda _name: None)
    with pytest.raises(LddganError, match=r'lpips is not installed; pip install -e "\.\[train\]"'):
        load_perceptual(vgg_file, "cpu")
