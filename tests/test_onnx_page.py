"""docs/onnx.md: its Python makes our images without this package, and its figures are true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import PIL
import pytest
from PIL import Image

import lddgan
from export.bundle import SHIPPED, open_bundle
from export.graphs import graph_specs
from lddgan.noise import draw, normal_from_words, normals, philox4x32

PAGE = (Path(__file__).parents[1] / "docs" / "onnx.md").read_text("utf-8")
CODE = "\n\n".join(re.findall(r"(?ms)^```python\n(.*?)^```", PAGE))
REQUEST = {"seed": 2**40 + 7, "first": 2**32 - 1, "count": 3}  # indices on both sides of 2^32

BEFORE = f"""
import sys
from importlib.util import find_spec

sys.path += {sorted({str(Path(library.__file__).parents[1]) for library in (np, onnxruntime, PIL)})}
for name in ("lddgan", "engine", "export"):
    assert find_spec(name) is None, name
"""
AFTER = f"""
for name in {list(SHIPPED)}:
    x_T, z, noise = draw(name, **{REQUEST})
    first = images(name, *draw(name, seed=0, first=0, count=1))
    np.savez(name, x_T=x_T, z=z, noise=noise, images=images(name, x_T, z, noise), first=first)
np.save("anyones", anyones)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's Python ran, on the standard library and site-packages without .pth files."""
    folder = tmp_path_factory.mktemp("page")
    for name, bundle in SHIPPED.items():
        (folder / name).symlink_to(bundle)
    (folder / "page.py").write_text(BEFORE + CODE + AFTER, "utf-8")
    command = [sys.executable, "-I", "-S", "page.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def levels(ours: np.ndarray, theirs: np.ndarray) -> int:
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == np.uint8
    return int(np.abs(ours.astype(int) - theirs).max())


@pytest.mark.parametrize("name", SHIPPED)
def test_code_makes_our_noise_and_images(folder: Path, name: str) -> None:
    page = np.load(folder / f"{name}.npz")
    drawn = draw(open_bundle(SHIPPED[name]).preset, **REQUEST)
    for field, ours in drawn._asdict().items():
        assert page[field].dtype == np.float32 and (page[field] == ours).all(), field
    with lddgan.open_engine(SHIPPED[name], "ort", "fp32", "cpu") as engine:
        ours = engine.sample(**REQUEST)
    assert len({image.tobytes() for image in ours}) == len(ours) and ours.std() > 10
    assert levels(ours, page["images"]) <= 1


def test_any_noise_makes_images(folder: Path) -> None:
    images = np.load(folder / "anyones.npy")
    assert images.shape == (4, 64, 64, 3) and (images.std(axis=(1, 2, 3)) > 10).all()


def test_printed_means(folder: Path) -> None:
    printed = re.findall(r"that image's values is ([\d.]+); .* is ([\d.]+)\.", PAGE)[0]
    emoji, digits = (np.load(folder / f"{name}.npz")["first"][0] for name in ("emoji", "digits"))
    assert [f"{image.mean():.2f}" for image in (emoji, digits)] == list(printed)
    assert levels(np.asarray(Image.open(folder / "0.png")), emoji) <= 1


def test_printed_noise() -> None:
    rows = re.findall(r"\| (\d+) \| (\d+) \| (\d+) \| ([\da-f ]+) \| ([-\d. ]+) \|", PAGE)
    assert len(rows) == 3
    for *numbers, words, values in rows:
        seed, stream, index = map(int, numbers)
        counter = np.array([0, stream, index % 2**32, index >> 32], np.uint32)
        drawn = philox4x32(counter, np.array([seed % 2**32, seed >> 32], np.uint32))
        assert words.split() == [f"{word:08x}" for word in drawn]
        assert values.split() == [str(x) for x in normals(seed, stream, index, 1, 4)[0]]
    ends = [str(x) for x in normal_from_words(np.array([0, 2**32 - 1], np.uint32))]
    assert f"become {ends[0]} and {ends[1]}," in PAGE


def test_table_of_tensors() -> None:
    specs = graph_specs(open_bundle(SHIPPED["emoji"]).preset).values()
    tensors = [tensor for spec in specs for tensor in (*spec.inputs, *spec.outputs)]
    rows = re.findall(r"\| (?:in|out) \| `(\w+)` \| \[(.*?)\] \| (\w+) \|", PAGE)
    assert [(name, dtype) for name, _, dtype in rows] == [(t.name, t.dtype) for t in tensors]
    assert [shape.count(",") + 1 for _, shape, _ in rows] == [len(t.shape) for t in tensors]
