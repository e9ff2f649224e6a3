"""engine/gpu/noise.cu compiled by g++, which runs the kernel where there is no GPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from engine.gpu.noise_kernel import SOURCE

HOST = Path(__file__).with_suffix(".cpp")
FLAGS = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-ffp-contract=off")
OPTIMISED = {  # the second vectorises the words
    "O1": ("-O1",),
    "O3": ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math"),
}


class NoiseOnCpu:
    """The kernel, in the shared object that g++ made of it."""

    def __init__(self, library: Path) -> None:
        self._so = ctypes.CDLL(str(library))
        word, pointer, long = ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint64
        self._so.launch.argtypes = [pointer, word, *[pointer] * 4, *[long] * 3]
        self._so.normals_from_words.argtypes = [pointer, pointer, long]
        self._so.unrounded_from_words.argtypes = [pointer, pointer, long]

    def launch(self, grid: tuple[int, ...], threads: int, *arguments: int) -> None:
        """Run the grid: addresses of request, x_T, z and noise; count, n and nz."""
        blocks = np.array(grid, np.uint32)
        self._so.launch(blocks.ctypes.data, threads, *map(int, arguments))

    def normals_from_words(self, words: np.ndarray) -> np.ndarray:
        normals = np.empty(words.shape, np.float32)
        self._so.normals_from_words(words.ctypes.data, normals.ctypes.data, words.size)
        return normals

    def unrounded_from_words(self, words: np.ndarray) -> np.ndarray:
        """The normals in float64."""
        normals = np.empty(words.shape, np.float64)
        self._so.unrounded_from_words(words.ctypes.data, normals.ctypes.data, words.size)
        return normals


def build_noise_on_cpu(folder: Path, level: str) -> NoiseOnCpu:
    """Compile the kernel at a level of OPTIMISED; skips the test where there is no g++."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed; apt-get install g++")
    library = folder / f"noise_{level}.so"
    flags = [*FLAGS, *OPTIMISED[level], f"-I{SOURCE.parent}", "-o", str(library)]
    done = subprocess.run([compiler, *flags, str(HOST)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return NoiseOnCpu(library)
