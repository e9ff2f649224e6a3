"""The driver where nvidia-smi is missing, with a library made of C in its place."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bench.machine import gpu
from engine import doctor
from engine.gpu import device, driver
from lddgan.errors import LddganError

SOURCE = """
#include <string.h>
int cuInit(unsigned flags) { return CODE; }
int cuDeviceGet(int *device, int ordinal) { return *device = 7, ordinal; }
int cuDeviceGetName(char *name, int size, int device) {
    return device != 7 || !strncpy(name, "NVIDIA H200", size);
}
"""


pytestmark = pytest.mark.usefixtures("driver_asked_anew")


@pytest.fixture
def libcuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a libcuda.so.1 whose cuInit gives a code; there is no nvidia-smi."""
    compiler = shutil.which("gcc")
    path = tmp_path / "path"
    path.mkdir()

    def make(code: int) -> None:
        if compiler is None:
            pytest.skip("gcc is not installed")
        (tmp_path / "cuda.c").write_text(SOURCE)
        library = tmp_path / "libcuda.so.1"
        options = ["-shared", "-fPIC", f"-DCODE={code}", "-o", str(library)]
        subprocess.run([compiler, *options, str(tmp_path / "cuda.c")], check=True)
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
        monkeypatch.setenv("PATH", str(path))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return make


def test_a_gpu_without_nvidia_smi_is_used(libcuda) -> None:
    libcuda(0)
    assert driver.why_no_gpu() is None
    assert driver.find_gpu().description == "NVIDIA H200"
    assert doctor.examine().gpu == "NVIDIA H200"


def test_a_row_says_what_nvidia_smi_would_have_known(libcuda) -> None:
    libcuda(0)
    found = gpu()
    assert (found.name, found.sm_clock) == ("NVIDIA H200", "unknown: nvidia-smi is missing")


def test_a_row_of_no_gpu_says_what_a_container_needs(libcuda) -> None:
    libcuda(100)
    with pytest.raises(LddganError, match=r"nvidia-smi is missing.*CAPABILITIES=compute,utility"):
        gpu()


def test_a_library_that_finds_no_gpu(libcuda) -> None:
    libcuda(100)
    assert driver.why_no_gpu() == (
        "no NVIDIA GPU: nvidia-smi is missing, and libcuda.so.1 reports CUDA error 100"
    )


def test_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(driver, "NAMING", driver.NAMING.replace("libcuda.so.1", "libnone.so.1"))
    assert driver.why_no_gpu() == (
        "no NVIDIA GPU: no driver is installed here (nvidia-smi is missing, and so is libnone.so.1)"
    )


def test_a_library_that_is_broken_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(driver, "NAMING", "import os; os.kill(os.getpid(), 11)")
    cause = "no NVIDIA GPU: nvidia-smi is missing, and libcuda.so.1 is broken"
    assert driver.why_no_gpu() == cause
    driver.find_gpu.cache_clear()
    monkeypatch.setattr(driver, "NAMING", "raise AttributeError('cuInit')")
    assert driver.why_no_gpu() == "no NVIDIA GPU: AttributeError: cuInit"


# ---- the GPU ----


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver_asked_anew: None):
    """Puts a program of that name first in an otherwise empty PATH."""

    def write(body: str | None) -> None:
        driver.find_gpu.cache_clear()
        monkeypatch.setenv("PATH", str(tmp_path))
        if body is not None:
            (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{body}\n")
            (tmp_path / "nvidia-smi").chmod(0o755)

    return write


def test_gpu_is_asked_of_the_driver(nvidia_smi) -> None:
    nvidia_smi(None)
    assert "nvidia-smi is missing" in str(driver.why_no_gpu())
    nvidia_smi("echo 'Driver/library version mismatch'; exit 18")
    assert driver.why_no_gpu() == (
        "no NVIDIA GPU: the driver says 'Driver/library version mismatch'"
    )
    nvidia_smi("exit 0")
    assert driver.why_no_gpu() is not None
    nvidia_smi("echo 'NVIDIA A100'")
    assert driver.why_no_gpu() is None


def test_the_driver_is_asked_once(nvidia_smi, tmp_path: Path) -> None:
    nvidia_smi(f"echo asked >>{tmp_path}/asked; echo 'NVIDIA H100, 580, 81559 MiB'")
    for _ in range(3):
        assert driver.why_no_gpu() is None
    assert driver.find_gpu().description == "NVIDIA H100, 580, 81559 MiB"
    assert (tmp_path / "asked").read_text() == "asked\n"


UUID = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"


@pytest.mark.parametrize(
    ("visible", "asked"),
    [
        (None, ""),
        ("2", "-i 2 "),
        ("3,1", "-i 3 "),
        (UUID, f"-i {UUID} "),
        ("GPU-8932f937", ""),  # CUDA takes the beginning of a UUID, nvidia-smi does not
        ("MIG-8932f937-d72c-4106-c12f-20bd9faed9f6", ""),
    ],
)
def test_the_gpu_asked_about_is_the_one_that_cuda_sees_first(
    nvidia_smi, monkeypatch: pytest.MonkeyPatch, visible: str | None, asked: str
) -> None:
    nvidia_smi('echo "$@"')
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert driver.ask_driver("name") == f"{asked}--query-gpu=name --format=csv,noheader"


@pytest.mark.parametrize("visible", ["", "-1", "-1,0"])
def test_hidden_gpus_are_none(nvidia_smi, monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    nvidia_smi("echo NVIDIA H200")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    said = f"no NVIDIA GPU: CUDA_VISIBLE_DEVICES={visible} hides every GPU"
    assert driver.why_no_gpu() == said


@pytest.mark.parametrize("missing", ["why_unusable", "why_old_driver", "why_no_nvrtc"])
def test_missing_parts_of_cuda_are_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    for name in ("why_unusable", "why_old_cuda_core", "why_old_driver", "why_no_nvrtc"):
        cause = "it is gone" if name == missing else None
        monkeypatch.setattr(device, name, lambda *_, cause=cause: cause)
    assert device.why_no_cuda_core() == "it is gone"
