"""Which engines can run here, why the others cannot, and opening one."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

from engine.backend import Backend
from engine.gpu.driver import why_no_gpu
from engine.requirements import why_unusable
from engine.sampler import Sampler, equal_parts
from export.bundle import CHECKPOINT, Bundle, in_words, open_bundle, store_folder
from lddgan.errors import BadInput, LddganError, OutOfMemory
from lddgan.names import PRECISIONS, DeviceName, Precision
from lddgan.preset import Preset
from lddgan.progress import Log, to_stderr

if TYPE_CHECKING:
    from lddgan.checkpoint import Model

ENGINES: Final[tuple[str, ...]] = (
    "auto",
    "torch",
    "torch-compile",
    "ort",
    "openvino",
    "trt",
    "trt-rtx",
    "fused",
)
DEVICES: Final[tuple[DeviceName, ...]] = get_args(DeviceName)

OF_MODELS: Final[tuple[str, ...]] = ("torch", "torch-compile", "fused")  # need no graph
BASELINE_PRECISION: Final = "fp32"  # of the networks as published
PREFERRED: Final[dict[str, tuple[Precision, ...]]] = {  # what an engine takes, unless asked
    "trt": ("fp16", "fp32"),
    "trt-rtx": ("fp16", "fp32"),
    "fused": ("fp16", "fp32"),
    "openvino": ("fp32", "fp16", "int8"),
    "ort": ("fp32", "fp16", "int8"),
    "torch": (BASELINE_PRECISION,),
    "torch-compile": ("fp16",),
}

ONLY_ON: Final[dict[Precision, tuple[tuple[str, str], ...]]] = {  # the others run everywhere
    "int8": (("openvino", "cpu"), ("ort", "cpu")),  # what its graphs are made for
    "bf16": (("fused", "cuda"),),  # which needs no graph
}

CANDIDATES: Final[tuple[tuple[str, Literal["cpu", "cuda"]], ...]] = (  # best first
    ("trt", "cuda"),
    ("trt-rtx", "cuda"),
    ("fused", "cuda"),
    ("ort", "cuda"),
    ("torch", "cuda"),
    ("torch-compile", "cuda"),
    ("openvino", "cpu"),
    ("ort", "cpu"),
    ("torch", "cpu"),
)
WIDE: Final = 256  # channels of a layer from which on OpenVINO is faster (docs/performance.md)
REINSTALL_ORT_GPU: Final = "pip install --force-reinstall --no-deps onnxruntime-gpu"


class Candidate(NamedTuple):
    """One engine on one device; `why_not` is None where it runs."""

    engine: str
    device: Literal["cpu", "cuda"]
    why_not: str | None


class Chosen(NamedTuple):
    """What a request comes to on this machine."""

    engine: str
    device: Literal["cpu", "cuda"]
    precision: Precision


def open_engine(
    bundle: str | os.PathLike[str] | Bundle,
    engine: str = "auto",
    precision: Precision | None = None,
    device: DeviceName = "auto",
    chunk: int | None = None,
    *,
    batch: int | None = None,
    cuda_graph: bool = True,
    stream: object | None = None,
    accept_failed: bool = False,
    log: Log = to_stderr,
) -> Sampler:
    """Open a bundle with an engine.

    `auto` picks the best engine (and device) that works here; `Sampler.description` says which.
    Without a `precision` it is the first of PREFERRED that the bundle has.

    For TensorRT: of several engines that are built, the one whose optimum is nearest to `batch` is
    taken; if there is none it is built, which takes minutes and is said to `log`.  One that failed
    `lddgan verify` is refused unless `accept_failed`.  The fused engine is tuned and OpenVINO
    compiled for `batch`, which takes seconds.  For TensorRT and fused: `cuda_graph` False launches
    the same steps one by one.  `stream` (of torch, cuda-core or PyCUDA, or a handle) is where
    everything runs; None is a stream of the engine's own.

    Raises BadInput for a bundle that cannot be read, LddganError for an engine that cannot run,
    with the cause and what mends it.  There is no fallback.
    """
    if engine not in ENGINES or device not in DEVICES:
        raise BadInput(f"engine is one of {', '.join(ENGINES)}; device of {', '.join(DEVICES)}")
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    chosen = choose(engine, device, precision, opened.precisions, opened.preset)
    if chosen.engine in ("trt", "trt-rtx"):
        from engine.backends.trt.engine import open_tensorrt

        return open_tensorrt(
            opened,
            "trt" if chosen.engine == "trt" else "trt-rtx",
            chosen.precision,
            chunk,
            batch=batch,
            cuda_graph=cuda_graph,
            stream=stream,
            accept_failed=accept_failed,
            log=log,
        )
    if chosen.engine in OF_MODELS:
        from lddgan.checkpoint import load_checkpoint

        model = load_checkpoint(opened.file(CHECKPOINT))
        store = store_folder(opened)
        return _open_model(model, chosen, chunk, batch, cuda_graph, stream, store, log)
    _refuse_stream(chosen.engine, cuda_graph, stream)
    if chosen.engine == "openvino":
        return _open_openvino(opened, chosen, chunk, batch, log)
    return _open_ort(opened, chosen, chunk, log)


def open_model(
    model: Model,
    engine: str = "torch",
    precision: Precision | None = None,
    device: DeviceName = "auto",
    chunk: int | None = None,
    *,
    batch: int | None = None,
    cuda_graph: bool = True,
    stream: object | None = None,
    log: Log = to_stderr,
) -> Sampler:
    """Open a model that is in no bundle with one of OF_MODELS, which need no graph.

    The engine leaves the model as it is.  Everything else as in `open_engine`.
    """
    if engine not in OF_MODELS:
        raise BadInput(f"a model without graphs is run by {', '.join(OF_MODELS)}, not by {engine}")
    chosen = choose(engine, device, precision, (), model.preset)
    model = model if chosen.engine == "fused" else copy.deepcopy(model)  # fused copies itself
    return _open_model(model, chosen, chunk, batch, cuda_graph, stream, None, log)


def _refuse_stream(engine: str, cuda_graph: bool, stream: object | None) -> None:
    if stream is not None or not cuda_graph:
        raise BadInput(f"the {engine} engine takes no stream and captures no CUDA graph")


def choose(
    engine: str,
    device: DeviceName,
    precision: Precision | None = None,
    held: Sequence[Precision] = PRECISIONS,
    preset: Preset | None = None,
) -> Chosen:
    """The first candidate that fits the request and can run.

    `held` are the precisions of the bundle: `auto` passes over engines that would need another.
    `preset` is its model: the order depends on it.
    Raises LddganError with the causes, BadInput for a precision where it never runs.
    """
    refuse_elsewhere(precision, engine, device)
    causes = []
    for candidate in survey(engine, device, preset):
        wanted = precision or default_precision(candidate.engine, held)
        if candidate[:2] not in ONLY_ON.get(wanted, [candidate[:2]]):
            continue
        if engine == "auto" and not _offers(candidate, wanted, held):
            continue
        if candidate.why_not is None:
            return Chosen(candidate.engine, candidate.device, wanted)
        causes.append(f"{candidate.engine} on {candidate.device}: {candidate.why_not}")
    what = f"the {engine} engine does not run" if engine != "auto" else f"nothing runs {precision}"
    cause = "; ".join(causes) or f"{what} on {device}, the bundle holds {in_words(held)}"
    raise LddganError(f"{cause}; `lddgan doctor` says what runs here")


def refuse_elsewhere(precision: Precision | None, engine: str, device: str = "auto") -> None:
    """Raise BadInput if an engine or a device is asked for a precision of others."""
    if precision is None or precision not in ONLY_ON:
        return
    places = ONLY_ON[precision]
    if not any(engine in ("auto", name) and device in ("auto", where) for name, where in places):
        engines, where = " or ".join(name for name, _ in places), places[0][1]
        raise BadInput(
            f"{precision} runs with --engine {engines} on --device {where} only; use fp16 or fp32"
        )


def default_precision(engine: str, held: Sequence[Precision]) -> Precision:
    """What an engine takes of a bundle with the precisions `held`; torch needs no graph of it."""
    preferred = PREFERRED[engine]
    usable = [precision for precision in preferred if precision in held]
    return usable[0] if usable and not engine.startswith("torch") else preferred[0]


def _offers(candidate: Candidate, precision: Precision, held: Sequence[Precision]) -> bool:
    if candidate.engine.startswith("torch"):
        return precision == BASELINE_PRECISION or candidate.device == "cuda"
    if candidate.engine == "fused" and not held:  # a checkpoint alone, which is all it needs
        return True
    return precision in held or precision == "bf16"


def survey(
    engine: str = "auto", device: DeviceName = "auto", preset: Preset | None = None
) -> Iterator[Candidate]:
    """The engines and devices that a request names, best first (for a model).

    The library of an engine is imported when its turn comes: who stops early loads no more.
    """
    fitting = [
        (name, where)
        for name, where in best_first(preset)
        if engine in ("auto", name) and device in ("auto", where)
    ]
    no_gpu = why_no_gpu() if any(where == "cuda" for _, where in fitting) else None
    for name, where in fitting:
        cause = no_gpu if where == "cuda" else None
        yield Candidate(name, where, cause or why_no_library(name, where))


def best_first(preset: Preset | None) -> Sequence[tuple[str, Literal["cpu", "cuda"]]]:
    """CANDIDATES, but ONNX Runtime before OpenVINO for a model whose layers are all narrow."""
    if preset is None or max(preset.generator.widest, preset.autoencoder.widest) >= WIDE:
        return CANDIDATES
    order = [candidate for candidate in CANDIDATES if candidate != ("ort", "cpu")]
    order.insert(order.index(("openvino", "cpu")), ("ort", "cpu"))
    return order


def why_no_library(engine: str, device: str) -> str | None:
    """Why the library of an engine cannot be used on a device that is there."""
    if engine in ("trt", "trt-rtx"):
        return why_no_tensorrt("trt" if engine == "trt" else "trt-rtx")
    if engine == "fused":
        return why_no_fused()
    if engine == "openvino":
        return why_unusable("openvino")
    if engine == "ort":
        return why_no_ort_cuda() if device == "cuda" else why_no_ort()
    return why_no_torch_cuda() if device == "cuda" else why_unusable("torch")


def why_no_tensorrt(name: Literal["trt", "trt-rtx"]) -> str | None:
    """Why a TensorRT engine cannot run, without making any of its objects."""
    from engine.backends.trt.library import why_missing as why_no_bindings

    return why_no_cuda_core() or why_no_bindings(name)


def why_no_fused() -> str | None:
    return why_no_torch_cuda() or why_unusable("triton") or why_no_cuda_core()


def why_no_cuda_core() -> str | None:
    """Why memory, streams and the noise kernel of a GPU cannot be used: asked before minutes of
    building."""
    from engine.gpu.device import why_old_cuda_core, why_old_driver
    from engine.gpu.noise_kernel import why_no_nvrtc

    return why_unusable("cuda.core") or why_old_cuda_core() or why_old_driver() or why_no_nvrtc()


def why_no_ort() -> str | None:
    unusable = why_unusable("onnxruntime")
    if unusable is not None:
        return unusable
    import onnxruntime

    if hasattr(onnxruntime, "get_available_providers"):
        return None
    return (  # onnxruntime and onnxruntime-gpu share a folder: removing one breaks the other
        f"parts of the installed onnxruntime are missing; {REINSTALL_ORT_GPU} "
        "(onnxruntime where there is no GPU)"
    )


def why_no_ort_cuda() -> str | None:
    unusable = why_no_ort()
    if unusable is not None:
        return unusable
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return None
    return (
        "the installed onnxruntime is the CPU package; "
        f"pip uninstall -y onnxruntime && {REINSTALL_ORT_GPU}"
    )


def why_no_torch_cuda() -> str | None:
    unusable = why_unusable("torch")
    if unusable is not None:
        return unusable
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return "the installed torch is built without CUDA"
    return f"torch {torch.__version__} is built for CUDA {torch.version.cuda} and finds no GPU"


def _open_model(
    model: Model,
    chosen: Chosen,
    chunk: int | None,
    batch: int | None,
    cuda_graph: bool,
    stream: object | None,
    store: Path | None,
    log: Log,
) -> Sampler:
    """A model of which nobody else holds the weights."""
    if chosen.engine == "fused":
        from engine.backends.fused.opening import open_fused

        return open_fused(
            model,
            chosen.precision,
            chunk,
            batch=batch,
            cuda_graph=cuda_graph,
            stream=stream,
            store=store,
            log=log,
        )
    from engine.backends.pytorch import TorchBackend

    _refuse_stream(chosen.engine, cuda_graph, stream)
    backend = TorchBackend(
        model, chosen.device, chosen.precision, compiled=chosen.engine == "torch-compile"
    )
    return Sampler(
        backend, model.preset, random_weights=model.has_random_weights, chunk=chunk, log=log
    )


def _open_ort(bundle: Bundle, chosen: Chosen, chunk: int | None, log: Log) -> Sampler:
    from engine.backends.ort import OrtBackend

    return _sampler(OrtBackend(bundle, chosen.precision, chosen.device), bundle, chunk, log)


def _open_openvino(
    bundle: Bundle, chosen: Chosen, chunk: int | None, batch: int | None, log: Log
) -> Sampler:
    from engine.backends.openvino import OpenVinoBackend

    backend = OpenVinoBackend(bundle, chosen.precision)
    sampler = _sampler(backend, bundle, chunk, log)
    if batch is not None:
        with suppress(OutOfMemory):  # raised again, and the chunk halved, when images are made
            backend.prepared(equal_parts(batch, sampler.chunk)[0])
    return sampler


def _sampler(backend: Backend, bundle: Bundle, chunk: int | None, log: Log) -> Sampler:
    return Sampler(
        backend,
        bundle.preset,
        random_weights=bundle.has_random_weights,
        chunk=chunk,
        log=log,
    )
