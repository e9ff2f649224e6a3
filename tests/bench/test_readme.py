"""The table of rows in a Markdown file, and the one in our README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.machine import HOME, in_words
from bench.readme import best, main, markdown, newest, rewritten
from bench.row import write_rows
from lddgan.errors import BadInput
from tests.bench.rows import CPU, H200, PAPERS_SETTINGS, gpu_row, row

TEXT = "# Title\n\n<!-- bench:begin -->\nold\n<!-- bench:end -->\n\nEnd.\n"


@pytest.mark.parametrize("name", ["README.md", "docs/performance.md"])
def test_our_tables_are_printed_from_the_rows(name: str) -> None:
    assert main([str(HOME / name), "--check"]) == 0


def test_the_best_row_of_each_model_and_the_best_in_8_bits() -> None:
    slow, fast = row(baseline_ms=3000.0), row("openvino", baseline_ms=9000.0)
    eight = [row(precision="int8", dataset=name, baseline_ms=8000.0) for name in ("lsun", "zebra")]
    quick = row("openvino", precision="int8", baseline_ms=9500.0)
    other = row(dataset="zebra")
    assert best([slow, fast, *eight, quick, other]) == [fast, quick, other]


def test_a_row_becomes_a_line_of_the_table() -> None:
    assert markdown([row()]).splitlines() == [
        "| Model | Batch | On | Engine | ms (PyTorch) | ms (engine) | Times as fast | Images/s "
        "| Trials | Images against PyTorch | Verification |",
        "|---|--:|---|---|--:|--:|--:|--:|--:|---|--:|",
        "| lsun \\* | 1 | A CPU, 2 cores | ort fp32 | 4,000 | 2,500 | 1.60 | 0.4 | 17 "
        "| at most 1 grey level, 0.12% of values differ, 77.0 dB | - |",
        "",
        "\\* random weights: timing only",
    ]
    assert "random weights" not in markdown([row(random_weights=False)])


def test_gpu_rows_say_once_how_pytorch_computes() -> None:
    paper = in_words(PAPERS_SETTINGS)
    assert markdown([row(), gpu_row(), gpu_row()]).splitlines()[-1] == paper
    assert paper not in markdown([row()])


def test_the_newest_row_of_each_kind_is_shown() -> None:
    on_gpu: dict[str, Any] = {"machine": CPU.model_copy(update={"gpu": H200}), "device": "cuda"}
    old, new = row(), row(date="2025-02-01T00:00:00+00:00")
    alone = row(date="2025-03-01T00:00:00+00:00", baseline_ms=None)
    other, elsewhere = row(batch=100), row(**on_gpu, dataset="zebra")
    graph, eager = (row("trt", 100.0, **on_gpu, cuda_graph=one) for one in (True, False))
    # GPUs first, each with all its rows.
    assert newest([new, alone, old, other, elsewhere, graph, eager]) == [
        *(eager, graph, elsewhere),
        *(new, other),
    ]


def test_a_file_is_rewritten_between_its_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(TEXT)
    write_rows([row()], tmp_path / "bench" / "results" / "lsun-cpu.jsonl")
    assert main([str(readme), "--check"]) == 1
    assert readme.read_text() == TEXT
    assert main([str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("# Title\n\n<!-- bench:begin -->\n| Model") and text.endswith("End.\n")
    assert "old" not in text and "A CPU" in text
    assert main([str(readme), "--check"]) == 0


def test_what_cannot_be_rewritten_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "missing.md")]) == 2
    readme = tmp_path / "README.md"
    readme.write_text(TEXT)
    assert main([str(readme)]) == 1
    assert "holds no results" in capsys.readouterr().err
    for text in ("", "<!-- bench:end --><!-- bench:begin -->", TEXT + TEXT):
        with pytest.raises(BadInput, match="once each"):
            rewritten(text, [])
