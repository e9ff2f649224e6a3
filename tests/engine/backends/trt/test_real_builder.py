"""Plans of every preset by NVIDIA's own parser and builder, on a machine without a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from export.bundle import DIGITS, Bundle, graph_file, open_bundle
from export.graphs import GraphSpec, graph_specs, most_images
from lddgan.names import Precision
from lddgan.preset import Preset
from lddgan.presets import get_preset
from tests.bundles import EXPORT_SECONDS, exported_by_command
from tests.engine.backends.trt import setup_cpu_builder as fixture
from tests.engine.backends.trt.conftest import RunWith, python_with
from tests.small import PRESETS as SMALL
from tests.small import small_bundle

HERE = Path(__file__).resolve().parent
PROGRAM = HERE / "build_plans.py"
KERNELS = 15e6  # bytes of code in a plan, at most
MOST = {"fp16": 1.3, "fp32": 2.0}  # of the file: Winograd's weights are 4 times as large
DTYPES = {"float32": "FLOAT", "int32": "INT32", "uint8": "UINT8"}
SHIPPED = open_bundle(DIGITS)


def listed(spec: GraphSpec) -> list[list[Any]]:
    """The tensors of the table as the parser should see them."""
    return [
        [each.name, [-1 if size == "B" else size for size in each.shape], DTYPES[each.dtype]]
        for each in (*spec.inputs, *spec.outputs)
    ]


def check_built(run: RunWith, preset: Preset, precision: Precision, files: list[Path]) -> None:
    """Build plans of both graphs; their bytes, tensors and progress are what they should be."""
    done = run(PROGRAM, *described(preset, precision), *files)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    specs = graph_specs(preset)
    assert found.keys() == specs.keys()
    for (which, plan), file in zip(found.items(), files, strict=True):
        assert plan["tensors"] == listed(specs[which])
        # A plan holds the weights in the graph's own dtype: fp16 must not have become fp32.
        assert file.stat().st_size < plan["bytes"] < MOST[precision] * file.stat().st_size + KERNELS
        assert plan["heard"][-1] == 100
        assert plan["heard"] == sorted(set(plan["heard"])) and len(plan["heard"]) > 5


def described(preset: Preset, precision: Precision) -> list[str]:
    """The first arguments of PROGRAM."""
    return [preset.model_dump_json(), precision, f"1,16,{most_images(preset)}"]


def graphs_of(bundle: Bundle, precision: Precision) -> list[Path]:
    return [bundle.graph(which, precision) for which in graph_specs(bundle.preset)]


@pytest.mark.parametrize("precision", SHIPPED.precisions)
def test_the_shipped_digits(ready_builder: RunWith, precision: Precision) -> None:
    check_built(ready_builder, SHIPPED.preset, precision, graphs_of(SHIPPED, precision))


@pytest.mark.parametrize("name", SMALL)
def test_small_models_of_other_families(ready_builder: RunWith, name: str) -> None:
    bundle = open_bundle(small_bundle(name))
    check_built(ready_builder, bundle.preset, "fp32", graphs_of(bundle, "fp32"))


def test_ctrl_c_stops_the_real_builder(ready_builder: RunWith) -> None:
    done = ready_builder(HERE / "interrupted_build.py", "digits", SHIPPED.graph("decoder", "fp32"))
    assert done.returncode == 0, done.stderr
    words = done.stdout.split()
    assert words[:2] == ["interrupted", "at"] and int(words[2]) < 100


@pytest.mark.parametrize("kind", ["truncated", "other"])
def test_a_graph_that_the_real_parser_refuses(
    ready_builder: RunWith, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "decoder.fp32.onnx"
    content = SHIPPED.graph("decoder", "fp32").read_bytes()
    path.write_bytes(content[: len(content) // 2] if kind == "truncated" else b"not a graph")
    done = ready_builder(PROGRAM, *described(SHIPPED.preset, "fp32"), path)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("lddgan.errors.BadInput: TensorRT 11.4.0.106 does not take")
    assert "Failed to parse the ONNX model" in last


KEPT = """
from engine.backends.trt.build import BuildOptions
from engine.backends.trt.library import load
from engine.backends.trt.plans import ensure
from export.bundle import DIGITS, open_bundle

for _ in range(2):
    plans = ensure(open_bundle(DIGITS), load("trt"), None, BuildOptions(precision="fp32"))
    print(plans.folder, len(plans.read("generator")), len(plans.read("decoder")))
"""


def test_plans_of_the_real_builder_are_kept(
    ready_builder: RunWith, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = ready_builder("-c", KEPT)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == second
    place, generator, decoder = first.split()
    assert Path(place).parent == tmp_path / "lddgan" / "digits" / "engines"
    for which, size in (("generator", generator), ("decoder", decoder)):
        assert (Path(place) / f"{which}.plan").stat().st_size == int(size) > 1e6
        assert done.stderr.count(f"building the {which}: 100/100 %") == 1


NO_LIBRARY = """
from engine.backends.trt.library import why_missing
print(why_missing("trt"))
print(why_missing("trt-rtx"))
"""


def test_bindings_without_their_libraries(ready_builder: RunWith, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "site").symlink_to(fixture.DESTINATION / "builder" / "site")
    done = python_with(tmp_path)("-c", NO_LIBRARY)
    assert done.returncode == 0, done.stderr
    trt, rtx = done.stdout.splitlines()
    assert trt.startswith("tensorrt is installed but cannot be loaded (libnv")
    assert 'pip install -e ".[gpu]"' in trt
    assert rtx.startswith("tensorrt_rtx is not installed; ")


@pytest.mark.full
@pytest.mark.parametrize("precision", SHIPPED.precisions)
def test_digits_after_set_up(installed: Path, precision: Precision) -> None:
    run = python_with(installed / "builder")
    check_built(run, SHIPPED.preset, precision, graphs_of(SHIPPED, precision))


@pytest.mark.full
@pytest.mark.parametrize("name", SMALL)
def test_small_models_of_other_families_in_halves(installed: Path, name: str) -> None:
    bundle = open_bundle(small_bundle(name, "fp16"))
    run = python_with(installed / "builder")
    check_built(run, bundle.preset, "fp16", graphs_of(bundle, "fp16"))


@pytest.mark.full
@pytest.mark.timeout(EXPORT_SECONDS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("dataset", ["cifar10", "celeba_256", "lsun"])
def test_every_preset(installed: Path, dataset: str, precision: Precision) -> None:
    bundle = exported_by_command(dataset) / "exports" / dataset
    preset = get_preset(dataset)
    files = [bundle / graph_file(which, precision) for which in graph_specs(preset)]
    check_built(python_with(installed / "builder"), preset, precision, files)
