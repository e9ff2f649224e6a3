"""ONNX Runtime, on any CPU or CUDA GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backend import Backend, Engine
from engine.requirements import check_tensors, why_unusable
from export.bundle import Bundle, graph_file
from export.graphs import graph_specs
from lddgan.errors import BadInput, LddganError, OutOfMemory
from lddgan.files import utf8_name
from lddgan.memory import is_out_of_memory
from lddgan.names import Device, Precision
from lddgan.preset import Preset

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
CUDA_OPTIONS = {"cudnn_conv_algo_search": "EXHAUSTIVE"}
EXACT_FP32 = {"use_tf32": "0"}  # fp16 would lose the tensor cores by it
DTYPES = {"tensor(float)": "float32", "tensor(int32)": "int32", "tensor(uint8)": "uint8"}
FATAL = 4  # ONNX Runtime's log level: its errors reach the user through exceptions

REINSTALL_GPU = "pip install --force-reinstall --no-deps onnxruntime-gpu"
WIDE = 256  # channels of a layer from which on OpenVINO is faster (docs/notes.md)

OrtValue = Any


class OrtBackend(Backend):
    """The two graphs of a bundle; arrays stay on the device between the steps."""

    name = "ort"

    def __init__(self, bundle: Bundle, precision: Precision, device: Device) -> None:
        import onnxruntime

        self.library = onnxruntime
        self.precision, self.device = precision, device
        specs = graph_specs(bundle.preset)
        self.sessions = {
            which: open_session(bundle.graph(which, precision), device, precision)
            for which in specs
        }
        for which, spec in specs.items():
            path = bundle.folder / graph_file(which, precision)
            check_tensors(tensors(self.sessions[which]), spec, path)
        self.names = {
            which: ([tensor.name for tensor in spec.inputs], spec.outputs[0].name)
            for which, spec in specs.items()
        }
        self.where = (
            f"{'CPU' if device == 'cpu' else 'CUDA'} (ONNX Runtime {onnxruntime.__version__})"
        )

    def upload(self, array: NDArray[Any]) -> OrtValue:
        return self.library.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.device)

    def step(self, x: OrtValue, t: OrtValue, z: OrtValue, noise: OrtValue) -> OrtValue:
        return self._run("generator", x, t, z, noise)

    def decode(self, x_0: OrtValue) -> OrtValue:
        return self._run("decoder", x_0)

    def download(self, array: OrtValue) -> NDArray[Any]:
        return np.array(array.numpy())  # its memory is the OrtValue's

    def close(self) -> None:
        self.sessions.clear()

    def _run(self, which: str, *inputs: OrtValue) -> OrtValue:
        names, output = self.names[which]
        binding = self.sessions[which].io_binding()
        for name, value in zip(names, inputs, strict=True):
            binding.bind_ortvalue_input(name, value)
        binding.bind_output(output, self.device)
        try:
            self.sessions[which].run_with_iobinding(binding)
        except onnxruntime_errors() as error:
            cause = first_line(error)
            kind = OutOfMemory if is_out_of_memory(error) else LddganError
            raise kind(f"ONNX Runtime failed in the {which}: {cause}") from error
        return binding.get_outputs()[0]


def open_session(path: Path, device: str, precision: Precision) -> Any:
    """Open a session that runs on `device` and nowhere else. Raises BadInput or LddganError."""
    import onnxruntime

    provider = PROVIDERS[device]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL
    # Without it the threads of one graph go on spinning while the other graph, or PyTorch, runs.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if device == "cuda":
        load_cuda()
    try:
        with utf8_name(path) as name:
            session = onnxruntime.InferenceSession(
                name,
                options,
                providers=[(provider, provider_options(device, precision))],
                enable_fallback=False,  # to the CPU, which it prints to stdout
            )
    except onnxruntime_errors() as error:
        if is_out_of_memory(error):
            raise OutOfMemory(f"ONNX Runtime has too little memory for {path}") from error
        if device == "cuda" and isinstance(error, RuntimeError):  # those of a file are other types
            raise not_started(provider, first_line(error)) from error
        raise BadInput(f"ONNX Runtime does not take {path}: {first_line(error)}") from error
    if session.get_providers()[0] != provider:
        raise not_started(provider, "it could not load its CUDA libraries")
    return session


def load_cuda() -> None:
    """Load the CUDA libraries that pip installed. Those that are missing are named on stderr."""
    import onnxruntime

    with redirect_stdout(sys.stderr):
        onnxruntime.preload_dlls()


def provider_options(device: str, precision: Precision) -> dict[str, str]:
    """Options of ONNX Runtime's provider for `device`."""
    if device == "cpu":
        return {}
    return CUDA_OPTIONS | (EXACT_FP32 if precision == "fp32" else {})


def not_started(provider: str, cause: str) -> LddganError:
    return LddganError(
        f"ONNX Runtime could not start its {provider}: {cause}; install a driver for CUDA 13 and "
        'pip install "onnxruntime-gpu[cuda,cudnn]"'
    )


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def tensors(session: Any) -> Iterator[tuple[str, tuple[int | str, ...], str]]:
    """Name, shape and dtype of every input and output."""
    for tensor in (*session.get_inputs(), *session.get_outputs()):
        yield tensor.name, tuple(tensor.shape), DTYPES.get(tensor.type, tensor.type)


def onnxruntime_errors() -> tuple[type[Exception], ...]:
    """The types that a session raises for a file that it cannot run."""
    import onnxruntime

    raised = onnxruntime.capi.onnxruntime_pybind11_state
    return (
        raised.EPFail,
        raised.Fail,
        raised.InvalidArgument,
        raised.InvalidGraph,
        raised.InvalidProtobuf,
        raised.NotImplemented,
        raised.RuntimeException,
        RuntimeError,  # of a run with bound arrays
    )


def why_not(device: Device) -> str | None:
    """Why the installed package does not run on `device`. Returns None if it does."""
    unusable = why_unusable("onnxruntime")
    if unusable is not None:
        return unusable
    import onnxruntime

    if not hasattr(onnxruntime, "get_available_providers"):
        return (  # onnxruntime and onnxruntime-gpu share a folder: removing one breaks the other
            f"parts of the installed onnxruntime are missing; {REINSTALL_GPU} "
            "(onnxruntime where there is no GPU)"
        )
    if PROVIDERS[device] in onnxruntime.get_available_providers():
        return None
    return (
        "the installed onnxruntime is the CPU package; "
        f"pip uninstall -y onnxruntime && {REINSTALL_GPU}"
    )


def has_narrow_layers(preset: Preset, device: Device) -> bool:
    """Whether ONNX Runtime is the fastest engine for a model on `device`."""
    widest = max(preset.generator.widest, preset.autoencoder.widest)
    return device == "cpu" and widest < WIDE


ENGINE = Engine(
    label="ONNX Runtime",
    color="#2b6cb0",
    precisions={"cpu": ("fp32", "fp16", "int8"), "cuda": ("fp32", "fp16")},
    why_not=why_not,
    open=lambda request: OrtBackend(request.bundle, request.precision, request.device),
    packages=("onnxruntime", "onnxruntime-gpu"),
    suits=has_narrow_layers,
)
