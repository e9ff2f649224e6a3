"""LPIPS, the perceptual distance of two images (arXiv 1801.03924), for the autoencoder's loss.

Of the package `lpips` only the weights are used: importing it imports torchvision, which fails
where torchvision and torch are of different builds (a torch for the CPU, torchvision of PyPI).
"""

from __future__ import annotations

from collections.abc import Mapping
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lddgan.checkpoint import check_tensors, materialise, read_safetensors
from lddgan.errors import BadInput, LddganError
from lddgan.extras import require
from lddgan.published.pickles import read_pickle

VGG_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
VGG_SHA256 = "397923af"  # how it begins
REMEDY = f"fetch {VGG_URL} and give it with --vgg FILE, or set --perceptual-weight 0"
BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # VGG-16: convolutions, channels
SHIFT = (-0.030, -0.088, -0.188)  # ImageNet's mean and deviation, for images in [-1,1]
SCALE = (0.458, 0.448, 0.450)
EPS = 1e-10  # the least length of a feature vector


class Perceptual(nn.Module):
    """LPIPS 0.1 of VGG-16: image, decoded [B,3,H,W] in [-1,1] -> float32 [B], frozen.

    It computes in float32, under autocast too; H and W are 16 at least.  The names of the tensors
    in `features` are torchvision's.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.features = vgg_features()
        self.lins = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for _, width in BLOCKS)
        self.register_buffer("shift", torch.empty(0), persistent=False)
        self.register_buffer("scale", torch.empty(0), persistent=False)
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """Fill the constants; a network made on the meta device calls it once more."""
        self.shift = torch.tensor(SHIFT)[:, None, None]
        self.scale = torch.tensor(SCALE)[:, None, None]

    def forward(self, image: Tensor, decoded: Tensor) -> Tensor:
        """The squared differences of unit feature vectors, weighted, summed over the blocks."""
        with torch.autocast(image.device.type, enabled=False):
            blocks = zip(self.blocks(image), self.blocks(decoded), self.lins, strict=True)
            distances = [lin((a - b).square()).mean(dim=(1, 2, 3)) for a, b, lin in blocks]
            return torch.stack(distances).sum(dim=0)

    def blocks(self, image: Tensor) -> list[Tensor]:
        """The last features of each block (relu1_2, 2_2, 3_3, 4_3, 5_3), of unit length."""
        h = (image.float() - self.shift) / self.scale
        found = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                found.append(h)
            h = layer(h)
        return [F.normalize(v, dim=1, eps=EPS) for v in (*found, h)]


def vgg_features() -> nn.Sequential:
    """The convolutions of VGG-16 up to relu5_3 (arXiv 1409.1556), indexed as torchvision's."""
    layers: list[nn.Module] = []
    inputs = 3
    for count, width in BLOCKS:
        if layers:
            layers.append(nn.MaxPool2d(2))
        for _ in range(count):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
            inputs = width
    return nn.Sequential(*layers)


def load_perceptual(vgg: Path | None, device: torch.device | str) -> Perceptual:
    """LPIPS with the VGG-16 of the file `vgg`; None: torchvision's, downloaded the first time.

    `vgg` is torchvision's state dict, as .pth or .safetensors; only `features.*` is used.  Raises
    BadInput if it cannot be used, LddganError if the package or the download is missing.
    """
    require("lpips")
    with torch.device("meta"):
        perceptual = Perceptual()
    shapes = {k: v.shape for k, v in perceptual.state_dict().items()}
    try:
        tensors = read_features(vgg or downloaded_vgg(), shapes)
    except BadInput as error:
        raise BadInput(f"{error}; {REMEDY}") from error
    materialise(perceptual, tensors | read_lins(shapes))
    return perceptual.eval().to(device)


def read_features(path: Path, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The tensors `features.*` of `shapes` in a file, checked. Raises BadInput."""
    safe = path.suffix == ".safetensors"
    loaded = read_safetensors(path)[1] if safe else read_pickle(path)
    if not isinstance(loaded, Mapping):
        raise BadInput(f"{path} holds no state dict but a {type(loaded).__name__}")
    expected = {k: v for k, v in shapes.items() if k.startswith("features.")}
    found = {k: loaded[k] for k in expected if k in loaded}
    odd = [k for k, v in found.items() if not is_plain(v)]
    if odd:
        raise BadInput(f"{path} has tensors that are not plain floats: {', '.join(odd[:5])}")
    tensors = {k: v.detach() for k, v in found.items()}
    check_tensors(tensors, expected, f"VGG-16 in {path}")
    return tensors


def is_plain(value: object) -> bool:
    """Whether it is a dense tensor of floats on the CPU."""
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.layout == torch.strided
        and value.device.type == "cpu"
    )


def read_lins(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The channels' weights `lins.*` of `shapes`, out of the installed package lpips."""
    spec = find_spec("lpips")
    assert spec is not None and spec.origin is not None, spec  # required above
    path = Path(spec.origin).parent / "weights" / "v0.1" / "vgg.pth"
    expected = {k: v for k, v in shapes.items() if k.startswith("lins.")}
    loaded = read_pickle(path)
    renamed = {f"lin{number}.model.1.weight": k for number, k in enumerate(expected)}
    tensors = {renamed.get(k, k): v for k, v in loaded.items()}
    check_tensors(tensors, expected, f"LPIPS in {path}")
    return tensors


def downloaded_vgg() -> Path:
    """torchvision's VGG-16 in the folder of torch hub, where it is put the first time (528 MB)."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / VGG_URL.rpartition("/")[2]
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(VGG_URL, str(path), VGG_SHA256)
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: another SHA-256
        cause = str(error).partition("\n")[0] or type(error).__name__
        raise LddganError(
            "the perceptual loss needs the weights of VGG-16, and their download failed "
            f"({cause}); {REMEDY}"
        ) from error
    return path
