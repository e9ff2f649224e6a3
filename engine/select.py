"""Which engines can run here, why the others cannot, and opening one."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Final, Literal, NamedTuple

from engine.sampler import Sampler
from export.bundle import CHECKPOINT, Bundle, open_bundle
from export.graphs import Precision
from lddgan.errors import BadInput, LddganError
from lddgan.extras import why_missing

EngineName = Literal["auto", "torch", "ort", "trt"]
DeviceName = Literal["auto", "cpu", "cuda"]
ENGINES: Final = ("auto", "torch", "ort", "trt")
DEVICES: Final = ("auto", "cpu", "cuda")


BASELINE_PRECISION: Final = "fp32"  # the only one of the torch engine
DRIVER_SECONDS = 20  # after which a driver that does not answer counts as broken


class Candidate(NamedTuple):
    """One engine on one device; `why_not` is None where it runs."""

    engine: str
    device: str
    why_not: str | None


def open_engine(
    bundle: str | os.PathLike[str] | Bundle,
    engine: EngineName = "auto",
    precision: Precision = "fp32",
    device: DeviceName = "auto",
    chunk: int | None = None,
) -> Sampler:
    """Open a bundle with an engine.

    `auto` picks the best engine (and device) that works here; `Sampler.description` says which.
    Raises BadInput for a bundle that cannot be read, LddganError for an engine that cannot run,
    with the cause and what mends it.  There is no fallback.
    """
    if engine not in ENGINES or device not in DEVICES:
        raise BadInput(f"engine is one of {', '.join(ENGINES)}; device of {', '.join(DEVICES)}")
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    chosen = choose(engine, device, precision)
    if chosen.engine == "torch":
        return _open_torch(opened, precision, chosen.device, chunk)
    return _open_ort(opened, precision, chosen.device, chunk)


def choose(engine: EngineName, device: DeviceName, precision: Precision) -> Candidate:
    """The first candidate that fits the request and can run. Raises LddganError with the causes."""
    fitting = [
        candidate
        for candidate in survey()
        if engine in ("auto", candidate.engine) and device in ("auto", candidate.device)
        if engine == "torch" or candidate.engine != "torch" or precision == BASELINE_PRECISION
    ]
    for candidate in fitting:
        if candidate.why_not is None:
            return candidate
    causes = "; ".join(f"{c.engine} on {c.device}: {c.why_not}" for c in fitting)
    cause = causes or f"the {engine} engine does not run on {device}"
    raise LddganError(f"{cause}; `lddgan doctor` says what runs here")


def survey() -> list[Candidate]:
    """Every engine and device, best first."""
    gpu = why_no_gpu()
    return [
        Candidate("trt", "cuda", gpu or why_no_tensorrt()),
        Candidate("ort", "cuda", gpu or why_no_ort_cuda()),
        Candidate("torch", "cuda", gpu or why_no_torch_cuda()),
        Candidate("ort", "cpu", why_missing("onnxruntime")),
        Candidate("torch", "cpu", why_missing("torch")),
    ]


def why_no_gpu() -> str | None:
    """Why there is no NVIDIA GPU to use, asked of the driver and not of a library."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "no NVIDIA GPU: no driver is installed here (nvidia-smi is missing)"
    try:
        asked = subprocess.run(
            [program, "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
            timeout=DRIVER_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return f"no NVIDIA GPU: the driver did not answer within {DRIVER_SECONDS} s"
    if asked.returncode != 0 or not asked.stdout.strip():
        first_line = (asked.stdout + asked.stderr).strip().partition("\n")[0]
        return f"no NVIDIA GPU: the driver says {first_line!r}"
    return None


def why_no_tensorrt() -> str:
    return "this version of lddgan does not run TensorRT engines yet"


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


def _open_torch(bundle: Bundle, precision: Precision, device: str, chunk: int | None) -> Sampler:
    from engine.torch_engine import TorchBackend
    from lddgan.checkpoint import load_checkpoint

    if precision != BASELINE_PRECISION:
        raise BadInput(
            f"the torch engine is the {TorchBackend.precision} baseline, not {precision}"
        )
    model = load_checkpoint(bundle.file(CHECKPOINT))
    return Sampler(
        TorchBackend(model, device),
        model.preset,
        random_weights=bundle.has_random_weights,
        chunk=chunk,
    )


def _open_ort(bundle: Bundle, precision: Precision, device: str, chunk: int | None) -> Sampler:
    from engine.ort_engine import OrtBackend

    return Sampler(
        OrtBackend(bundle, precision, device),
        bundle.preset,
        random_weights=bundle.has_random_weights,
        chunk=chunk,
    )
