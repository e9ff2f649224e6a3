"""The interface of an engine: how the two graphs are run. Arrays stay where it computes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.timing import HostTimer, Timer
from lddgan.errors import BadInput
from lddgan.noise import draw
from lddgan.preset import Preset

if TYPE_CHECKING:
    from engine.verification import Verification

Images = NDArray[np.uint8]  # [N,H,W,3]
Float32 = NDArray[np.float32]
Native = Any  # an array where the backend computes


class Inputs(NamedTuple):
    """The noise of one chunk, where the backend computes; k is the k-th call."""

    x_T: Native
    z: Sequence[Native]
    noise: Sequence[Native]


class Made(NamedTuple):
    """What the sampler makes of one chunk, where the backend computes."""

    x_0: Native  # float32 [B,C,h,w]
    image: Native  # uint8 [B,H,W,3]


Program = Callable[[Inputs], Made]  # T steps and the decoder


class Backend(ABC):
    """How one engine runs the two graphs. Arrays are where it computes (`Native`)."""

    name: str  # torch, ort, trt, ...
    precision: str
    device: str  # cpu, cuda
    where: str  # device and library, for people
    draws_on_host = True  # in `draw`
    fused = False  # whether `run` replays a CUDA graph
    least = 1  # images that the two graphs take at once

    @abstractmethod
    def upload(self, array: NDArray[Any]) -> Native: ...

    @abstractmethod
    def step(self, x: Native, t: Native, z: Native, noise: Native) -> Native:
        """The generator graph: x_t of the next lower t, [B,C,h,w]."""

    @abstractmethod
    def decode(self, x_0: Native) -> Native:
        """The decoder graph: uint8 [B,H,W,3]."""

    @abstractmethod
    def download(self, array: Native) -> NDArray[Any]: ...

    def view(self, array: Any) -> Native:
        """An array that is already where the engine computes, not copied. Raises BadInput."""
        raise BadInput(f"the {self.name} engine takes numpy arrays, not {type(array).__name__}")

    def draw(self, preset: Preset, seed: int, first: int, count: int) -> Inputs:
        """The noise of images first..first+count-1, drawn on the host."""
        return self.place(*draw(preset, first, count, seed=seed))

    def place(self, x_T: Float32, z: Float32, noise: Float32) -> Inputs:
        """Noise in numpy -> where the engine computes."""
        send = self.upload
        return Inputs(send(x_T), [send(z_k) for z_k in z], [send(e_k) for e_k in noise])

    def prepare(self, batch: int) -> None:
        """Get ready for `batch` images at once: compile or tune. Default: nothing."""

    def timer(self) -> Timer:
        """What times the engine's work. Default: the host's clock, for calls that wait."""
        return HostTimer()

    def facts(self) -> dict[str, Any]:
        """What a benchmark row says of how the engine runs. Default: nothing."""
        return {}

    def keep(self, verification: Verification) -> None:
        """Store what `lddgan verify` measured, where the engine has a place for it."""

    def close(self) -> None:
        """Give back memory, threads and files. The backend is not used afterwards."""

    def run(self, program: Program, preset: Preset, seed: int, first: int, count: int) -> Made:
        """Noise and program, eagerly. The result is valid until the next call."""
        return program(self.draw(preset, seed, first, count))
