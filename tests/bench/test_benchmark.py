"""A real benchmark of a tiny model. Nothing is asserted about speed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.cost import measure_cost
from bench.row import Row, read_rows, write_rows
from bench.run import benchmark
from bench.tables import print_engine
from export.bundle import open_bundle
from lddgan.errors import BadInput, LddganError
from tests.conftest import TINY


def run(bundle: Path, **changes: Any) -> list[Row]:
    given: dict[str, Any] = {"batch": 5, "trials": 2, "seed": 3} | changes
    engine, precision = given.pop("engine", "ort"), given.pop("precision", "fp32")
    return benchmark(open_bundle(bundle), engine, precision, "cpu", **given)


@pytest.fixture(scope="module")
def rows(tiny_bundle: Path) -> list[Row]:
    return run(tiny_bundle)


@pytest.fixture
def row(rows: list[Row]) -> Row:
    return rows[0]


def test_both_sides_run_the_whole_batch(rows: list[Row]) -> None:
    ort, torch = rows
    assert (ort.engine, torch.engine, ort.session) == ("ort", "torch", torch.session)
    assert (ort.dataset, ort.random_weights, ort.batch, ort.trials) == ("tiny", True, 5, 2)
    assert (torch.batch, torch.trials, torch.baseline_ms) == (5, 2, None)
    assert ort.baseline_ms == torch.whole_ms
    assert ort.grey_levels is not None and ort.grey_levels <= 1 and torch.grey_levels is None


def test_stages_add_up(rows: list[Row]) -> None:
    for row in rows:
        ms = {stage: summary.mean for stage, summary in row.ms.items()}
        assert 0 < ms["generator"] + ms["decoder"] <= ms["whole"] * (1 + 1e-6)
        assert ms["end_to_end"] == pytest.approx(ms["noise"] + ms["whole"] + ms["download"])


def test_a_row_says_where_and_with_what(row: Row) -> None:
    assert row.versions["torch"] and row.versions["onnxruntime"]
    assert row.machine is not None and row.machine.cores >= 1 and row.machine.gpu is None
    assert row.verification is not None and row.verification["chain_levels"] <= 1
    assert row.preset["steps"] == 3
    assert "random weights: timing only" in row.notes
    assert row.png_ms is not None and row.png_ms > 0
    assert (row.cuda_graph, row.facts, row.ceilings) == (None, {}, None)


def test_the_work_is_counted_in_the_networks(row: Row) -> None:
    cost = measure_cost(TINY)
    assert row.flop["decoder"] == 2 * 5 * cost.decoder_macs
    assert row.flop["generator"] == 2 * 5 * 3 * cost.generator_macs
    assert row.least_bytes and row.intensity.keys() == {"generator", "decoder"}


def test_a_measured_row_survives_its_file(rows: list[Row], tmp_path: Path) -> None:
    path = write_rows(rows, tmp_path / "rows.jsonl")
    assert [one.line() for one in read_rows(path)] == [one.line() for one in rows]


def test_fp16_is_measured_against_the_fp32_baseline(tiny_bundle: Path) -> None:
    rows = run(tiny_bundle, precision="fp16", trials=1, batch=2)
    assert [row.precision for row in rows] == ["fp16", "fp32"]


def test_a_limit_leaves_one_trial_and_says_so(tiny_bundle: Path) -> None:
    log: list[str] = []
    row, _ = run(tiny_bundle, max_seconds=0.0, trials=40, log=log.append)
    assert (row.trials, row.trials_asked, row.batch) == (1, 40, 5)
    assert row.notes[0].startswith("1 of 40 trials: more do not fit in 0 s")
    assert "1 of 40, in what is left of 0 s" in log[-1]
    assert row.png_ms is None and any("PNG files were left out" in note for note in row.notes)


def test_a_row_is_verified_on_the_images_that_were_timed(tiny_bundle: Path) -> None:
    found = run(tiny_bundle, trials=1, verify=True)[0].verification
    assert found is not None and found["why_failed"] is None and found["noise_identical"]
    assert (found["images"], found["engine"], found["chain_levels"] <= 1) == (5, "ort", True)
    few = run(tiny_bundle, trials=1, batch=1, verify=True)[0].verification
    assert few is not None and few["images"] == 4


def test_a_row_that_cannot_be_verified_is_not_lost(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise LddganError("no memory")

    monkeypatch.setattr("bench.run.verify_opened", refuse)
    row, _ = run(tiny_bundle, engine="openvino", trials=1, verify=True)
    assert row.verification is None and row.notes[-1] == "not verified: no memory"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"engine": "torch", "precision": "fp16"}, "fp16 runs with --engine .* on --device cuda"),
    ],
)
def test_bad_input(tiny_bundle: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        run(tiny_bundle, **changes)


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from bench.compare import compare
from bench.run import benchmark
from bench.tables import print_compared, print_engine
from export.bundle import DIGITS, open_bundle
(row,) = benchmark(open_bundle(sys.argv[1]), "auto", "fp32", "auto", batch=2, trials=1, seed=0)
assert row.ratio is None and row.psnr is None
assert row.tflops() is None and row.torch_settings is None
print_engine([row])
both = [open_bundle(folder) for folder in (sys.argv[1], DIGITS)]
print_compared(compare(both, "auto", "fp32", "auto", batch=2, trials=1, seed=0))
"""


def test_without_torch_the_table_says_why_no_baseline(tiny_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(tiny_bundle)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "! no PyTorch baseline: torch is not installed; pip install" in said
    assert "times the first: times as fast as the first model" in said


def test_measured_rows_are_printed(rows: list[Row], capsys: pytest.CaptureFixture[str]) -> None:
    print_engine(rows)
    text = capsys.readouterr().out
    for expected in ("ort fp32", "torch fp32", "generator, 3 steps", "seed to pixels", "images/s"):
        assert expected in text
    assert "! random weights: timing only" in text
