"""The fused engine on a GPU that a CPU plays: its graph, noise, chunks and settings."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.backend import Made
from engine.backends.fused import engine
from engine.backends.fused.engine import TUNING
from engine.backends.fused.gpu import _Array
from engine.backends.fused.reference import PLAIN, Ops
from engine.backends.fused.run import FusedBackend, FusedOnGpu, why
from engine.backends.torch.run import TorchBackend
from engine.gpu.noise_kernel import checked_sizes
from engine.graphed import MOST_GRAPHS
from engine.registry import open_engine
from engine.sampler import Sampler
from engine.tuning import Tuning
from engine.verify import verify_engine
from export.bundle import DIGITS
from lddgan.checkpoint import Model
from lddgan.errors import LddganError, OutOfMemory
from lddgan.names import Precision
from lddgan.noise import sampler_noise
from tests.engine.stopwatch import Stopwatch
from tests.small import small_model


class Replayed:
    """A captured program: `replay` runs it again and overwrites what it made."""

    def __init__(self, gpu: PlayedGpu, program: Callable[[], Made]) -> None:
        self.gpu, self.program, self.made = gpu, program, program()

    def replay(self) -> None:
        assert self.gpu.depth, "replayed on another stream"
        for old, new in zip(self.made, self.program(), strict=True):
            old.copy_(new)
        self.gpu.replays += 1


class PlayedGpu:
    """What `TorchGpu` offers, on the CPU."""

    where = "a CPU that plays a GPU"

    def __init__(self) -> None:
        self.torch_device = torch.device("cpu")
        self.depth = self.replays = self.captures = self.waits = 0

    @contextmanager
    def active(self, precision: Precision) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def capture(self, program: Callable[[], Made]) -> tuple[Replayed, Made]:
        self.captures += 1
        graph = Replayed(self, program)
        return graph, graph.made

    def draw(self, request: Tensor, x_T: Tensor, z: Tensor, noise: Tensor) -> None:
        assert self.depth, "drawn on another stream"
        made = [
            sampler_noise(seed, index, 1, latent_shape=x_T.shape[1:], nz=z.shape[-1], steps=len(z))
            for seed, index in request[: len(x_T)].tolist()
        ]
        axes = (0, 1, 1)  # of the images
        drawn = [np.concatenate(*one) for one in zip(zip(*made, strict=True), axes, strict=True)]
        for target, values in zip((x_T, z, noise), drawn, strict=True):
            target.copy_(torch.from_numpy(values))

    def view(self, array: Any) -> Tensor:
        return torch.from_dlpack(array)

    def download(self, array: Tensor) -> NDArray[Any]:
        assert self.depth, "read on another stream"
        return array.numpy().copy()

    def synchronize(self) -> None:
        self.waits += 1

    def timer(self) -> Any:
        raise AssertionError("nothing is timed here")

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def gpu() -> PlayedGpu:
    return PlayedGpu()


@pytest.fixture
def opened(gpu: PlayedGpu, tiny_model: Model) -> Sampler:
    return open_on(gpu, tiny_model)


def open_on(gpu: PlayedGpu, model: Model, *, cuda_graph: bool = True) -> Sampler:
    """Every function between the convolutions is called on the GPU's stream."""

    def on_stream(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*given: Any, **options: Any) -> Tensor:
            assert gpu.depth, "called on another stream"
            return function(*given, **options)

        return call

    ops = Ops(*map(on_stream, PLAIN[:-1]))  # all but the errors
    tuning = Tuning(None, "", lambda _: None)
    backend = FusedOnGpu(model, "fp32", ops, gpu, cuda_graph=cuda_graph, tuning=tuning)
    return Sampler(backend, model.preset, random_weights=True, chunk=100, log=lambda _: None)


def levels(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    assert a.shape == b.shape and a.std() > 10
    return int(np.abs(a.astype(int) - b.astype(int)).max())


# ---- the graph ----


@pytest.mark.parametrize("cuda_graph", [True, False])
def test_images_are_those_of_the_steps_on_a_cpu(
    gpu: PlayedGpu, tiny_model: Model, cuda_graph: bool
) -> None:
    eager = Sampler(
        FusedBackend(tiny_model, "fp32"), tiny_model.preset, random_weights=True, chunk=100
    )
    sampler = open_on(gpu, tiny_model, cuda_graph=cuda_graph)
    for seed, first in ((7, 0), (7, 2**40), (2**63 - 1, 0)):
        true = eager.sample(2, seed, first)
        assert levels(sampler.sample(2, seed, first), true) <= 1
    assert (gpu.captures, gpu.replays) == ((1, 3) if cuda_graph else (0, 0))
    assert gpu.depth == 0


@pytest.mark.parametrize("cuda_graph", [True, False])
@pytest.mark.parametrize("name", ["small-pixels", "small-wavelet"])
def test_pixels_and_haar_coefficients(gpu: PlayedGpu, name: str, cuda_graph: bool) -> None:
    model = small_model(name)
    torch_engine = Sampler(TorchBackend(model, "cpu"), model.preset, random_weights=True)
    sampler = open_on(gpu, model, cuda_graph=cuda_graph)
    sampler.backend.chunks[5] = 2  # type: ignore[attr-defined]
    made = sampler.sample(5, seed=3, first=9)
    assert levels(made, torch_engine.sample(5, seed=3, first=9)) <= 1
    assert (gpu.captures, gpu.replays) == ((1, 1) if cuda_graph else (0, 0))


def test_a_result_is_valid_until_the_next_call(opened: Sampler) -> None:
    first = opened.make(1, 0, 2)
    kept = first.image.clone()
    second = opened.make(2, 0, 2)
    assert first.image.data_ptr() == second.image.data_ptr()
    assert not torch.equal(kept, second.image)
    opened.make(1, 0, 2)
    assert torch.equal(kept, first.image)


def test_a_smaller_batch_runs_the_graph_of_a_larger_one(opened: Sampler, gpu: PlayedGpu) -> None:
    whole, part = opened.sample(4, seed=3), opened.sample(3, seed=3)
    np.testing.assert_array_equal(part, whole[:3])
    assert gpu.captures == 1
    opened.sample(1, seed=3)  # four times as much would be too wasteful
    assert gpu.captures == 2


def test_graphs_that_were_not_used_for_longest_are_dropped(
    opened: Sampler, gpu: PlayedGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened.backend
    assert isinstance(backend, FusedOnGpu)
    made = backend.upload(np.zeros((100, 1), np.float32))
    monkeypatch.setattr("engine.graphed.captured_size", lambda captured, count, least: count)
    for size in range(1, MOST_GRAPHS + 2):
        for count in (size, 1):
            backend.run(lambda _: Made(made, made), opened.preset, 0, 0, count)
    assert list(backend.recorded) == [*range(3, MOST_GRAPHS + 2), 1]
    assert gpu.waits == 1


def test_a_run_that_does_not_fit_is_halved(gpu: PlayedGpu, tiny_model: Model) -> None:
    def capture(program: Callable[[], Made]) -> tuple[Replayed, Made]:
        made = program()
        if len(made.image) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return PlayedGpu.capture(gpu, program)

    gpu.capture = capture  # type: ignore[method-assign]
    sampler = open_on(gpu, tiny_model)
    true = open_on(PlayedGpu(), tiny_model).sample(4, seed=1)
    assert levels(sampler.sample(4, seed=1), true) <= 1
    assert list(sampler.backend.recorded) == [2]  # type: ignore[attr-defined]
    assert gpu.depth == 0


# ---- verification, noise and arrays ----


@pytest.mark.parametrize("name", ["tiny_model", "tiny_vq_model", "small-pixels", "small-wavelet"])
def test_it_passes_verification(gpu: PlayedGpu, name: str, request: pytest.FixtureRequest) -> None:
    model = small_model(name) if name.startswith("small") else request.getfixturevalue(name)
    found = verify_engine(open_on(gpu, model), model, images=3, device="cpu", log=lambda _: None)
    assert (found.engine, found.where) == ("fused", PlayedGpu.where)
    assert found.noise_identical and found.drawn_levels == 0
    assert found.passed and found.latents.largest <= 1e-5 and found.chain_levels <= 1


def test_given_arrays_are_read_where_they_are(opened: Sampler) -> None:
    preset = opened.preset
    drawn = sampler_noise(
        4, 0, 2, latent_shape=preset.latent_shape, nz=preset.generator.nz, steps=preset.steps
    )
    made = opened.make_from(*map(torch.from_numpy, drawn))
    assert levels(made.image.numpy(), opened.sample(2, seed=4)) <= 1


def test_the_noise_kernel_takes_the_tensors() -> None:
    request = _Array.of(torch.zeros((5, 2), dtype=torch.int64))._replace(dtype="uint64")
    shapes = ((3, 4, 8, 8), (2, 3, 10), (2, 3, 4, 8, 8))
    sizes = checked_sizes(request, *(_Array.of(torch.empty(shape)) for shape in shapes))
    assert (sizes.count, sizes.steps, sizes.n, sizes.nz) == (3, 2, 256, 10)
    tensor = torch.empty(2, 3)
    assert _Array.of(tensor[1]).address == tensor.data_ptr() + 12
    with pytest.raises(AssertionError):
        _Array.of(tensor.T)


# ---- the decoder's chunk ----


def test_the_decoder_is_tuned_by_the_clock(
    opened: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = opened.backend
    assert isinstance(backend, FusedOnGpu)
    clock = Stopwatch({21: 1.0, 20: 9.0, 5: 6.0, 2: 4.0, 1: 8.0})
    batches: set[int] = set()

    def decode(x_0: Tensor, chunk: int) -> None:
        batches.add(len(x_0))
        clock.run(chunk)

    monkeypatch.setattr(backend, "timer", lambda: clock)
    monkeypatch.setattr(backend, "decode_in", decode)
    backend.prepare(20)
    assert backend.chunks == {20: 2}
    assert batches == {20} and clock.runs == [20] * 4 + [5] * 4 + [2] * 4 + [1] * 4
    assert backend.facts() == {"decoder_chunk": {"20": 2}}
    backend.decode(backend.upload(np.zeros((21, 1), np.float32)))
    assert clock.runs[16:] == [21]  # whole, where nothing was tuned
    backend.prepare(1)
    assert backend.chunks[1] == 1 and len(clock.runs) == 17  # nothing to choose


# ---- failures ----


class NotCompiled(Exception):
    """As Triton's: the message apart from the source."""

    error_message = "NameError('tl')"

    def __str__(self) -> str:
        return "at 3:5:\ndef kernel(x):"


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED\nmore"), "cuDNN error: .*FAILED"),
        (NotCompiled(), r"NameError\('tl'\)"),
        (RuntimeError(), "RuntimeError"),
    ],
)
def test_what_does_not_run_is_a_sentence(tiny_model: Model, error: Exception, cause: str) -> None:
    with pytest.raises(LddganError, match=rf"^the fused engine failed: {cause}; --engine torch "):
        failing(tiny_model, error).sample(1)


def test_errors_that_have_a_name_keep_it(tiny_model: Model) -> None:
    with pytest.raises(OutOfMemory, match=r"^PyTorch found too little memory"):
        failing(tiny_model, torch.OutOfMemoryError("CUDA out of memory")).sample(1)
    with pytest.raises(ZeroDivisionError):  # a mistake of ours
        failing(tiny_model, ZeroDivisionError()).sample(1)


def failing(model: Model, error: Exception) -> Sampler:
    """An engine one of whose kernels raises."""

    def fail(*given: Any, **options: Any) -> Tensor:
        raise error

    ops = PLAIN._replace(group_norm=fail, errors=(NotCompiled,))
    return Sampler(FusedBackend(model, "fp32", ops), model.preset, random_weights=True)


def test_the_errors_of_triton_are_known() -> None:
    pytest.importorskip("triton")
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    from engine.backends.fused.kernels import TRITON

    for known in (CompilationError, OutOfResources, PTXASError):
        assert issubclass(known, TRITON.errors)
    assert why(CompilationError("x = 1", ast.parse("x = 1").body[0], "no such name")) == (
        "no such name"
    )
    assert why(OutOfResources(9, 8, "shared memory")).startswith("out of resource: shared memory")


# ---- opening ----


def test_tuning_is_kept_by_gpu_precision_and_batch(
    gpu: PlayedGpu, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FusedOnGpu, "timer", lambda self: None)
    monkeypatch.setattr("engine.graphed.fastest_chunk", lambda timer, decode, batch, least: 1)
    said: list[str] = []
    kept = tmp_path / "engines" / TUNING

    def tuned(batch: int, precision: Precision = "fp32", gpu_name: str = "an H100") -> list[str]:
        """Prepare a new engine for a batch; what it logs."""
        said.clear()
        tuning = Tuning(kept, f"{gpu_name}, {precision}", said.append)
        FusedOnGpu(tiny_model, precision, PLAIN, gpu, cuda_graph=True, tuning=tuning).prepare(batch)
        return said

    assert tuned(2) == ["the decoder is fastest with 1 images at once at batch 2"]
    assert json.loads(kept.read_text()) == {"chunks": {"an H100, fp32, batch 2": 1}}
    assert tuned(2) == []  # known from the file
    assert tuned(3) and tuned(2, "fp16")
    assert tuned(2, gpu_name="an H200") and len(json.loads(kept.read_text())["chunks"]) == 4
    kept.write_text('{"chunks": {"an H100, fp32, batch 2": 0}}')
    assert tuned(2)[0].startswith(f"{kept} is left aside: chunks.an H100")
    kept.unlink()
    kept.mkdir()
    assert tuned(2)[-1].startswith(f"the tuning is not kept: cannot write {kept}")


def test_without_a_gpu_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LddganError, match="fused on cuda: no NVIDIA GPU"):
        open_engine(DIGITS, "fused")
    with pytest.raises(LddganError, match="the fused engine does not run on cpu"):
        open_engine(DIGITS, "fused", device="cpu")


@pytest.mark.parametrize("missing", ["torch", "triton", "cuda"])
def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    causes: dict[str, str | None] = dict.fromkeys(("torch", "triton", "cuda"))
    monkeypatch.setattr(engine, "why_no_torch_cuda", lambda: causes["torch"])
    monkeypatch.setattr(engine, "why_unusable", causes.__getitem__)
    monkeypatch.setattr(engine, "why_no_cuda_core", lambda: causes["cuda"])
    assert engine.why_not("cuda") is None
    causes[missing] = f"{missing} is gone"
    assert engine.why_not("cuda") == f"{missing} is gone"
