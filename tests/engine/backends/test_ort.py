"""ONNX files that are not ours are one sentence; the public names."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import lddgan
from engine.backends.ort import OrtBackend, open_session
from engine.registry import open_engine
from export.bundle import open_bundle
from lddgan.errors import BadInput, LddganError

ROOT = Path(__file__).parents[3]
GRAPH = "generator.fp32.onnx"


# ---- files ----


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def noise(path: Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(5000))


def edited(change: Callable[[onnx.ModelProto], object]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        model = onnx.load(path)
        change(model)
        onnx.save(model, path)

    return edit


def unknown_operator(model: onnx.ModelProto) -> None:
    next(node for node in model.graph.node if node.op_type == "Conv").op_type = "NoSuchOp"


def future(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


def no_weights(model: onnx.ModelProto) -> None:
    del model.graph.initializer[:]


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "random bytes": noise,
    "empty": lambda path: path.write_bytes(b""),
    "html": lambda path: path.write_text("<!doctype html><html>log in</html>"),
    "opset of the future": edited(future),
    "unknown operator": edited(unknown_operator),
    "no weights": edited(no_weights),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_file_that_is_no_graph_is_one_sentence(
    tiny_bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    path = Path(shutil.copy(tiny_bundle / GRAPH, tmp_path))
    DAMAGES[case](path)
    with pytest.raises(BadInput) as caught:
        open_session(path, "cpu", "fp32")
    message = str(caught.value)
    assert message.startswith(f"ONNX Runtime does not take {path}: ")
    assert "\n" not in message
    assert capfd.readouterr().err == ""


def signed(folder: Path, name: str) -> None:
    """Make the manifest say what the file is."""
    manifest = json.loads((folder / "manifest.json").read_text())
    data = (folder / name).read_bytes()
    manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def rename_an_input(model: onnx.ModelProto) -> None:
    (tensor,) = [tensor for tensor in model.graph.input if tensor.name == "noise"]
    tensor.name = "z_2"
    for node in model.graph.node:
        node.input[:] = ["z_2" if name == "noise" else name for name in node.input]


def fix_the_batch(model: onnx.ModelProto) -> None:
    for tensor in (*model.graph.input, *model.graph.output):
        if tensor.name != "t":
            tensor.type.tensor_type.shape.dim[0].dim_value = 1


OTHER_GRAPHS: dict[str, Callable[[Path], object]] = {
    "the decoder": lambda path: shutil.copy(path.with_name("decoder.fp32.onnx"), path),
    "another input": edited(rename_an_input),
    "a fixed batch": edited(fix_the_batch),
}


@pytest.mark.parametrize("case", OTHER_GRAPHS)
def test_graph_with_other_tensors_is_refused_when_it_is_opened(
    tiny_bundle: Path, tmp_path: Path, case: str
) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "tiny"))
    OTHER_GRAPHS[case](folder / GRAPH)
    signed(folder, GRAPH)
    with pytest.raises(BadInput) as caught:
        open_engine(folder, "ort", device="cpu")
    message = str(caught.value)
    assert message.startswith(f"{folder / GRAPH} has the tensors") and "\n" not in message
    assert "'noise'" in message.partition("its manifest says")[2]


def test_failure_while_running_is_one_sentence(tiny_bundle: Path) -> None:
    backend = OrtBackend(open_bundle(tiny_bundle), "fp32", "cpu")
    with pytest.raises(LddganError) as caught:
        backend.decode(backend.upload(np.zeros((1, 5, 8, 8), np.float32)))
    assert str(caught.value).startswith("ONNX Runtime failed in the decoder: ")
    assert "\n" not in str(caught.value)


def test_downloaded_array_survives_the_next_call(tiny_bundle: Path) -> None:
    backend = OrtBackend(open_bundle(tiny_bundle), "fp32", "cpu")
    latents = np.random.default_rng(0).standard_normal((2, 1, 4, 8, 8), np.float32)
    first = backend.download(backend.decode(backend.upload(latents[0])))
    kept = first.copy()
    second = backend.download(backend.decode(backend.upload(latents[1])))
    assert np.array_equal(first, kept)
    assert not np.array_equal(first, second)


# ---- the public names ----


def test_every_public_name_is_the_object_of_its_module() -> None:
    assert set(lddgan.__all__) == set(lddgan.PUBLIC) <= set(dir(lddgan))
    for name, module in lddgan.PUBLIC.items():
        value = getattr(lddgan, name)
        assert value is getattr(sys.modules[module], name)
    for name in ("load_checkpoint", "import_published", "sample", "open_engine"):
        assert callable(getattr(lddgan, name))
    with pytest.raises(AttributeError, match="no attribute 'sampel'"):
        lddgan.sampel  # noqa: B018


def python(program: str, folder: Path, *, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(program)
    return subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_lddgan_imports_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys, lddgan\n"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    assert python(program, tmp_path).stdout == "[]\n"
