"""The builder's settings, its refusals and Ctrl-C, with a scripted TensorRT."""

from __future__ import annotations

import os
import signal
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from engine.backends.trt.build import (
    DEFAULT_PROFILE,
    BuildOptions,
    Built,
    Profile,
    build_graph,
    flags_for,
)
from engine.backends.trt.progress import Phases
from export.bundle import Bundle
from lddgan.errors import BadInput, LddganError, OutOfMemory
from tests.engine.backends.trt.scripted import (
    BOTH,
    STRONG,
    VERSIONS,
    WEAK,
    DataType,
    Layer,
    LayerType,
    Script,
    expected_plan,
    flags,
)

OPTIONS = BuildOptions(precision="fp16", profile=Profile(min=1, opt=4, max=9))
SHAPES = {  # of the digits' generator at batch 1, 4 and 9
    "x": ((1, 4, 8, 8), (4, 4, 8, 8), (9, 4, 8, 8)),
    "z": ((1, 50), (4, 50), (9, 50)),
    "noise": ((1, 4, 8, 8), (4, 4, 8, 8), (9, 4, 8, 8)),
}


def build(script: Script, bundle: Bundle, version: str = BOTH, **given: Any) -> Built:
    path = bundle.graph("generator", "fp16")
    how = {"timing_cache": None, "workspace": None, "progress": lambda done, total: None}
    return build_graph(
        script.library(version), path, script.specs["generator"], OPTIONS, **{**how, **given}
    )


def config_of(script: Script) -> Any:
    return next(call[1] for call in script.calls if call[0] == "config")


def test_the_plan_is_of_this_graph_and_profile(script: Script, bundle: Bundle) -> None:
    built = build(script, bundle)
    assert built.plan == expected_plan(bundle.graph("generator", "fp16"), SHAPES)
    assert built.timing_cache == b"generator"
    assert built.seconds > 0


# Bits in the order of the scripted enumerations, worked out by hand.
@pytest.mark.parametrize(
    ("version", "network", "flags", "tactics"),
    [
        (WEAK, 0b1, {"TF32": False, "FP16": True, "OBEY_PRECISION_CONSTRAINTS": True}, 0b11000),
        (BOTH, 0b11, {"TF32": False}, 0b11000),
        (STRONG, 0b1, {"TF32": False}, None),
    ],
)
def test_settings(
    script: Script,
    bundle: Bundle,
    version: str,
    network: int,
    flags: dict[str, bool],
    tactics: int | None,
) -> None:
    build(script, bundle, version, workspace=1 << 30)
    config = config_of(script)
    assert ("create_network", network) in script.calls
    assert config.set == flags
    assert [call[1] for call in script.calls if call[0] == "tactics"] == (
        [] if tactics is None else [tactics]
    )
    assert (config.builder_optimization_level, config.max_aux_streams) == (3, 0)
    assert ("limit", "WORKSPACE", 1 << 30) in script.calls
    assert ("parser flag", "NATIVE_INSTANCENORM") in script.calls


def test_fp32_asks_for_no_half(script: Script) -> None:
    assert flags_for(script.library(WEAK), "fp32").builder == ()


def test_no_workspace_limit_unless_asked(script: Script, bundle: Bundle) -> None:
    build(script, bundle)
    assert [call for call in script.calls if call[0] == "limit"] == []


def test_tensorrt_rtx_is_told_that_memory_is_ours(script: Script) -> None:
    library = script.library(STRONG, "trt-rtx")
    library.module.BuilderFlag = flags("TF32 REQUIRE_USER_ALLOCATION")
    assert flags_for(library, "fp16").builder == ("REQUIRE_USER_ALLOCATION",)
    assert flags_for(script.library(STRONG), "fp16").builder == ()


def test_weakly_typed_layers_keep_the_dtype_of_the_graph(script: Script, bundle: Bundle) -> None:
    half, single, integer = DataType.HALF, DataType.FLOAT, DataType.INT32
    script.layers = [
        Layer(LayerType.CONVOLUTION, half),
        Layer(LayerType.NORMALIZATION, single),
        Layer(LayerType.TOPK, single, integer),
        Layer(LayerType.CAST, half),
        Layer(LayerType.CONSTANT, single),
        Layer(LayerType.SHAPE, integer),
        Layer(LayerType.SHUFFLE, single),
        Layer(LayerType.CONCATENATION, half),
        Layer(LayerType.ELEMENTWISE, integer),
        Layer(LayerType.ELEMENTWISE, single, shape_tensor=True),
    ]
    build(script, bundle, WEAK)
    assert [(layer.precision, layer.output_types) for layer in script.layers] == [
        (half, {0: half}),
        (single, {0: single}),
        (single, {0: single}),
        *[(None, {})] * 7,
    ]


def test_fp16_that_no_layer_computes_in_is_refused(script: Script, bundle: Bundle) -> None:
    script.layers = [
        Layer(LayerType.CONVOLUTION, DataType.FLOAT),
        Layer(LayerType.CAST, DataType.HALF),
    ]
    with pytest.raises(LddganError, match=r"TensorRT 8\.6\.1 sees nothing .* computes in fp16"):
        build(script, bundle, WEAK)
    assert script.builds == []


@pytest.mark.parametrize("version", [BOTH, STRONG])
def test_where_types_are_strong_no_layer_is_touched(
    script: Script, bundle: Bundle, version: str
) -> None:
    script.layers = [Layer(LayerType.CONVOLUTION, DataType.HALF)]
    build(script, bundle, version)
    assert script.layers[0].precision is None


def parser_error(node: int, **names: str) -> Any:
    return SimpleNamespace(
        node=lambda: node,
        desc=lambda: "Assertion failed: no such\n thing.",
        **{name: lambda value=value: value for name, value in names.items()},
    )


def test_a_refused_node_is_named(script: Script, bundle: Bundle) -> None:
    script.parser_error = parser_error(7, node_name="node_Conv_7", node_operator="Conv")
    with pytest.raises(BadInput) as refused:
        build(script, bundle)
    path = bundle.folder / "generator.fp16.onnx"
    assert str(refused.value) == (
        f"TensorRT {BOTH} does not take {path}: node node_Conv_7 (Conv): "
        "Assertion failed: no such thing"
    )


def test_8_6_knows_the_number_of_a_refused_node_only(script: Script, bundle: Bundle) -> None:
    script.parser_error = parser_error(7)
    with pytest.raises(BadInput, match=r"node 7: Assertion failed: no such thing$"):
        build(script, bundle, WEAK)


def test_a_file_that_is_no_graph(script: Script, bundle: Bundle) -> None:
    script.parser_error = parser_error(-1)
    with pytest.raises(BadInput, match=r"generator.fp16.onnx: Assertion failed: no such thing$"):
        build(script, bundle)


def test_a_graph_with_other_tensors(script: Script, bundle: Bundle) -> None:
    library, path = script.library(), bundle.graph("generator", "fp16")
    with pytest.raises(BadInput, match="its manifest says") as refused:
        build_graph(
            library,
            path,
            script.specs["decoder"],
            OPTIONS,
            timing_cache=None,
            workspace=None,
            progress=lambda done, total: None,
        )
    assert "'x_0'" in str(refused.value) and "'noise'" in str(refused.value)
    assert script.builds == []


@pytest.mark.parametrize(
    ("logged", "kind"),
    [
        ("Error Code 9: no kernel for node_Conv_7.", LddganError),
        ("Error Code 2: OutOfMemory (Requested size was 1181026094 bytes.)", OutOfMemory),
        ("Cuda Runtime (out of memory)", OutOfMemory),
    ],
)
def test_a_failed_build_passes_on_the_builders_words(
    script: Script, bundle: Bundle, logged: str, kind: type[LddganError]
) -> None:
    script.failures["generator"] = logged
    with pytest.raises(LddganError) as failed:
        build(script, bundle)
    assert type(failed.value) is kind
    assert str(failed.value) == f"TensorRT {BOTH} could not build the plan: {logged.rstrip('.')}"


def test_a_builder_that_cannot_start(script: Script, bundle: Bundle) -> None:
    script.builder_missing = True
    with pytest.raises(LddganError, match=r"cannot start: CUDA initialization failure with error"):
        build(script, bundle)


def test_the_timing_cache_goes_on(script: Script, bundle: Bundle) -> None:
    assert build(script, bundle, timing_cache=b"older ").timing_cache == b"older generator"


def test_a_timing_cache_that_does_not_fit_starts_empty(script: Script, bundle: Bundle) -> None:
    script.old_timing_cache_fits = False
    assert build(script, bundle, timing_cache=b"older ").timing_cache == b"generator"


def test_tensorrt_rtx_is_given_no_timing_cache(script: Script, bundle: Bundle) -> None:
    """Its release notes: with one it looks for a GPU, and the plan is the same without."""
    library, path = script.library(STRONG, "trt-rtx"), bundle.graph("generator", "fp16")
    built = build_graph(
        library,
        path,
        script.specs["generator"],
        OPTIONS,
        timing_cache=None,
        workspace=None,
        progress=lambda done, total: None,
    )
    assert built.plan == expected_plan(path, SHAPES)
    assert built.timing_cache is None
    assert [call for call in script.calls if call[0] == "timing cache"] == []


def test_progress_is_reported_to_the_end(script: Script, bundle: Bundle) -> None:
    heard: list[tuple[int, int]] = []
    build(script, bundle, progress=lambda done, total: heard.append((done, total)))
    assert heard == [(0, 100), (25, 100), (50, 100), (75, 100), (99, 100), (100, 100)]


@pytest.mark.parametrize("version", VERSIONS)
def test_ctrl_c_comes_out_and_the_handler_is_put_back(
    script: Script, bundle: Bundle, version: str
) -> None:
    before = signal.getsignal(signal.SIGINT)
    heard: deque[int] = deque()
    script.during = lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build(script, bundle, version, progress=lambda done, total: heard.append(done))
    assert signal.getsignal(signal.SIGINT) is before
    assert 100 not in heard


def test_nested_phases_never_go_back() -> None:
    heard: list[int] = []
    phases = Phases(lambda done, total: heard.append(done))
    phases.start("outer", None, 2)
    phases.start("inner", "outer", 4)
    for step in range(4):
        phases.step("inner", step)
    phases.finish("inner")
    phases.step("outer", 0)
    phases.start("inner", "outer", 2)
    phases.step("inner", 0)
    phases.step("inner", 1)
    phases.finish("inner")
    phases.step("outer", 1)
    phases.finish("outer")
    assert heard == [0, 12, 25, 37, 50, 75, 99]


@pytest.mark.parametrize("text", ["1,16,100", "1,1,1", "7,7,127"])
def test_a_profile_reads_what_it_prints(text: str) -> None:
    assert str(Profile.parse(text, 127)) == text


@pytest.mark.parametrize(
    "text", ["", "1,2", "1,2,3,4", "0,1,2", "1,2,128", "2,1,3", "a,b,c", "1,5,4"]
)
def test_a_profile_that_cannot_be(text: str) -> None:
    with pytest.raises(BadInput, match="is not MIN,OPT,MAX with 1 <= MIN <= OPT <= MAX <= 127"):
        Profile.parse(text, 127)


def test_a_profile_beyond_the_largest_batch_of_a_model() -> None:
    assert str(Profile.parse("1,16,63", 63)) == "1,16,63"
    with pytest.raises(BadInput, match=r"'1,16,64' is not MIN,OPT,MAX .* <= MAX <= 63$"):
        Profile.parse("1,16,64", 63)
    cut = [str(DEFAULT_PROFILE.within(most)) for most in (127, 100, 63, 5)]
    assert cut == ["1,16,100", "1,16,100", "1,16,63", "1,5,5"]


def test_the_defaults_of_build() -> None:
    options = BuildOptions.checked(level=None, precision="fp16")
    assert (str(options.profile), options.level) == ("1,16,100", 3)


@pytest.mark.parametrize("given", [{"level": 6}, {"level": -1}, {"precision": "int8"}])
def test_options_that_cannot_be(given: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match=next(iter(given))):
        BuildOptions.checked(**({"precision": "fp16"} | given))
