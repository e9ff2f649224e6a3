"""A TensorRT made of Python: the names of one version, calls recorded, failures by order.

It parses nothing: the network has the tensors of `specs`, by the first word of the file's name.
A plan is what a test can work out: the graph's sha256 and the profile's shapes.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from engine.backends.trt.library import Library, LibraryName
from export.graphs import GraphSpec

WEAK, BOTH, STRONG = "8.6.1", "10.16.1.11", "11.4.0.106"
VERSIONS = (WEAK, BOTH, STRONG)

DataType = enum.Enum("DataType", "FLOAT HALF INT32 INT64 BOOL UINT8")
LayerType = enum.Enum(
    "LayerType",
    "CAST CONSTANT SHAPE SHUFFLE CONCATENATION ACTIVATION CONVOLUTION DECONVOLUTION ELEMENTWISE "
    "MATRIX_MULTIPLY NORMALIZATION REDUCE SOFTMAX TOPK UNARY",
)
Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")
DTYPES = {"float32": DataType.FLOAT, "int32": DataType.INT32, "uint8": DataType.UINT8}


def expected_plan(graph: Path, shapes: dict[str, Any]) -> bytes:
    """The plan that the scripted builder makes of a graph."""
    digest = hashlib.sha256(graph.read_bytes()).hexdigest()
    return json.dumps(
        [digest, {name: [list(s) for s in of] for name, of in shapes.items()}]
    ).encode()


class Script:
    """What the next builds do, and what they were told."""

    def __init__(self, specs: dict[str, GraphSpec]) -> None:
        self.specs = specs
        self.calls: list[tuple[Any, ...]] = []
        self.builds: list[str] = []  # the graphs that were built
        self.layers = [Layer(LayerType.CONVOLUTION, DataType.HALF)]
        self.parser_error: Any = None
        self.failures: dict[str, str] = {}  # graph -> the error that its build logs
        self.during: Callable[[], None] = lambda: None  # called as a build begins
        self.builder_missing = False  # as without a driver
        self.old_timing_cache_fits = True

    def library(self, version: str = BOTH, name: LibraryName = "trt") -> Library:
        return Library(name, module(self, version), version)


def tensor(name: str, shape: tuple[Any, ...], dtype: Any, shape_tensor: bool = False) -> Any:
    sizes = tuple(-1 if size == "B" else size for size in shape)
    return SimpleNamespace(name=name, shape=sizes, dtype=dtype, is_shape_tensor=shape_tensor)


class Layer:
    """One layer of a network that is not strongly typed."""

    def __init__(self, kind: LayerType, *outputs: Any, shape_tensor: bool = False) -> None:
        self.type, self.num_outputs = kind, len(outputs)
        self.outputs = [tensor("", (1,), dtype, shape_tensor) for dtype in outputs]
        self.precision: Any = None
        self.output_types: dict[int, Any] = {}

    def get_output(self, index: int) -> Any:
        return self.outputs[index]

    def set_output_type(self, index: int, dtype: Any) -> None:
        self.output_types[index] = dtype


class ILogger:
    Severity = Severity


class IProgressMonitor:
    pass


class Network:
    """What the parser makes of a file: the tensors of the script's table."""

    def __init__(self, script: Script, mask: int) -> None:
        self.script = script
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.graph = Path()
        script.calls.append(("create_network", mask))

    num_inputs = property(lambda self: len(self.inputs))
    num_outputs = property(lambda self: len(self.outputs))
    num_layers = property(lambda self: len(self.script.layers))

    def get_input(self, index: int) -> Any:
        return self.inputs[index]

    def get_output(self, index: int) -> Any:
        return self.outputs[index]

    def get_layer(self, index: int) -> Any:
        return self.script.layers[index]


class OnnxParser:
    def __init__(self, script: Script, network: Network, logger: Any) -> None:
        self.script, self.network, self.logger = script, network, logger
        self.num_errors = 0

    def set_flag(self, flag: Any) -> None:
        self.script.calls.append(("parser flag", flag.name))

    def parse_from_file(self, path: str) -> bool:
        if self.script.parser_error is not None:
            self.num_errors = 1
            return False
        self.network.graph = Path(path)
        spec = self.script.specs[self.network.graph.name.partition(".")[0]]
        self.network.inputs = [tensor(t.name, t.shape, DTYPES[t.dtype]) for t in spec.inputs]
        self.network.outputs = [tensor(t.name, t.shape, DTYPES[t.dtype]) for t in spec.outputs]
        return True

    def get_error(self, index: int) -> Any:
        return self.script.parser_error


class TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content


class Config:
    builder_optimization_level = max_aux_streams = None

    def __init__(self, script: Script, version: str) -> None:
        self.script = script
        self.cache: TimingCache | None = None
        self.profile: Any = None
        self.set: dict[str, bool] = {}
        if version != WEAK:
            self.progress_monitor: Any = None

    def set_flag(self, flag: Any) -> None:
        self.set[flag.name] = True

    def clear_flag(self, flag: Any) -> None:
        self.set[flag.name] = False

    def set_tactic_sources(self, mask: int) -> None:
        self.script.calls.append(("tactics", mask))

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.script.calls.append(("limit", pool.name, size))

    def add_optimization_profile(self, profile: Any) -> None:
        self.profile = profile

    def create_timing_cache(self, content: bytes) -> TimingCache:
        self.script.calls.append(("timing cache", content))
        return TimingCache(content)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        if cache.content and not self.script.old_timing_cache_fits:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self.cache


class OptimizationProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, *shapes: Any) -> None:
        self.shapes[name] = shapes


class Builder:
    def __init__(self, script: Script, version: str, logger: Any) -> None:
        self.script, self.version, self.logger = script, version, logger
        if script.builder_missing:
            logger.log(Severity.WARNING, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def create_network(self, mask: int) -> Network:
        return Network(self.script, mask)

    def create_builder_config(self) -> Config:
        return Config(self.script, self.version)

    def create_optimization_profile(self) -> OptimizationProfile:
        return OptimizationProfile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        which = network.graph.name.partition(".")[0]
        self.script.builds.append(which)
        self.script.calls.append(("config", config))
        if not _steps(self.script, getattr(config, "progress_monitor", None)):
            return None
        if which in self.script.failures:
            self.logger.log(Severity.ERROR, self.script.failures[which])
            return None
        if config.cache is not None:
            config.cache.content += which.encode()
        return expected_plan(network.graph, config.profile.shapes)


def flags(names: str) -> Any:
    return enum.IntEnum("Flags", names, start=0)


def module(script: Script, version: str) -> Any:
    """The module that `import tensorrt` would give for a version."""
    explicit = "" if version == STRONG else "EXPLICIT_BATCH "
    strong = "" if version == WEAK else "STRONGLY_TYPED"
    half = "" if version == STRONG else " FP16 OBEY_PRECISION_CONSTRAINTS"
    outer = "" if version == STRONG else "CUBLAS CUBLAS_LT CUDNN "
    names = SimpleNamespace(
        __version__=version,
        ILogger=ILogger,
        OnnxParser=partial(OnnxParser, script),
        Builder=partial(Builder, script, version),
        DataType=DataType,
        LayerType=LayerType,
        OnnxParserFlag=flags("NATIVE_INSTANCENORM"),
        MemoryPoolType=flags("WORKSPACE"),
        NetworkDefinitionCreationFlag=flags(explicit + strong),
        BuilderFlag=flags("TF32" + half),
        TacticSource=flags(outer + "EDGE_MASK_CONVOLUTIONS JIT_CONVOLUTIONS"),
    )
    if version != WEAK:
        names.IProgressMonitor = IProgressMonitor
    return names


def _steps(script: Script, monitor: Any) -> bool:
    """Tell the monitor of four steps; False if it cancels the build."""
    steps = 4
    if monitor is not None:
        monitor.phase_start("Building engine", None, steps)
    script.during()
    for step in range(steps):
        if monitor is not None and not monitor.step_complete("Building engine", step):
            return False
    if monitor is not None:
        monitor.phase_finish("Building engine")
    return True
