"""lddgan/noise.py on the GPU: noise.cu, compiled by NVRTC. One launch makes a batch's noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.gpu.stream import reported
from lddgan.errors import BadInput, LddganError

if TYPE_CHECKING:
    from cuda.core import ObjectCode, Program

SOURCE: Final = Path(__file__).with_name("noise.cu")
ENTRY: Final = "sampler_noise"  # the kernel in SOURCE
THREADS: Final = 128  # of a CUDA block
WORDS: Final = 4  # of a Philox block, which one thread makes


class Array(Protocol):
    """A contiguous array on the GPU."""

    @property
    def address(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...


@dataclass(frozen=True)
class Sizes:
    """The sizes of a launch: x_T [count,n], z [steps,count,nz], noise [steps,count,n]."""

    count: int  # B
    steps: int  # T
    n: int  # C*h*w
    nz: int


class NoiseKernel:
    """noise.cu, compiled for one GPU and loaded."""

    def __init__(self, arch: str) -> None:
        """Compile for `arch` (such as sm_90) and load into the current context.

        Raises LddganError if NVRTC is missing or refuses, or the driver does; OutOfMemory.
        """
        code = compile_noise(arch)
        with reported("the noise kernel"):
            self._kernel = code.get_kernel(ENTRY)

    def launch(self, stream: Any, request: Array, x_T: Array, z: Array, noise: Array) -> None:
        """Enqueue the noise of B images, the bits of `lddgan.noise.draw_at`.

        stream is a cuda.core Stream, or a GraphBuilder that captures one.  request is uint64
        [B or more, 2], seed and index of each, read when the kernel runs.  Filled: float32
        x_T [B,C,h,w], z [T,B,nz] and noise [T,B,C,h,w].  Raises BadInput for shapes or dtypes that
        do not fit together, LddganError for a failure of the GPU.
        """
        from cuda.core import LaunchConfig, launch

        sizes = checked_sizes(request, x_T, z, noise)
        config = LaunchConfig(grid=grid(sizes), block=THREADS)
        pointers = [array.address for array in (request, x_T, z, noise)]
        lengths = [np.uint64(length) for length in (sizes.count, sizes.n, sizes.nz)]
        with reported():
            launch(stream, config, self._kernel, *pointers, *lengths)


def consecutive(seed: int, first: int, count: int) -> NDArray[np.uint64]:
    """The request for images first..first+count-1 of a seed: [count,2]."""
    indices = np.arange(count, dtype=np.uint64) + np.uint64(first)
    return np.stack((np.full(count, seed, np.uint64), indices), axis=-1)


def noise_program(arch: str) -> Program:
    """noise.cu and its compiler options, of which fma=False keeps the bits."""
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(name=SOURCE.name, arch=arch, fma=False)
    return Program(SOURCE.read_text(), "c++", options)


def compile_noise(arch: str) -> ObjectCode:
    """Compile noise.cu for one architecture. Needs no GPU. Raises LddganError."""
    from cuda.core import ObjectCode

    return ObjectCode.from_cubin(noise_cubin(arch))


@cache
def noise_cubin(arch: str) -> bytes:
    """The machine code, compiled once in a process: engines share it. Raises LddganError."""
    from cuda.core._utils.cuda_utils import CUDAError

    missing = why_no_nvrtc()
    if missing is not None:
        raise LddganError(missing)
    try:
        return noise_program(arch).compile("cubin").code
    except CUDAError as error:
        raise LddganError(
            f"NVRTC does not compile {SOURCE.name} for {arch}: {first_line(str(error))}; "
            "install an NVRTC that does, as new as the GPU"
        ) from error


def why_no_nvrtc() -> str | None:
    """Why NVRTC cannot be loaded. Returns None if it was; Program may crash without it."""
    from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

    try:
        load_nvidia_dynamic_lib("nvrtc")
    except DynamicLibNotFoundError:
        return 'CUDA\'s run-time compiler (NVRTC) is not installed; pip install -e ".[gpu]"'
    return None


def first_line(message: str) -> str:
    """The first line of NVRTC's log in cuda.core's message, or of the message."""
    log = message.partition("compilation log:")[2] or message
    return log.strip("\0 \n").partition("\n")[0]


def grid(sizes: Sizes) -> tuple[int, int, int]:
    """CUDA blocks: x over the Philox blocks of the longest row, y the images, z the streams."""
    blocks = -(-max(sizes.n, sizes.nz) // WORDS)
    return -(-blocks // THREADS), sizes.count, 1 + 2 * sizes.steps


def checked_sizes(request: Array, x_T: Array, z: Array, noise: Array) -> Sizes:
    """Read the sizes of a launch off its arrays. Raises BadInput if they do not fit together."""
    count, *latent = x_T.shape
    steps, nz = z.shape[0], z.shape[-1]
    expected = {
        "request": (request, "uint64", [max(count, request.shape[0]), 2]),
        "x_T": (x_T, "float32", [count, *latent]),
        "z": (z, "float32", [steps, count, nz]),
        "noise": (noise, "float32", [steps, count, *latent]),
    }
    for name, (array, dtype, shape) in expected.items():
        if str(array.dtype) != dtype or list(array.shape) != shape:
            raise BadInput(f"{name} is {array.dtype} {list(array.shape)}, expected {dtype} {shape}")
    return Sizes(count, steps, math.prod(latent), nz)
