"""A real benchmark of a tiny model. Nothing is asserted about speed."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench.report import render

from bench.cost import measure_cost
from bench.row import BenchRow, read_rows, results_file, save_row
from bench.run import benchmark
from lddgan.errors import BadInput, LddganError
from tests.conftest import TINY


def run(bundle: Path, **changes: Any) -> BenchRow:
    given: dict[str, Any] = {"batch": 5, "trials": 2, "seed": 3, "chunk": 2} | changes
    engine, precision = given.pop("engine", "ort"), given.pop("precision", "fp32")
    return benchmark(bundle, engine, precision, "cpu", **given)


@pytest.fixture(scope="module")
def row(tiny_bundle: Path) -> BenchRow:
    return run(tiny_bundle)


def test_both_sides_ran_the_whole_batch(row: BenchRow) -> None:
    assert row.baseline is not None and row.agreement is not None and row.ratio is not None
    assert (row.engine.engine, row.baseline.engine) == ("ort", "torch")
    assert (row.dataset, row.random_weights, row.batch, row.nfe) == ("tiny", True, 5, 3)
    assert (row.engine.chunk, row.baseline.chunk) == (2, 2)
    assert row.agreement.grey_levels <= 1
    expected = row.baseline.times.whole.p50 / row.engine.times.whole.p50
    assert row.ratio == pytest.approx(expected)
    assert row.engine.images_per_second == pytest.approx(5e3 / row.engine.times.whole.p50)


def test_stages_add_up(row: BenchRow) -> None:
    for side in (row.engine, row.baseline):
        assert side is not None
        times = side.times
        assert 0 < times.generator.mean + times.decoder.mean <= times.whole.mean * (1 + 1e-6)
        parts = times.noise.mean + times.whole.mean + times.download.mean
        assert times.end_to_end.mean == pytest.approx(parts)


def test_the_row_says_where_and_with_what(row: BenchRow) -> None:
    assert row.versions["torch"] and row.versions["onnxruntime"] and row.machine.cores >= 1
    assert row.machine.gpu is None
    assert row.verification["chain_levels"] <= 1
    assert row.preset["steps"] == row.nfe
    assert any("random weights" in note for note in row.notes)
    assert row.png_ms is not None and row.png_ms > 0
    assert (row.engine.cuda_graph, row.engine.plan, row.ceilings) == (None, None, None)


def test_rates_are_twice_the_multiply_adds_over_the_medians(row: BenchRow) -> None:
    cost = measure_cost(TINY)
    found, times = row.engine.achieved, row.engine.times
    assert found is not None and found.matmul_share is None and found.copy_share is None
    assert found.decoder_tflops * times.decoder.p50 * 1e9 == pytest.approx(
        2 * 5 * cost.decoder_macs
    )
    assert found.generator_tflops * times.generator.p50 * 1e9 == pytest.approx(
        2 * 5 * 3 * cost.generator_macs
    )
    assert found.whole_tflops * times.whole.p50 == pytest.approx(
        found.decoder_tflops * times.decoder.p50 + found.generator_tflops * times.generator.p50
    )


def test_a_row_survives_its_file(row: BenchRow, tmp_path: Path) -> None:
    equal = row.model_copy(update={"verification": row.verification | {"chain_psnr": math.inf}})
    path = tmp_path / results_file(row).name
    save_row(row, path)
    save_row(equal, path)
    assert len(path.read_text().splitlines()) == 2
    first, second = read_rows(path)
    assert first.model_dump_json() == row.model_dump_json()
    assert second.model_dump_json() == equal.model_dump_json()


def test_fp16_is_measured_against_the_fp32_baseline(tiny_bundle: Path) -> None:
    row = run(tiny_bundle, precision="fp16", trials=1, batch=2)
    assert row.baseline is not None
    assert (row.engine.precision, row.baseline.precision) == ("fp16", "fp32")


def test_a_limit_leaves_one_trial_and_says_so(tiny_bundle: Path) -> None:
    log: list[str] = []
    row = run(tiny_bundle, max_seconds=0.0, trials=40, log=log.append)
    assert (row.trials, row.trials_asked, row.batch) == (1, 40, 5)
    assert row.notes[0].startswith("1 of 40 trials: more do not fit in 0 s")
    assert "not one fits" in log[-1]
    assert row.png_ms is None and any("PNG files were left out" in note for note in row.notes)


def test_a_row_is_verified_on_the_images_that_were_timed(tiny_bundle: Path) -> None:
    found = run(tiny_bundle, trials=1, verify=True).engine.verification
    assert found is not None and found["why_failed"] is None and found["noise_identical"]
    assert (found["images"], found["engine"], found["chain_levels"] <= 1) == (5, "ort", True)
    assert run(tiny_bundle, trials=1, batch=1, verify=True).engine.verification["images"] == 4


def test_a_row_that_cannot_be_verified_is_not_lost(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise LddganError("no memory")

    monkeypatch.setattr("bench.run.verify_opened", refuse)
    row = run(tiny_bundle, trials=1, verify=True)
    assert row.engine.verification is None and row.notes[-1] == "not verified: no memory"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"trials": 0}, "trials is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"max_seconds": float("nan")}, "max-seconds is nan"),
        ({"max_seconds": -1.0}, "max-seconds is -1"),
        ({"chunk": 128}, "chunk is 128"),
        ({"engine": "torch", "precision": "fp16"}, "fp16 on a GPU only, not on cpu"),
    ],
)
def test_bad_input(tiny_bundle: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        run(tiny_bundle, **changes)


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None
from bench.cost import preset_table, print_preset_table
from bench.report import print_row
from bench.run import benchmark
row = benchmark(sys.argv[1], "auto", "fp32", "auto", batch=2, trials=1, seed=0)
assert row.baseline is None and row.ratio is None and row.agreement is None
assert row.engine.achieved is None and row.torch_settings is None
print_row(row)
rows = preset_table()
assert all(row.cost is None and row.paper or row.name == "digits" for row in rows)
print_preset_table(rows)
"""


def test_without_torch_the_baseline_is_left_out_and_the_table_says_why(tiny_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(tiny_bundle)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "! no PyTorch baseline: torch is not installed; pip install" in said
    assert "no cost: torch is not installed" in said


def test_the_table_shows_both(row: BenchRow) -> None:
    from rich.console import Console

    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render(row))
    text = console.export_text()
    for expected in ("ort fp32", "torch fp32", "generator, 3 steps", "seed to pixels", "images/s"):
        assert expected in text
    assert "! random weights: timing only" in text
