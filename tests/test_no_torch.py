"""Sampling and measuring need no PyTorch: proved by blocking its import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCKED = ("torch", "onnx", "onnxscript", "safetensors", "sklearn")


def run_without_torch(*args: object, module: str = "lddgan") -> subprocess.CompletedProcess[str]:
    """`python -m MODULE ARGS` in a process that cannot import the training packages."""
    program = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({BLOCKED!r}))\n"
        f"sys.argv = ['lddgan', *{[str(arg) for arg in args]!r}]\n"
        f"runpy.run_module({module!r}, run_name='__main__')\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_sample(tiny_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "grid.png"
    done = run_without_torch("sample", "--bundle", tiny_bundle, "--num", 2, "--out", out)
    assert done.returncode == 0, done.stderr
    assert out.is_file()


def test_bench_leaves_the_baseline_out_and_says_why(tiny_bundle: Path) -> None:
    done = run_without_torch("bench", "--bundle", tiny_bundle, "--batch", 2, "--trials", 2)
    assert done.returncode == 0, done.stderr
    assert "torch is not installed" in done.stdout + done.stderr


def test_export_without_torch_is_one_sentence(tmp_path: Path) -> None:
    done = run_without_torch("export", "--dataset", "cifar10", "--out", tmp_path / "x")
    assert done.returncode == 1
    assert done.stderr.splitlines() == ['error: torch is not installed; pip install -e ".[train]"']
    assert not (tmp_path / "x").exists()


def test_gpu_report_without_torch_is_one_sentence(tmp_path: Path) -> None:
    done = run_without_torch("--dry", "--out", tmp_path / "x", module="bench.gpu_report")
    assert done.returncode == 1
    assert done.stderr.splitlines() == ['torch is not installed; pip install -e ".[train]"']
    assert not (tmp_path / "x").exists()


def test_presets_and_doctor() -> None:
    for command in ("presets", "doctor"):
        assert run_without_torch(command).returncode == 0
