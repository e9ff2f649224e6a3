"""engine/gpu/noise.cu makes the bits of lddgan/noise.py: as C++ here, and on a GPU."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from engine.gpu import noise_kernel
from engine.gpu.driver import why_no_gpu
from engine.gpu.noise_kernel import (
    THREADS,
    NoiseKernel,
    Sizes,
    checked_sizes,
    consecutive,
    grid,
)
from export.graphs import most_images
from lddgan import noise
from lddgan.errors import BadInput
from lddgan.noise import Noise, draw, draw_at, normal_from_words, sampler_noise
from lddgan.preset import Preset
from lddgan.presets import PRESETS
from tests.engine.gpu.noise_on_cpu import OPTIMISED, NoiseOnCpu, build_noise_on_cpu

LSUN = PRESETS["lsun"]
GUARD = (
    7  # values before and behind each array, which the kernel must leave alone; odd: not aligned
)


@pytest.fixture(scope="module", params=OPTIMISED)
def cpu(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> NoiseOnCpu:
    return build_noise_on_cpu(tmp_path_factory.mktemp("noise"), request.param)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def guarded(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """NaN of this shape, and the longer array it lies in."""
    whole = np.full(int(np.prod(shape)) + 2 * GUARD, np.nan, np.float32)
    return whole, whole[GUARD:-GUARD].reshape(shape)


def made_on_cpu(
    cpu: NoiseOnCpu, seed: int, first: int, count: int, latent: tuple[int, ...], nz: int, steps: int
) -> Noise:
    """The kernel's noise, with nothing written beside it."""
    request = consecutive(seed, first, count)
    shapes = [(count, *latent), (steps, count, nz), (steps, count, *latent)]
    wholes, made = zip(*map(guarded, shapes), strict=True)
    sizes = Sizes(count, steps, int(np.prod(latent)), nz)
    addresses = [array.ctypes.data for array in (request, *made)]
    cpu.launch(grid(sizes), THREADS, *addresses, count, sizes.n, nz)
    for whole in wholes:
        assert np.isnan(whole[:GUARD]).all() and np.isnan(whole[-GUARD:]).all()
    return Noise(*made)


# ---- the formulas, in C++ ----


def some_words() -> np.ndarray:
    """The ends, the edges of the branches, words of every magnitude, and an even 1 in 8,209."""
    centre = [round((0.5 + side * 0.425) * 2**32) for side in (-1, 1)]
    mantissa = [round(0.7 * 2**n) for n in range(3, 30)]  # where the logarithm halves its range
    edges = [edge + step for edge in [*centre, *mantissa] for step in range(-3, 4)]
    special = [0, 1, 2, 2**31 - 1, 2**31, *edges, *(2**n for n in range(31))]
    low = np.array(special, np.uint32)
    return np.concatenate([low, ~low, np.arange(0, 2**32, 8209, dtype=np.uint64).astype(np.uint32)])


def test_words_become_the_same_normals(cpu: NoiseOnCpu) -> None:
    words = some_words()
    assert same_bits(cpu.normals_from_words(words), normal_from_words(words))


def test_every_operation_is_that_of_numpy(cpu: NoiseOnCpu) -> None:
    # float32 hides nearly all errors in the last bits of float64, such as those of an FMA
    words = some_words()
    q = (words.astype(np.float64) + 0.5) / 2**32 - 0.5
    assert same_bits(cpu.unrounded_from_words(words), noise._inverse_normal_cdf(q))


REQUESTS = [  # seed, first, count
    (0, 0, 1),
    (1, 5, 7),
    (2**32 + 5, 2**32 - 1, 2),
    (0x9E3779B97F4A7C15 >> 1, 2**32 - 3, 7),
    (2**63 - 1, 2**63 - 2, 2),
    (2**63 - 1, 2**63 - 1, 1),
]


@pytest.mark.parametrize(
    ("name", "seed", "first", "count"),
    [*((name, 1, 5, 2) for name in PRESETS), *(("lsun", *request) for request in REQUESTS)],
)
def test_the_kernel_makes_the_noise_of_numpy(
    cpu: NoiseOnCpu, name: str, seed: int, first: int, count: int
) -> None:
    preset = PRESETS[name]
    shape = {"nz": preset.generator.nz, "steps": preset.steps}
    expected = sampler_noise(seed, first, count, latent_shape=preset.latent_shape, **shape)
    made = made_on_cpu(cpu, seed, first, count, preset.latent_shape, **shape)
    for part, ours, numpys in zip(Noise._fields, made, expected, strict=True):
        assert same_bits(ours, numpys), part


def test_images_of_any_seeds_lie_side_by_side(cpu: NoiseOnCpu) -> None:
    request = np.array([[7, 0], [2**63 - 1, 2**40 + 3], [0, 2**63 - 1], [7, 1]], np.uint64)
    made = [np.empty_like(array) for array in draw_at(LSUN, *request.T.tolist())]
    sizes = Sizes(4, LSUN.steps, int(np.prod(LSUN.latent_shape)), LSUN.generator.nz)
    addresses = [array.ctypes.data for array in (request, *made)]
    cpu.launch(grid(sizes), THREADS, *addresses, sizes.count, sizes.n, sizes.nz)
    for row, (seed, index) in enumerate(request.tolist()):
        for ours, numpys in zip(made, draw(LSUN, index, 1, seed), strict=True):
            axis = 0 if ours is made[0] else 1
            assert same_bits(ours.take([row], axis), numpys)


@pytest.mark.parametrize(
    ("latent", "nz", "steps"),
    [((1, 1, 1), 1, 2), ((3, 3, 3), 2, 3), ((1, 2, 2), 515, 8), ((1, 16, 32), 513, 2)],
)
def test_rows_of_any_length(
    cpu: NoiseOnCpu, latent: tuple[int, int, int], nz: int, steps: int
) -> None:
    made = made_on_cpu(cpu, 3, 11, 3, latent, nz, steps)
    expected = sampler_noise(3, 11, 3, latent_shape=latent, nz=nz, steps=steps)
    assert all(same_bits(*pair) for pair in zip(made, expected, strict=True))


def test_two_million_draws(cpu: NoiseOnCpu) -> None:
    shape = {"nz": LSUN.generator.nz, "steps": LSUN.steps}
    made = made_on_cpu(cpu, 2024, 0, 100, LSUN.latent_shape, **shape)
    assert sum(array.size for array in made) >= 2_000_000
    expected = sampler_noise(2024, 0, 100, latent_shape=LSUN.latent_shape, **shape)
    assert all(same_bits(*pair) for pair in zip(made, expected, strict=True))


# ---- the grid ----


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (Sizes(count=1, steps=2, n=1, nz=1), (1, 1, 5)),
        (Sizes(count=1, steps=4, n=4 * THREADS, nz=100), (1, 1, 9)),
        (Sizes(count=7, steps=4, n=4 * THREADS + 1, nz=100), (2, 7, 9)),
        (Sizes(count=127, steps=8, n=4, nz=8 * THREADS + 1), (3, 127, 17)),
        (Sizes(count=100, steps=4, n=4096, nz=100), (4096 // (4 * THREADS), 100, 9)),
    ],
)
def test_grid(sizes: Sizes, expected: tuple[int, int, int]) -> None:
    assert grid(sizes) == expected


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_largest_batches_fit_the_grid_and_the_counter(preset: Preset) -> None:
    n = math.prod(preset.latent_shape)
    sizes = Sizes(most_images(preset), preset.steps, n, preset.generator.nz)
    across, images, streams = grid(sizes)
    assert across < 2**31 and images < 2**16 and streams < 2**16  # CUDA's limits
    assert n <= 4 * THREADS * across <= 4 * 2**32  # a Philox block's index is one word
    assert preset.steps * sizes.count * n < 2**31  # elements of the largest array


# ---- the launch ----


@dataclass
class HostArray:
    """A numpy array that stands for one on the GPU."""

    array: np.ndarray

    @property
    def address(self) -> int:
        return self.array.ctypes.data

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> Any:
        return self.array.dtype


class OnCpu:
    """Stands for cuda.core's object code: its one kernel runs on the CPU."""

    def __init__(self, cpu: NoiseOnCpu) -> None:
        self.cpu = cpu

    def get_kernel(self, name: str) -> Any:
        assert name == "sampler_noise"
        return self.cpu.launch


def test_launch_hands_the_kernel_what_it_expects(
    cpu: NoiseOnCpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    streams = []

    def launch(stream: str, config: Any, kernel: Any, *arguments: Any) -> None:
        streams.append(stream)
        kernel(config.grid, config.block[0], *arguments)

    monkeypatch.setattr(cuda, "launch", launch)
    monkeypatch.setattr(noise_kernel, "compile_noise", lambda arch: OnCpu(cpu))
    kernel = NoiseKernel("sm_90")
    expected = sampler_noise(8, 2**32 - 1, 3, latent_shape=(2, 5, 3), nz=7, steps=4)
    made = [HostArray(np.full_like(array, np.nan)) for array in expected]
    kernel.launch("stream", HostArray(consecutive(8, 2**32 - 1, 3)), *made)
    assert streams == ["stream"]
    for ours, numpys in zip(made, expected, strict=True):
        assert same_bits(ours.array, numpys)


def arrays(**changed: np.ndarray) -> dict[str, HostArray]:
    drawn = sampler_noise(0, 0, 3, latent_shape=(2, 5, 3), nz=7, steps=4)
    good = {"request": np.zeros((3, 2), np.uint64), **drawn._asdict()}
    return {name: HostArray(array) for name, array in {**good, **changed}.items()}


def test_sizes_are_those_of_the_arrays() -> None:
    assert checked_sizes(**arrays()) == Sizes(count=3, steps=4, n=30, nz=7)


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        (
            "request",
            np.zeros((3, 2), np.int64),
            "request is int64 [3, 2], expected uint64 [3, 2]",
        ),
        (
            "request",
            np.zeros((2, 2), np.uint64),
            "request is uint64 [2, 2], expected uint64 [3, 2]",
        ),
        (
            "x_T",
            np.zeros((3, 2, 5, 3)),
            "x_T is float64 [3, 2, 5, 3], expected float32 [3, 2, 5, 3]",
        ),
        (
            "z",
            np.zeros((4, 2, 7), np.float32),
            "z is float32 [4, 2, 7], expected float32 [4, 3, 7]",
        ),
        (
            "noise",
            np.zeros((5, 3, 2, 5, 3), np.float32),
            "noise is float32 [5, 3, 2, 5, 3], expected float32 [4, 3, 2, 5, 3]",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_named(name: str, bad: np.ndarray, message: str) -> None:
    with pytest.raises(BadInput, match=f"^{re.escape(message)}$"):
        checked_sizes(**arrays(**{name: bad}))


def test_importing_the_module_imports_nothing_of_cuda() -> None:
    code = "import sys, engine.gpu.noise_kernel; sys.exit('cuda.core' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- on a GPU ----


@pytest.fixture
def gpu() -> Any:
    reason = why_no_gpu()
    if reason is not None:
        pytest.skip(reason)
    from engine.gpu.device import open_gpu

    return open_gpu()


@pytest.mark.gpu
def test_ten_million_draws_on_a_gpu(gpu: Any) -> None:
    count, latent, nz, steps = 480, LSUN.latent_shape, LSUN.generator.nz, LSUN.steps
    kernel = NoiseKernel(gpu.arch)
    shapes = [(count, *latent), (steps, count, nz), (steps, count, *latent)]
    made = [gpu.empty(shape, "float32") for shape in shapes]
    for seed, first in [(2**63 - 1, 2**32 - 7), (5, 0)]:
        kernel.launch(gpu.stream, gpu.upload(consecutive(seed, first, count)), *made)
        expected = sampler_noise(seed, first, count, latent_shape=latent, nz=nz, steps=steps)
        assert sum(array.size for array in expected) >= 10_000_000
        for name, ours, numpys in zip(Noise._fields, made, expected, strict=True):
            assert same_bits(gpu.download(ours), numpys), name


@pytest.mark.gpu
@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_every_preset_on_a_gpu(gpu: Any, preset: Any) -> None:
    shape = {"nz": preset.generator.nz, "steps": preset.steps}
    expected = sampler_noise(3, 2**63 - 7, 7, latent_shape=preset.latent_shape, **shape)
    made = [gpu.empty(array.shape, "float32") for array in expected]
    request = gpu.upload(consecutive(3, 2**63 - 7, 7))
    NoiseKernel(gpu.arch).launch(gpu.stream, request, *made)
    for name, ours, numpys in zip(Noise._fields, made, expected, strict=True):
        assert same_bits(gpu.download(ours), numpys), name


@pytest.mark.gpu
def test_a_captured_kernel_reads_the_request_anew(gpu: Any) -> None:
    shape = {"latent_shape": (2, 5, 3), "nz": 7, "steps": 4}
    made = [gpu.empty(array.shape, "float32") for array in sampler_noise(0, 0, 3, **shape)]
    request = gpu.upload(consecutive(0, 0, 3))
    kernel = NoiseKernel(gpu.arch)
    kernel.launch(gpu.stream, request, *made)
    graph = gpu.capture(lambda: kernel.launch(gpu.stream, request, *made))
    for seed, first in [(1, 0), (2**63 - 1, 2**32 - 1), (1, 0)]:
        gpu.write(request, consecutive(seed, first, 3))
        graph.launch()
        for ours, numpys in zip(made, sampler_noise(seed, first, 3, **shape), strict=True):
            assert same_bits(gpu.download(ours), numpys)
