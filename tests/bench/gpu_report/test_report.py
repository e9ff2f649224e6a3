"""The report of a GPU machine, dry on a CPU, and with a worker that crashes and hangs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.gpu_report import __main__ as report
from bench.gpu_report import probes
from bench.gpu_report.cells import Bench, Cell, cell_job, cells
from bench.gpu_report.journal import DRY, Site
from bench.machine import COMMIT, HOME
from bench.row import Row, read_rows
from lddgan.errors import LddganError
from tests.bench.gpu_report.notes import SITE, Notes


def dry(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "bench.gpu_report", "--dry", "--out", str(out), *options)
    return subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=False)


def check_cells(rows: list[Row], dataset: str) -> None:
    """The rows of each cell, the engine's with its proof and the baseline's."""
    mine = [cell for cell in cells() if cell.dataset == dataset]
    measured = [row for row in rows if row.kind == "engine" and row.dataset == dataset]
    engines, baselines = measured[::2], measured[1::2]
    assert sorted(row.engine for row in measured if row.baseline_ms) == sorted(
        cell.engine for cell in mine
    )
    assert len(engines) == len(baselines) == len(mine)
    for row in measured:
        assert row.random_weights and row.trials == 2
        if row.baseline_ms is None:
            assert row.engine == "torch"
            continue
        checked = row.verification
        assert row.psnr is not None and (checked is not None) == (row.engine == "fused")
        assert checked is None or (checked["why_failed"] is None and checked["noise_identical"])
    jobs = [row.variant for row in rows if row.kind == "job" and row.stage == dataset]
    assert jobs == [cell.words for cell in mine]


@pytest.mark.full
def test_a_whole_dry_run_leaves_nothing_out_and_is_not_repeated(tmp_path: Path) -> None:
    done = dry(tmp_path, "--commit", "c" * 40)
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "rows.jsonl")
    assert {row.commit for row in rows} == {"c" * 40}
    for dataset in ("lsun", "celeba_256", "cifar10"):
        check_cells(rows, dataset)
    jobs = [row for row in rows if row.kind == "job"]
    assert {row.stage for row in jobs} == set(report.STAGES)
    assert {row.stage for row in jobs if row.why_not is not None} == {
        *("noise", "compile"),
        *report.COMMANDS,
    }
    assert "skipped" in (tmp_path / probes.TESTS_LOG).read_text()
    found = {(row.stage, row.variant): row for row in jobs}
    said = found["facts", "machine"].facts
    assert said["packages"]["torch"] and {"torch", "fused"} <= {
        one["engine"] for one in said["engines"]
    }
    rates = found["kernels", "rates"].facts
    assert rates["3x3 100x128x256x256 to 3"]["tflops"] > 0
    assert rates["group_norm 1x128x256x256"]["gb_per_second"] > 0
    assert "convolution" in (tmp_path / probes.PROFILE).read_text()
    assert found["noise", "bits"].why_not == DRY
    assert f"- ort, export lsun: {DRY}" in done.stdout and "| cifar10 \\* | 2 |" in done.stdout
    again = dry(tmp_path, "--commit", "c" * 40)
    assert "lsun: batch 100, fused fp16: measured before" in again.stderr
    measured = [row.line() for row in rows if row.kind == "engine"]
    kept = read_rows(tmp_path / "rows.jsonl")
    assert [row.line() for row in kept if row.kind == "engine"] == measured


def test_what_cannot_be_asked_for_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COMMIT, "c" * 40)
    monkeypatch.setattr(report, "why_no_gpu", lambda: "no NVIDIA GPU: none here")
    (tmp_path / "rows.jsonl").write_text("my notes\n")
    out = ("--out", str(tmp_path))
    for arguments, code, said in (
        ((), 1, "no NVIDIA GPU: none here; --dry tries all of it on a CPU"),
        (("--dry",), 2, "a dry run is no result; give it a folder of its own with --out"),
        (("--dry", "--only", "lsun,facs"), 2, "there is no stage 'facs'; there are facts, noise"),
        (("--dry", *out), 2, "line 1 is not a benchmark row"),
        (("--dry", *out, "--commit", "mine"), 2, "the commit is 'mine', and must be a hash"),
    ):
        assert report.main(arguments) == code
        assert said in capsys.readouterr().err
    assert (tmp_path / "rows.jsonl").read_text() == "my notes\n"


def test_results_of_a_gpu_have_a_folder_named_after_it() -> None:
    assert report.folder_of(SITE) == Path("bench/results/nvidia-h100")


def test_the_site_of_a_copy_without_gits_history_has_no_commit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bench.gpu_report.journal.commit", lambda: None)
    assert Site.here(dry=True).commit is None


def test_jobs_that_crash_hang_or_fail_do_not_stop_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(HOME)
    monkeypatch.setattr(
        report, "WORKER", (sys.executable, "-m", "tests.bench.gpu_report.unreliable_worker")
    )
    options = ["--dry", "--out", str(tmp_path), "--only", "facts", "--seconds", "300"]
    assert report.main(options) == 0
    found = {row.variant: row for row in read_rows(tmp_path / "rows.jsonl")}
    assert {what: one.why_not for what, one in found.items()} == {
        "crash": "ended by signal 11 (SIGSEGV)",
        "hang": "not done within 1 s",
        "mistake": "TypeError: one and two",
        "refusal": "no memory",
        "broken": "an illegal memory access",  # and the process ended after it
        "process": None,
        "the same": None,
    }
    assert found["process"].facts == found["the same"].facts
    assert "Traceback" in capfd.readouterr().err


def test_a_worker_that_does_not_start_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        report, "WORKER", (sys.executable, "-c", "import sys; sys.exit('no torch')")
    )
    assert report.main(["--dry", "--out", str(tmp_path)]) == 1
    said = "the measuring process ended before its first job: no torch"
    assert said in capsys.readouterr().err


def test_a_row_whose_verification_fails_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise LddganError("no memory")

    monkeypatch.setattr("bench.gpu_report.cells.verify_engine", refuse)
    notes = Notes(tmp_path / "rows.jsonl")
    bench = Bench(notes, dry=True)
    notes.attempt(cell_job(bench, Cell("cifar10", 1, "fused", "fp16")))
    row, baseline = (row for row in notes.rows if row.kind == "engine")
    assert row.verification is None and row.baseline_ms == baseline.whole_ms
    assert notes.reasons() == {"batch 1, fused fp16": "no memory"}
