"""The Triton kernels where there is no GPU: interpreted, and compiled for GPUs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

triton = pytest.importorskip("triton")

CASES = Path(__file__).with_name("kernels.py")
OLDER = "triton==3.6.0"
TILE = {"ROWS": 32, "COLUMNS": 128}
# kernel: types of its arguments (half: fp16 or bf16), constants, whether whole lines are moved
COMPILED: dict[str, tuple[str, dict[str, Any], bool]] = {
    "_moments": ("*half *fp32 i32 i32 i32 i32", TILE, True),
    "_affine": (
        "*fp32 *half *half *fp32 *fp32 i32 i32 i32 i32 i32 fp32 i32 i32 i32",
        {"HAS_WEIGHT": True, "HAS_BEFORE": True, "PARTS": 32, "WIDTH": 4},
        False,
    ),
    "_normalise": ("*half *fp32 *half i32 i32", {"SILU": True} | TILE, True),
    "_add": ("*half *half *fp32 i32 i32 fp32", TILE, True),
    "_nearest": (
        "*fp32 *fp32 *fp32 *i64 i32 i32",
        {"WIDTH": 3, "ROWS": 64, "COLUMNS": 64},
        False,
    ),
    "_fir_up": ("*half *half i32 i32 i32", TILE, True),
    "_fir_down": ("*half *half i32 i32 i32 i32 i32", {"STRIDE": 2, "PADDING": 1} | TILE, True),
    "_haar": ("*half *half *half i32 i32 i32", {"INVERSE": False} | TILE, True),
    "_haar, inverse": ("*half *half *half i32 i32 i32", {"INVERSE": True} | TILE, True),
}


@pytest.mark.parametrize("which", ["not full", pytest.param("full", marks=pytest.mark.full)])
def test_the_kernels_under_the_interpreter(which: str) -> None:
    if release(triton.__version__) < (3, 7) and release(np.__version__) >= (2, 5):
        pytest.skip(
            f"the interpreter of Triton {triton.__version__} calls int() on arrays of one element, "
            f"which numpy {np.__version__} refuses"
        )
    done = run_pytest(str(CASES), "-m", which, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("capability", "half"), [(80, "fp16"), (90, "fp16"), (90, "bf16"), (100, "fp16")]
)
@pytest.mark.parametrize("name", COMPILED)
def test_kernels_compile_without_spilling_and_move_whole_lines(
    name: str,
    capability: int,
    half: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types, constants, moves_lines = COMPILED[name]
    compiled = compile_for(capability, name, types.replace("half", half).split(), constants)
    loads = re.findall(r"ld\.global\S*", compiled.asm["ptx"])
    assert loads
    if moves_lines:  # 16 bytes at once for each thread, of the images
        assert any(".v4.b32" in load for load in loads)
    used = resources(compiled.asm["cubin"], tmp_path)
    with capsys.disabled():
        print(
            f"\nTriton {triton.__version__}, sm_{capability}, {half}: {name} takes "
            f"{used['REG']} registers, spills {used['STACK']} bytes",
            end="",
        )
    assert used["STACK"] == 0


@pytest.mark.full
def test_kernels_compile_with_the_triton_of_older_pytorch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same with Triton 3.6, which came with PyTorch 2.11, in front of the newer one."""
    install = ("-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path), OLDER)
    subprocess.run([sys.executable, *install], check=True)
    done = run_pytest(
        f"{__file__}::{test_kernels_compile_without_spilling_and_move_whole_lines.__name__}",
        PYTHONPATH=str(tmp_path),
    )
    with capsys.disabled():
        print(*re.findall(r"Triton .* bytes", done.stdout), sep="\n")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Triton 3.6.0, sm_") == 4 * len(COMPILED)


def run_pytest(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def release(version: str) -> tuple[int, ...]:
    """(major, minor)"""
    return tuple(int(number) for number in version.split(".")[:2])


def compile_for(capability: int, name: str, types: list[str], constants: dict[str, Any]) -> Any:
    """Machine code of a kernel; pointers and numbers are multiples of 16, as they are in use."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from engine.backends.fused import kernels, tiles

    kernel = getattr(kernels, name.partition(",")[0])
    names = kernel.arg_names
    arguments = dict(zip(names[: len(types)], types, strict=True))
    signature = arguments | dict.fromkeys(constants, "constexpr")
    assert list(signature) == list(names)
    aligned = [i for i, kind in enumerate(types) if kind != "fp32"]
    source = ASTSource(
        kernel,
        signature,
        {(names.index(constant),): value for constant, value in constants.items()},
        {(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": tiles.WARPS})


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Registers, stack and the like, as cuobjdump says."""
    (folder / "cubin").write_bytes(cubin)
    program = triton.knobs.nvidia.cuobjdump.path
    command = [program, "-res-usage", str(folder / "cubin")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", said)}
