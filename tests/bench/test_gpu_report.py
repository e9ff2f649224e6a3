"""The report of a GPU machine: dry on a CPU, with jobs that fail, and with scripted commands."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from bench.child import reason, run_child

from bench.gpu_report import __main__ as report
from bench.gpu_report import commands, probes, rates
from bench.gpu_report.cells import Bench, Cell, cell_job, cells
from bench.gpu_report.commands import command_jobs, export_command
from bench.gpu_report.journal import DRY, MOST, Job, Journal, Site, attempt
from bench.machine import COMMIT, HOME, NO_COMMIT
from bench.row import BenchRow, Finding, read_records, read_rows
from bench.timing import Budget
from engine.backends.fused.reference import PLAIN
from lddgan.errors import LddganError
from tests.bench.child_script import write_manifest
from tests.conftest import TINY

SITE = Site("c" * 40, "NVIDIA H100, 580, 81559 MiB", {"torch": "2.11"})
HERE = Path(__file__).parent
SCRIPT = (sys.executable, str(HERE / "child_script.py"))
FOREVER = float("inf")


# ---- the dry run ----


def dry(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "bench.gpu_report", "--dry", "--out", str(out), *options)
    return subprocess.run(command, cwd=HOME, capture_output=True, text=True, check=False)


def check_cells(rows: list[BenchRow], findings: list[Finding], dataset: str) -> None:
    """One row for each cell, with its proof."""
    mine = [row for row in rows if row.dataset == dataset]
    assert [row.engine.engine for row in mine] == [
        cell.engine for cell in cells() if cell.dataset == dataset
    ]
    for row in mine:
        assert row.baseline is not None and row.ratio is not None and row.agreement is not None
        assert row.random_weights and row.baseline.engine == "torch" and row.trials == 2
        checked = row.engine.verification
        assert (checked is not None) == (row.engine.engine == "fused")
        assert checked is None or (checked["why_failed"] is None and checked["noise_identical"])
    assert [one.what for one in findings if one.stage == dataset] == [
        cell.words for cell in cells() if cell.dataset == dataset
    ]


def test_a_dry_run_measures_on_a_cpu_what_a_gpu_would_be_asked_for(tmp_path: Path) -> None:
    stages = ("--only", "facts,noise,cifar10,kernels,profile,compile,ort")
    done = dry(tmp_path, *stages, "--commit", "c" * 40)
    assert done.returncode == 0, done.stderr
    records = read_records(tmp_path / "rows.jsonl")
    rows = [one for one in records if isinstance(one, BenchRow)]
    found = {(one.stage, one.what): one for one in records if isinstance(one, Finding)}
    assert {row.commit for row in rows} == {one.commit for one in found.values()} == {"c" * 40}
    check_cells(rows, list(found.values()), "cifar10")
    said = found["facts", "machine"].found
    assert said["versions"]["torch"] and said["engines"]["torch on cpu"] == "runs"
    rates = found["kernels", "rates"].found
    assert rates["3x3 100x128x256x256 to 3"]["tflops"] > 0
    assert rates["group_norm 1x128x256x256"]["gb_per_second"] > 0
    assert "convolution" in (tmp_path / probes.PROFILE).read_text()
    assert found["noise", "bits"].why_not == DRY
    assert f"- ort, export lsun: {DRY}" in done.stdout and "| cifar10 \\* | 2 |" in done.stdout


@pytest.mark.full
def test_a_whole_dry_run_leaves_nothing_out_and_is_not_repeated(tmp_path: Path) -> None:
    assert dry(tmp_path).returncode == 0
    records = read_records(tmp_path / "rows.jsonl")
    rows = [one for one in records if isinstance(one, BenchRow)]
    findings = [one for one in records if isinstance(one, Finding)]
    for dataset in ("lsun", "celeba_256", "cifar10"):
        check_cells(rows, findings, dataset)
    assert {one.stage for one in findings} == set(report.STAGES)
    assert {one.stage for one in findings if one.why_not is not None} == {
        *("noise", "compile"),
        *report.COMMANDS,
    }
    assert "skipped" in (tmp_path / probes.TESTS_LOG).read_text()
    again = dry(tmp_path)
    assert "lsun: batch 100, fused fp16: measured before" in again.stderr
    assert read_rows(tmp_path / "rows.jsonl") == rows


# ---- the command line ----


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


def test_a_copy_without_gits_history_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.gpu_report.journal.commit", lambda: None)
    assert Site.here(dry=True).commit == NO_COMMIT


# ---- jobs ----


class Notes:
    """A journal, and what was logged; `went` lists the jobs that ran."""

    def __init__(self, path: Path, site: Site = SITE) -> None:
        self.journal, self.said, self.went = Journal(path, site), [], []

    def job(self, what: str, needs: float = 0, why_not: str | None = None, **more: Any) -> Job:
        def run(limit: float) -> dict[str, Any]:
            self.went.append((what, limit))
            if why_not is not None:
                raise LddganError(why_not)
            return {"figure": 1, "table": [1]}

        return Job("lsun", what, needs, run, **more)

    def attempt(self, *jobs: Job, left: float = FOREVER, started: str = "3") -> None:
        for job in jobs:
            budget = Budget(left, lambda: 0.0)
            attempt(job, self.journal, budget, started, self.said.append, lambda _: nullcontext())

    def reasons(self) -> dict[str, str | None]:
        return {one.what: one.why_not for one in self.journal.findings()}


@pytest.fixture
def notes(tmp_path: Path) -> Notes:
    return Notes(tmp_path / "rows.jsonl")


def test_what_was_found_is_kept_and_not_measured_again(notes: Notes, tmp_path: Path) -> None:
    notes.attempt(notes.job("a"))
    (line,) = read_records(tmp_path / "rows.jsonl")
    assert isinstance(line, Finding) and line.found == {"figure": 1, "table": [1]}
    assert (line.commit, line.gpu, line.versions) == SITE and line.why_not is None
    assert notes.said == ["lsun: a", "lsun: a: figure 1"]
    resumed = Notes(tmp_path / "rows.jsonl")
    resumed.attempt(resumed.job("a"), resumed.job("b"))
    assert [what for what, _ in resumed.went] == ["b"]
    assert resumed.said[0] == "lsun: a: measured before"


@pytest.mark.parametrize(
    "other", [SITE._replace(gpu="H200"), SITE._replace(commit="0" * 40), SITE._replace(versions={})]
)
def test_another_gpu_commit_or_version_is_measured_again(
    notes: Notes, tmp_path: Path, other: Site
) -> None:
    notes.attempt(notes.job("a"))
    elsewhere = Notes(tmp_path / "rows.jsonl", other)
    elsewhere.attempt(elsewhere.job("a"))
    assert elsewhere.went and len(read_records(tmp_path / "rows.jsonl")) == 2


def test_what_failed_is_tried_once_in_a_report_and_again_in_the_next(notes: Notes) -> None:
    failing = notes.job("a", why_not="no memory")
    notes.attempt(failing, failing, started="2")
    assert len(notes.went) == 1 and notes.reasons() == {"a": "no memory"}
    notes.attempt(notes.job("a"), started="3")
    assert len(notes.went) == 2 and notes.reasons() == {"a": None}
    assert len(notes.journal.records) == 1


def test_a_job_takes_half_of_the_time_or_what_it_needs(notes: Notes) -> None:
    notes.attempt(notes.job("a", 30), notes.job("b", 60), notes.job("c", 101), left=100)
    notes.attempt(notes.job("d"), left=FOREVER)
    assert notes.went == [("a", 50), ("b", 60), ("d", MOST)]
    assert notes.reasons()["c"] == "100 s left, 101 needed"


def test_what_cannot_do_without_another_is_not_begun(notes: Notes) -> None:
    build = notes.job("build", why_not="this GPU is too old")
    notes.attempt(build, notes.job("bench", after="build"), notes.job("ort", after="export"))
    assert [what for what, _ in notes.went] == ["build", "ort"]
    assert notes.reasons()["bench"] == "build: this GPU is too old"


def test_jobs_that_crash_hang_or_fail_are_named_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(HOME)
    monkeypatch.setattr(report, "WORKER", (sys.executable, "-m", "tests.bench.unreliable_worker"))
    options = ["--dry", "--out", str(tmp_path), "--only", "facts", "--seconds", "300"]
    assert report.main(options) == 0
    found = {one.what: one for one in read_records(tmp_path / "rows.jsonl")}  # type: ignore[union-attr]
    assert {what: one.why_not for what, one in found.items()} == {
        "crash": "ended by signal 11 (SIGSEGV)",
        "hang": "not done within 1 s",
        "mistake": "TypeError: one and two",
        "refusal": "no memory",
        "broken": "an illegal memory access",  # and the process ended after it
        "process": None,
        "the same": None,
    }
    assert found["process"].found == found["the same"].found
    assert "Traceback" in capfd.readouterr().err


def test_a_worker_that_does_not_start_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "WORKER", python("import sys; sys.exit('no torch')"))
    assert report.main(["--dry", "--out", str(tmp_path)]) == 1
    said = "the measuring process ended before its first job: no torch"
    assert said in capsys.readouterr().err


def test_a_row_whose_verification_fails_is_kept(
    notes: Notes, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise LddganError("no memory")

    monkeypatch.setattr("bench.gpu_report.cells.verify_engine", refuse)
    bench = Bench(notes.journal, notes.said.append, dry=True, hurried=True)
    notes.attempt(cell_job(bench, "cifar10", Cell("cifar10", 1, "fused", "fp16")))
    (row,) = notes.journal.rows()
    assert row.engine.verification is None and row.ratio is not None
    assert notes.reasons() == {"batch 1, fused fp16": "no memory"}


def test_a_kernel_that_fails_is_named_beside_the_rates_of_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("an illegal memory access\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(rates, "CONVOLUTIONS", rates.CONVOLUTIONS[-1:])
    monkeypatch.setattr(rates, "IMAGES", rates.IMAGES[-1:])
    found = rates.measure_rates("cpu", PLAIN._replace(add_=broken), shrunk=True)
    assert found.pop("add 1x128x256x256") == {"why_not": "an illegal memory access"}
    assert len(found) == 5 and all(rate["ms"] > 0 for rate in found.values())


# ---- the noise ----


@pytest.mark.fake_cuda
def test_the_noise_is_compared_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probes.noise(TINY, images=3)
    per_image = 4 * 8 * 8 * (1 + TINY.steps) + TINY.steps * TINY.generator.nz
    assert (found["draws"], found["different"]) == (2 * 3 * per_image, 0)
    true = probes.sampler_noise

    def shifted(seed: int, first: int, count: int, **shape: Any) -> Any:
        drawn = true(seed, first, count, **shape)
        drawn.z[0, 0, 0] = -drawn.z[0, 0, 0]
        return drawn

    monkeypatch.setattr(probes, "sampler_noise", shifted)
    with pytest.raises(LddganError, match=r"^2 of [\d,]+ draws are not numpy's, bit for bit"):
        probes.noise(TINY, images=3)


# ---- commands of lddgan ----


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
    jobs = command_jobs(folder, SCRIPT, notes.said.append)
    notes.attempt(*(job for job in jobs if job.stage in stages and dataset in job.what), left=1e3)
    return notes


def calls(folder: Path) -> list[str]:
    return (folder / "calls.txt").read_text().splitlines()


def test_every_model_is_exported_built_and_measured(folder: Path) -> None:
    notes = ran(folder, "cifar10")
    limit = 500 - commands.OVERHEAD
    on = "--device cuda"
    end = f"--verify --save {folder / 'rows.jsonl'} --json"
    trt = f"bench --dataset cifar10 --engine trt --precision fp16 {on}"
    ort = f"bench --dataset cifar10 --engine ort --precision {{}} {on}"
    first, second = "--batch 100 --trials 50", "--batch 1 --trials 300"
    assert calls(folder) == [
        "export --dataset cifar10 --precision fp16",
        "build --dataset cifar10 --precision fp16 --batch 1,100,100",
        f"{trt} {first} --max-seconds {limit:.0f} {end}",
        f"{trt} {first} --max-seconds {limit:.0f} --no-cuda-graph {end}",
        "build --dataset cifar10 --precision fp16 --batch 1,1,1",
        f"{trt} {second} --max-seconds {limit:.0f} {end}",
        f"{trt} {second} --max-seconds {limit:.0f} --no-cuda-graph {end}",
        *(
            f"{ort.format(precision)} {batch} --max-seconds {limit:.0f} {end}"
            for batch in (first, second)
            for precision in ("fp32", "fp16")
        ),
    ]
    rows = read_rows(folder / "rows.jsonl")
    assert [(row.engine.engine, row.engine.cuda_graph) for row in rows] == [
        *[("trt", True), ("trt", False)] * 2,
        *[("ort", False)] * 4,
    ]
    assert set(notes.reasons().values()) == {None}


def test_what_a_bundle_holds_is_not_exported_again(folder: Path) -> None:
    assert export_command("lsun", ("fp16",)) == (
        "export",
        "--dataset",
        "lsun",
        "--precision",
        "fp16",
    )
    write_manifest(Path("exports") / "lsun", ("fp16",))
    assert export_command("lsun", ("fp16",)) is None
    command = export_command("lsun", ("fp32", "fp16"))
    assert command is not None and " ".join(command) == (
        "export --checkpoint exports/lsun/model.safetensors --precision both --out exports/lsun"
    )
    (Path("exports") / "lsun" / "manifest.json").write_text("{}")
    assert "is not a manifest" in (ran(folder, "lsun").reasons()["export lsun"] or "")


def test_a_command_that_fails_stops_what_needs_it_and_nothing_else(folder: Path) -> None:
    told = {"build": "error: this GPU is too old", "--engine ort --precision fp16": "crash"}
    (folder / "plan.json").write_text(json.dumps(told))
    reasons = ran(folder, "cifar10").reasons()
    of_trt = {reason for what, reason in reasons.items() if "CUDA graph" in what or "steps" in what}
    assert of_trt == {
        "build cifar10, batch 100: this GPU is too old",
        "build cifar10, batch 1: this GPU is too old",
    }
    assert reasons["bench cifar10, batch 1, fp16"] == "ended by signal 11 (SIGSEGV)"
    assert reasons["bench cifar10, batch 1, fp32"] is None


def test_the_ladder_and_its_pictures_lie_in_the_folder_of_the_report(folder: Path) -> None:
    ran(folder, "lsun", ("ladder",))
    assert calls(folder) == [
        "bench --dataset lsun --device cuda --batch 100 --ladder --plot "
        f"--save {folder / 'ladder-lsun-gpu.jsonl'}"
    ]


# ---- the child ----


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_a_childs_last_words_are_the_reason(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_child(python("print('fine')"), 60) is None
    said = run_child(python("import sys; sys.exit('error: too bad')"), 60)
    assert said == "too bad"
    assert "error: too bad" in capfd.readouterr().err  # passed on
    assert run_child(python("import sys; sys.exit(3)"), 60) == "ended with exit code 3"
    assert reason(-9, "") == "ended by signal 9 (SIGKILL)"


GRANDCHILD = "import sys, time; time.sleep(2); open(sys.argv[1], 'w')"
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", *sys.argv[1:]])
time.sleep(60)
"""


def test_a_childs_own_children_end_with_it(tmp_path: Path) -> None:
    left = tmp_path / "left"
    command = (*python(PARENT), GRANDCHILD, str(left))
    assert run_child(command, 1.0) == "not done within 1 s"
    command = (*python(PARENT.replace("time.sleep(60)", "sys.exit(3)")), GRANDCHILD, str(left))
    assert run_child(command, 60.0) == "ended with exit code 3"
    time.sleep(2.5)  # longer than the grandchild would take
    assert not left.exists()
