"""Which TensorRT is here, and the names that differ between versions."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.backends.trt.library import Library, load, why_missing
from lddgan.errors import LddganError, OutOfMemory
from tests.engine.backends.trt.scripted import BOTH, Script, Severity


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a package on the path: package("tensorrt", "its source")."""

    def put(name: str, source: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(source)

    monkeypatch.syspath_prepend(tmp_path)
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield put
    for name in ("tensorrt", "tensorrt_rtx"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("version", ["8.6.1", "10.13.0.35", "10.16.1.11", "11.0.0", "11.4.0.106"])
def test_a_supported_version(package: Any, version: str) -> None:
    package("tensorrt", f"__version__ = {version!r}")
    assert why_missing("trt") is None
    assert str(load("trt")) == f"TensorRT {version}"


@pytest.mark.parametrize("version", ["8.5.3", "9.3.0", "10.12.0", "12.0.0", "7.2.1", "unknown"])
def test_a_version_that_is_not(package: Any, version: str) -> None:
    package("tensorrt", f"__version__ = {version!r}")
    assert why_missing("trt") == (
        f"tensorrt {version} is not supported (8.6, 10.13 to 10.x, or 11 is); pip install "
        '-e ".[gpu]" (its libraries come from NVIDIA\'s own package index, which must be '
        "reachable)"
    )


def test_tensorrt_rtx_is_a_library_of_its_own(package: Any) -> None:
    package("tensorrt_rtx", "__version__ = '1.7.1.3'")
    assert str(load("trt-rtx")) == "TensorRT-RTX 1.7.1.3"


def test_tensorrt_rtx_that_cannot_be_captured_is_not_supported(package: Any) -> None:
    package("tensorrt_rtx", "__version__ = '1.1.1.26'")
    assert why_missing("trt-rtx") == (
        "tensorrt_rtx 1.1.1.26 is not supported (1.2 to 1.x is); pip install tensorrt-rtx"
    )


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    trt, rtx = why_missing("trt"), why_missing("trt-rtx")
    assert trt is not None and trt.startswith('tensorrt is not installed; pip install -e ".[gpu]"')
    assert rtx == "tensorrt_rtx is not installed; pip install tensorrt-rtx"


@pytest.mark.parametrize(
    "failing",
    [
        "raise ImportError('libnvinfer.so.11: cannot open shared object file\\nno such file')",
        "import a_package_that_is_not_there",
        "raise FileNotFoundError('Could not find: nvinfer_11.dll')",
    ],
)
def test_installed_and_broken(package: Any, failing: str) -> None:
    package("tensorrt", failing)
    with pytest.raises(LddganError, match="tensorrt is installed but cannot be loaded") as failed:
        load("trt")
    assert "\n" not in str(failed.value)


class Context86:
    device_memory = 0


class Context10:
    def __init__(self) -> None:
        self.memory: tuple[int, int] | None = None

    def update_device_memory_size_for_shapes(self) -> int:
        return 77

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)


def engine(**attributes: Any) -> Any:
    return SimpleNamespace(**attributes)


def quiet(library: Library) -> Any:
    return library.logger()


def test_contexts_of_8_6_share_the_callers_memory(script: Script) -> None:
    library = Library("trt", SimpleNamespace(ILogger=script.library().module.ILogger), "8.6.1")
    context = Context86()
    made = engine(
        create_execution_context_without_device_memory=lambda: context, device_memory_size=55
    )
    assert library.create_context(made, quiet(library)) is context
    assert library.memory_needed(made, context) == 55
    library.set_memory(context, 4096, 55)
    assert context.device_memory == 4096


def test_contexts_of_10_and_11_share_the_callers_memory(script: Script) -> None:
    strategies = SimpleNamespace(USER_MANAGED="user managed")
    logger = script.library().module.ILogger
    module = SimpleNamespace(ExecutionContextAllocationStrategy=strategies, ILogger=logger)
    library = Library("trt", module, BOTH)
    context, asked = Context10(), []

    def create(strategy: str) -> Context10:
        asked.append(strategy)
        return context

    made = engine(create_execution_context=create, device_memory_size_v2=99)
    assert library.create_context(made, quiet(library)) is context
    assert asked == ["user managed"]
    assert library.memory_needed(made, context) == 77
    library.set_memory(context, 4096, 77)
    assert context.memory == (4096, 77)
    assert library.memory_needed(made, Context86()) == 99


class RtxConfig:
    """Stands for IRuntimeConfig."""

    dynamic_shapes_kernel_specialization_strategy = "in the background"
    allocation = "its own"

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.allocation = strategy


def test_rtx_compiles_kernels_before_a_capture(script: Script) -> None:
    module = SimpleNamespace(
        ILogger=script.library().module.ILogger,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="ours"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="at once"),
    )
    library = Library("trt-rtx", module, "1.7.1")
    made = engine(create_runtime_config=RtxConfig, create_execution_context=lambda config: config)
    context = library.create_context(made, quiet(library))
    assert context.dynamic_shapes_kernel_specialization_strategy == "at once"
    assert context.allocation == "ours"


def test_a_context_that_cannot_be_captured_is_refused(script: Script) -> None:
    library = script.library(name="trt-rtx")
    library.check_capturable(Context10(), 7)
    library.check_capturable(engine(is_stream_capturable=lambda stream: stream == 7), 7)
    with pytest.raises(LddganError, match=r"cannot run .* inside a CUDA graph; use --no-"):
        library.check_capturable(engine(is_stream_capturable=lambda stream: stream == 7), 8)


class Runtime:
    """Takes one plan."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def deserialize_cuda_engine(self, plan: bytes) -> str | None:
        if plan == b"good":
            return "an engine"
        self.logger.log(Severity.WARNING, "something else")
        self.logger.log(Severity.ERROR, f"Error Code 2: {plan.decode()}.\n")
        self.logger.log(Severity.ERROR, "a later error")
        return None


@pytest.mark.parametrize(
    ("plan", "kind"), [("magic tag mismatch", LddganError), ("OutOfMemory (no more)", OutOfMemory)]
)
def test_a_plan_that_is_refused(script: Script, plan: str, kind: type[LddganError]) -> None:
    module = SimpleNamespace(ILogger=script.library().module.ILogger, Runtime=Runtime)
    library = Library("trt", module, BOTH)
    assert library.deserialize(library.logger(), b"good") == "an engine"
    with pytest.raises(LddganError) as refused:
        library.deserialize(library.logger(), plan.encode())
    assert type(refused.value) is kind
    assert str(refused.value) == f"TensorRT {BOTH} does not take the plan: Error Code 2: {plan}"


def test_an_error_that_was_handled_is_not_the_next_ones(script: Script) -> None:
    module = SimpleNamespace(ILogger=script.library().module.ILogger, Runtime=Runtime)
    library = Library("trt", module, BOTH)
    logger = library.logger()
    with pytest.raises(OutOfMemory):
        library.deserialize(logger, b"OutOfMemory (no more)")
    later = library.error(logger, "no")
    assert type(later) is LddganError
    assert str(later) == "no: TensorRT does not say why"
    logger.errors.append("OutOfMemory, which TensorRT got over")
    with pytest.raises(LddganError, match=r"Error Code 2: magic tag mismatch$") as refused:
        library.deserialize(logger, b"magic tag mismatch")
    assert type(refused.value) is LddganError


def test_a_runtime_that_cannot_start(script: Script) -> None:
    def no_runtime(logger: Any) -> None:
        logger.log(Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    module = SimpleNamespace(ILogger=script.library().module.ILogger, Runtime=no_runtime)
    library = Library("trt", module, BOTH)
    with pytest.raises(LddganError, match=r"cannot start: CUDA initialization failure"):
        library.deserialize(library.logger(), b"good")


def test_another_type_error_is_not_hidden(script: Script) -> None:
    library = script.library()
    with pytest.raises(TypeError, match="an argument is missing"):
        library.create(library.logger(), "x", lambda: fail("an argument is missing"))


def fail(words: str) -> None:
    raise TypeError(words)


def test_a_silent_failure(script: Script) -> None:
    library = script.library()
    assert str(library.error(library.logger(), "no")) == "no: TensorRT does not say why"


def test_without_an_error_the_last_warning_is_passed_on(script: Script) -> None:
    library = script.library()
    logger: Any = library.logger()
    logger.log(Severity.WARNING, "Unable to determine GPU memory usage")
    logger.log(Severity.INFO, "[MemUsageChange] Init CUDA: CPU +0, GPU +0")
    logger.log(Severity.WARNING, "CUDA initialization failure with error: 35. Please check")
    error = library.error(logger, "no")
    assert str(error) == "no: CUDA initialization failure with error: 35. Please check"


def test_a_long_message_is_cut(script: Script) -> None:
    library = script.library()
    logger = library.logger()
    logger.errors.append("x" * 5000)
    assert len(str(library.error(logger, "no"))) == 4 + 400 + 3
