"""The interface of an engine: what opens it, and how it runs the two graphs."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.timing import HostTimer, Timer
from export.bundle import CHECKPOINT, Bundle, store_folder
from lddgan.errors import BadInput
from lddgan.names import Device, Precision
from lddgan.noise import draw, draw_at
from lddgan.preset import Preset
from lddgan.progress import Log

if TYPE_CHECKING:
    from engine.verification import Verification
    from lddgan.checkpoint import Model

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


@dataclass(frozen=True)
class Request:
    """What an engine is opened for: a bundle, or a model that is in none."""

    source: Bundle | Model
    device: Device
    precision: Precision
    chunk: int | None  # images computed at once, at most; None: the engine's choice
    batch: int | None  # images per batch; None: not known yet
    cuda_graph: bool
    stream: object | None  # where everything runs; None: a stream of the engine's own
    accept_failed: bool  # open an engine that failed verification
    log: Log

    @property
    def bundle(self) -> Bundle:
        """The bundle. Raises BadInput if there is none."""
        if not isinstance(self.source, Bundle):
            raise BadInput("this engine runs exported graphs; `lddgan export` makes a bundle")
        return self.source

    @property
    def store(self) -> Path | None:
        """The folder for what is built or tuned. Returns None without a bundle."""
        return store_folder(self.source) if isinstance(self.source, Bundle) else None

    def model(self) -> Model:
        """The model in PyTorch: that of the caller, or read from the bundle."""
        if not isinstance(self.source, Bundle):
            return self.source
        from lddgan.checkpoint import load_checkpoint

        return load_checkpoint(self.source.file(CHECKPOINT))


@dataclass(frozen=True)
class Engine:
    """An engine as the registry knows it. Its file holds one, and imports its library when used."""

    label: str  # for tables and plots
    color: str  # of its bars in a plot
    precisions: Mapping[Device, tuple[Precision, ...]]  # what it runs, the preferred one first
    why_not: Callable[[Device], str | None]  # why its library cannot run; the device is there
    open: Callable[[Request], Backend]
    packages: tuple[str, ...]  # distributions that it needs
    default: Precision | None = None  # None: the first of `precisions` that the bundle has
    needs_graphs: bool = True  # False: it runs the checkpoint
    captures: bool = False  # it takes a stream and replays a CUDA graph
    suits: Callable[[Preset, Device], bool] = lambda preset, device: False  # the best for a model
    why_not_model: Callable[[Preset], str | None] = lambda preset: None  # why it cannot run one
    build: Callable[..., str] | None = None  # `lddgan build`: returns what was built, in a sentence


class Backend(ABC):
    """How one engine runs the two graphs. Arrays are where it computes (`Native`)."""

    name: str  # torch, ort, trt, ...
    precision: Precision
    device: Device
    where: str  # device and library, for people
    draws_on_host = True  # in `draw`
    captures = False  # `run` replays a CUDA graph
    least = 1  # images that the two graphs take at once
    most: int | None = None  # None: as many as memory holds

    @abstractmethod
    def upload(self, array: NDArray[Any]) -> Native:
        """A host array -> where the engine computes."""

    @abstractmethod
    def step(self, x: Native, t: Native, z: Native, noise: Native) -> Native:
        """Call the generator graph: x_t [B,C,h,w] of the next lower t."""

    @abstractmethod
    def decode(self, x_0: Native) -> Native:
        """Call the decoder graph: uint8 [B,H,W,3]."""

    @abstractmethod
    def download(self, array: Native) -> NDArray[Any]:
        """Copy an array to the host, when it is made."""

    def view(self, array: Any) -> Native:
        """Use an array that is already where the engine computes. Raises BadInput."""
        raise BadInput(f"the {self.name} engine takes numpy arrays, not {type(array).__name__}")

    def draw(self, preset: Preset, seed: int, first: int, count: int) -> Inputs:
        """The noise of images first..first+count-1. Default: drawn on the host."""
        return self.place(*draw(preset, first, count, seed=seed))

    def place(self, x_T: Float32, z: Float32, noise: Float32) -> Inputs:
        """Noise in numpy -> where the engine computes."""
        send = self.upload
        return Inputs(send(x_T), [send(z_k) for z_k in z], [send(e_k) for e_k in noise])

    def run(self, program: Program, preset: Preset, seed: int, first: int, count: int) -> Made:
        """Draw noise and run the program. The result is valid until the next call.

        Default: step by step.
        """
        return program(self.draw(preset, seed, first, count))

    def run_at(
        self, program: Program, preset: Preset, seeds: Sequence[int], indices: Sequence[int]
    ) -> Made:
        """Like `run`, of any images: indices[i] of seeds[i]. Default: noise drawn on the host."""
        return program(self.place(*draw_at(preset, seeds, indices)))

    def prepare(self, batch: int) -> None:
        """Get ready for `batch` images at once: compile or tune. Default: nothing."""

    def timer(self) -> Timer:
        """The clock of the engine's work. Default: the host's, for calls that wait."""
        return HostTimer()

    def facts(self) -> dict[str, Any]:
        """What a benchmark row says of how the engine runs. Default: nothing."""
        return {}

    def kernels(self) -> str:
        """What fixes the kernels that run, where library and device do not.

        Default: a number of this call's on a GPU, whose libraries choose kernels by the clock.
        """
        return "" if self.device == "cpu" else secrets.token_hex(8)

    def keep(self, verification: Verification) -> None:
        """Store a verification where the next process finds it. Default: nothing."""

    def close(self) -> None:
        """Give back memory, threads and files. Default: nothing."""
