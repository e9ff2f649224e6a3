"""Images of one process compared with an engine of another."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.kept_images import (
    ImagesVerified,
    Origin,
    in_words,
    read_images,
    refuse_images,
    verify_images,
)
from engine.registry import open_engine
from engine.sampler import Sampler
from export.bundle import Bundle, open_bundle
from lddgan.errors import BadInput, LddganError

ROOT = Path(__file__).parents[2]
COUNT, SEED, FIRST = 5, 7, 3


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return open_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def kept(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ONNX Runtime makes, in a process that has no PyTorch."""
    path = tmp_path_factory.mktemp("kept") / "ort.npz"
    code = "import sys; sys.modules['torch'] = None; import cli; cli.main()"
    options = ("--engine", "ort", "--num", COUNT, "--seed", SEED, "--first", FIRST, "--out", path)
    command = (sys.executable, "-c", code, "sample", "--bundle", bundle.folder, *options)
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def torch(bundle: Bundle) -> Sampler:
    return open_engine(bundle, "torch", device="cpu")


def npz(images: NDArray[Any], first: int, origin: str) -> bytes:
    """Such a file as numpy writes it."""
    buffer = io.BytesIO()
    np.savez(buffer, images=images, first=np.int64(first), origin=np.array(origin))
    return buffer.getvalue()


def test_another_processs_images_are_pytorchs(kept: Path, bundle: Bundle, torch: Sampler) -> None:
    images, origin = read_images(kept, bundle)
    assert (origin.seed, origin.first, origin.engine, origin.precision) == (7, 3, "ort", "fp32")
    assert (origin.dataset, origin.cuda_graph) == ("tiny", None)
    found = verify_images(images, origin, torch)
    assert (found.images, found.why_failed) == (COUNT, None)
    assert found.chain_levels <= 1 and found.chain_psnr > 60 and found.over_1 == 0
    assert found.reference.startswith("torch fp32 on CPU") and in_words(found).endswith("passed")


def changed(
    kept: Path, bundle: Bundle, torch: Sampler, how: Callable[[NDArray[Any]], None], **origin: Any
) -> ImagesVerified:
    images, made = read_images(kept, bundle)
    how(images)
    return verify_images(images, made.model_copy(update=origin), torch)


def two_levels(images: NDArray[Any]) -> None:
    images[2, 4, 5, 0] ^= 2


def noisy(images: NDArray[Any]) -> None:
    images ^= 3


def black(images: NDArray[Any]) -> None:
    images[1] = 0


def nothing(_: NDArray[Any]) -> None: ...


@pytest.mark.parametrize(
    ("how", "origin", "wrong"),
    [
        (two_levels, {}, "image difference in grey levels is 2, the limit is 1"),
        (two_levels, {"precision": "fp16"}, None),
        (noisy, {"precision": "fp16"}, None),
        (black, {"precision": "bf16"}, "an image is of one value"),
        (nothing, {"seed": SEED + 1}, "image PSNR in dB is"),
        (nothing, {"first": FIRST + 1, "precision": "int8"}, "image PSNR in dB is"),
    ],
)
def test_what_differs_is_measured_and_refused(
    kept: Path,
    bundle: Bundle,
    torch: Sampler,
    how: Callable[[NDArray[Any]], None],
    origin: dict[str, Any],
    wrong: str | None,
) -> None:
    found = changed(kept, bundle, torch, how, **origin)
    if wrong is None:
        assert found.why_failed is None
        refuse_images(found)
        return
    assert found.why_failed is not None and found.why_failed.startswith(wrong)
    with pytest.raises(LddganError, match="made are not those of torch fp32 on CPU"):
        refuse_images(found)


def test_the_figures_are_those_of_the_images(kept: Path, bundle: Bundle, torch: Sampler) -> None:
    def two_values(images: NDArray[Any]) -> None:
        images[...] = torch.sample(COUNT, SEED, FIRST)
        images[0, 0, 0, 0] ^= 2
        images[0, 0, 1, 1] ^= 1

    found = changed(kept, bundle, torch, two_values)
    values = COUNT * 32 * 32 * 3
    assert (found.chain_levels, found.over_2) == (2, 0)
    assert found.chain_changed == pytest.approx(2 / values)
    assert found.over_1 == pytest.approx(1 / values)
    assert found.chain_psnr == pytest.approx(10 * np.log10(255**2 * values / 5))


def test_a_file_of_something_else_is_refused(kept: Path, bundle: Bundle, tmp_path: Path) -> None:
    images, origin = read_images(kept, bundle)
    said = origin.model_dump_json()
    other = origin.model_copy(update={"model": "0" * 64}).model_dump_json()
    path = tmp_path / "x.npz"
    for content, message in (
        (b"PNG", "is not an .npz of images"),
        (npz(images, 0, other), r"was made of another model: checkpoint 000000000000\.\.\., and"),
        (npz(images, 0, "{}"), r"x\.npz: dataset: Field required"),
        (npz(images[:, 1:], 0, said), r"holds uint8 \[5, 31, 32, 3\], and must hold uint8 \[N,32"),
        (npz(images[:0], 0, said), r"holds uint8 \[0, 32, 32, 3\]"),
        (bytes(npz(images, 0, said))[:-900], "is not an .npz of images"),
    ):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=message):
            read_images(path, bundle)
    np.savez(path, images=images)
    with pytest.raises(BadInput, match="does not say how its images were made"):
        read_images(path, bundle)
    np.save(tmp_path / "x.npy", images)
    with pytest.raises(BadInput, match=r"is not an \.npz of images"):
        read_images(tmp_path / "x.npy", bundle)
    with pytest.raises(BadInput, match="No such file"):
        read_images(tmp_path / "none.npz", bundle)


def test_an_origin_names_what_ran(torch: Sampler) -> None:
    made = Origin.of(torch, "m", 1, 2)
    assert json.loads(made.model_dump_json())["where"] == torch.backend.where
    assert (made.engine, made.precision, made.model) == ("torch", "fp32", "m")
