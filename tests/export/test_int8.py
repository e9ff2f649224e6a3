"""The 8-bit graphs: what is quantised, how close it stays, where it runs, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.registry import choose, open_engine
from engine.verification import why_failed
from engine.verify import verify_bundle
from export import exporter
from export.agreement import INT8_PSNR, limits_of, passed_limit
from export.bundle import graph_file, open_bundle
from export.exporter import export_bundle
from export.graphs import precisions_of
from export.int8 import (
    IMAGES,
    calibration_inputs,
    quantise_graphs,
    rows_of_bytes,
    share_range,
    wide_convolutions,
)
from export.rewrites import TAKES
from export.verify import batches_of, onnx_runner, torch_runner
from lddgan.checkpoint import Model
from lddgan.errors import BadInput, LddganError
from lddgan.names import FLOATS, PRECISIONS, Precision
from lddgan.presets import get_preset
from tests.export.test_verify import GOOD
from tests.small import PRESETS as SMALL
from tests.small import small_model

GRAPHS = ("generator", "decoder")
ACCEPTED = 20.0  # dB


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, tiny_model: Model, tiny_bundle: Path) -> Path:
    """The tiny KL model in int8; its fp32 graphs are those of the bundle that is there."""
    folder = tmp_path_factory.mktemp("int8") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "export_graphs", copying_from(tiny_bundle))
        export_bundle(tiny_model, folder, ("int8",), accept_psnr=ACCEPTED)
    return folder


def copying_from(exported: Path) -> Callable[[Model, Path, Precision, object], dict[str, float]]:
    """`export_graphs` without the exporter, which takes most of the time."""

    def export_graphs(_: Model, folder: Path, precision: Precision, __: object) -> dict[str, float]:
        for which in GRAPHS:
            name = graph_file(which, precision)
            shutil.copyfile(exported / name, folder / name)
        return {}

    return export_graphs


def kernels_of(path: Path) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Type and shape of every convolution's kernel, as the file holds it, by the node's name."""
    graph = onnx.load(path).graph
    makes = {name: node for node in graph.node for name in node.output}
    held = {weight.name: weight for weight in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type == "Conv":
            name = node.input[1] if node.input[1] in held else makes[node.input[1]].input[0]
            found[node.name] = (held[name].data_type, tuple(held[name].dims))
    return found


@pytest.mark.parametrize("which", GRAPHS)
def test_inner_convolutions_are_bytes_and_the_rest_is_not(bundle: Path, which: str) -> None:
    kernels = kernels_of(bundle / f"{which}.int8.onnx")
    first, *_, last = kernels.values()
    assert first[0] == last[0] == TensorProto.FLOAT
    assert {data_type for data_type, _ in kernels.values()} == {TensorProto.INT8, TensorProto.FLOAT}
    for data_type, (outputs, inputs, height, width) in kernels.values():
        wide = min(outputs, inputs) >= 16 and height * width > 1
        assert (data_type == TensorProto.INT8) == wide
    graph = onnx.load(bundle / f"{which}.int8.onnx").graph
    makes = {name: node for node in graph.node for name in node.output}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm", "Softmax")]
    assert products, "attention"
    fed_by = {makes[name].op_type for node in products for name in node.input if name in makes}
    assert "DequantizeLinear" not in fed_by


def test_weights_have_a_scale_for_each_output_channel(bundle: Path) -> None:
    graph = onnx.load(bundle / "decoder.int8.onnx").graph
    held = {weight.name: weight for weight in graph.initializer}
    scales = [
        (held[node.input[0]].dims[0], held[node.input[1]].dims)
        for node in graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in held
        and held[node.input[0]].data_type == TensorProto.INT8
    ]
    assert scales
    assert all(list(dims) == [channels] for channels, dims in scales)


def test_phases_of_upsampling_are_interleaved_as_bytes(bundle: Path) -> None:
    kinds = [node.op_type for node in onnx.load(bundle / "decoder.int8.onnx").graph.node]
    assert "DepthToSpace" not in kinds
    assert kinds.count("Concat") >= 6  # two upsamplings


def test_rows_of_bytes_are_depth_to_space() -> None:
    phases = [
        helper.make_node("DequantizeLinear", [f"q{k}", "scale", "zero"], [f"x{k}"])
        for k in range(4)
    ]
    spaces = {f"q{k}": (2, 5, 3, 4) for k in range(4)}
    graph = helper.make_graph(
        rows_of_bytes(phases, 5, "image"),
        "rows",
        [helper.make_tensor_value_info(n, TensorProto.UINT8, s) for n, s in spaces.items()],
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (2, 5, 6, 8))],
        [
            numpy_helper.from_array(np.float32(0.5), "scale"),
            numpy_helper.from_array(np.uint8(3), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    generator = np.random.default_rng(0)
    given = {name: generator.integers(0, 256, s).astype(np.uint8) for name, s in spaces.items()}
    expected = np.empty((2, 5, 6, 8), np.float32)
    for k, part in enumerate(given.values()):
        expected[:, :, k // 2 :: 2, k % 2 :: 2] = (part.astype(np.float32) - 3) * 0.5
    np.testing.assert_array_equal(session.run(None, given)[0], expected)


def test_the_shared_range_holds_both() -> None:
    scales = [numpy_helper.from_array(np.float32(s), f"s{s}") for s in (0.1, 0.2)]
    zeros = [numpy_helper.from_array(np.uint8(z), f"z{z}") for z in (200, 10)]
    share_range(scales, zeros)  # [-20, 5.5] and [-2, 49]
    step, zero = numpy_helper.to_array(scales[0]), numpy_helper.to_array(zeros[0])
    assert step == pytest.approx(69 / 255) and zero == round(20 / (69 / 255))
    assert step == numpy_helper.to_array(scales[1]) and zero == numpy_helper.to_array(zeros[1])
    assert (step.dtype, zero.dtype) == (np.float32, np.uint8)


def test_the_generator_of_a_vq_model_stays_fp32(
    tiny_vq_model: Model, tiny_vq_bundle: Path, tmp_path: Path
) -> None:
    runner = onnx_runner(tiny_vq_bundle, "fp32")
    quantise_graphs(tiny_vq_model.preset, runner, tiny_vq_bundle, tmp_path)
    copy = (tmp_path / "generator.int8.onnx").read_bytes()
    assert copy == (tiny_vq_bundle / "generator.fp32.onnx").read_bytes()
    kinds = {data_type for data_type, _ in kernels_of(tmp_path / "decoder.int8.onnx").values()}
    assert TensorProto.INT8 in kinds


def test_calibration_is_made_of_the_chain(tiny_model: Model) -> None:
    preset = tiny_model.preset
    feeds = calibration_inputs(preset, torch_runner(tiny_model))
    assert len(feeds["decoder"]) == IMAGES
    assert [feed["t"].item() for feed in feeds["generator"][: preset.steps]] == [2, 1, 0]
    x, t, z, noise = feeds["generator"][0].values()
    first = torch_runner(tiny_model).step(x, t.item(), z, noise)
    np.testing.assert_array_equal(feeds["generator"][1]["x"], first)


def test_a_graph_keeps_narrow_convolutions(tiny_bundle: Path) -> None:
    graph = onnx.load(tiny_bundle / "decoder.fp32.onnx").graph
    wide = wide_convolutions(graph)
    convolutions = [node.name for node in graph.node if node.op_type == "Conv"]
    assert wide and set(wide) < set(convolutions)
    assert convolutions[0] not in wide and convolutions[-1] not in wide


def test_images_stay_close_to_pytorch(bundle: Path) -> None:
    found = open_bundle(bundle).manifest.verification["int8"]
    assert found.chain_psnr >= INT8_PSNR
    assert found.decoder_psnr >= 35
    assert not np.isinf(found.chain_psnr), "nothing was quantised"
    assert open_bundle(bundle).manifest.rewrites["int8"] == TAKES["int8"]


def test_the_same_graphs_give_the_same_bytes(
    bundle: Path, tiny_bundle: Path, tiny_model: Model, tmp_path: Path
) -> None:
    runner = onnx_runner(tiny_bundle, "fp32")
    quantise_graphs(tiny_model.preset, runner, tiny_bundle, tmp_path)
    for name in ("generator.int8.onnx", "decoder.int8.onnx"):
        assert (tmp_path / name).read_bytes() == (bundle / name).read_bytes()


# ---- refusals ----


def test_less_than_32_db_is_refused_unless_accepted() -> None:
    poor = GOOD.model_copy(update={"chain_psnr": 31.9, "generator_error": 0.5, "chain_levels": 90})
    assert INT8_PSNR == 32
    assert passed_limit(limits_of(poor, "int8")) == "image PSNR in dB is 31.9, the limit is 32"
    told = poor.model_copy(update={"int8_accepted_psnr": 31.9})
    assert passed_limit(limits_of(told, "int8")) is None
    more = told.model_copy(update={"int8_accepted_psnr": 32.5})
    assert passed_limit(limits_of(more, "int8")) == "image PSNR in dB is 31.9, the limit is 32.5"
    assert passed_limit(limits_of(GOOD.model_copy(update={"chain_psnr": float("nan")}), "int8"))


def test_flipped_codes_are_recorded_and_not_limited() -> None:
    flipped = GOOD.model_copy(update={"code_flips": 0.5, "chain_psnr": 10.0, "decoder_psnr": 32.0})
    assert passed_limit(limits_of(flipped, "int8")) is None
    worse = flipped.model_copy(update={"decoder_psnr": 31.0})
    assert passed_limit(limits_of(worse, "int8")) == "image PSNR in dB is 31, the limit is 32"


def test_int8_keeps_a_spoilt_generator_in_fp32_and_says_so(
    bundle: Path,
    tiny_bundle: Path,
    tiny_model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exporter, "export_graphs", copying_from(tiny_bundle))
    both = open_bundle(bundle).manifest.verification["int8"]
    assert both.int8_both_psnr is None and both.why_fp32 is None
    asked = (both.chain_psnr + both.decoder_psnr) / 2
    lines: list[str] = []
    folder = tmp_path / "tiny"
    export_bundle(tiny_model, folder, ("int8",), accept_psnr=asked, log=lines.append)
    generator, decoder = ((folder / f"{name}.int8.onnx").read_bytes() for name in GRAPHS)
    assert generator == (tiny_bundle / "generator.fp32.onnx").read_bytes()
    assert decoder == (bundle / "decoder.int8.onnx").read_bytes()
    found = open_bundle(folder).manifest.verification["int8"]
    assert found.int8_accepted_psnr == asked
    assert found.int8_both_psnr == both.chain_psnr < asked < found.chain_psnr
    assert found.chain_psnr == pytest.approx(found.decoder_psnr, abs=0.2)
    assert lines[-1] == (
        "int8: the generator stays in fp32: with both graphs in 8 bits, images had "
        f"{both.chain_psnr:.1f} dB, now {found.chain_psnr:.1f} dB"
    )
    assert found.why_fp32 in lines[-1] and found.summary().endswith(found.why_fp32)


def test_a_refused_export_publishes_nothing(
    tiny_bundle: Path, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "export_graphs", copying_from(tiny_bundle))
    with pytest.raises(LddganError, match=r"int8 .* the limit is 90; .*--accept-psnr"):
        export_bundle(tiny_model, tmp_path / "b", ("int8",), accept_psnr=90.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("engine", "device"),
    [(name, "auto") for name in ("torch", "torch-compile", "trt", "trt-rtx", "fused")]
    + [("ort", "cuda"), ("auto", "cuda")],
)
def test_other_engines_refuse_int8(bundle: Path, engine: str, device: str) -> None:
    with pytest.raises(BadInput, match=r"int8 runs with --engine .*ort on --device cpu only"):
        open_engine(bundle, engine, "int8", device)


def test_int8_runs_on_the_cpu_and_is_never_a_default(bundle: Path, tiny_bundle: Path) -> None:
    assert choose("auto", "auto", "int8", PRECISIONS)[1:] == ("cpu", "int8")
    assert choose("ort", "cpu", None, PRECISIONS).precision == "fp32"
    assert choose("ort", "auto", None, ("int8",)) == ("ort", "cpu", "int8")
    images = open_engine(bundle, "ort", "int8", "cpu").sample(3)
    assert images.shape == (3, 32, 32, 3) and images.std() > 1
    with pytest.raises(BadInput, match=r"holds fp32 and fp16, not int8; .*--precision all"):
        open_engine(tiny_bundle, "ort", "int8", "cpu")


def test_verify_repeats_the_figures_and_the_limit_of_the_export(bundle: Path) -> None:
    exported = open_bundle(bundle).manifest.verification["int8"]
    found = verify_bundle(open_bundle(bundle), "ort", "int8", "cpu")
    assert found.precision == "int8" and found.noise_identical
    assert found.images == sum(exported.batches) == 64
    assert found.chain_psnr == pytest.approx(exported.chain_psnr, abs=0.1)
    assert found.decoder_psnr == pytest.approx(exported.decoder_psnr, abs=0.1)
    assert found.int8_accepted_psnr == ACCEPTED and found.passed
    poor = found.model_copy(update={"chain_psnr": 20.5})
    assert why_failed(poor) is None
    assert why_failed(poor.model_copy(update={"int8_accepted_psnr": None})) == (
        "image PSNR in dB is 20.5, the limit is 32; use --precision fp32"
    )


def test_enough_images_are_verified() -> None:
    small, large = (get_preset(name) for name in ("cifar10", "lsun"))
    assert batches_of(small, "fp32") == (1, 2, 3, 7)
    assert batches_of(small, "int8") == (1, 2, 3, 7, 51)
    assert batches_of(large, "fp16") == (1, 2, 3)
    assert batches_of(large, "int8") == (1, 2, 3, 2)


def test_both_and_all_name_precisions() -> None:
    assert precisions_of("both") == FLOATS == ("fp32", "fp16")
    assert precisions_of("all") == PRECISIONS == ("fp32", "fp16", "int8")
    assert precisions_of("int8") == ("int8",)


@pytest.mark.full
@pytest.mark.parametrize("name", SMALL)
def test_other_families_in_8_bits(name: str, tmp_path: Path) -> None:
    said: list[str] = []
    found = export_bundle(small_model(name), tmp_path / name, ("int8",), log=said.append)["int8"]
    assert found.chain_psnr >= INT8_PSNR
    which = "generator" if name == "small-vit" else "decoder"
    assert f"int8: the {which} has no wide convolutions and stays in fp32" in said
    assert (found.generator_error < 1e-5) == (which == "generator")
    assert (found.decoder_levels <= 1) == (which == "decoder")
