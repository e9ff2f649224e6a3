"""What NVRTC makes of engine/gpu/noise.cu: doubles rounded one by one. It needs no GPU."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.gpu import noise_kernel
from lddgan import noise
from lddgan.errors import LddganError, OutOfMemory

ARCHITECTURES = ["sm_75", "sm_90", "sm_120"]  # NVRTC 13 has two generations of compiler for them
ROUNDED = {f"{operation}.rn.f64" for operation in ("add", "sub", "mul", "div", "sqrt")}
TO_FLOAT = {"cvt.rn.f32.f64"}
EXACT = re.compile(  # moves, signs, comparisons, 32-bit integers to double
    r"(mov|selp|neg|abs|copysign|setp\.\w+)\.f64|cvt\.rn\.f64\.[us]32|st\.global\.f32"
)


@pytest.fixture
def nvrtc() -> Any:
    noise_kernel.noise_cubin.cache_clear()
    pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    return pytest.importorskip("cuda.bindings.nvrtc", reason="cuda-bindings is not installed")


def ptx_of(nvrtc: Any, program: Any) -> str:
    """The PTX of which the machine code was made."""
    program.compile("cubin")
    _, size = nvrtc.nvrtcGetPTXSize(program.handle)
    text = bytearray(size)
    nvrtc.nvrtcGetPTX(program.handle, text)
    return text.decode().rstrip("\0")


def body(ptx: str) -> str:
    return ptx[ptx.index(".visible .entry sampler_noise(") :]


def float_operations(ptx: str) -> set[str]:
    operations = re.findall(r"^\s*(?:@!?%p\d+ )?([a-z][\w.]*)", body(ptx), re.MULTILINE)
    return {operation for operation in operations if re.search(r"\.f(16|32|64)", operation)}


def inexact_operations(ptx: str) -> set[str]:
    return {operation for operation in float_operations(ptx) if not EXACT.fullmatch(operation)}


def hex_of(constant: float) -> str:
    return f"0d{np.float64(constant).view(np.uint64):016X}"


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_gpus_code_rounds_every_operation_by_itself(nvrtc: Any, arch: str) -> None:
    ptx = ptx_of(nvrtc, noise_kernel.noise_program(arch))
    assert f".target {arch}" in ptx
    assert "fma" not in body(ptx) and "call" not in body(ptx)
    # a difference may be the sum with the negative
    assert inexact_operations(ptx) | {"sub.rn.f64"} == ROUNDED | TO_FLOAT


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_gpus_code_has_the_constants_of_numpy(nvrtc: Any, arch: str) -> None:
    there = set(re.findall("0d[0-9A-F]{16}", body(ptx_of(nvrtc, noise_kernel.noise_program(arch)))))
    expected = {*noise.A, *noise.B, *noise.C, *noise.D, *noise.ATANH, noise.LN2, 2.0**-32}
    assert {hex_of(constant) for constant in expected} <= there


PLAIN = 'extern "C" __global__ void sampler_noise(double* x) { x[0] = x[1] * x[2] + x[3]; }'


def contracted(nvrtc: Any, source: str) -> str:
    """The PTX of a source whose products and sums the compiler may fuse."""
    from cuda.core import Program, ProgramOptions

    return ptx_of(nvrtc, Program(source, "c++", ProgramOptions(arch="sm_90", fma=True)))


def test_the_source_alone_keeps_the_compiler_from_contracting(nvrtc: Any) -> None:
    ours = inexact_operations(contracted(nvrtc, noise_kernel.SOURCE.read_text()))
    assert ours | {"sub.rn.f64"} == ROUNDED | TO_FLOAT
    assert "fma.rn.f64" in inexact_operations(contracted(nvrtc, PLAIN))


def test_the_options_alone_keep_the_compiler_from_contracting(
    nvrtc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tmp_path / "plain.cu"
    plain.write_text(PLAIN)
    monkeypatch.setattr(noise_kernel, "SOURCE", plain)
    operations = inexact_operations(ptx_of(nvrtc, noise_kernel.noise_program("sm_90")))
    assert (
        {"mul.rn.f64", "add.rn.f64"} <= operations <= ROUNDED | {"ld.global.f64", "st.global.f64"}
    )


def test_production_compiles_that_program(nvrtc: Any) -> None:
    code = noise_kernel.compile_noise("sm_90")
    assert code.code_type == "cubin"
    assert code.code == noise_kernel.noise_program("sm_90").compile("cubin").code


def test_engines_of_one_process_share_what_was_compiled(
    nvrtc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = noise_kernel.compile_noise("sm_90")
    monkeypatch.setattr(noise_kernel, "noise_program", lambda arch: pytest.fail("compiled again"))
    assert noise_kernel.compile_noise("sm_90").code == first.code


# ---- failures ----


def test_an_unknown_gpu_is_named(nvrtc: Any) -> None:
    with pytest.raises(LddganError, match=r"^NVRTC does not compile noise.cu for sm_1: .*arch"):
        noise_kernel.compile_noise("sm_1")


def test_a_compile_error_is_its_first_line(
    nvrtc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "noise.cu"
    broken.write_text("__global__ void broken() { missing; }\n")
    monkeypatch.setattr(noise_kernel, "SOURCE", broken)
    with pytest.raises(LddganError) as caught:
        noise_kernel.compile_noise("sm_90")
    assert 'noise.cu(1): error: identifier "missing" is undefined;' in str(caught.value)
    assert "\n" not in str(caught.value) and "\0" not in str(caught.value)


def test_without_nvrtc_the_error_names_the_install_line(
    nvrtc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pathfinder = pytest.importorskip("cuda.pathfinder")

    def missing(name: str) -> None:
        raise pathfinder.DynamicLibNotFoundError(name)

    monkeypatch.setattr(pathfinder, "load_nvidia_dynamic_lib", missing)
    with pytest.raises(LddganError, match=r'NVRTC.* not installed; pip install -e "\.\[gpu\]"$'):
        noise_kernel.compile_noise("sm_90")


def test_a_gpu_that_cannot_load_it_is_an_error(nvrtc: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda.core._utils.cuda_utils import CUDAError

    class Refused:
        def get_kernel(self, name: str) -> None:
            raise CUDAError("CUDA_ERROR_OUT_OF_MEMORY: out of memory")

    monkeypatch.setattr(noise_kernel, "compile_noise", lambda arch: Refused())
    with pytest.raises(OutOfMemory, match="too little free memory for the noise kernel"):
        noise_kernel.NoiseKernel("sm_90")
