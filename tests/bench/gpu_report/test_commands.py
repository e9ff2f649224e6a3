"""TensorRT, ONNX Runtime and the ladder of a report, with a scripted command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from bench.gpu_report import commands
from bench.gpu_report.commands import command_jobs, export_command
from bench.machine import HOME
from bench.row import read_rows
from tests.bench.gpu_report.notes import Notes
from tests.bench.gpu_report.scripted_command import write_manifest

SCRIPT = (sys.executable, str(Path(__file__).parent / "scripted_command.py"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the scripted command finds what to do; the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCRIPT_FOLDER", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(HOME))
    (tmp_path / "plan.json").write_text("{}")
    return tmp_path


def ran(folder: Path, dataset: str, stages: tuple[str, ...] = ("trt", "ort")) -> Notes:
    """The jobs of one data set."""
    notes = Notes(folder / "rows.jsonl")
    jobs = command_jobs(notes, SCRIPT)
    wanted = (job for job in jobs if job.stage in stages and dataset in job.what)
    notes.attempt_all(*wanted, left=1e3)
    return notes


def calls(folder: Path) -> list[str]:
    return (folder / "calls.txt").read_text().splitlines()


def test_every_model_is_exported_built_and_measured(folder: Path) -> None:
    notes = ran(folder, "cifar10")
    limit = 500 - commands.OVERHEAD_SECONDS
    end = f"--max-seconds {limit:.0f} --verify --save {folder / 'rows.jsonl'} --json"
    bench = "bench --dataset cifar10 --engine {} --batch {} --device cuda --trials {} " + end
    trt, steps = "trt --precision fp16", "trt --precision fp16 --no-cuda-graph"
    build = "build --dataset cifar10 --precision fp16 --batch"
    assert calls(folder) == [
        "export --dataset cifar10 --precision fp16",
        f"{build} 1,100,100",
        *(bench.format(way, 100, 50) for way in (trt, steps)),
        f"{build} 1,1,1",
        *(bench.format(way, 1, 300) for way in (trt, steps)),
        *(bench.format(f"ort --precision {way}", 100, 50) for way in ("fp32", "fp16")),
        *(bench.format(f"ort --precision {way}", 1, 300) for way in ("fp32", "fp16")),
    ]
    rows = read_rows(folder / "rows.jsonl")
    assert [(row.engine, row.cuda_graph) for row in rows if row.kind == "engine"] == [
        *[("trt", True), ("trt", False)] * 2,
        *[("ort", False)] * 4,
    ]
    assert set(notes.reasons().values()) == {None}


def test_what_a_bundle_holds_is_not_exported_again(folder: Path) -> None:
    assert export_command("lsun", ("fp16",)) == "export --dataset lsun --precision fp16"
    write_manifest(Path("exports") / "lsun", ("fp16",))
    assert export_command("lsun", ("fp16",)) == ""
    assert export_command("lsun", ("fp32", "fp16")) == (
        "export --checkpoint exports/lsun/model.safetensors --precision both --out exports/lsun"
    )
    (Path("exports") / "lsun" / "manifest.json").write_text("{}")
    assert "is not a manifest" in (ran(folder, "lsun").reasons()["export lsun"] or "")


def test_a_command_that_fails_stops_what_needs_it(folder: Path) -> None:
    told = {"build": "error: this GPU is too old", "--engine ort --precision fp16": "crash"}
    (folder / "plan.json").write_text(json.dumps(told))
    reasons = ran(folder, "cifar10").reasons()
    of_trt = {
        reason for what, reason in reasons.items() if str(what).endswith(("CUDA graph", "steps"))
    }
    assert of_trt == {
        "build cifar10, batch 100: this GPU is too old",
        "build cifar10, batch 1: this GPU is too old",
    }
    assert reasons["bench cifar10, batch 1, fp16"] == "ended by signal 11 (SIGSEGV)"
    assert reasons["bench cifar10, batch 1, fp32"] is None


def test_the_ladder_lies_in_the_folder_of_the_report(folder: Path) -> None:
    ran(folder, "lsun", ("ladder",))
    assert calls(folder) == [
        "bench --dataset lsun --device cuda --batch 100 --ladder --plot "
        f"--save {folder / 'ladder-lsun-gpu.jsonl'}"
    ]
