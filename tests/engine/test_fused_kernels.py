"""The Triton kernels where there is no GPU: interpreted, and compiled for GPUs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

triton = pytest.importorskip("triton")

CASES = Path(__file__).with_name("fused_kernels.py")
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
}


def test_the_kernels_under_the_interpreter() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("capability", "half"), [(80, "fp16"), (90, "fp16"), (90, "bf16")])
@pytest.mark.parametrize("name", COMPILED)
def test_kernels_compile_without_spilling_and_move_whole_lines(
    name: str, capability: int, half: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types, constants, moves_lines = COMPILED[name]
    compiled = compile_for(capability, name, types.replace("half", half).split(), constants)
    loads = re.findall(r"ld\.global\S*", compiled.asm["ptx"])
    assert loads
    if moves_lines:  # 16 bytes at once for each thread, of the images
        assert any(".v4.b32" in load for load in loads)
    assert resources(compiled.asm["cubin"], tmp_path)["STACK"] == 0


def compile_for(capability: int, name: str, types: list[str], constants: dict[str, Any]) -> Any:
    """Machine code of a kernel; pointers and numbers are multiples of 16, as they are in use."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from engine.fused import kernels

    kernel = getattr(kernels, name)
    names = kernel.arg_names
    signature = dict(zip(names, types, strict=False)) | dict.fromkeys(constants, "constexpr")
    assert list(signature) == list(names)
    aligned = [i for i, kind in enumerate(types) if kind != "fp32"]
    source = ASTSource(
        kernel,
        signature,
        {(names.index(constant),): value for constant, value in constants.items()},
        {(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(source, target=target, options={"num_warps": kernels.WARPS})


def resources(cubin: bytes, folder: Path) -> dict[str, int]:
    """Registers, stack and the like, as cuobjdump says."""
    (folder / "cubin").write_bytes(cubin)
    program = triton.knobs.nvidia.cuobjdump.path
    command = [program, "-res-usage", str(folder / "cubin")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", said)}
