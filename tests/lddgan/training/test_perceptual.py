"""LPIPS against other computations of it, and what its files may have wrong."""

import shutil
import warnings
from collections import OrderedDict
from copy import deepcopy
from http.client import IncompleteRead
from importlib.util import find_spec
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from lddgan.errors import BadInput, LddganError
from lddgan.training.perceptual import LINS_FILE, VGG_URL, load_perceptual

WIDTHS = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256)}
WIDTHS |= {14: (256, 256), 17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512)}
WIDTHS |= {26: (512, 512), 28: (512, 512)}  # number of the convolution in torchvision's vgg16
TAPS, POOLS = (3, 8, 15, 22, 29), (4, 9, 16, 23)  # of the same: relu1_2 to relu5_3, max pooling
REMEDIES = (VGG_URL, "--vgg FILE", "--perceptual-weight 0")

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


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


def by_hand(vgg, image, decoded):
    """LPIPS [B] in float64: features, unit length, weighted squared differences, mean, sum."""
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64).view(3, 1, 1)
    h = (torch.stack([image, decoded]).double() - shift) / scale
    two, batch = h.shape[:2]
    h, lins, total = h.flatten(0, 1), load_file(LINS_FILE), 0.0
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
            weight = lins[f"lins.{TAPS.index(number)}.weight"].flatten().double()
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


def test_shipped_weights_are_the_packages(lpips):
    path = Path(lpips.__file__).parent / "weights/v0.1/vgg.pth"
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    ours = load_file(LINS_FILE)
    assert list(ours) == [f"lins.{number}.weight" for number in range(5)]
    for number, weight in enumerate(ours.values()):
        assert torch.equal(weight, theirs[f"lin{number}.model.1.weight"])
    assert "Redistributions in binary form" in (LINS_FILE.parent / "LICENSE").read_text()


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


def test_gradient_where_no_feature_is_left(vgg, pair, tmp_path):
    dark = {k: v.clone() for k, v in vgg.items()}
    dark["features.28.bias"] -= 1e3  # relu5_3 is zero everywhere, of length zero
    torch.save(dark, tmp_path / "dark.pth")
    image, decoded = pair
    decoded.requires_grad_()
    distance = load_perceptual(tmp_path / "dark.pth", "cpu")(image, decoded)
    distance.sum().backward()
    assert distance.isfinite().all() and decoded.grad.isfinite().all() and decoded.grad.any()


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


def test_missing_and_truncated_files(vgg_file, tmp_path):
    assert "does not exist" in refused(tmp_path / "none.pth")
    assert "not a file" in refused(tmp_path)
    (tmp_path / "cut.pth").write_bytes(vgg_file.read_bytes()[:1_000_000])
    assert "damaged, cut" in refused(tmp_path / "cut.pth")
    (tmp_path / "page.pth").write_text("<!doctype html><html></html>")
    assert "web page" in refused(tmp_path / "page.pth")


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


def test_files_of_something_else(tmp_path):
    torch.save([torch.zeros(3)], tmp_path / "list.pth")
    assert "no state dict but a list" in refused(tmp_path / "list.pth")
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "resnet.pth")
    assert "26 tensors missing" in refused(tmp_path / "resnet.pth")


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
