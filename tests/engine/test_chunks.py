"""Chunks: how many images at once, and what happens when they do not fit the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.registry import open_engine
from engine.sampler import LARGEST_ACTIVATION, Sampler, default_chunk
from export.graphs import most_images
from lddgan.errors import BadInput, OutOfMemory
from lddgan.networks.registry import create
from lddgan.preset import Preset, with_values
from lddgan.presets import PRESETS
from tests.conftest import TINY
from tests.engine.test_sampler import Scripted, drawn, scripted


@pytest.mark.parametrize("chunk", [0, -1, 128])
def test_chunk_outside_1_to_127_is_refused(chunk: int) -> None:
    with pytest.raises(BadInput, match=rf"chunk is {chunk}, and must be in 1\.\.127"):
        scripted(chunk=chunk)


class Small(Scripted):
    """A device whose memory holds `fits` images."""

    def __init__(self, fits: int) -> None:
        super().__init__(None)
        self.fits = fits

    def decode(self, x_0: Any) -> Any:
        if len(x_0) > self.fits:
            raise OutOfMemory(f"no memory for {len(x_0)} images")
        return super().decode(x_0)


def test_out_of_memory_halves_the_chunk_and_says_so() -> None:
    said: list[str] = []
    sampler = Sampler(Small(3), TINY, random_weights=True, chunk=16, log=said.append)
    plenty, _ = scripted(chunk=16)
    for _ in range(2):  # the second time it begins with what fitted
        assert np.array_equal(sampler.sample(20, seed=4), plenty.sample(20, seed=4))
    assert said == [
        "no memory for 10 images; going on with 5 images at once instead of 10",
        "no memory for 5 images; going on with 2 images at once instead of 5",
    ]


def test_out_of_memory_for_one_image_is_an_error() -> None:
    sampler = Sampler(Small(0), TINY, random_weights=True, chunk=4, log=lambda _: None)
    with pytest.raises(OutOfMemory, match="no memory for 1 images"):
        sampler.sample(4)


def test_no_fewer_images_are_tried_than_an_engine_takes() -> None:
    backend, said = Small(3), []
    backend.least = 4
    sampler = Sampler(backend, TINY, random_weights=True, chunk=16, log=said.append)
    with pytest.raises(OutOfMemory, match="no memory for 5 images"):
        sampler.sample(20)
    assert said == ["no memory for 10 images; going on with 5 images at once instead of 10"]


def test_make_leaves_the_images_where_they_are_made(tiny_bundle: Path) -> None:
    ort = open_engine(tiny_bundle, "ort", device="cpu")
    made = ort.make(seed=3, first=5, count=2)
    assert np.array_equal(ort.backend.download(made.image), ort.sample(2, seed=3, first=5))
    given = ort.make_from(*drawn(2))
    assert np.array_equal(ort.backend.download(given.image), ort.run(*drawn(2)))


def test_make_refuses_large_batches_and_foreign_arrays() -> None:
    sampler, backend = scripted(chunk=4)
    with pytest.raises(BadInput, match=r"5 images at once; the engine takes 1\.\.4"):
        sampler.make(0, 0, 5)
    with pytest.raises(BadInput, match=r"5 images at once"):
        sampler.make_from(*drawn(5))
    x_T, z, noise = drawn(2)
    with pytest.raises(BadInput, match="the scripted engine takes numpy arrays, not Tensor"):
        sampler.make_from(torch.from_numpy(x_T), torch.from_numpy(z), torch.from_numpy(noise))
    assert backend.calls == []


class Largest(TorchDispatchMode):
    """Most elements of any tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return out


def largest_activation(preset: Preset) -> int:
    """Elements of the largest tensor that PyTorch makes for one image."""
    with torch.device("meta"):
        generator, autoencoder = create("generator", preset), create("autoencoder", preset)
        x_T, z = torch.empty(100, *preset.latent_shape), torch.empty(100, preset.generator.nz)
        t = torch.zeros(100, dtype=torch.int64)
    with torch.no_grad(), Largest() as measured:
        autoencoder.decode(generator(x_T, t, z))
    return measured.elements // 100  # so many that no weight is larger


@pytest.mark.parametrize("name", PRESETS)
def test_default_chunk_keeps_every_activation_in_bounds(name: str) -> None:
    preset = PRESETS[name]
    per_image = largest_activation(preset)
    assert preset.largest_activation == per_image
    chunk = default_chunk(preset, "cpu")
    assert chunk == 1 or chunk * per_image <= LARGEST_ACTIVATION["cpu"]
    assert chunk == 127 or (chunk + 1) * per_image > LARGEST_ACTIVATION["cpu"]
    # The paper's batch of 100 runs whole on a GPU, where kernels count in 31 bits.
    assert default_chunk(preset, "cuda") == 127 and 127 * per_image < 2**31


SCORES = {"generator.attention": (32,)}  # 32^4 of them
VARIANTS = {
    "wide first": ("ddgan-cifar10", {"generator.ch_mult": (2, 1, 1, 1)}),
    "wide last": ("wddgan-lsun", {"generator.ch_mult": (1, 1, 1, 1, 8)}),
    "wide high bands": ("wddgan-lsun", {"generator.ch_mult": (1, 4, 1)}),
    "scores": ("ddgan-cifar10", {"generator.nf": 32} | SCORES),
    "scores of wavelets": ("wddgan-lsun", {"generator.nf": 16, "generator.attention": (64,)}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_largest_activation_of_other_sizes(name: str) -> None:
    like, changes = VARIANTS[name]
    preset = with_values(PRESETS[like], changes)
    assert preset.largest_activation == largest_activation(preset)


@pytest.mark.parametrize(
    ("name", "changes", "most"),
    [
        ("ddgan-lsun", {}, 127),  # 255 would fit
        ("ddgan-lsun", {"generator.nf": 128}, 127),
        ("ddgan-lsun", {"generator.nf": 256}, 63),  # 512 channels of 256x256
        ("lsun", {"autoencoder.ch": 256}, 63),
        ("wddgan-lsun", {"image_size": 1024, "latent_size": 512}, 42),  # 192 channels of 512x512
    ],
)
def test_the_largest_tensor_sets_the_largest_batch(name: str, changes: Any, most: int) -> None:
    preset = with_values(PRESETS[name], changes)
    assert most_images(preset) == default_chunk(preset, "cuda") == most
    assert preset.largest_activation * most < 2**31
    assert most == 127 or preset.largest_activation * (most + 1) >= 2**31
    backend = Scripted(None)
    assert Sampler(backend, preset, random_weights=True, chunk=most).chunk == most
    with pytest.raises(BadInput, match=rf"chunk is {most + 1}, and must be in 1\.\.{most}"):
        Sampler(backend, preset, random_weights=True, chunk=most + 1)
