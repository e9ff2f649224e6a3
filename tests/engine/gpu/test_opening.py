"""Streams handed in, and drivers and GPUs that do not serve."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from engine.gpu.device import Gpu, handle_of, open_gpu, why_old_cuda_core
from lddgan.errors import BadInput, LddganError
from lddgan.extras import why_missing
from tests import fake_cuda
from tests.engine.gpu.support import fake_only, on_each


class TorchLike:
    def __init__(self, handle: int) -> None:
        self.cuda_stream = handle


class PycudaLike:
    def __init__(self, handle: int) -> None:
        self.handle = handle


class Protocol:
    def __init__(self, handle: int) -> None:
        self._handle = handle

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle


class ProtocolAttribute:
    def __init__(self, handle: int) -> None:
        self.__cuda_stream__ = (0, handle)


@on_each
@pytest.mark.parametrize("kind", [int, TorchLike, PycudaLike, Protocol, ProtocolAttribute])
def test_everything_runs_on_the_stream_handed_in(gpu: Gpu, kind: type) -> None:
    theirs = kind(gpu.handle)
    used = open_gpu(theirs)
    assert used.handle == gpu.handle
    source, target = used.upload(np.ones(3)), used.upload(np.zeros(3))
    used.capture(lambda: used.copy(target, source)).launch()
    assert used.download(target).tolist() == [1.0] * 3
    used.close()
    assert gpu.download(gpu.upload(np.ones(3))).tolist() == [1.0] * 3  # it is still open


@on_each
def test_a_stream_of_cuda_core_is_taken(gpu: Gpu) -> None:
    used = open_gpu(gpu.stream)
    assert used.stream == gpu.stream
    assert used.download(used.upload(np.ones(3))).tolist() == [1.0] * 3


@on_each
def test_own_streams_differ_and_ignore_the_default_stream(gpu: Gpu) -> None:
    other = open_gpu()
    assert other.handle != gpu.handle
    assert other.stream.is_nonblocking and gpu.stream.is_nonblocking
    other.close()


@fake_only
@pytest.mark.parametrize("stream", [0, 1, TorchLike(0), PycudaLike(0)])
def test_the_default_stream_is_refused(gpu: Gpu, stream: object) -> None:
    with pytest.raises(BadInput, match="default stream cannot be captured"):
        open_gpu(stream)


@fake_only
def test_a_stream_of_another_context_is_refused(gpu: Gpu) -> None:
    with pytest.raises(BadInput, match=r"pycuda\.autoprimaryctx"):
        open_gpu(fake_cuda.foreign_stream())


def test_what_is_no_stream_is_refused() -> None:
    with pytest.raises(BadInput, match="list is no CUDA stream"):
        handle_of([1])


@fake_only
def test_a_gpu_says_what_it_is(gpu: Gpu) -> None:
    assert (gpu.name, gpu.compute_capability, gpu.arch) == ("Fake GPU", "9.0", "sm_90")


def opening_fails_with(**environment: str) -> str:
    """What another process says whose driver is set so."""
    program = (
        "from engine.gpu.device import open_gpu\n"
        "from lddgan.errors import LddganError\n"
        "try: open_gpu()\n"
        "except LddganError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@fake_only
def test_an_old_driver_is_named_with_the_one_needed() -> None:
    assert opening_fails_with(LDDGAN_FAKE_VERSION="12040") == (
        "the NVIDIA driver is too old for CUDA 13 (it runs 12.4): update it to 580 or newer"
    )


@fake_only
def test_a_driver_without_a_gpu_says_so() -> None:
    assert opening_fails_with(LDDGAN_FAKE_INIT="100") == (
        "the NVIDIA driver shows no GPU; look at nvidia-smi and CUDA_VISIBLE_DEVICES"
    )


@fake_only
@pytest.mark.parametrize(
    ("setting", "code", "name"),
    [
        ("LDDGAN_FAKE_INIT", "803", "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        ("LDDGAN_FAKE_CONTEXT", "2", "CUDA_ERROR_OUT_OF_MEMORY"),
    ],
)
def test_a_gpu_that_cannot_be_used_says_what_the_driver_said(
    setting: str, code: str, name: str
) -> None:
    assert opening_fails_with(**{setting: code}).startswith(f"the GPU cannot be used ({name}); ")


@pytest.mark.parametrize("version", ["0.7.0", "1.1.9"])
def test_an_old_cuda_core_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    why = f"cuda-core {version} is too old; pip install 'cuda-core>=1.2'"
    monkeypatch.setattr("engine.gpu.device.version_of", lambda name: version)
    monkeypatch.setattr("engine.gpu.device.require", lambda *packages: None)
    assert why_old_cuda_core() == why
    with pytest.raises(LddganError, match=re.escape(why)):
        open_gpu()


@pytest.mark.parametrize("version", ["1.2.0", "1.10.0rc1", "2.0"])
def test_a_newer_cuda_core_is_taken(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr("engine.gpu.device.version_of", lambda name: version)
    assert why_old_cuda_core() is None


def test_a_machine_without_a_driver_says_so() -> None:
    missing = why_missing("cuda.core")
    if missing is not None:
        pytest.skip(missing)
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        assert opening_fails_with() == (
            "no NVIDIA driver is installed here (libcuda.so.1 is missing); "
            "install driver 580 or newer"
        )
    else:
        pytest.skip("there is a driver here")
