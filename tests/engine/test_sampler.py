"""The sampler: the same images from every engine, batch and chunk, and exact bookkeeping."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from engine.backend import Backend
from engine.backends.torch.run import TorchBackend
from engine.registry import open_engine
from engine.sampler import Sampler
from lddgan.checkpoint import Model
from lddgan.diffusion import sample
from lddgan.errors import BadInput, LddganError
from lddgan.noise import normals, sampler_noise
from lddgan.pictures import write_images
from tests.conftest import TINY
from tests.needs import needs

STEPS, LATENT, NZ = 3, (4, 8, 8), 10  # of conftest.TINY


@pytest.fixture(scope="module")
def ort(tiny_bundle: Path) -> Sampler:
    return open_engine(tiny_bundle, "ort", device="cpu")


@pytest.fixture(scope="module")
def baseline(tiny_bundle: Path) -> Sampler:
    return open_engine(tiny_bundle, "torch", device="cpu")


def drawn(batch: int, seed: int = 0) -> tuple[NDArray[np.float32], ...]:
    """x_T, z, noise from numpy's own generator."""
    generator = np.random.default_rng(seed)
    shapes = ((batch, *LATENT), (STEPS, batch, NZ), (STEPS, batch, *LATENT))
    return tuple(generator.standard_normal(shape, np.float32) for shape in shapes)


def levels(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    assert a.shape == b.shape and a.dtype == b.dtype == np.uint8
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# ---- the same images ----


def test_engines_agree_on_given_noise(ort: Sampler, baseline: Sampler) -> None:
    images = ort.run(*drawn(5))
    assert images.shape == (5, 32, 32, 3)
    assert images.std() > 10
    assert levels(images, baseline.run(*drawn(5))) <= 1


def test_engines_agree_on_seeds(ort: Sampler, baseline: Sampler) -> None:
    assert levels(ort.sample(4, seed=7), baseline.sample(4, seed=7)) <= 1
    other = ort.sample(4, seed=8)
    assert levels(ort.sample(4, seed=7), other) > 20


def test_vq_engines_agree(tiny_vq_bundle: Path) -> None:
    ours, theirs = (
        open_engine(tiny_vq_bundle, e, device="cpu").sample(3) for e in ("ort", "torch")
    )
    assert (np.abs(ours.astype(int) - theirs.astype(int)) > 1).mean() <= 1e-2  # a flipped code
    assert ours.std() > 10


def test_fp16_is_close_to_fp32_and_another_computation(tiny_bundle: Path, ort: Sampler) -> None:
    half = open_engine(tiny_bundle, "ort", "fp16", "cpu").sample(4)
    error = np.square(half - 1.0 * ort.sample(4)).mean()
    assert 0 < error < 255**2 / 1e4  # 40 dB


@pytest.mark.parametrize(
    "engine", ["ort", pytest.param("openvino", marks=needs("openvino")), "torch"]
)
@pytest.mark.parametrize(("batch", "chunk"), [(1, 127), (3, 127), (7, 2), (5, 3), (100, 1)])
def test_seed_decides_the_images_whatever_the_batch(
    tiny_bundle: Path, ort: Sampler, engine: str, batch: int, chunk: int
) -> None:
    sampler = open_engine(tiny_bundle, engine, device="cpu", chunk=chunk)
    assert levels(sampler.sample(7, seed=3, batch=batch), ort.sample(7, seed=3)) <= 1


@pytest.mark.parametrize("engine", ["ort", "baseline"])
def test_image_alone_is_the_image_of_a_batch(request, engine: str) -> None:
    sampler: Sampler = request.getfixturevalue(engine)
    together = sampler.sample(6, seed=11, first=100)
    for i in (0, 4, 5):
        assert levels(sampler.sample(1, seed=11, first=100 + i)[0], together[i]) <= 1
    assert levels(together[0], together[1]) > 20
    assert np.array_equal(together, sampler.sample(6, seed=11, first=100))


@pytest.mark.parametrize("engine", ["ort", "baseline"])
def test_reversed_noise_gives_reversed_images(request, engine: str) -> None:
    sampler: Sampler = request.getfixturevalue(engine)
    x_T, z, noise = drawn(3)
    backwards = sampler.run(x_T[::-1], z[:, ::-1], noise[:, ::-1])
    assert levels(backwards[::-1], sampler.run(x_T, z, noise)) <= 1


# ---- against an independent loop ----


def alpha_bar(s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the variance-preserving process from time 0 to s: exp(-integral of beta)."""
    return np.exp(-0.1 * s - (20 - 0.1) * s**2 / 2)


@torch.no_grad()
def by_hand(model: Model, x: Any, z: Any, noise: Any) -> NDArray[np.float64]:
    """x_0 by equation 3, in float64 but for the network."""
    bar = alpha_bar(0.001 + 0.999 * np.arange(STEPS + 1) / STEPS)
    bar = bar / bar[0]
    x = x.astype(np.float64)
    for k in range(STEPS):
        t = STEPS - 1 - k
        x_0 = model.generator(
            torch.from_numpy(x).float(),
            torch.full((len(x),), t, dtype=torch.int64),
            torch.from_numpy(z[k]),
        ).numpy()
        beta = 1 - bar[t + 1] / bar[t]
        coef1 = beta * np.sqrt(bar[t]) / (1 - bar[t + 1])
        coef2 = (1 - bar[t]) * np.sqrt(1 - beta) / (1 - bar[t + 1])
        sigma = 0.0 if t == 0 else np.sqrt(beta * (1 - bar[t]) / (1 - bar[t + 1]))
        x = coef1 * x_0 + coef2 * x + sigma * noise[k]
    return x


@pytest.mark.parametrize("engine", ["ort", "baseline"])
def test_sampler_is_the_independent_loop(request, tiny_model: Model, engine: str) -> None:
    sampler: Sampler = request.getfixturevalue(engine)
    x_T, z, noise = drawn(3, seed=5)
    expected = by_hand(tiny_model, x_T, z, noise)
    found = sampler.backend.download(sampler.denoise(sampler.upload(x_T, z, noise)))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    library = sample(tiny_model.generator, TINY, *map(torch.from_numpy, (x_T, z, noise)))
    assert np.abs(library.numpy() - expected).max() < 1e-4 * np.abs(expected).max()
    pixels = tiny_model.decode(torch.from_numpy(expected).float()).numpy()
    images = np.rint(127.5 * (pixels + 1)).astype(np.uint8).transpose(0, 2, 3, 1)
    assert levels(sampler.run(x_T, z, noise), images) <= 1


# ---- bookkeeping, by a scripted backend ----


class Scripted(Backend):
    """Returns x as it came; `decode` makes pixels of the first element of each latent."""

    name, precision, device, where = "scripted", "fp32", "cpu", "nowhere"

    def __init__(self, poison: int | None = None) -> None:
        self.calls: list[tuple[str, int, int | None]] = []  # what, batch, t
        self.seen: list[tuple[Any, ...]] = []
        self.poison = poison  # t that gives NaN
        self.constant = False  # images of one value

    def upload(self, array: NDArray[Any]) -> NDArray[Any]:
        return array

    def step(self, x: Any, t: Any, z: Any, noise: Any) -> Any:
        assert t.shape == (1,) and t.dtype == np.int32
        self.calls.append(("step", len(x), int(t[0])))
        self.seen.append((int(t[0]), x, z, noise))
        if int(t[0]) == self.poison:
            x = x.copy()
            x[-1, 0, 0, 0] = np.nan
        return x

    def decode(self, x_0: Any) -> Any:
        self.calls.append(("decode", len(x_0), None))
        first = x_0[:, :1, :1, :1].transpose(0, 2, 3, 1)
        images = np.broadcast_to(first, (len(x_0), 32, 32, 3)).astype(np.uint8)
        if not self.constant:
            images[:, -1, -1] ^= 1
        return images

    def download(self, array: Any) -> Any:
        return array


def scripted(chunk: int, poison: int | None = None) -> tuple[Sampler, Scripted]:
    backend = Scripted(poison)
    return Sampler(backend, TINY, random_weights=True, chunk=chunk), backend


def chunk_calls(size: int) -> list[tuple[str, int, int | None]]:
    return [("step", size, 2), ("step", size, 1), ("step", size, 0), ("decode", size, None)]


def test_chunks_run_in_order_each_from_the_last_t_to_zero() -> None:
    sampler, backend = scripted(chunk=3)
    x_T, z, noise = drawn(8)
    x_T[:] = np.arange(8, dtype=np.float32)[:, None, None, None]
    images = sampler.run(x_T, z, noise)
    assert images[:, 5, 7, 1].tolist() == list(range(8))
    assert backend.calls == chunk_calls(3) + chunk_calls(3) + chunk_calls(2)
    for call, (t, _, z_k, noise_k) in enumerate(backend.seen):
        part, k = slice(3 * (call // STEPS), 3 * (call // STEPS) + 3), call % STEPS
        assert t == STEPS - 1 - k
        assert np.array_equal(z_k, z[k, part])
        assert np.array_equal(noise_k, noise[k, part])


def test_streamed_batches_have_the_noise_of_their_indices() -> None:
    sampler, backend = scripted(chunk=3)
    sizes = [len(images) for images in sampler.stream(10, seed=5, first=40, batch=4)]
    assert sizes == [4, 4, 2]
    steps = [size for what, size, _ in backend.calls if what == "decode"]
    assert steps == [2, 2, 2, 2, 2]  # equal parts
    expected = sampler_noise(5, 40, 10, latent_shape=LATENT, nz=NZ, steps=STEPS)
    for t in range(STEPS):
        k = STEPS - 1 - t
        x, z, noise = (
            np.concatenate([seen[i] for seen in backend.seen if seen[0] == t]) for i in (1, 2, 3)
        )
        assert np.array_equal(x, expected.x_T)
        assert np.array_equal(z, expected.z[k])
        assert np.array_equal(noise, expected.noise[k])


def test_without_a_batch_images_come_in_equal_parts() -> None:
    sampler, backend = scripted(chunk=8)
    assert [len(images) for images in sampler.stream(20)] == [7, 7, 6]
    assert [size for what, size, _ in backend.calls if what == "decode"] == [7, 7, 6]


def test_streams_of_noise_are_those_of_the_design() -> None:
    sampler, _ = scripted(chunk=3)
    inputs = sampler.inputs(seed=9, first=6, count=2)
    assert np.array_equal(inputs.x_T, normals(9, 0, 6, 2, 256).reshape(2, *LATENT))
    for k in range(STEPS):
        assert np.array_equal(inputs.z[k], normals(9, 1 + 2 * k, 6, 2, NZ))
        assert np.array_equal(inputs.noise[k].reshape(2, 256), normals(9, 2 + 2 * k, 6, 2, 256))


def test_stream_makes_a_batch_only_when_it_is_taken() -> None:
    sampler, backend = scripted(chunk=4)
    batches = sampler.stream(10**12, batch=2)
    assert len(next(batches)) == 2
    assert backend.calls == chunk_calls(2)


# ---- NaN ----


@pytest.mark.parametrize("poison", [0, 2])
@pytest.mark.parametrize("name", ["grid.png", "all.npz", "folder"])
def test_nan_is_an_error_and_no_image(tmp_path: Path, poison: int, name: str) -> None:
    sampler, backend = scripted(chunk=4, poison=poison)
    with pytest.raises(LddganError, match="scripted fp32 on nowhere gave NaN or Inf"):
        write_images(tmp_path / name, sampler.numbered([range(4)], 0, 4), lambda _: None)
    assert backend.calls != []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_nan_in_the_decoder_is_an_error() -> None:
    sampler, backend = scripted(chunk=4)
    backend.constant = True
    with pytest.raises(LddganError, match="gave an image of one value"):
        sampler.sample(1)


def test_nan_weights_are_an_error(tiny_model: Model) -> None:
    model = copy.deepcopy(tiny_model)
    next(model.generator.parameters()).data[0] = float("nan")
    sampler = Sampler(TorchBackend(model, "cpu"), model.preset, random_weights=True)
    with pytest.raises(LddganError, match="gave NaN or Inf"):
        sampler.sample(1)


# ---- what is refused ----

WRONG: dict[str, tuple[int, Any, str]] = {  # which argument, how it is changed, the message
    "x_T flat": (0, lambda a: a.reshape(3, -1), r"x_T is \[3, 256\], expected \[B,C,h,w\]"),
    "x_T empty": (0, lambda a: a[:0], r"x_T is \[0, 4, 8, 8\].* B >= 1"),
    "x_T channels": (
        0,
        lambda a: a[:, :3],
        r"x_T is float32 \[3, 3, 8, 8\], expected float32 \[3, 4, 8, 8\]",
    ),
    "x_T float64": (0, lambda a: a.astype(np.float64), r"x_T is float64 .* expected float32"),
    "z transposed": (1, lambda a: a.transpose(1, 0, 2)[:, :2], r"expected float32 \[3, 3, 10\]"),
    "z steps": (1, lambda a: a[:2], r"z is float32 \[2, 3, 10\], expected float32 \[3, 3, 10\]"),
    "z float16": (1, lambda a: a.astype(np.float16), r"z is float16 .* expected float32"),
    "noise batch": (2, lambda a: a[:, :1], r"noise is .* expected float32 \[3, 3, 4, 8, 8\]"),
    "noise integers": (2, lambda a: a.astype(np.int32), r"noise is int32 .* expected float32"),
}


@pytest.mark.parametrize("case", WRONG)
def test_other_shapes_and_dtypes_are_refused(case: str) -> None:
    sampler, backend = scripted(chunk=4)
    which, change, message = WRONG[case]
    arguments = list(drawn(3))
    arguments[which] = change(arguments[which])
    with pytest.raises(BadInput, match=message):
        sampler.run(*arguments)
    assert backend.calls == []


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        ({"count": 0}, "num is 0"),
        ({"count": -5}, "num is -5"),
        ({"batch": 0}, "batch is 0"),
        ({"batch": -1}, "batch is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, f"seed is {2**63}"),
        ({"first": -1}, "first is -1"),
        ({"first": 2**63}, f"first is {2**63}"),
        ({"first": 2**63 - 1, "count": 2}, "first"),
    ],
)
def test_requests_outside_the_limits_are_refused(request_: dict[str, int], named: str) -> None:
    sampler, backend = scripted(chunk=4)
    with pytest.raises(BadInput) as caught:
        sampler.sample(**({"count": 1} | request_))
    assert named in str(caught.value)
    assert backend.calls == []


def test_the_last_seed_and_the_last_image_are_served() -> None:
    sampler, _ = scripted(chunk=4)
    assert len(sampler.sample(2, seed=2**63 - 1, first=2**63 - 2, batch=10**9)) == 2
