"""The folder of `lddgan export --web`, and what cannot be one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from export.bundle import DIGITS, open_bundle
from export.graphs import generator_inputs
from export.web import folder as web
from export.web.slices import split_by_slices
from lddgan.errors import BadInput
from lddgan.files import sha256_of_bytes
from lddgan.noise import draw
from tests import test_cli

lddgan = test_cli.lddgan  # the fixture: a command in a folder of its own

CPU = ["CPUExecutionProvider"]


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the runtime's names, with files of a few bytes."""
    package = tmp_path / "onnxruntime-web"
    (package / "dist").mkdir(parents=True)
    for name in web.FILES:
        (package / "dist" / name).write_text(name)
        monkeypatch.setitem(web.FILES, name, sha256_of_bytes(name.encode()))
    return package


def test_a_page_names_all_that_it_loads(runtime: Path, tmp_path: Path) -> None:
    sizes = web.write_web(open_bundle(DIGITS), tmp_path / "page", runtime)
    facts = json.loads((tmp_path / "page" / "model.json").read_bytes())
    on_disk = {
        path.relative_to(tmp_path / "page").as_posix(): path.stat().st_size
        for path in (tmp_path / "page").rglob("*")
        if path.is_file() and path.name != "model.json"
    }
    assert facts["bytes"] == sizes == on_disk
    some = {"index.html", "LICENSES.txt", "generator.onnx", "ort/ort.wasm.bundle.min.mjs"}
    assert some <= {*sizes}
    del facts["bytes"]
    assert facts == {
        "name": "digits",
        "precision": "fp32",
        "random_weights": False,
        "image_size": 32,
        "latent_shape": [4, 8, 8],
        "nz": 50,
        "steps": 4,
    }


def test_a_page_is_replaced_and_other_files_are_not(runtime: Path, tmp_path: Path) -> None:
    bundle, page = open_bundle(DIGITS), tmp_path / "page"
    web.write_web(bundle, page, runtime)
    web.write_web(bundle, page, runtime)
    (page / "mine.txt").touch()
    with pytest.raises(BadInput, match=r"page holds other files \(mine.txt\)"):
        web.write_web(bundle, page, runtime)


def test_another_version_of_the_runtime_is_refused(runtime: Path, tmp_path: Path) -> None:
    (runtime / "dist" / "ort.webgpu.bundle.min.mjs").write_text("another")
    with pytest.raises(BadInput, match=r"ort.webgpu.bundle.min.mjs is of another version; `npm i"):
        web.write_web(open_bundle(DIGITS), tmp_path / "page", runtime)
    (runtime / "dist" / "ort.webgpu.bundle.min.mjs").unlink()
    with pytest.raises(BadInput, match=r"does not exist; `npm install onnxruntime-web@1\.30\.0 "):
        web.write_web(open_bundle(DIGITS), tmp_path / "page", runtime)
    assert not (tmp_path / "page").exists()


def test_graphs_of_the_page_give_the_same_bits(runtime: Path, tmp_path: Path) -> None:
    bundle = open_bundle(DIGITS)
    web.write_web(bundle, tmp_path / "page", runtime)
    drawn = draw(bundle.preset, first=0, count=3, seed=5)
    inputs = generator_inputs(drawn.x_T, 3, drawn.z[0], drawn.noise[0])
    graphs = bundle.graph("generator", "fp32"), tmp_path / "page" / "generator.onnx"
    before, after = (
        onnxruntime.InferenceSession(path, providers=CPU).run(None, inputs)[0] for path in graphs
    )
    assert np.array_equal(before, after)
    widest = [max(len(node.output) for node in onnx.load(path).graph.node) for path in graphs]
    assert widest[1] < 8 < widest[0]


def test_only_wide_splits_become_slices() -> None:
    def split(name: str, sizes: list[int]) -> tuple[NodeProto, TensorProto]:
        outputs = [f"{name}{i}" for i in range(len(sizes))]
        constant = helper.make_tensor(f"{name}.sizes", TensorProto.INT64, [len(sizes)], sizes)
        return helper.make_node("Split", ["x", constant.name], outputs, axis=1), constant

    parts = split("narrow", [2] * 7), split("wide", [1, 3, *[2] * 5, 0])
    nodes, constants = zip(*parts, strict=True)
    of_x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 14])
    names = [name for node in nodes for name in node.output]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, "n"]) for name in names]
    graph = helper.make_graph(nodes, "splits", [of_x], outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = np.arange(28, dtype=np.float32).reshape(2, 14)

    def run() -> list[NDArray[np.float32]]:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=CPU)
        return session.run(None, {"x": x})

    before = run()
    split_by_slices(model)
    assert [node.op_type for node in model.graph.node] == ["Split"] + ["Slice"] * 8
    assert all(np.array_equal(a, b) for a, b in zip(before, run(), strict=True))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--precision", "fp16"], "browsers run int8 and fp32, not fp16"),
        (["--precision", "int8"], "holds fp32, not int8"),
        (["--checkpoint", "x"], "--checkpoint is not for --web; leave it out"),
        (["--dataset", "lsun"], "no bundle at exports/lsun"),
    ],
)
def test_what_is_no_page_is_one_sentence(lddgan, words: list[str], told: str) -> None:  # type: ignore[no-untyped-def]
    default = [] if "--dataset" in words else ["--dataset", "digits"]
    test_cli.refused(lddgan("export", "--web", "page", *default, *words), told)
