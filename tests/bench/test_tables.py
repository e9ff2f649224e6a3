"""Rows as tables for a terminal: engines, and the presets."""

from __future__ import annotations

from typing import Any

import pytest

from bench.tables import agreement, engine_name, number, print_engine, verification
from tests.bench.rows import gpu_row, row


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_a_gpu_row_is_printed_with_all_that_is_known(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    print_engine([gpu_row()])
    text = printed(capsys)
    for said in (
        "trt fp16, CUDA graph",
        "TFLOP/s 420 (60%)",
        "GB/s, at least 96 (2%)",
        "GPU memory in use when warm, all processes, MiB 9,000",
        "PNG files of the batch: 812 ms more, on one core",
        "trt: version 10.16.1, level 3",
        "matrix product 700 TFLOP/s, 3x3 convolution 8x256x256x256 650 TFLOP/s; copy 4,100 GB/s",
        "GPU at work: 345 MHz of 1980 MHz, 80.00 W of 700.00 W, 31 C",
        "verification: equal",
        "paper (Table 5): 1.02 s for a batch of 100 on its GPU",
    ):
        assert said in text


def test_engine_and_baseline_are_printed_beside_each_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_engine([row(batch=100, chunk=32, notes=("cut",)), row("torch", 4000.0, batch=100)])
    text = printed(capsys)
    for said in (
        "lsun, batch 100, 17 of 300 trials, A CPU, 2 cores",
        "ort fp32 torch fp32",
        "generator, 4 steps 2,500 / 2,500 / 2,500 4,000 / 4,000 / 4,000",
        "images at once 25 4",  # equal parts
        "images against PyTorch: at most 1 grey level, 0.12% of values differ, 77.0 dB",
        "! cut",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (None, "-"),
        ({"chain_psnr": 83.96}, "84.0 dB"),
        ({"chain_psnr": "Infinity"}, "equal"),
        ({"chain_psnr": 51.04, "why_failed": None}, "51.0 dB"),
        ({"chain_psnr": 31.04, "why_failed": "it is off"}, "31.0 dB, failed"),
    ],
)
def test_a_verification_is_shown_by_its_psnr(found: dict[str, Any] | None, shown: str) -> None:
    assert verification(row(verification=found)) == shown


def test_names_agreement_and_numbers_in_words() -> None:
    assert engine_name(row("trt", cuda_graph=True)) == "trt fp32, CUDA graph"
    assert engine_name(row("trt", cuda_graph=False)) == "trt fp32"
    assert agreement(row(psnr=float("inf"))) == "all equal"
    assert agreement(row(psnr=None)) == "-"
    shown = {0.012345: "0.01235", 12.3456: "12.35", 999.96: "1000", 12345.6: "12,346"}
    assert {value: number(value) for value in shown} == shown
