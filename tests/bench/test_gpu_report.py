"""The report of a GPU machine, with a scripted command line in place of lddgan's. No GPU."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.child import reason, run_child
from bench.gpu_report import (
    LADDER,
    LIMITS,
    OVERHEAD,
    QUICK_SECONDS,
    Job,
    Reporter,
    Site,
    bench_command,
    export_commands,
    fits,
    is_ladder,
    jobs,
    ladder_command,
    limit,
    main,
    preparations,
    quick_jobs,
    verify_command,
)
from bench.ladder import LadderRow, ladder_file, save_ladders
from bench.machine import HOME, Gpu, Machine, versions
from bench.report import verification
from bench.row import BenchRow, Skipped, read_records, read_rows, save_row
from bench.timing import Budget
from tests.bench.child_script import write_manifest
from tests.bench.test_ladder import SITE
from tests.bench.test_results import row

SCRIPT = (sys.executable, str(Path(__file__).with_name("child_script.py")))
COMMIT = "c" * 40
TRT = Job("cifar10", 10, "trt", "fp16", True, 5, 10)
STEPS = TRT._replace(cuda_graph=False)
TORCH = Job("cifar10", 10, "torch", "fp16", False, 5, 10)
ORT = Job("cifar10", 10, "ort", "fp32", False, 5, 10)
H200 = Gpu(name="NVIDIA H200", driver="580", sm_clock="", power_limit="")


@pytest.fixture
def site() -> Site:
    return Site(COMMIT, "NVIDIA H200", versions())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the scripted child finds what to do; the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SCRIPT_FOLDER", str(tmp_path))
    monkeypatch.setenv("SCRIPT_COMMIT", COMMIT)
    monkeypatch.setenv("PYTHONPATH", str(HOME))
    (tmp_path / "plan.json").write_text("{}")
    return tmp_path


def told(folder: Path, **what: str) -> None:
    (folder / "plan.json").write_text(json.dumps(what))


def calls(folder: Path) -> list[str]:
    """First word and engine of every call, and the log emptied."""
    log = folder / "calls.txt"
    words = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    log.unlink(missing_ok=True)
    return [" ".join([one[0], *one[one.index("--dataset") + 1 :][:1]]) for one in words]


def reporter(
    site: Site, seconds: float = float("inf"), log: Callable[[str], None] = lambda _: None
) -> Reporter:
    return Reporter(Path("report.jsonl"), site, Budget(seconds), SCRIPT, log)


# ---- the list ----


def test_everything_is_measured_in_the_agreed_order() -> None:
    todo = jobs()
    cells = list(dict.fromkeys((job.dataset, job.batch) for job in todo))
    assert cells[:4] == [("lsun", 100), ("lsun", 1), ("celeba_256", 100), ("cifar10", 100)]
    assert set(cells) == {(d, b) for d in ("lsun", "celeba_256", "cifar10") for b in (1, 10, 100)}
    assert len(set(todo)) == len(todo) == 9 * 6 + 3
    for cell in cells:
        kinds = [job[2:5] for job in todo if (job.dataset, job.batch) == cell]
        assert kinds[:6] == [
            ("trt", "fp16", True),
            ("trt", "fp16", False),
            ("fused", "fp16", True),
            ("torch", "fp16", False),
            ("ort", "fp32", False),
            ("ort", "fp16", False),
        ]
        assert kinds[6:] == [("torch-compile", "fp16", False)] * (cell[1] == 100)


def test_quick_is_lsun_needs_one_build_at_its_end_and_asks_for_fewer_trials(
    folder: Path,
) -> None:
    quick, full = quick_jobs(), {job[:5]: job.trials for job in jobs()}
    assert [job[:4] for job in quick] == [
        ("lsun", 100, "torch", "fp16"),
        ("lsun", 1, "torch", "fp16"),
        ("lsun", 100, "fused", "fp16"),
        ("lsun", 1, "fused", "fp16"),
        ("lsun", 100, "trt", "fp16"),
        ("lsun", 1, "trt", "fp16"),
    ]
    write_manifest(Path("exports") / "lsun")
    assert preparations(quick[1]) == []
    (build,) = {command for job in quick for command in preparations(job)}
    assert build[-2:] == ("--batch", "1,100,100")
    assert verify_command(quick[4]) == verify_command(quick[5])
    assert all(job.trials < full[job[:5]] for job in quick)
    assert QUICK_SECONDS == 600


def test_the_commands_of_a_job(folder: Path) -> None:
    plan = ("--dataset", "cifar10", "--engine", "trt", "--precision", "fp16")
    assert preparations(TRT) == [
        ("export", "--dataset", "cifar10", "--precision", "both"),
        ("build", *plan, "--batch", "1,10,10"),
    ]
    assert verify_command(TRT) == (
        *("verify", *plan, "--device", "cuda", "--batch", "10", "--json"),
    )
    assert " ".join(verify_command(ORT)) == (
        "verify --dataset cifar10 --engine ort --precision fp32 --device cuda --json"
    )
    write_manifest(Path("exports") / "cifar10")
    assert preparations(ORT) == []
    assert [command[0] for command in preparations(STEPS)] == ["build"]
    with_graph = " ".join(bench_command(TRT, Path("out.jsonl"), 59.6))
    assert with_graph == (
        "bench --dataset cifar10 --engine trt --precision fp16 --device cuda --batch 10 "
        "--trials 5 --max-seconds 60 --save out.jsonl --json"
    )
    assert "--no-cuda-graph" in bench_command(STEPS, Path("out.jsonl"), 0)
    assert "--no-cuda-graph" not in bench_command(ORT, Path("out.jsonl"), 0)
    assert " ".join(ladder_command(Path("out.jsonl"))) == (
        "bench --dataset lsun --device cuda --batch 100 --ladder --plot --save out.jsonl"
    )


def test_a_bundle_of_one_precision_is_exported_again_from_its_own_checkpoint(
    folder: Path,
) -> None:
    write_manifest(Path("exports") / "lsun", ("fp32",))
    (command,) = export_commands("lsun")
    assert " ".join(command) == (
        "export --checkpoint exports/lsun/model.safetensors --precision both --out exports/lsun"
    )


def test_a_row_of_a_cpu_is_not_a_gpus() -> None:
    gpu = Gpu(name="G", driver="", sm_clock="", power_limit="")
    on_gpu = Machine(cpu="A CPU", cores=2, load=0, gpu=gpu)
    job, here = Job("lsun", 1, "ort", "fp32", False, 5, 1), Site(None, "G", {})
    assert fits(row(machine=on_gpu), job, here)
    assert not fits(row(), job, here)


# ---- the run ----


def test_each_row_is_there_at_once_and_nothing_is_measured_twice(folder: Path, site: Site) -> None:
    held: list[int] = []

    def log(line: str) -> None:
        out = Path("report.jsonl")
        held.append(len(read_rows(out)) if out.exists() else 0)

    reporter(site, log=log).run([TRT, STEPS, TORCH])
    assert calls(folder) == [
        f"{command} cifar10"
        for command in (
            *("export", "build", "verify", "bench"),  # the first
            "bench",  # the plan is there already
            *("verify", "bench"),
        )
    ]
    assert held[-1] == 3 and {0, 1, 2, 3} == set(held)
    rows = read_rows(Path("report.jsonl"))
    assert [(r.engine.engine, r.engine.cuda_graph) for r in rows] == [
        ("trt", True),
        ("trt", False),
        ("torch", False),
    ]
    reporter(site).run([TRT, STEPS, TORCH, ORT])  # resumed
    assert calls(folder) == ["verify cifar10", "bench cifar10"]
    assert len(read_rows(Path("report.jsonl"))) == 4


def test_more_trials_another_gpu_or_other_versions_are_measured_again(
    folder: Path, site: Site
) -> None:
    reporter(site).run([ORT])
    (found,) = read_rows(Path("report.jsonl"))
    assert fits(found, ORT, site) and fits(found, ORT._replace(trials=4), site)
    assert not fits(found, ORT._replace(trials=6), site)
    for other in (
        site._replace(gpu="NVIDIA H100"),
        site._replace(commit="0" * 40),
        site._replace(versions=site.versions | {"torch": "3.0"}),
    ):
        assert not fits(found, ORT, other)
    for job in (TORCH, ORT._replace(precision="fp16"), ORT._replace(batch=1)):
        assert not fits(found, job, site)
    assert not fits(found.model_copy(update={"baseline": None}), ORT, site)


def test_what_cannot_run_is_written_down_and_the_rest_goes_on(folder: Path, site: Site) -> None:
    told(folder, **{"--engine trt": "error: this GPU is too old", "--engine ort": "crash"})
    reporter(site).run([TRT, STEPS, ORT, TORCH])
    # The build is not tried again for the second job that needs it.
    assert calls(folder) == [
        f"{c} cifar10" for c in ("export", "build", "verify", "bench", "verify", "bench")
    ]
    records = read_records(Path("report.jsonl"))
    assert [type(record) for record in records] == [Skipped, Skipped, Skipped, BenchRow]
    reasons = [record.reason for record in records if isinstance(record, Skipped)]
    assert reasons == ["build: this GPU is too old"] * 2 + ["ended by signal 11 (SIGSEGV)"]
    # Mended and run again: only what was skipped is measured, and the old reasons are gone.
    told(folder)
    reporter(site).run([TRT, STEPS, ORT, TORCH])
    assert calls(folder) == [
        f"{c} cifar10" for c in ("build", "verify", "bench", "bench", "verify", "bench")
    ]
    assert all(isinstance(record, BenchRow) for record in read_records(Path("report.jsonl")))


def test_a_bundle_that_cannot_be_read_is_a_reason(folder: Path, site: Site) -> None:
    (folder / "exports" / "cifar10").mkdir(parents=True)
    (folder / "exports" / "cifar10" / "manifest.json").write_text("{}")
    reporter(site).run([ORT])
    (record,) = read_records(Path("report.jsonl"))
    assert isinstance(record, Skipped) and "is not a manifest" in record.reason
    assert calls(folder) == []


def test_a_second_failure_replaces_the_first(folder: Path, site: Site) -> None:
    for why in ("one", "two"):
        told(folder, bench=f"error: {why}")
        reporter(site).run([ORT])
    (record,) = read_records(Path("report.jsonl"))
    assert isinstance(record, Skipped) and record.reason == "two"


def test_what_verification_says_is_in_the_row(folder: Path, site: Site) -> None:
    reporter(site).run([TRT, ORT, TORCH])
    trt, ort, torch = read_rows(Path("report.jsonl"))
    assert [verification(one) for one in (trt, ort, torch)] == ["equal"] * 3
    assert trt.engine.verification == ort.engine.verification == torch.engine.verification
    assert trt.notes == ort.notes == ("from the script",)


@pytest.mark.parametrize(("said", "shown"), [("error: off", "-"), ("refused", "equal, failed")])
def test_a_failed_verification_is_noted_in_the_row(
    folder: Path, site: Site, said: str, shown: str
) -> None:
    told(folder, verify=said)
    reporter(site).run([TRT, STEPS, ORT])
    trt, steps, ort = read_rows(Path("report.jsonl"))
    note = f"verify: {said.removeprefix('error: ')}"
    assert trt.notes == steps.notes == ort.notes == ("from the script", note)
    assert [verification(one) for one in (trt, steps, ort)] == [shown] * 3


def test_a_benchmark_that_leaves_no_row_is_not_taken_for_one(folder: Path, site: Site) -> None:
    told(folder, bench="nothing")
    reporter(site).run([ORT])
    (record,) = read_records(Path("report.jsonl"))
    assert isinstance(record, Skipped) and "left no row" in record.reason


def test_trials_end_before_the_child_would_be(folder: Path, site: Site) -> None:
    said: list[str] = []
    reporter(site, log=said.append).run([ORT])
    reporter(site, seconds=OVERHEAD + 60, log=said.append).run([TORCH])
    reporter(site, seconds=OVERHEAD, log=said.append).run([TRT])
    words = [line.split() for line in said if line.startswith("  lddgan bench")]
    full, short, none = (float(one[one.index("--max-seconds") + 1]) for one in words)
    assert full == LIMITS["bench"] - OVERHEAD
    assert 0 < short <= 60 and none == 0


def test_a_child_that_hangs_is_ended(
    folder: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIMITS, "bench", 1.0)
    told(folder, bench="hang")
    reporter(site).run([ORT])
    (record,) = read_records(Path("report.jsonl"))
    assert isinstance(record, Skipped) and record.reason == "not done within 1 s"


def test_when_the_time_is_over_the_rest_is_written_down_and_done_the_next_time(
    folder: Path, site: Site
) -> None:
    reporter(site, seconds=0).run([ORT, TORCH])
    assert calls(folder) == []
    records = read_records(Path("report.jsonl"))
    assert [record.reason for record in records if isinstance(record, Skipped)] == [
        "export: the time for the whole report was over"
    ] * 2
    reporter(site).run([ORT, TORCH])
    assert len(read_rows(Path("report.jsonl"))) == 2


def test_the_budget_is_what_is_left() -> None:
    now = [100.0]
    budget = Budget(600, lambda: now[0])
    assert limit("doctor", budget) == LIMITS["doctor"]
    now[0] += 590
    assert limit("bench", budget) == 10
    now[0] += 20
    assert limit("bench", budget) == 0


# ---- the ladder ----


RUNGS = 3


def ladder_rows(site: Site, rungs: int = RUNGS, **changes: Any) -> list[LadderRow]:
    """A ladder of rungs that did not run."""
    here = Machine(cpu="A CPU", cores=2, load=0, gpu=H200)
    dataset, batch = LADDER
    of = SITE.model_copy(
        update={
            "commit": site.commit,
            "dataset": dataset,
            "batch": batch,
            "machine": here,
            "versions": site.versions,
            **changes,
        }
    )
    return [
        LadderRow(site=of, number=n, rung=f"rung {n}", adds="", why_not="no", found=None)
        for n in range(1, rungs + 1)
    ]


@pytest.fixture
def ladder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the ladder is kept; there are RUNGS rungs, and the bundle is there."""
    monkeypatch.setattr("bench.gpu_report.rungs_of", lambda shop: [None] * RUNGS)
    write_manifest(Path("exports") / LADDER[0])
    path = ladder_file(LADDER[0], "cuda")
    path.parent.mkdir(parents=True)
    return path


def test_a_ladder_is_measured_once(ladder: Path, folder: Path, site: Site) -> None:
    assert reporter(site).climb() is None
    (command,) = (folder / "calls.txt").read_text().splitlines()
    assert command == " ".join(ladder_command(ladder))
    assert calls(folder) == ["bench lsun"]
    save_ladders(ladder_rows(site), ladder)
    said: list[str] = []
    assert reporter(site, log=said.append).climb() is None
    assert calls(folder) == [] and said == ["the ladder of lsun, batch 100: measured before"]
    save_ladders(ladder_rows(site, rungs=RUNGS - 1), ladder)  # interrupted
    assert reporter(site).climb() is None
    assert calls(folder) == ["bench lsun"]


def test_a_ladder_that_fails_says_why(ladder: Path, folder: Path, site: Site) -> None:
    told(folder, **{"--ladder": "error: no memory"})
    assert reporter(site).climb() == "no memory"
    (folder / "exports" / "lsun" / "manifest.json").write_text("{}")
    assert "is not a manifest" in str(reporter(site).climb())


@pytest.mark.parametrize(
    "changes", [{"commit": "0" * 40}, {"batch": 1}, {"versions": {}}, {"dataset": "cifar10"}]
)
def test_a_ladder_of_something_else_does_not_count(site: Site, changes: dict[str, Any]) -> None:
    assert is_ladder(ladder_rows(site), RUNGS, site)
    assert not is_ladder(ladder_rows(site, **changes), RUNGS, site)
    nowhere = Machine(cpu="A CPU", cores=2, load=0, gpu=None)
    assert not is_ladder(ladder_rows(site, machine=nowhere), RUNGS, site)


# ---- the command ----


def test_without_a_gpu_it_says_so_and_does_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.gpu_report.why_no_gpu", lambda: "no NVIDIA GPU: none here")
    assert main(["--quick"], SCRIPT) == 1
    assert capsys.readouterr().err == "no NVIDIA GPU: none here\n"
    assert not (folder / "calls.txt").exists()


def test_the_whole_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    told(folder, **{"torch --precision fp16 --device cuda --batch 1 ": "error: no torch"})
    monkeypatch.setattr("bench.gpu_report.why_no_gpu", lambda: None)
    monkeypatch.setattr("bench.gpu_report.gpu", lambda: H200)
    monkeypatch.setattr("bench.gpu_report.CEILINGS", (*SCRIPT, "ceilings", "--dataset", "all"))
    monkeypatch.setattr("bench.gpu_report.commit", lambda: COMMIT)
    assert main(["--quick"], SCRIPT) == 0
    out = folder / "bench" / "results" / "nvidia-h200.jsonl"
    assert len(read_rows(out)) == 5 and len(read_records(out)) == 6
    said = capfd.readouterr()
    assert "| lsun \\* | 100 | NVIDIA H200 | trt fp16, CUDA graph | 4,000 | 100 |" in said.out
    assert "- lsun, batch 1, torch fp16: no torch" in said.out
    assert "trt fp16, CUDA graph: 100 ms, PyTorch 4,000 ms, 1.60 times as fast" in said.err


def test_the_ladder_is_the_last_of_a_full_report_and_none_of_a_quick_one(
    folder: Path, ladder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.gpu_report.why_no_gpu", lambda: None)
    monkeypatch.setattr("bench.gpu_report.gpu", lambda: H200)
    monkeypatch.setattr("bench.gpu_report.CEILINGS", (*SCRIPT, "ceilings", "--dataset", "all"))
    monkeypatch.setattr("bench.gpu_report.commit", lambda: COMMIT)
    monkeypatch.setattr("bench.gpu_report.jobs", lambda: [ORT])
    monkeypatch.setattr("bench.gpu_report.quick_jobs", lambda: [ORT])
    log = folder / "calls.txt"
    assert main(["--quick"], SCRIPT) == 0
    assert "--ladder" not in log.read_text()
    told(folder, **{"--ladder": "error: no memory"})
    assert main([], SCRIPT) == 0
    assert log.read_text().splitlines()[-1] == " ".join(ladder_command(ladder))
    assert capfd.readouterr().out.endswith("no ladder: no memory\n")


def test_rows_of_another_commit_are_no_result(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.gpu_report.why_no_gpu", lambda: None)
    monkeypatch.setattr("bench.gpu_report.gpu", lambda: H200)
    monkeypatch.setattr("bench.gpu_report.CEILINGS", (*SCRIPT, "ceilings", "--dataset", "all"))
    monkeypatch.setattr("bench.gpu_report.commit", lambda: COMMIT)
    here = Machine(cpu="A CPU", cores=2, load=0, gpu=H200)
    save_row(row(machine=here, commit="0" * 40, versions=versions()), Path("out.jsonl"))
    told(folder, bench="error: no memory")
    assert main(["--quick", "--out", "out.jsonl"], SCRIPT) == 1
    save_row(row(machine=here, commit=COMMIT, versions=versions()), Path("out.jsonl"))
    assert main(["--quick", "--out", "out.jsonl"], SCRIPT) == 0
    capfd.readouterr()


def test_a_file_of_something_else_is_left_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bench.gpu_report.why_no_gpu", lambda: None)
    monkeypatch.setattr("bench.gpu_report.gpu", lambda: H200)
    (folder / "notes.jsonl").write_text("my notes\n")
    assert main(["--out", "notes.jsonl"], SCRIPT) == 2
    assert "line 1 is not a benchmark row" in capsys.readouterr().err
    assert (folder / "notes.jsonl").read_text() == "my notes\n"
    assert not (folder / "calls.txt").exists()


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
    time.sleep(2.5)  # longer than the grandchild would take
    assert not left.exists()
