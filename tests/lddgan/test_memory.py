"""Memory that runs out."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from lddgan.errors import LddganError, OutOfMemory
from lddgan.memory import is_out_of_memory, memory_named

ROOT = Path(__file__).resolve().parents[2]
OF_TORCH = (
    "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 4194304000 bytes. Error code 12 (Cannot allocate memory)"
)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(OF_TORCH),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
        RuntimeError("Exception from src/inference/src/core.cpp:112:\nstd::bad_alloc\n"),
        RuntimeError("Failed to allocate memory for requested buffer of size 268435456"),
        RuntimeError("CUDA error: out of memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=str,
)
def test_errors_of_memory_are_one_kind(error: Exception) -> None:
    assert is_out_of_memory(error)
    with pytest.raises(OutOfMemory) as caught, memory_named("{} is too small; take less"):
        raise error
    place = "GPU" if "CUDA" in str(error) else "CPU"
    assert str(caught.value) == f"the {place} is too small; take less"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        LddganError("the disk is upside down"),
        OSError(errno.ENOSPC, "No space left on device"),
    ],
    ids=str,
)
def test_other_errors_stay_as_they_are(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as caught, memory_named("{} is too small"):
        raise error
    assert caught.value is error


def test_what_was_named_keeps_its_words() -> None:
    with pytest.raises(OutOfMemory, match=r"^out of memory: first$"), memory_named("second"):
        raise OutOfMemory("out of memory: first")


LIMITED = """
import io
import resource
import numpy as np
import torch
from lddgan.errors import OutOfMemory
from lddgan.memory import memory_named

weights = torch.ones(1 << 22)  # 16 MB
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, ((pages << 12) + (8 << 20),) * 2)

def save(_):
    torch.save({"weights": weights}, io.BytesIO())

calls = {"torch": torch.zeros, "numpy": np.zeros, "python": bytes, "save": save}
for name, take in calls.items():
    try:
        with memory_named("{} cannot hold it"):
            take(1 << 28)
    except OutOfMemory as error:
        print(name, error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_may_take_no_more_says_so() -> None:
    command = [sys.executable, "-c", LIMITED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    expected = [f"{name} the CPU cannot hold it" for name in ("torch", "numpy", "python", "save")]
    assert done.stdout.splitlines() == expected, done.stderr
