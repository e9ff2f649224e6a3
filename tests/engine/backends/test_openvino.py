"""OpenVINO: the same images as ONNX Runtime, exact arithmetic, and errors of one sentence."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.backends import openvino
from engine.backends.openvino import MOST_SIZES, OpenVinoBackend, read_model
from engine.registry import open_engine
from export.bundle import open_bundle
from lddgan.errors import BadInput, LddganError, OutOfMemory
from tests.engine.backends.test_ort import DAMAGES, GRAPH, OTHER_GRAPHS, signed
from tests.small import PRESETS as SMALL
from tests.small import small_bundle


@pytest.fixture
def backend(tiny_bundle: Path) -> OpenVinoBackend:
    return OpenVinoBackend(open_bundle(tiny_bundle), "fp32")


def latents(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 4, 8, 8), np.float32)


def images_of(bundle: Path, precision: str | None = None) -> Iterator[np.ndarray]:
    """The same images by OpenVINO, and by ONNX Runtime, whose graphs were compared with PyTorch."""
    for engine in ("openvino", "ort"):
        yield open_engine(bundle, engine, precision, "cpu").sample(5, seed=2).astype(int)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_images_are_those_of_onnx_runtime(tiny_bundle: Path, precision: str) -> None:
    ours, theirs = images_of(tiny_bundle, precision)
    assert np.abs(ours - theirs).max() <= 1 and theirs.std() > 10


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.full)])
@pytest.mark.parametrize("name", SMALL)
def test_images_of_other_families_are_those_of_onnx_runtime(name: str, precision: str) -> None:
    ours, theirs = images_of(small_bundle(name, precision), precision)
    assert np.abs(ours - theirs).max() <= 1 and theirs.std() > 10


def test_vq_images_are_those_of_onnx_runtime(tiny_vq_bundle: Path) -> None:
    ours, theirs = images_of(tiny_vq_bundle)
    assert (np.abs(ours - theirs) > 1).mean() <= 1e-2  # a flipped code
    assert theirs.std() > 10


def test_fp32_is_computed_in_fp32(backend: OpenVinoBackend) -> None:
    """Where the CPU has bf16, OpenVINO takes it unless it is told not to."""
    backend.decode(latents(1))
    for request in backend.compiled[1].values():
        found = request.get_compiled_model().get_property("INFERENCE_PRECISION_HINT")
        assert found.get_type_name() == "f32"


def test_sizes_unused_for_longest_are_dropped(backend: OpenVinoBackend) -> None:
    x_0 = latents(5)
    images = {size: backend.decode(x_0[:size]) for size in (1, 2, 1, 5)}
    assert list(backend.compiled) == [1, 5] and MOST_SIZES == 2
    images[2] = backend.decode(x_0[:2])
    assert list(backend.compiled) == [5, 2]
    for size, made in images.items():
        assert np.abs(made.astype(int) - images[5][:size]).max() <= 1


def test_opening_compiles_for_the_batch(tiny_bundle: Path) -> None:
    sampler = open_engine(tiny_bundle, "openvino", chunk=4, batch=6)
    assert list(sampler.backend.compiled) == [3]


def test_result_survives_the_next_call(backend: OpenVinoBackend) -> None:
    first = backend.decode(latents(1))
    kept = first.copy()
    second = backend.decode(latents(1, seed=1))
    assert np.array_equal(first, kept) and not np.array_equal(first, second)


def test_description_names_the_library(tiny_bundle: Path) -> None:
    said = open_engine(tiny_bundle, "openvino").description
    assert said.startswith("openvino fp32 on CPU (OpenVINO 20")


# ---- what goes wrong ----


@pytest.mark.parametrize("case", sorted(DAMAGES.keys() - {"empty", "opset of the future"}))
def test_file_that_is_no_graph_is_one_sentence(
    tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    path = Path(shutil.copy(tiny_bundle / GRAPH, tmp_path))
    DAMAGES[case](path)
    with pytest.raises(BadInput) as caught:
        read_model(path)
    message = str(caught.value)
    assert message.startswith(f"OpenVINO does not take {path}: ")
    assert "\n" not in message and "src/" not in message.partition("Failed operations")[0]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("case", [*OTHER_GRAPHS, "empty"])
def test_graph_with_other_tensors_is_refused_when_it_is_opened(
    tiny_bundle: Path, tmp_path: Path, case: str
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "tiny"))
    {**OTHER_GRAPHS, **DAMAGES}[case](folder / GRAPH)
    signed(folder, GRAPH)
    with pytest.raises(BadInput) as caught:
        open_engine(folder, "openvino")
    message = str(caught.value)
    assert message.startswith(f"{folder / GRAPH} has the tensors") and "\n" not in message
    assert "'noise'" in message.partition("its manifest says")[2]


def test_failure_while_running_is_one_sentence(backend: OpenVinoBackend) -> None:
    with pytest.raises(LddganError) as caught:
        backend.decode(np.zeros((1, 5, 8, 8), np.float32))
    message = str(caught.value)
    assert message.startswith("OpenVINO failed in the decoder: ") and "\n" not in message
    assert "[1,5,8,8]" in message


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "Exception from src/inference/src/cpp/core.cpp:117:\n"
            "Exception from src/core/src/runtime/allocator.cpp:79:\nstd::bad_alloc\n\n\n"
        ),
    ],
)
def test_memory_that_does_not_suffice_halves_the_chunk(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    said: list[str] = []
    compile_as_it_is = OpenVinoBackend._compile

    def of_little_memory(self: OpenVinoBackend, which: str, batch: int) -> object:
        if batch > 2:
            raise error
        return compile_as_it_is(self, which, batch)

    monkeypatch.setattr(openvino.OpenVinoBackend, "_compile", of_little_memory)
    sampler = open_engine(tiny_bundle, "openvino", chunk=4, batch=4, log=said.append)
    images = sampler.sample(4)
    assert images.shape == (4, 32, 32, 3)
    assert len(said) == 1 and said[0].endswith("going on with 2 images at once instead of 4")
    with pytest.raises(OutOfMemory, match="OpenVINO failed to compile for batch 3: "):
        sampler.backend.decode(latents(3))
