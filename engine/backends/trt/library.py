"""TensorRT: which one is installed, and what its versions call by different names.

8.6, 10 and 11 differ in names more than in meaning.  What differs is asked of the module at hand by
`hasattr`; a version number is compared only to refuse a release that is not supported at all.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final, Literal, Protocol

from engine.requirements import import_library, one_line
from lddgan.errors import LddganError, OutOfMemory

LibraryName = Literal["trt", "trt-rtx"]

# TensorRT's own classes, which type checkers do not know.  An annotation with one of these names
# says what a variable is; a test (test_api_names.py) looks up every name used on it in the real
# bindings.
Builder = Any
IBuilderConfig = Any
ICudaEngine = Any
IExecutionContext = Any
ILayer = Any
INetworkDefinition = Any
IOptimizationProfile = Any
IRuntimeConfig = Any
ITensor = Any
ITimingCache = Any
OnnxParser = Any
ParserError = Any
Runtime = Any
TensorRT = Any  # the module

PACKAGES: Final[dict[LibraryName, str]] = {"trt": "tensorrt", "trt-rtx": "tensorrt_rtx"}
INSTALL: Final[dict[LibraryName, str]] = {
    "trt": 'pip install -e ".[gpu]" (its libraries come from NVIDIA\'s own package index, which '
    "must be reachable)",
    "trt-rtx": "pip install tensorrt-rtx",
}
SUPPORTED: Final[dict[LibraryName, tuple[tuple[tuple[int, int], tuple[int, int]], ...]]] = {
    # from the first version to before the second; strong typing is complete in 10.13, and RTX
    # engines can be captured since 1.2
    "trt": (((8, 6), (9, 0)), ((10, 13), (12, 0))),
    "trt-rtx": (((1, 2), (2, 0)),),
}
SUPPORTED_IN_WORDS: Final[dict[LibraryName, str]] = {
    "trt": "8.6, 10.13 to 10.x, or 11",
    "trt-rtx": "1.2 to 1.x",
}
KEPT_WARNINGS = 8


class Logger(Protocol):
    """TensorRT's ILogger, as `Library.logger` makes it: it prints nothing and remembers."""

    errors: list[str]
    warnings: deque[str]  # the latest


@dataclass(frozen=True)
class Library:
    """An imported TensorRT, and what its versions do by different names."""

    name: LibraryName
    module: TensorRT
    version: str

    def __str__(self) -> str:
        return f"{'TensorRT' if self.name == 'trt' else 'TensorRT-RTX'} {self.version}"

    def logger(self) -> Logger:
        """Make a logger for TensorRT. `error` reports what it remembers."""
        return _make_logger(self.module)

    def error(self, logger: Logger, what: str) -> LddganError:
        """Make the error for a call that returned nothing: `what`, and the first logged error.

        Takes the last warning if no error was logged, and returns OutOfMemory if memory was short.
        Clears the log.
        """
        told = logger.errors[:1] or list(logger.warnings)[-1:]  # 8.6 warns that it cannot start
        cause = one_line(told[0]) if told else "TensorRT does not say why"
        kind = OutOfMemory if any(map(_says_out_of_memory, logger.errors)) else LddganError
        forget(logger)
        return kind(f"{what}: {cause}")

    def create(self, logger: Logger, what: str, make: Callable[[], Any]) -> Any:
        """Call `make`. Raises `error` if TensorRT returns nothing."""
        forget(logger)
        try:
            made = make()
        except TypeError as error:  # what pybind11 makes of a constructor's null pointer
            if "nullptr" not in str(error):
                raise
            raise self.error(logger, what) from error
        if made is None:
            raise self.error(logger, what)
        return made

    def deserialize(self, logger: Logger, plan: bytes) -> ICudaEngine:
        """Load a plan onto the current device.

        Call it only where there is a GPU, and with a plan that was checked: without a driver, or
        for foreign bytes, TensorRT can crash the process. Raises LddganError or OutOfMemory.
        """
        module: TensorRT = self.module
        runtime: Runtime = self.create(
            logger, f"{self} cannot start", lambda: module.Runtime(logger)
        )
        return self.create(
            logger, f"{self} does not take the plan", lambda: runtime.deserialize_cuda_engine(plan)
        )

    def create_context(self, engine: ICudaEngine, logger: Logger) -> IExecutionContext:
        """Make an execution context without memory of its own; `set_memory` gives it some.

        TensorRT-RTX compiles kernels for each shape as it runs, by default in the background. Here
        it waits for them, because a CUDA graph keeps the kernels that it was captured with. This
        and `check_capturable` follow its documentation and have not run on a GPU.
        """
        module: TensorRT = self.module

        def make() -> IExecutionContext:
            if hasattr(module, "DynamicShapesKernelSpecializationStrategy"):
                config: IRuntimeConfig = engine.create_runtime_config()
                config.set_execution_context_allocation_strategy(
                    module.ExecutionContextAllocationStrategy.USER_MANAGED
                )
                config.dynamic_shapes_kernel_specialization_strategy = (
                    module.DynamicShapesKernelSpecializationStrategy.EAGER
                )
                return engine.create_execution_context(config)
            if hasattr(module, "ExecutionContextAllocationStrategy"):
                managed = module.ExecutionContextAllocationStrategy.USER_MANAGED
                return engine.create_execution_context(managed)
            return engine.create_execution_context_without_device_memory()

        return self.create(logger, f"{self} cannot make an execution context", make)

    def check_capturable(self, context: IExecutionContext, stream: int) -> None:
        """Raise LddganError if TensorRT-RTX cannot capture `context` on `stream`."""
        if not hasattr(context, "is_stream_capturable"):
            return
        if not context.is_stream_capturable(stream):
            raise LddganError(
                f"{self} cannot run this engine inside a CUDA graph; use --no-cuda-graph"
            )

    def memory_needed(self, engine: ICudaEngine, context: IExecutionContext) -> int:
        """Bytes that `context` needs for its input shapes; in 8.6, for any shape."""
        if hasattr(context, "update_device_memory_size_for_shapes"):
            return int(context.update_device_memory_size_for_shapes())
        if hasattr(engine, "device_memory_size_v2"):
            return int(engine.device_memory_size_v2)
        return int(engine.device_memory_size)

    def set_memory(self, context: IExecutionContext, address: int, size: int) -> None:
        """Give `context` `size` bytes of device memory, which must outlive its last launch."""
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(address, size)
        else:
            context.device_memory = address


def load(name: LibraryName) -> Library:
    """Import a TensorRT. Starts nothing on a GPU.

    Raises LddganError, with the line that mends it, if it is not installed, cannot be loaded, or
    has a version that is not supported.
    """
    package = PACKAGES[name]
    if find_spec(package) is None:
        raise LddganError(f"{package} is not installed; {INSTALL[name]}")
    module = import_library(package, INSTALL[name])
    if not is_supported(name, module.__version__):
        raise LddganError(
            f"{package} {module.__version__} is not supported ({SUPPORTED_IN_WORDS[name]} is); "
            f"{INSTALL[name]}"
        )
    return Library(name, module, module.__version__)


def why_missing(name: LibraryName) -> str | None:
    """Why `load` fails here, in one sentence. Returns None if it works."""
    try:
        load(name)
    except LddganError as error:
        return str(error)
    return None


def is_supported(name: LibraryName, version: str) -> bool:
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        return False
    number = (int(found[1]), int(found[2]))
    return any(first <= number < end for first, end in SUPPORTED[name])


def forget(logger: Logger) -> None:
    """Clear the log, so that the next failure is not blamed on this one."""
    logger.errors.clear()
    logger.warnings.clear()


def _make_logger(library: TensorRT) -> Any:
    module: TensorRT = library
    severity = module.ILogger.Severity

    class Remembering(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: deque[str] = deque(maxlen=KEPT_WARNINGS)

        def log(self, level: Any, text: str) -> None:
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                self.errors.append(text)
            elif level == severity.WARNING:
                self.warnings.append(text)

    return Remembering()


def _says_out_of_memory(text: str) -> bool:
    squeezed = re.sub(r"[\s_]", "", text).lower()
    return any(words in squeezed for words in ("outofmemory", "memallocfailed", "failedallocation"))
