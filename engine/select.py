"""Which engines can run here, why the others cannot, and opening one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from engine.driver import why_no_gpu
from engine.sampler import Backend, Sampler
from export.bundle import CHECKPOINT, Bundle, open_bundle
from export.graphs import PRECISIONS, Precision
from lddgan.errors import BadInput, LddganError
from lddgan.extras import why_missing
from lddgan.progress import Log, to_stderr

EngineName = Literal["auto", "torch", "torch-compile", "ort", "trt", "trt-rtx"]
DeviceName = Literal["auto", "cpu", "cuda"]
ENGINES: Final = ("auto", "torch", "torch-compile", "ort", "trt", "trt-rtx")
DEVICES: Final = ("auto", "cpu", "cuda")

BASELINE_PRECISION: Final = "fp32"  # of the networks as published
PREFERRED: Final[dict[str, tuple[Precision, ...]]] = {  # what an engine takes, unless asked
    "trt": ("fp16", "fp32"),
    "trt-rtx": ("fp16", "fp32"),
    "ort": ("fp32", "fp16"),
    "torch": (BASELINE_PRECISION,),
    "torch-compile": ("fp16",),
}


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
    engine: EngineName = "auto",
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
    taken; if there is none it is built, which takes minutes and is said to `log`.  `cuda_graph`
    False launches the same steps one by one.  `stream` (of torch, cuda-core or PyCUDA, or a handle)
    is where everything runs; None is a stream of the engine's own.  One that failed `lddgan verify`
    is refused unless `accept_failed`.

    Raises BadInput for a bundle that cannot be read, LddganError for an engine that cannot run,
    with the cause and what mends it.  There is no fallback.
    """
    if engine not in ENGINES or device not in DEVICES:
        raise BadInput(f"engine is one of {', '.join(ENGINES)}; device of {', '.join(DEVICES)}")
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    chosen = choose(engine, device, precision, opened.precisions)
    if chosen.engine in ("trt", "trt-rtx"):
        from engine.trt.opening import open_tensorrt

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
    if stream is not None or not cuda_graph:
        raise BadInput(f"the {chosen.engine} engine takes no stream and captures no CUDA graph")
    opener = _open_ort if chosen.engine == "ort" else _open_torch
    return opener(opened, chosen, chunk, log)


def choose(
    engine: EngineName,
    device: DeviceName,
    precision: Precision | None = None,
    held: Sequence[Precision] = PRECISIONS,
) -> Chosen:
    """The first candidate that fits the request and can run.

    `held` are the precisions of the bundle: `auto` passes over engines that would need another.
    Raises LddganError with the causes.
    """
    causes = []
    for candidate in survey():
        if engine not in ("auto", candidate.engine) or device not in ("auto", candidate.device):
            continue
        wanted = precision or default_precision(candidate.engine, held)
        if engine == "auto" and not _offers(candidate, wanted, held):
            continue
        if candidate.why_not is None:
            return Chosen(candidate.engine, candidate.device, wanted)
        causes.append(f"{candidate.engine} on {candidate.device}: {candidate.why_not}")
    what = f"the {engine} engine does not run" if engine != "auto" else f"nothing runs {precision}"
    cause = "; ".join(causes) or f"{what} on {device}, the bundle holds {' and '.join(held)}"
    raise LddganError(f"{cause}; `lddgan doctor` says what runs here")


def default_precision(engine: str, held: Sequence[Precision]) -> Precision:
    """What an engine takes of a bundle with the precisions `held`; torch needs no graph of it."""
    preferred = PREFERRED[engine]
    usable = [precision for precision in preferred if precision in held]
    return usable[0] if usable and not engine.startswith("torch") else preferred[0]


def _offers(candidate: Candidate, precision: Precision, held: Sequence[Precision]) -> bool:
    if candidate.engine.startswith("torch"):
        return precision == BASELINE_PRECISION or candidate.device == "cuda"
    return precision in held


def survey() -> list[Candidate]:
    """Every engine and device, best first."""
    gpu = why_no_gpu()
    return [
        Candidate("trt", "cuda", gpu or why_no_tensorrt("trt")),
        Candidate("trt-rtx", "cuda", gpu or why_no_tensorrt("trt-rtx")),
        Candidate("ort", "cuda", gpu or why_no_ort_cuda()),
        Candidate("torch", "cuda", gpu or why_no_torch_cuda()),
        Candidate("torch-compile", "cuda", gpu or why_no_torch_cuda()),
        Candidate("ort", "cpu", why_missing("onnxruntime")),
        Candidate("torch", "cpu", why_missing("torch")),
    ]


def why_no_tensorrt(name: Literal["trt", "trt-rtx"]) -> str | None:
    """Why a TensorRT engine cannot run, without making any of its objects."""
    from engine.trt.library import why_missing as why_no_library

    return why_missing("cuda.core") or why_no_library(name)


def why_no_ort_cuda() -> str | None:
    missing = why_missing("onnxruntime")
    if missing is not None:
        return missing
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return None
    return (
        "the installed onnxruntime is the CPU package; pip uninstall -y onnxruntime && "
        'pip install "lddgan[gpu]"'
    )


def why_no_torch_cuda() -> str | None:
    missing = why_missing("torch")
    if missing is not None:
        return missing
    import torch

    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return "the installed torch is built without CUDA"
    return f"torch {torch.__version__} is built for CUDA {torch.version.cuda} and finds no GPU"


def _open_torch(bundle: Bundle, chosen: Chosen, chunk: int | None, log: Log) -> Sampler:
    from engine.torch_engine import TorchBackend
    from lddgan.checkpoint import load_checkpoint

    model = load_checkpoint(bundle.file(CHECKPOINT))
    backend = TorchBackend(
        model, chosen.device, chosen.precision, compiled=chosen.engine == "torch-compile"
    )
    return _sampler(backend, bundle, chunk, log)


def _open_ort(bundle: Bundle, chosen: Chosen, chunk: int | None, log: Log) -> Sampler:
    from engine.ort_engine import OrtBackend

    return _sampler(OrtBackend(bundle, chosen.precision, chosen.device), bundle, chunk, log)


def _sampler(backend: Backend, bundle: Bundle, chunk: int | None, log: Log) -> Sampler:
    return Sampler(
        backend,
        bundle.preset,
        random_weights=bundle.has_random_weights,
        chunk=chunk,
        log=log,
    )
