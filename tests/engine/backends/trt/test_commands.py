"""The commands on TensorRT, end to end on the fake GPU: build, verify, bench, sample."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cli
from bench.machine import GPU_FIELDS
from engine.backends.trt import engine as opening
from engine.backends.trt import plans
from engine.backends.trt.build import Built
from export.bundle import DIGITS
from export.graphs import graph_specs
from lddgan.errors import LddganError
from lddgan.presets import PRESETS
from tests.engine.backends.trt.ort_runtime import Machine
from tests.engine.backends.trt.scripted import STRONG

pytestmark = [pytest.mark.fake_cuda, pytest.mark.usefixtures("driver_asked_anew")]

SAID = {"memory.used": "1024 MiB", "name": "Fake GPU", "clocks.sm": "1980 MHz"}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine with a GPU, a driver that answers, and TensorRT; the digits are in ./digits."""
    made = Machine(graph_specs(PRESETS["digits"]))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DIGITS, "digits")
    answers = ", ".join(SAID.get(field, "1 W") for field in GPU_FIELDS)
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho '{answers}'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(opening, "why_missing", lambda name: None)
    monkeypatch.setattr(opening, "load", lambda name: made.library(STRONG))

    def build_graph(library: Any, path: Path, *_: Any, progress: Any, **__: Any) -> Built:
        made.built.append(path.name)
        progress(100, 100)
        return Built(path.read_bytes(), None, 2.0)

    monkeypatch.setattr(plans, "build_graph", build_graph)
    return made


@pytest.fixture
def lddgan(machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    def run(command: str, *args: object, code: int = 0) -> tuple[str, str]:
        words = ["lddgan", command, "--bundle", "digits", "--engine", "trt", *map(str, args)]
        monkeypatch.setattr(sys, "argv", words)
        left = 0
        try:
            cli.main()
        except SystemExit as stop:
            left = int(stop.code or 0)
        out, err = capsys.readouterr()
        assert left == code, err
        assert "Warning" not in err  # cuda-core says so when it cannot free
        return out, err

    return run


def test_build_verify_bench_sample(lddgan, machine: Machine) -> None:
    out, err = lddgan("build", "--batch", "1,8,20")
    assert "digits/engines/trt-11.4.0.106-" in out and "-fp32-b1-8-20-l3-" in out
    assert "ready; building it took 4 s" in out
    assert "`lddgan verify --bundle digits --engine trt`" in out
    assert "the decoder is fastest with" in err
    assert machine.built == ["generator.fp32.onnx", "decoder.fp32.onnx"]

    out, _ = lddgan("verify", "--num", 6, "--json")
    found = json.loads(out)
    assert found["why_failed"] is None and found["noise_identical"]
    assert found["chain_levels"] <= 1

    out, _ = lddgan("bench", "--batch", 8, "--trials", 2, "--json", "--save", "rows.jsonl")
    row = json.loads(out.splitlines()[0])
    assert row["cuda_graph"] is True
    assert row["facts"]["profile"] == "1,8,20"
    assert row["verification"]["noise_identical"] is True
    assert row["machine"]["gpu"]["sm_clock"] == "1980 MHz"
    assert row["ms"]["whole"]["p50"] > 0
    out, _ = lddgan("bench", "--batch", 8, "--trials", 1, "--no-cuda-graph", "--json")
    assert json.loads(out.splitlines()[0])["cuda_graph"] is False

    out, _ = lddgan("sample", "--num", 7, "--out", "seven.npz")
    assert "7 images of digits" in out and "trt fp32 on " in out
    images = np.load("seven.npz")["images"]
    assert images.shape == (7, 32, 32, 3)
    assert machine.built == ["generator.fp32.onnx", "decoder.fp32.onnx"], "nothing is built twice"


def test_sample_builds_on_first_use_and_says_so(lddgan, machine: Machine) -> None:
    _, err = lddgan("sample", "--num", 2, "--out", "two.npz")
    assert "building the generator" in err and "building the decoder" in err
    assert "the decoder is fastest with" in err
    assert len(machine.built) == 2
    _, err = lddgan("sample", "--num", 2, "--seed", 1, "--out", "other.npz")
    assert "build" not in err and len(machine.built) == 2


def test_a_damaged_plan_is_explained_and_built_again(lddgan, machine: Machine) -> None:
    lddgan("build", "--batch", "1,8,20", "--level", 5)
    (plan,) = Path("digits/engines").glob("*/decoder.plan")
    whole = plan.read_bytes()
    plan.write_bytes(whole[:-1])
    _, err = lddgan("sample", "--num", 1, "--out", "x.npz")
    assert err.count(f"decoder.plan has {len(whole) - 1:,} bytes, not {len(whole):,}") == 1
    assert "building for batches 1,8,20 at level 5, as it was before" in err
    assert len(machine.built) == 4 and plan.read_bytes() == whole


def test_a_store_of_another_user_is_used_as_it_is(
    lddgan, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise LddganError(f"cannot write {path}: Permission denied")

    lddgan("build")
    monkeypatch.setattr(plans, "atomic_write", refuse)
    monkeypatch.setattr("engine.tuning.atomic_write", refuse)
    _, err = lddgan("sample", "--num", 2, "--out", "two.npz")
    assert "the tuning is not kept: cannot write" in err and Path("two.npz").exists()
    out, err = lddgan("verify", "--num", 2, "--json")
    assert json.loads(out)["why_failed"] is None
    assert "the verification is not kept: cannot write" in err
    machine.spoiled = True
    _, err = lddgan("verify", "--num", 2, code=1)
    assert err.index("the verification is not kept") < err.index("error: trt fp32 on ")
    assert "does not make PyTorch's images" in err


def test_an_engine_that_fails_verification_is_refused_by_name(lddgan, machine: Machine) -> None:
    lddgan("build")
    machine.spoiled = True
    _, err = lddgan("verify", "--num", 2, code=1)
    assert "does not make PyTorch's images" in err and "use " in err
    for command in (("sample", "--out", "x.npz"), ("bench", "--trials", 1)):
        _, err = lddgan(*command, code=1)
        assert "does not make PyTorch's images" in err
        assert not Path("x.npz").exists()
    machine.spoiled = False
    lddgan("verify", "--num", 2)
    lddgan("sample", "--num", 1, "--out", "x.npz")
