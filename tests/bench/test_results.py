"""Rows in files, and the table in the README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.machine import Gpu, Machine, commit, peak_memory_mib
from bench.report import agreement, main, markdown, newest, number, rewritten
from bench.row import Agreement, BenchRow, Measured, StageTimes, read_results, read_rows, save_row
from bench.timing import Trial, summarise
from lddgan.errors import BadInput, LddganError
from lddgan.presets import get_preset

PRESET = get_preset("lsun")
README = "# Title\n\n<!-- bench:begin -->\nold\n<!-- bench:end -->\n\nEnd.\n"


def measured(engine: str, whole: float) -> Measured:
    times = {stage: summarise([whole]) for stage in Trial._fields}
    return Measured(
        engine=engine,
        precision="fp32",
        where="CPU",
        chunk=4,
        times=StageTimes.model_validate(times),
        images_per_second=1e3 / whole,
        peak_memory_mib=None,
    )


def row(**changes: Any) -> BenchRow:
    given: dict[str, Any] = {
        "date": "2025-01-01T00:00:00+00:00",
        "commit": None,
        "dataset": "lsun",
        "preset": PRESET.model_dump(),
        "random_weights": True,
        "device": "cpu",
        "batch": 1,
        "seed": 0,
        "trials_asked": 300,
        "trials": 17,
        "nfe": 4,
        "engine": measured("ort", 2500.0),
        "baseline": measured("torch", 4000.0),
        "ratio": 1.6,
        "agreement": Agreement(grey_levels=1, changed=0.0012, psnr=77.0),
        "verification": {},
        "paper_seconds": 1.02,
        "paper_source": "Table 5",
        "machine": Machine(cpu="A CPU", cores=2, load=0.1, gpu=None),
        "versions": {},
        "notes": (),
    }
    return BenchRow(**(given | changes))


def test_markdown() -> None:
    assert markdown([row()]).splitlines() == [
        "| Model | Batch | On | Engine | ms (PyTorch) | ms (engine) | Times as fast | Images/s "
        "| Trials | Images against PyTorch |",
        "|---|--:|---|---|--:|--:|--:|--:|--:|---|",
        "| lsun \\* | 1 | A CPU, 2 cores | ort fp32 | 4,000 | 2,500 | 1.60 | 0.4 | 17 "
        "| at most 1 grey level, 0.12% of values differ, 77.0 dB |",
        "",
        "\\* random weights: timing only",
    ]
    assert "random weights" not in markdown([row(random_weights=False)])


def test_only_the_newest_row_of_each_kind_with_a_baseline_is_shown() -> None:
    gpu = Machine(
        cpu="A CPU", cores=2, load=0, gpu=Gpu(name="H", driver="", sm_clock="", power_limit="")
    )
    old, new = row(), row(date="2025-02-01T00:00:00+00:00")
    alone = row(date="2025-03-01T00:00:00+00:00", baseline=None, ratio=None, agreement=None)
    other, elsewhere = row(batch=100), row(machine=gpu)
    assert newest([new, alone, old, other, elsewhere]) == [new, elsewhere, other]


def test_agreement_of_equal_images() -> None:
    assert agreement(row(agreement=Agreement(grey_levels=0, changed=0, psnr=None))) == "all equal"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.012345, "0.01235"), (12.3456, "12.35"), (999.96, "1000"), (12345.6, "12,346")],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def test_readme_is_rewritten_and_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(README)
    save_row(row(), tmp_path / "bench" / "results" / "lsun-cpu.jsonl")
    assert main([str(readme), "--check"]) == 1
    assert readme.read_text() == README
    assert main([str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("# Title\n\n<!-- bench:begin -->\n| Model") and text.endswith("End.\n")
    assert "old" not in text and "A CPU" in text
    assert main([str(readme), "--check"]) == 0


def test_report_refuses_what_it_cannot_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "missing.md")]) == 2
    readme = tmp_path / "README.md"
    readme.write_text(README)
    assert main([str(readme)]) == 1
    assert "holds no results" in capsys.readouterr().err
    for text in ("", "<!-- bench:end --><!-- bench:begin -->", README + README):
        with pytest.raises(BadInput, match="once each"):
            rewritten(text, "")


def test_a_file_that_is_not_rows_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(BadInput, match="line 1 is not a benchmark row"):
        save_row(row(), path)
    assert path.read_text() == '{"a": 1}\n'
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="cannot read"):
        read_rows(path)
    with pytest.raises(LddganError, match="holds no results"):
        read_results(tmp_path / "none")


def test_facts_of_this_machine() -> None:
    peak = peak_memory_mib()
    assert peak is None or 10 < peak < 1e6
    head = commit()
    assert head is None or len(head.removesuffix("+dirty")) == 40
