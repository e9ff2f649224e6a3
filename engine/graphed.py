"""The sampler as one CUDA graph, and the decoder's chunk, for the engines of one GPU stream."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.backend import Backend, Inputs, Made, Native, Program
from engine.gpu.noise_kernel import consecutive
from engine.timing import Timer, median_ms
from engine.tuning import Tuning
from lddgan.errors import OutOfMemory
from lddgan.names import Device
from lddgan.preset import Preset

MOST_GRAPHS: Final = 8  # captured sizes that are kept; the one unused for longest is dropped
PARTS: Final = (1, 4)  # into which tuning cuts a batch for the decoder
CACHED_IMAGES: Final = (2, 1)  # whose activations an L2 of 50 MB holds, at 256x256 in fp16
TUNING_RUNS: Final = 3  # of each chunk, after one that is not timed


class Recorded(NamedTuple):
    """A captured run of the program, and all that it reads and writes."""

    launch: Callable[[], None]
    made: Made
    kept: Any  # alive as long as the graph


class Graphed(Backend):
    """A backend whose work is ordered on one stream of a GPU.

    With `captures`, `run` draws the noise, takes T steps and decodes in one launch of a graph that
    is captured once per batch size.  What it returns is valid until the next call; everything else
    returns new arrays.
    """

    device: Device = "cuda"
    draws_on_host = False

    def __init__(self, preset: Preset, tuning: Tuning, *, captures: bool) -> None:
        self.preset, self.tuning, self.captures = preset, tuning, captures
        self.chunks = tuning.read()  # the decoder's best ones by batch
        self.recorded: dict[int, Recorded] = {}  # by batch size, the last used last

    @abstractmethod
    def ask(self, request: NDArray[np.uint64]) -> None:
        """Write seed and index of each image, [B,2], which the noise kernel reads when it runs."""

    @abstractmethod
    def noise(self, count: int) -> Inputs:
        """Launch the noise kernel for `count` images of the request."""

    @abstractmethod
    def record(self, program: Program, size: int) -> Recorded:
        """Run the program once to allocate and warm up, then capture it."""

    @abstractmethod
    def decode_in(self, x_0: Native, chunk: int) -> Native:
        """Decode `chunk` images at a time."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the stream has done everything."""

    def draw(self, preset: Preset, seed: int, first: int, count: int) -> Inputs:
        self.ask(consecutive(seed, first, count))
        return self.noise(count)

    def run(self, program: Program, preset: Preset, seed: int, first: int, count: int) -> Made:
        return self._run(program, consecutive(seed, first, count))

    def run_at(
        self, program: Program, preset: Preset, seeds: Sequence[int], indices: Sequence[int]
    ) -> Made:
        return self._run(program, np.array([seeds, indices], np.uint64).T)

    def _run(self, program: Program, request: NDArray[np.uint64]) -> Made:
        count = len(request)
        if not self.captures:
            self.ask(request)
            return program(self.noise(count))
        size = captured_size(self.recorded, count, self.least)
        if size not in self.recorded and len(self.recorded) == MOST_GRAPHS:
            self.synchronize()  # the graph to drop may be running
            self.recorded.pop(next(iter(self.recorded)))
        recorded = self.recorded.pop(size, None) or self.record(program, size)
        self.recorded[size] = recorded
        self.ask(request)
        recorded.launch()
        return Made(recorded.made.x_0[:count], recorded.made.image[:count])

    def decode(self, x_0: Native) -> Native:
        return self.decode_in(x_0, self.chunks.get(len(x_0), len(x_0)))

    def prepare(self, batch: int) -> None:
        """Time the decoder at `batch` images in several chunks and keep the fastest.

        Chunks that do not fit the memory are passed over.  Raises OutOfMemory if none fits.
        """
        batch = max(batch, self.least)  # a CUDA graph is padded to that
        if batch in self.chunks:
            return
        shape = (batch, *self.preset.latent_shape)
        x_0 = self.upload(np.random.default_rng(0).standard_normal(shape, np.float32))
        decode = partial(self.decode_in, x_0)
        self.chunks[batch] = best = fastest_chunk(self.timer(), decode, batch, self.least)
        self.tuning.log(f"the decoder is fastest with {best} images at once at batch {batch}")
        self.tuning.add(batch, best)

    def facts(self) -> dict[str, Any]:
        return {"decoder_chunk": {str(batch): size for batch, size in self.chunks.items()}}

    def close(self) -> None:
        self.synchronize()
        self.recorded.clear()


def chunks_to_try(batch: int, smallest: int) -> list[int]:
    """Ways to cut a batch whose last part is not below `smallest`, the whole batch first.

    Few of them: each is timed, and cuDNN measures its algorithms for each.
    """
    cut = [math.ceil(batch / parts) for parts in PARTS]
    chunks = dict.fromkeys([*cut, *(images for images in CACHED_IMAGES if images < batch)])
    return [chunk for chunk in chunks if (batch % chunk or chunk) >= smallest]


def fastest_chunk(timer: Timer, decode: Callable[[int], object], batch: int, smallest: int) -> int:
    """The chunk of `chunks_to_try` with which `decode(chunk)` takes the least median time.

    Chunks that do not fit are passed over.  Raises OutOfMemory if none fits.
    """
    chunks = chunks_to_try(batch, smallest)
    if len(chunks) == 1:
        return chunks[0]
    times: dict[int, float] = {}
    refused = None
    for chunk in chunks:
        try:
            times[chunk] = median_ms(timer, partial(decode, chunk), TUNING_RUNS)
        except OutOfMemory as error:
            refused = error
    if refused is not None and not times:
        raise refused
    return min(times, key=times.__getitem__)


def captured_size(captured: Iterable[int], count: int, least: int) -> int:
    """The smallest captured size that holds `count` and is at most twice as large.

    If there is none it is `count`, or the least that the engine takes.  An image is the same to the
    bit in every run of one size.
    """
    fitting = [size for size in captured if count <= size <= 2 * count]
    return min(fitting, default=max(count, least))
