"""An ONNX file -> a TensorRT plan. One path for every version: dtypes come from the graph."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from engine.backends.trt.library import (
    Builder,
    IBuilderConfig,
    ILayer,
    INetworkDefinition,
    IOptimizationProfile,
    ITensor,
    ITimingCache,
    Library,
    Logger,
    OnnxParser,
    ParserError,
    TensorRT,
    forget,
)
from engine.backends.trt.progress import DONE, Progress, interrupt_sets, make_monitor
from engine.requirements import one_line
from export.graphs import BATCH, MAX_BATCH, GraphSpec, TensorSpec
from lddgan.errors import BadInput, LddganError, why_invalid
from lddgan.files import utf8_name
from lddgan.frozen import Frozen
from lddgan.names import FLOATS, Precision

DYNAMIC: Final = -1  # TensorRT's mark of a size that is not fixed


class Profile(Frozen):
    """Batch sizes of a plan: it takes min..max and is tuned for opt."""

    min: int = Field(ge=1)
    opt: int
    max: int = Field(le=MAX_BATCH)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min <= self.opt <= self.max:
            raise ValueError("MIN, OPT and MAX must not decrease")
        return self

    @classmethod
    def parse(cls, text: str, most: int) -> Profile:
        """Read "MIN,OPT,MAX", MAX at most `most`. Raises BadInput."""
        try:
            low, best, high = (int(part) for part in text.split(","))
            if high > most:
                raise ValueError(high)
            return cls(min=low, opt=best, max=high)
        except ValueError as error:  # also of int(), of the unpacking, and pydantic's
            raise BadInput(
                f"--batch {text!r} is not MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX <= {most}"
            ) from error

    def within(self, most: int) -> Profile:
        """Cut to batches of at most `most` images."""
        return Profile(min=min(self.min, most), opt=min(self.opt, most), max=min(self.max, most))

    def __str__(self) -> str:
        return f"{self.min},{self.opt},{self.max}"

    def holds(self, batch: int) -> bool:
        return self.min <= batch <= self.max


DEFAULT_PROFILE: Final = Profile(min=1, opt=16, max=100)


class BuildOptions(Frozen):
    """What to build. These are the defaults of `lddgan build`."""

    precision: Precision
    profile: Profile = DEFAULT_PROFILE
    level: int = Field(default=3, ge=0, le=5)  # TensorRT's builder optimization level

    @field_validator("precision")
    @classmethod
    def _is_floating(cls, value: Precision) -> Precision:
        if value not in FLOATS:
            raise ValueError(f"precision is {value}; TensorRT builds {' and '.join(FLOATS)} graphs")
        return value

    @classmethod
    def checked(cls, **given: Any) -> BuildOptions:
        """Fill what is not given (None) with the defaults. Raises BadInput."""
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            raise BadInput(why_invalid(error, "the options")) from error


class Built(NamedTuple):
    """A plan, and what the builder measured."""

    plan: bytes
    timing_cache: bytes | None
    seconds: float


class Flags(NamedTuple):
    """The flags that a build sets, as far as the installed version has them."""

    network: tuple[str, ...]
    builder: tuple[str, ...]
    tactics: tuple[str, ...]  # empty: the library's default

    @property
    def names(self) -> tuple[str, ...]:
        """All flags as one list, for the key of a plan."""
        return (*self.network, *self.builder, *(f"tactics {name}" for name in self.tactics))


def flags_for(library: Library, precision: Precision) -> Flags:
    """Choose the flags that make a plan compute in the graph's own dtypes. Makes no Builder."""
    module: TensorRT = library.module
    network = []
    if hasattr(module.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH"):
        network.append("EXPLICIT_BATCH")
    if hasattr(module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED"):
        network.append("STRONGLY_TYPED")
    weakly_typed_half = precision == "fp16" and "STRONGLY_TYPED" not in network
    builder = ["FP16", "OBEY_PRECISION_CONSTRAINTS"] if weakly_typed_half else []
    if hasattr(module.BuilderFlag, "REQUIRE_USER_ALLOCATION"):  # TensorRT-RTX, to be captured
        builder.append("REQUIRE_USER_ALLOCATION")
    # cuBLAS and cuDNN, where they are still offered, would be loaded beside TensorRT.
    own = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
    tactics = own if hasattr(module.TacticSource, "CUBLAS") else ()
    return Flags(tuple(network), tuple(builder), tactics)


def build_graph(
    library: Library,
    path: Path,
    spec: GraphSpec,
    options: BuildOptions,
    *,
    timing_cache: bytes | None,
    workspace: int | None,
    progress: Progress,
) -> Built:
    """Build a plan of the ONNX file at `path`, whose tensors are `spec`.

    `workspace` limits the scratch memory of one layer, in bytes (None: the whole GPU); 1 GiB is too
    little for the decoder of lsun. Calls `progress(percent, 100)` during the build (TensorRT 8.6
    reports none). TensorRT-RTX builds without a GPU; TensorRT must only be called where there is
    one.

    Raises BadInput if the parser refuses the file, OutOfMemory, LddganError, and KeyboardInterrupt
    after Ctrl-C.
    """
    started = time.monotonic()
    module: TensorRT = library.module
    logger = library.logger()
    flags = flags_for(library, options.precision)
    builder: Builder = library.create(
        logger, f"{library} cannot start", lambda: module.Builder(logger)
    )
    kinds = module.NetworkDefinitionCreationFlag
    network: INetworkDefinition = builder.create_network(_mask(kinds, flags.network))
    parser = parse(library, logger, network, path)  # holds the weights until the plan is built
    check_tensors(library, network, spec, path)
    if "FP16" in flags.builder and hasattr(module.BuilderFlag, "OBEY_PRECISION_CONSTRAINTS"):
        pin_precisions(library, network)
    config = configure(library, builder, options, flags, workspace)
    add_profile(builder, config, spec, options.profile)
    times = library.name == "trt"  # a timing cache would make TensorRT-RTX look for a GPU
    if times:
        use_timing_cache(config, timing_cache)
    plan = run(library, logger, builder, network, config, progress)
    del parser
    measured = serialized_timing_cache(config) if times else None
    return Built(plan, measured, time.monotonic() - started)


def _mask(kinds: Any, names: tuple[str, ...]) -> int:
    mask = 0
    for name in names:
        mask |= 1 << int(getattr(kinds, name))
    return mask


def parse(library: Library, logger: Logger, network: INetworkDefinition, path: Path) -> OnnxParser:
    """Read the ONNX file into `network`. Raises BadInput naming node and operator."""
    module: TensorRT = library.module
    parser: OnnxParser = module.OnnxParser(network, logger)
    parser.set_flag(module.OnnxParserFlag.NATIVE_INSTANCENORM)
    with utf8_name(path) as name:
        if parser.parse_from_file(name):
            return parser
    if parser.num_errors == 0:
        raise library.error(logger, f"{library} does not take {path}")
    error: ParserError = parser.get_error(0)
    raise BadInput(f"{library} does not take {path}: {describe(error, logger)}")


def describe(error: ParserError, logger: Logger) -> str:
    """Name the node, the operator and the cause of a parser's error."""
    cause = one_line(error.desc())
    if error.node() < 0:
        return cause
    if hasattr(error, "node_name"):
        return f"node {error.node_name()} ({error.node_operator()}): {cause}"
    # 8.6 knows the number only; name and operator are in what it logged.
    parsing = [text for text in logger.errors if "While parsing node" in text]
    return f"{one_line(parsing[0]) if parsing else f'node {error.node()}'}: {cause}"


def check_tensors(
    library: Library, network: INetworkDefinition, spec: GraphSpec, path: Path
) -> None:
    """Raise BadInput unless the parsed network has the tensors of `spec`."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    for found, expected in ((inputs, spec.inputs), (outputs, spec.outputs)):
        if len(found) != len(expected) or not all(
            _is(library, tensor, listed) for tensor, listed in zip(found, expected, strict=True)
        ):
            raise BadInput(
                f"{path} has the tensors {[_words(tensor) for tensor in found]} for {library}, its "
                f"manifest says {[(t.name, t.shape, t.dtype) for t in expected]}"
            )


def _is(library: Library, tensor: ITensor, listed: TensorSpec) -> bool:
    shape = tuple(tensor.shape)
    fits = len(shape) == len(listed.shape) and all(
        found in (DYNAMIC, size) for found, size in zip(shape, listed.shape, strict=True)
    )
    return fits and (tensor.name, tensor.dtype) == (listed.name, _dtype(library, listed.dtype))


def _words(tensor: ITensor) -> tuple[str, tuple[int, ...], str]:
    return tensor.name, tuple(tensor.shape), str(tensor.dtype)


def _dtype(library: Library, name: str) -> Any:
    module: TensorRT = library.module
    return {
        "float32": module.DataType.FLOAT,
        "int32": module.DataType.INT32,
        "uint8": module.DataType.UINT8,
    }[name]


def pin_precisions(library: Library, network: INetworkDefinition) -> None:
    """Make each computing layer run in its graph's dtype, where typing is weak.

    Layers that only move data have no precision of their own. Raises LddganError if nothing
    computes in fp16: the plan would be fp32 in all but name.
    """
    module: TensorRT = library.module
    computing = (
        module.LayerType.ACTIVATION,
        module.LayerType.CONVOLUTION,
        module.LayerType.DECONVOLUTION,
        module.LayerType.ELEMENTWISE,
        module.LayerType.MATRIX_MULTIPLY,
        module.LayerType.NORMALIZATION,
        module.LayerType.REDUCE,
        module.LayerType.SOFTMAX,
        module.LayerType.TOPK,
        module.LayerType.UNARY,
    )
    pinned = set()
    for index in range(network.num_layers):
        layer: ILayer = network.get_layer(index)
        output: ITensor = layer.get_output(0)
        if layer.type not in computing or output.is_shape_tensor:
            continue
        if output.dtype in (module.DataType.FLOAT, module.DataType.HALF):
            layer.precision = output.dtype
            layer.set_output_type(0, output.dtype)
            pinned.add(output.dtype)
    if module.DataType.HALF not in pinned:
        raise LddganError(f"{library} sees nothing in the graph that computes in fp16")


def configure(
    library: Library,
    builder: Builder,
    options: BuildOptions,
    flags: Flags,
    workspace: int | None,
) -> IBuilderConfig:
    """Set all of the builder's options but the profile and the timing cache."""
    module: TensorRT = library.module
    config: IBuilderConfig = builder.create_builder_config()
    config.clear_flag(module.BuilderFlag.TF32)  # fp32 means fp32
    for name in flags.builder:
        config.set_flag(getattr(module.BuilderFlag, name))
    if flags.tactics:
        config.set_tactic_sources(_mask(module.TacticSource, flags.tactics))
    config.builder_optimization_level = options.level
    config.max_aux_streams = 0  # one stream: the sampler is captured as one graph
    if workspace is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, workspace)
    return config


def add_profile(
    builder: Builder, config: IBuilderConfig, spec: GraphSpec, batches: Profile
) -> None:
    """Add one optimization profile: `batches` for every "B" of the graph's inputs."""
    profile: IOptimizationProfile = builder.create_optimization_profile()
    for tensor in spec.inputs:
        if BATCH in tensor.shape:
            shapes = [
                tuple(batch if size == BATCH else size for size in tensor.shape)
                for batch in (batches.min, batches.opt, batches.max)
            ]
            profile.set_shape(tensor.name, *shapes)
    config.add_optimization_profile(profile)


def use_timing_cache(config: IBuilderConfig, content: bytes | None) -> None:
    """Load the timing cache. One that does not fit is replaced by an empty one."""
    cache: ITimingCache = config.create_timing_cache(content or b"")
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def serialized_timing_cache(config: IBuilderConfig) -> bytes | None:
    cache: ITimingCache = config.get_timing_cache()
    return None if cache is None else bytes(cache.serialize())


def run(
    library: Library,
    logger: Logger,
    builder: Builder,
    network: INetworkDefinition,
    config: IBuilderConfig,
    progress: Progress,
) -> bytes:
    """Build the plan, which takes minutes. Raises LddganError, OutOfMemory or KeyboardInterrupt."""
    cancelled = threading.Event()
    if hasattr(config, "progress_monitor"):
        config.progress_monitor = make_monitor(library.module, progress, cancelled)
    forget(logger)  # a timing cache that was refused is no cause of a failed build
    with interrupt_sets(cancelled):
        plan = builder.build_serialized_network(network, config)
    if cancelled.is_set():
        raise KeyboardInterrupt
    if plan is None:
        raise library.error(logger, f"{library} could not build the plan")
    progress(DONE, DONE)
    return bytes(plan)
