"""The model repository of `lddgan export --triton`, and NVIDIA's server that runs it."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.registry import open_engine
from export.bundle import DIGITS, EMOJI, MANIFEST, open_bundle
from export.triton import repository as triton
from lddgan.errors import BadInput
from tests import test_cli
from tests.export.triton_server import Server, ask, call, needs_triton, python, serving, stop
from tests.needs import needs

lddgan = test_cli.lddgan  # the fixture: a command in a folder of its own

TOKEN = re.compile(r'#[^\n]*|"[^"]*"|[\w.+-]+|[{}\[\]]')  # colons and commas say nothing
LAST = 2**63 - 1
RUNS = ((0, 0, 24), (7, 4096, 24), (2**40 + 3, 8 * 10**12, 16), (LAST, LAST - 7, 8))
BATCH = 8


def parsed(text: str) -> dict[str, list[Any]]:
    """A message in protobuf's text format: the values of each field."""
    tokens = [token for token in TOKEN.findall(text) if not token.startswith("#")][::-1]

    def value() -> Any:
        token = tokens.pop()
        return message() if token == "{" else token.strip('"')

    def message() -> dict[str, list[Any]]:
        fields: dict[str, list[Any]] = {}
        while tokens and tokens[-1] != "}":
            values = fields.setdefault(tokens.pop(), [])
            if tokens[-1] != "[":
                values.append(value())
                continue
            tokens.pop()
            while tokens[-1] != "]":
                values.append(value())
            tokens.pop()
        if tokens:
            tokens.pop()
        return fields

    return message()


def parameters(config: dict[str, list[Any]]) -> dict[str, str]:
    return {one["key"][0]: one["value"][0]["string_value"][0] for one in config["parameters"]}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_model_holds_its_bundle_and_what_runs_it(tmp_path: Path) -> None:
    sizes = triton.write_repository(open_bundle(DIGITS), tmp_path / "models", "fp32")
    assert {*sizes} == {"digits"}
    model = tmp_path / "models" / "digits"
    bundle = {f"1/bundle/{path.name}" for path in DIGITS.iterdir() if path.is_file()}
    assert files(model) == {"config.pbtxt", "NOTICE", "1/model.py"} | bundle
    config = parsed((model / "config.pbtxt").read_text())
    assert config["backend"] == ["python"] and config["max_batch_size"] == ["64"]
    assert [(one["name"], one["data_type"], one["dims"]) for one in config["input"]] == [
        (["seed"], ["TYPE_INT64"], ["1"]),
        (["index"], ["TYPE_INT64"], ["1"]),
    ]
    assert config["output"][0]["dims"] == ["32", "32", "3"]
    expected = {"engine": "auto", "device": "auto", "precision": "fp32", "batch": "8"}
    assert parameters(config) == expected


def test_graphs_of_other_precisions_are_left_out(tiny_bundle: Path, tmp_path: Path) -> None:
    triton.write_repository(open_bundle(tiny_bundle), tmp_path, "fp16", graphs=True)
    held = files(tmp_path / "tiny")
    assert {"1/bundle/generator.fp16.onnx", "1/bundle/model.safetensors"} <= held
    assert "1/bundle/generator.fp32.onnx" not in held and "NOTICE" not in held
    assert (tmp_path / "tiny_decoder" / "1" / "model.onnx").read_bytes() == (
        tiny_bundle / "decoder.fp16.onnx"
    ).read_bytes()
    config = parsed((tmp_path / "tiny_generator" / "config.pbtxt").read_text())
    assert config["max_batch_size"] == ["0"]
    assert [one["dims"] for one in config["input"]] == [
        ["-1", "4", "8", "8"],
        ["1"],
        ["-1", "10"],
        ["-1", "4", "8", "8"],
    ]
    assert [one["data_type"][0] for one in config["input"]] == [
        *("TYPE_FP32", "TYPE_INT32", "TYPE_FP32", "TYPE_FP32")
    ]


def test_models_of_ours_are_replaced_and_others_stay(tmp_path: Path) -> None:
    for bundle in (DIGITS, EMOJI, DIGITS):
        triton.write_repository(open_bundle(bundle), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"digits", "emoji"}
    mine = tmp_path / "digits" / "1" / "mine.txt"
    mine.touch()
    with pytest.raises(BadInput, match=r"digits/1 holds other files \(mine.txt\)"):
        triton.write_repository(open_bundle(DIGITS), tmp_path)
    mine.unlink()
    (tmp_path / "digits" / "config.pbtxt").write_text('backend: "python"')
    with pytest.raises(BadInput, match="digits is a model that `lddgan export --triton` did not"):
        triton.write_repository(open_bundle(DIGITS), tmp_path)
    (tmp_path / "letters").mkdir()
    with pytest.raises(BadInput, match=r"holds other files \(letters\)"):
        triton.write_repository(open_bundle(EMOJI), tmp_path)


def test_the_command_tells_how_to_serve(lddgan) -> None:  # type: ignore[no-untyped-def]
    outcome = lddgan("export", "--triton", "models", "--dataset", "digits", "--triton-graphs")
    assert outcome.code == 0
    for name in ("digits", "digits_generator", "digits_decoder"):
        assert f"{name} " in outcome.out and Path("models", name, "config.pbtxt").is_file()
    assert "serve it with `tritonserver --model-repository=models`" in outcome.out
    assert "--triton-graphs" in lddgan("export", "--help").out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--triton", "x", "--web", "y"], "--web and --triton write two things; give one"),
        (["--triton", "x", "--out", "y"], "--out is not for --triton; leave it out"),
        (["--triton", "x", "--runtime", "y"], "--runtime is not for --triton; leave it out"),
        (["--web", "x", "--triton-graphs"], "--triton-graphs is not for --web; leave it out"),
        (["--triton-graphs"], "--triton-graphs is for --triton; leave it out"),
        (["--bundle", "x"], "--bundle is for --web or --triton; leave it out"),
        (["--triton", "x", "--precision", "int8"], "holds fp32, not int8"),
    ],
)
def test_what_is_no_repository_is_one_sentence(lddgan, words: list[str], told: str) -> None:  # type: ignore[no-untyped-def]
    test_cli.refused(lddgan("export", "--dataset", "digits", *words), told)


class TritonError(Exception):
    INVALID_ARG = 3

    def __init__(self, told: str, code: int) -> None:
        super().__init__(told)
        self.code = code


def backend_utils() -> ModuleType:
    """What a model uses of triton_python_backend_utils; a request is a dict of arrays."""
    made = ModuleType("triton_python_backend_utils")
    vars(made).update(
        Tensor=lambda _, array: array,
        TritonError=TritonError,
        InferenceResponse=lambda tensors=(), error=None: error or tensors[0],
        Logger=SimpleNamespace(log_info=print),
        get_input_tensor_by_name=lambda request, name: SimpleNamespace(
            as_numpy=lambda: np.array(request[name]).reshape(-1, 1)
        ),
    )
    return made


@needs("onnxruntime")
def test_a_wrong_request_is_refused_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    triton.write_repository(open_bundle(DIGITS), tmp_path)
    config = (tmp_path / "digits" / "config.pbtxt").read_text()
    given = parameters(parsed(config)) | {"engine": "ort", "device": "cpu"}
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend_utils())
    program = tmp_path / "digits" / "1" / "model.py"
    spec = importlib.util.spec_from_file_location("triton_model", program)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    named = {name: {"string_value": value} for name, value in given.items()}
    model.initialize({"model_config": json.dumps({"parameters": named})})
    asked = [([3], [17]), ([3], [-1]), ([4, 3], [1, 16]), ([-1, 3], [5, 5])]
    right, wrong, two, mixed = model.execute([{"seed": s, "index": i} for s, i in asked])
    model.finalize()
    for refused in (wrong, mixed):
        assert str(refused) == "seed and index must be in 0..2^63-1" and refused.code == 3
    with open_engine(DIGITS, "ort", device="cpu", batch=BATCH) as sampler:
        true = sampler.sample(BATCH, seed=3, first=16, batch=BATCH)
        assert np.array_equal([right[0], two[1]], [true[1], true[0]])
        assert np.array_equal(two[0], sampler.sample(BATCH, seed=4, batch=BATCH)[1])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository") / "models"
    triton.write_repository(open_bundle(DIGITS), folder, graphs=True)
    return folder


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ("--model-control-mode=explicit", "--load-model=digits")
    cached = "--cache-config=local,size=16777216"
    with serving(repository, tmp_path_factory.mktemp("server"), *options, cached) as found:
        yield found


def sampled(bundle: Path, folder: Path) -> dict[tuple[int, int], Any]:
    """Images of RUNS by seed and index, as `lddgan sample` writes them."""
    images = {}
    for seed, first, count in RUNS:
        which = ("--seed", seed, "--first", first, "--num", count, "--batch", BATCH)
        python("-m", "lddgan", "sample", "--bundle", bundle, *which, "--out", "x.npz", cwd=folder)
        with np.load(folder / "x.npz") as file:
            images |= {(seed, first + row): image for row, image in enumerate(file["images"])}
    return images


@needs_triton
@pytest.mark.full
@pytest.mark.timeout(900)
def test_64_clients_get_the_bytes_of_sample(
    server: Server, repository: Path, tmp_path: Path
) -> None:
    true = sampled(repository / "digits" / "1" / "bundle", tmp_path)
    addresses = random.Random(0).sample(sorted(true), 64)

    def same(asked: Sequence[tuple[int, int]]) -> bool:
        status, images = ask(server, "digits", asked)
        return status == 200 and np.array_equal(images, [true[one] for one in asked])

    with ThreadPoolExecutor(64) as clients:
        assert all(clients.map(lambda one: same([one]), addresses))
    [told] = call(server, "models/digits/stats")[1]["model_stats"]
    assert told["inference_count"] == 64 and told["execution_count"] < 64
    assert same(addresses[:16])
    assert same(addresses[:1])  # from the cache
    [told] = call(server, "models/digits/stats")[1]["model_stats"]
    assert told["inference_stats"]["cache_hit"]["count"] == 1


@needs_triton
@pytest.mark.full
@pytest.mark.timeout(900)
def test_the_server_refuses_wrong_numbers_and_reads_all_configurations(server: Server) -> None:
    refused = 400, "seed and index must be in 0..2^63-1"
    assert ask(server, "digits", [(-1, 0)]) == ask(server, "digits", [(0, 0), (1, -1)]) == refused
    assert ask(server, "digits", [(0, 0)])[0] == 200
    for name in ("digits_generator", "digits_decoder"):  # the wheel lacks the backend that is named
        status, told, _ = call(server, f"repository/models/{name}/load", {})
        assert status == 400 and "unable to find backend library for backend" in told["error"]


@needs_triton
@pytest.mark.full
@pytest.mark.timeout(900)
def test_sigterm_ends_the_server_with_0(tmp_path: Path) -> None:
    triton.write_repository(open_bundle(DIGITS), tmp_path / "models")
    with serving(tmp_path / "models", tmp_path) as server:
        assert ask(server, "digits", [(0, 0)])[0] == 200
        assert stop(server) == 0
    assert "batches of 8" in server.log.read_text()
    assert (tmp_path / "models" / "digits" / "1" / "bundle" / MANIFEST).is_file()
