"""LPIPS, the perceptual distance of two images (arXiv 1801.03924), for the autoencoder's loss."""

from __future__ import annotations

from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lddgan.checkpoint import check_tensors, materialise, read_safetensors
from lddgan.errors import BadInput, LddganError
from lddgan.published.state_dicts import read_file

# LPIPS' own weights, `lins.*`, as in the package lpips 0.1.4; its licence lies beside them.
LINS_FILE: Final = Path(__file__).parents[1] / "assets" / "lpips" / "vgg.safetensors"
VGG_URL: Final = "https://download.pytorch.org/models/vgg16-397923af.pth"
REMEDY: Final = f"fetch {VGG_URL} and give it with --vgg FILE, or set --perceptual-weight 0"
BLOCKS: Final = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))  # VGG-16: convolutions, channels
SHIFT: Final = (-0.030, -0.088, -0.188)  # ImageNet's mean and deviation, for images in [-1,1]
SCALE: Final = (0.458, 0.448, 0.450)
EPS: Final = 1e-10  # the least length of a feature vector


class Perceptual(nn.Module):
    """LPIPS 0.1 of VGG-16: image, decoded [B,3,H,W] in [-1,1] -> float32 [B], frozen.

    It computes in float32, under autocast too; H and W are 16 at least.  The names of the tensors
    in `features` are torchvision's.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for count, width in BLOCKS:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for _ in range(count):
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU(inplace=True)]
                inputs = width
        self.features = nn.Sequential(*layers)  # up to relu5_3 (arXiv 1409.1556)
        self.lins = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for _, width in BLOCKS)

    def forward(self, image: Tensor, decoded: Tensor) -> Tensor:
        """The squared differences of unit feature vectors, weighted, summed over the blocks."""
        with torch.autocast(image.device.type, enabled=False):
            blocks = zip(self.blocks(image), self.blocks(decoded), self.lins, strict=True)
            distances = [lin((a - b).square()).mean(dim=(1, 2, 3)) for a, b, lin in blocks]
            return torch.stack(distances).sum(dim=0)

    def blocks(self, image: Tensor) -> list[Tensor]:
        """The last features of each block (relu1_2, 2_2, 3_3, 4_3, 5_3), of unit length."""
        h = image.float()
        shift, scale = (h.new_tensor(values)[:, None, None] for values in (SHIFT, SCALE))
        h, found = (h - shift) / scale, []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                found.append(h)
            h = layer(h)
        return [F.normalize(v, dim=1, eps=EPS) for v in (*found, h)]


def load_perceptual(vgg: Path | None, device: torch.device | str) -> Perceptual:
    """LPIPS with the VGG-16 of the file `vgg`; None: torchvision's, downloaded the first time.

    `vgg` is torchvision's state dict, of which only `features.*` is used.  Raises BadInput if it
    cannot be used, LddganError if the download fails.
    """
    with torch.device("meta"):
        perceptual = Perceptual()
    shapes = {k: v.shape for k, v in perceptual.features.state_dict(prefix="features.").items()}
    try:
        tensors = read_features(vgg or downloaded_vgg(), shapes)
    except BadInput as error:
        raise BadInput(f"{error}; {REMEDY}") from error
    materialise(perceptual, tensors | read_safetensors(LINS_FILE)[1])
    return perceptual.eval().to(device)


def read_features(path: Path, expected: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Read the `expected` tensors of a file, and check them. Raises BadInput."""
    loaded = read_file(path)
    if not isinstance(loaded, Mapping):
        raise BadInput(f"{path} holds no state dict but a {type(loaded).__name__}")
    found = {k: loaded[k] for k in expected if k in loaded}
    plain = {
        name
        for name, value in found.items()
        if isinstance(value, Tensor) and value.is_floating_point()
        if value.layout == torch.strided and value.is_cpu
    }
    odd = [name for name in found if name not in plain]
    if odd:
        raise BadInput(f"{path} has tensors that are not plain floats: {', '.join(odd[:5])}")
    tensors = {k: v.detach() for k, v in found.items()}
    check_tensors(tensors, expected, f"VGG-16 in {path}")
    return tensors


def downloaded_vgg() -> Path:
    """torchvision's VGG-16 in torch hub's folder, downloaded once (528 MB). Raises LddganError."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / VGG_URL.rpartition("/")[2]
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(VGG_URL, str(path), "397923af")
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: another SHA-256
        cause = str(error).partition("\n")[0] or type(error).__name__
        raise LddganError(
            "the perceptual loss needs the weights of VGG-16, and their download failed "
            f"({cause}); {REMEDY}"
        ) from error
    return path
