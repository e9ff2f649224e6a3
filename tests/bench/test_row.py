"""The one row: its file, what is computed of it, and the notes that every kind gets."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.machine import HOME, NO_COMMIT, in_words
from bench.row import (
    RESULTS,
    add_rows,
    check_rows_file,
    common_notes,
    kept_rows,
    newest_session,
    read_rows,
    results_file,
    write_rows,
)
from lddgan.errors import BadInput, LddganError
from tests.bench.rows import CEILINGS, CPU, PAPERS_SETTINGS, gpu_row, row


def test_a_row_survives_its_file_and_writes_no_default(tmp_path: Path) -> None:
    rows = [gpu_row(), row(psnr=float("inf")), row(why_not="no such engine", ms={})]
    path = write_rows(rows[:1], tmp_path / "rows.jsonl")
    add_rows(rows[1:], path)
    assert [one.line() for one in read_rows(path)] == [one.line() for one in rows]
    written = json.loads(path.read_text().splitlines()[1])
    assert written["psnr"] == "Infinity"
    assert not {"rung", "facts", "why_not", "torch_settings"} & set(written)


def test_rows_added_at_once_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda batch: add_rows([row(batch=batch)], path), range(1, 31)))
    assert sorted(one.batch for one in read_rows(path)) == list(range(1, 31))
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["rows.txt", "rows", "file/rows.jsonl", "/dev/zero"])
def test_place_for_rows_is_looked_at_before_they_are_made(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LddganError, match=r"rows go to a \.jsonl file|cannot write"):
        check_rows_file(tmp_path / name)
    check_rows_file(tmp_path / "new.jsonl")
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    for text in ('{"a": 1}\n', row().line().replace('"batch":1', '"batch":"few"') + "\n"):
        path.write_text(text)
        with pytest.raises(BadInput, match="line 1 is not a benchmark row"):
            add_rows([row()], path)
        assert path.read_text() == text
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="cannot read"):
        read_rows(path)


def test_rows_of_a_kind_are_found_in_a_folder(tmp_path: Path) -> None:
    write_rows([row(), row(kind="rung")], tmp_path / "lsun-cpu.jsonl")
    write_rows([row(batch=100), row(kind="job")], tmp_path / "nvidia-h100" / "rows.jsonl")
    assert [one.batch for one in kept_rows(tmp_path, "engine")] == [1, 100]
    assert len(kept_rows(tmp_path, "rung")) == 1
    assert kept_rows(tmp_path / "none", "engine") == []


def test_the_newest_session_of_a_kind_is_found(tmp_path: Path) -> None:
    path = tmp_path / "ladder.jsonl"
    old, new = (row(kind="rung", session=f"2025-01-0{day}") for day in (1, 2))
    write_rows([new, new, old, row(session="2026-01-01")], path)
    assert newest_session(path, "rung") == [new, new]
    with pytest.raises(LddganError, match="holds no rows of the kind 'rung'"):
        newest_session(tmp_path / "none.jsonl", "rung")
    assert results_file("lsun", "cuda", "ladder") == Path("bench/results/ladder-lsun-gpu.jsonl")


def test_ratios_and_rates_are_computed() -> None:
    one = gpu_row()
    assert one.ratio == pytest.approx(4000 / 150)
    assert one.images_per_second == pytest.approx(1e3 / 150)
    assert one.tflops() == pytest.approx(63e12 / 0.150 / 1e12)
    assert one.tflops("decoder") == pytest.approx(33e12 / 0.150 / 1e12)
    assert one.gb_per_second == pytest.approx(96.0)
    assert one.share_of("matmul_tflops") == pytest.approx(420 / 700)
    assert one.share_of("copy_gb_per_second") == pytest.approx(96 / 4100)
    bare = row(baseline_ms=None)
    assert (bare.ratio, bare.tflops(), bare.gb_per_second) == (None, None, None)
    assert bare.share_of("matmul_tflops") is None


@pytest.mark.parametrize(
    ("precision", "compared"), [("fp16", True), ("bf16", True), ("fp32", False), ("int8", False)]
)
def test_rates_are_held_against_ceilings_of_their_precision(precision: str, compared: bool) -> None:
    one = row(**gpu_row().model_dump() | {"precision": precision})
    assert (one.share_of("matmul_tflops") is not None) == compared
    assert one.share_of("copy_gb_per_second") is not None


def test_notes_name_machine_code_settings_and_weights() -> None:
    plain = {"commit": "c" * 40, "random_weights": False}
    assert common_notes(row(**plain)) == []
    busy = CPU.model_copy(update={"load": 1.2})
    assert common_notes(row(**plain | {"machine": busy})) == [
        "the machine was busy before the run: 0.6 processes per core"
    ]
    assert common_notes(row(**plain | {"random_weights": True})) == ["random weights: timing only"]
    assert common_notes(row(**plain | {"commit": None})) == [NO_COMMIT]
    settings = row(**plain, torch_settings=PAPERS_SETTINGS)
    assert common_notes(settings) == [in_words(PAPERS_SETTINGS)]
    full = CEILINGS.model_copy(update={"note": "ceilings not measured: full"})
    assert common_notes(row(**plain, ceilings=full)) == ["ceilings not measured: full"]
    assert common_notes(row(**plain, ceilings=CEILINGS)) == []


def test_all_kept_rows_are_in_the_one_schema() -> None:
    kinds = ("engine", "rung", "training", "pipeline", "photos")
    found = {kind: kept_rows(HOME / RESULTS, kind) for kind in kinds}  # type: ignore[arg-type]
    assert all(found.values())
    assert {row.dataset for row in found["engine"]} >= {"celeba_256", "cifar10", "lsun", "digits"}
