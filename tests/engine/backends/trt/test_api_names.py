"""Every name of TensorRT that the code uses exists in the version where it is used."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.engine.backends.trt import api_names
from tests.engine.backends.trt import setup_cpu_builder as fixture
from tests.engine.backends.trt.conftest import python_with

ROOT = Path(__file__).resolve().parents[4]
CODE = sorted((ROOT / "engine" / "backends" / "trt").glob("*.py"))

# What is used in one version and not in another: the derivation must find these.
ONLY = {
    "8.6.1": {
        "ICudaEngine.create_execution_context_without_device_memory",
        "IExecutionContext.device_memory",
        "ICudaEngine.device_memory_size",
        "ILayer.precision",
        "ILayer.set_output_type",
    },
    "10.16.1.11": {
        "IBuilderConfig.progress_monitor",
        "ICudaEngine.create_execution_context",
        "IExecutionContext.update_device_memory_size_for_shapes",
        "TensorRT.IProgressMonitor.step_complete",
    },
    "11.4.0.106": {
        "IBuilderConfig.progress_monitor",
        "IExecutionContext.set_device_memory",
        "ParserError.node_operator",
        "TensorRT.ExecutionContextAllocationStrategy.USER_MANAGED",
    },
    "1.7.1.116": {  # TensorRT-RTX
        "ICudaEngine.create_runtime_config",
        "IExecutionContext.is_stream_capturable",
        "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
        "TensorRT.DynamicShapesKernelSpecializationStrategy.EAGER",
    },
}
FLAGS = {"8.6.1": ["FP16", "OBEY_PRECISION_CONSTRAINTS"], "1.7.1.116": ["REQUIRE_USER_ALLOCATION"]}
EVERYWHERE = {
    "Builder.build_serialized_network",
    "INetworkDefinition.num_inputs",
    "OnnxParser.parse_from_file",
    "Runtime.deserialize_cuda_engine",
    "IExecutionContext.execute_async_v3",
    "IExecutionContext.set_tensor_address",
    "TensorRT.BuilderFlag.TF32",
    "TensorRT.ILogger.log",
}


@pytest.mark.full
@pytest.mark.parametrize("version", ONLY)
def test_every_name_exists(installed: Path, version: str) -> None:
    if version not in fixture.versions():
        pytest.skip(f"there are no bindings of {version} for this Python")
    done = python_with(installed / "bindings" / version)(api_names.__file__, *CODE)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["version"] == version
    assert found["missing"] == [] and found["unknown"] == []
    used = set(found["used"])
    assert used >= EVERYWHERE | ONLY[version]
    later = "TensorRT.ExecutionContextAllocationStrategy"
    assert (later in used) == (version != "8.6.1")
    assert found["flags"] == FLAGS.get(version, [])


def names(source: str, **module: Any) -> api_names.Names:
    return api_names.Names(SimpleNamespace(**module), [source])


class Engine:
    """Stands for a class of the bindings."""

    new = True


def test_a_name_that_is_not_there_is_found() -> None:
    found = names("def f(engine: ICudaEngine):\n    return engine.gone\n", ICudaEngine=Engine)
    assert found.missing == {"ICudaEngine.gone"}


BRANCHES = """
def f(engine: ICudaEngine):
    if hasattr(engine, "{asked}"):
        return engine.{inside}
    return engine.{after}
"""


@pytest.mark.parametrize(
    ("asked", "inside", "after", "missing"),
    [
        ("new", "new", "old", set()),
        ("new", "old", "new", {"ICudaEngine.old"}),
        ("old", "old", "new", set()),
        ("old", "new", "old", {"ICudaEngine.old"}),
    ],
)
def test_only_the_branch_that_is_taken_counts(
    asked: str, inside: str, after: str, missing: set[str]
) -> None:
    source = BRANCHES.format(asked=asked, inside=inside, after=after)
    assert names(source, ICudaEngine=Engine).missing == missing


CALLED = """
def start(engine: ICudaEngine):
    if hasattr(engine, "{asked}"):
        helper(engine)

def helper(engine: ICudaEngine):
    return engine.gone
"""


@pytest.mark.parametrize(("asked", "missing"), [("new", {"ICudaEngine.gone"}), ("old", set())])
def test_a_function_counts_if_it_is_called_in_that_branch(asked: str, missing: set[str]) -> None:
    assert names(CALLED.format(asked=asked), ICudaEngine=Engine).missing == missing


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("def f(module: TensorRT):\n    return module.BuilderFlag.FP16", {"FP16"}),
        ("def f(module: TensorRT):\n    return module.BuilderFlag.TF32", set()),
        ("class A:\n  def f(self):\n    self.e: ICudaEngine = 1\n    self.e.gone", {"gone"}),
        (
            "def f(module: TensorRT):\n  class L(module.ICudaEngine):\n    def gone(self): ...",
            {"gone"},
        ),
    ],
)
def test_what_counts_as_a_use(source: str, missing: set[str]) -> None:
    flags = SimpleNamespace(TF32=0)
    found = names(source, ICudaEngine=Engine, BuilderFlag=flags).missing
    assert {name.rpartition(".")[2] for name in found} == missing


@pytest.mark.parametrize("use", ["engine.new().gone", "x = engine.new()\n    x.gone"])
def test_what_is_not_annotated_is_unknown(use: str) -> None:
    found = names(f"def f(engine: ICudaEngine):\n    {use}\n", ICudaEngine=Engine)
    assert len(found.unknown) == 1
