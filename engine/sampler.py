"""The sampler: noise -> T x generator -> decoder. Written once, for every engine."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Self, TypeVar

import numpy as np

from engine.backend import Backend, Float32, Images, Inputs, Made, Native
from export.agreement import any_of_one_value
from export.graphs import LARGEST_TENSOR, most_images
from lddgan.diffusion import chain
from lddgan.errors import BadInput, LddganError, OutOfMemory
from lddgan.memory import memory_named
from lddgan.noise import MAX_INDEX, Noise, draw
from lddgan.preset import Preset
from lddgan.progress import Log, to_stderr

T = TypeVar("T")

# Elements of an activation, which set the chunk.  A CPU is fastest with what its caches hold
# (docs/notes.md).
LARGEST_ACTIVATION = {"cpu": 1 << 21, "cuda": LARGEST_TENSOR}


class Sampler:
    """An open engine: makes images of one model.

    `chunk` images at most are computed at once, whatever the batch; larger batches run in chunks.
    It serves one thread at a time: a call while another thread's is at work raises LddganError.
    `close`, or leaving a `with`, gives back memory, threads and files.
    """

    def __init__(
        self,
        backend: Backend,
        preset: Preset,
        *,
        random_weights: bool,
        chunk: int | None = None,
        log: Log = to_stderr,
    ) -> None:
        self.log = log
        self.backend = backend
        self.preset = preset
        self.random_weights = random_weights
        own = backend.most or default_chunk(preset, backend.device)
        self.chunk = own if chunk is None else checked_chunk(chunk, preset)
        self.fitting = self.chunk  # images that the memory held so far
        self._t = [backend.upload(np.array([t], np.int32)) for t in range(preset.steps)]
        self._thread = threading.RLock()  # of the thread at work
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back memory, threads and files. Every later call but this raises LddganError."""
        if not self._closed:
            with self._alone():
                self._closed = True
                self._t.clear()
                self.backend.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Raises LddganError if the sampler is closed, or at work in another thread."""
        if not self._thread.acquire(blocking=False):
            raise LddganError(
                "this Sampler is at work in another thread; let the threads take turns, or open an "
                "engine for each"
            )
        try:
            if self._closed:
                raise LddganError("this Sampler is closed; open the engine again")
            yield
        finally:
            self._thread.release()

    @property
    def description(self) -> str:
        """The engine that runs, in words: it is in every line of output."""
        return f"{self.backend.name} {self.backend.precision} on {self.backend.where}"

    def sample(self, count: int, seed: int = 0, first: int = 0, batch: int | None = None) -> Images:
        """Images first..first+count-1 of a seed: uint8 [count,H,W,3].

        The same for every batch size, to within one grey level.  Raises BadInput for a count or
        batch below 1, or a seed or index outside 0..2^63-1.
        """
        return np.concatenate(list(self.stream(count, seed, first, batch)))

    def stream(
        self, count: int, seed: int = 0, first: int = 0, batch: int | None = None
    ) -> Iterator[Images]:
        """Like `sample`, one array per batch, as they are made."""
        check_request(count, seed, first, batch)
        parts = self.batches(count, first, batch)
        for _, images in self.numbered(parts, seed, first + count):
            yield images

    def batches(self, count: int, first: int = 0, batch: int | None = None) -> Iterator[range]:
        """The indices of each batch of a request."""
        for size in batch_sizes(count, batch, self.chunk):
            yield range(first, first + size)
            first += size

    def numbered(self, parts: Iterable[range], seed: int, end: int) -> Iterator[tuple[int, Images]]:
        """Images of batches of indices below `end`, each with the index of its first image.

        An image is the same to the bit wherever an engine makes it in the same batch.
        """
        with NoiseAhead(self.preset, seed, end) as noise:
            make = (
                partial(self._make_drawn, noise)
                if self.backend.draws_on_host
                else partial(self.make, seed)
            )
            for part in parts:
                yield part.start, self._in_chunks(make, part.start, len(part))

    def run(self, x_T: Float32, z: Float32, noise: Float32) -> Images:
        """Images of given noise: x_T [B,C,h,w], z [T,B,nz], noise [T,B,C,h,w] -> [B,H,W,3].

        Raises BadInput for other shapes or dtypes.
        """
        x_T, z, noise = np.asarray(x_T), np.asarray(z), np.asarray(noise)
        self._check_noise(x_T, z, noise)

        def make(first: int, count: int) -> Made:
            part = slice(first, first + count)
            return self.make_from(x_T[part], z[:, part], noise[:, part])

        return self._in_chunks(make, 0, len(x_T))

    def run_at(self, seeds: Sequence[int], indices: Sequence[int]) -> Images:
        """Images of any addresses, indices[i] of seeds[i]: uint8 [N,H,W,3]."""

        def make(first: int, count: int) -> Made:
            part = slice(first, first + count)
            return self.backend.run_at(self.program, self.preset, seeds[part], indices[part])

        return self._in_chunks(make, 0, len(seeds))

    def _make_drawn(self, noise: NoiseAhead, first: int, count: int) -> Made:
        return self.make_from(*noise.take(first, count))

    def make(self, seed: int, first: int, count: int) -> Made:
        """Latents and images of at most `chunk` indices, left where the engine computes.

        They are valid until the next call, and not checked for NaN.  Raises BadInput for more than
        `chunk`.
        """
        self.check_fits(count)
        with self._alone():
            return self.backend.run(self.program, self.preset, seed, first, count)

    def make_from(self, x_T: Any, z: Any, noise: Any) -> Made:
        """Like `make`, of given noise, shaped as in `run`: numpy, or arrays on the engine's GPU.

        Arrays on the GPU (anything with `__cuda_array_interface__` or `__dlpack__`) are read where
        they are, on the engine's stream.  Raises BadInput for other shapes, dtypes or devices.
        """
        on_host = all(isinstance(array, np.ndarray) for array in (x_T, z, noise))
        with self._alone():
            if not on_host:
                x_T, z, noise = map(self.backend.view, (x_T, z, noise))
            self._check_noise(x_T, z, noise)
            self.check_fits(len(x_T))
            if on_host:
                return self.program(self.upload(x_T, z, noise))
            calls = range(self.preset.steps)
            return self.program(Inputs(x_T, [z[k] for k in calls], [noise[k] for k in calls]))

    def program(self, inputs: Inputs) -> Made:
        """T steps and the decoder."""
        x_0 = self.denoise(inputs)
        return Made(x_0, self.decode(x_0))

    def inputs(self, seed: int, first: int, count: int) -> Inputs:
        """The noise of `count` images, where the engine computes."""
        return self.backend.draw(self.preset, seed, first, count)

    def upload(self, x_T: Float32, z: Float32, noise: Float32) -> Inputs:
        """Noise in numpy -> where the engine computes."""
        return self.backend.place(x_T, z, noise)

    def denoise(self, inputs: Inputs) -> Native:
        """T steps: x_T -> x_0 [B,C,h,w]."""
        step = self.backend.step
        calls = chain(lambda x_t, t, z, noise: step(x_t, self._t[t], z, noise), *inputs)
        x_0 = inputs.x_T
        for x_0 in calls:  # noqa: B007 - the last one is the latent
            pass
        return x_0

    def decode(self, x_0: Native) -> Native:
        """Latent x_0 [B,C,h,w] -> uint8 [B,H,W,3]."""
        return self.backend.decode(x_0)

    def check(self, x_0: Float32, images: Images) -> None:
        """Raise LddganError for NaN in latents [B,C,h,w] or images [B,H,W,3], on the host."""
        if not np.isfinite(x_0).all():
            raise self._broken("NaN or Inf")
        if any_of_one_value(images, self.preset):
            raise self._broken("an image of one value, which is what NaN in the decoder becomes")

    def _downloaded(self, made: Made) -> Images:
        images: Images = self.backend.download(made.image)
        self.check(self.backend.download(made.x_0), images)
        return images

    def _broken(self, what: str) -> LddganError:
        return LddganError(
            f"{self.description} gave {what}; check the weights, and in fp16 use --precision fp32"
        )

    def _in_chunks(self, make: Callable[[int, int], Made], first: int, count: int) -> Images:
        """Images of `make(first, count)`, as many at once as the memory holds."""

        def images(start: int, size: int) -> Images:
            with self._alone():
                return self._downloaded(make(first + start, size))

        parts = list(self.in_parts(count, images))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def in_parts(
        self, count: int, make: Callable[[int, int], T], at_once: int | None = None
    ) -> Iterator[T]:
        """`make(start, size)` of `count` images in equal parts of at most `at_once` (the chunk).

        A part that does not fit the memory is halved; later calls begin with what fitted.  Raises
        OutOfMemory if the least that the engine takes does not fit.
        """
        most, done = at_once or self.chunk, 0
        while done < count:
            size = equal_parts(count - done, min(most, self.fitting))[0]
            try:
                with memory_named(f"{{}} has too little memory for {size} images at once"):
                    part = make(done, size)
            except OutOfMemory as error:
                if size // 2 < self.backend.least:
                    raise
                self.fitting = size // 2
                self.log(f"{error}; going on with {size // 2} images at once instead of {size}")
                continue
            yield part
            done += size

    def check_fits(self, count: int) -> None:
        if not 1 <= count <= self.chunk:
            raise BadInput(f"{count} images at once; the engine takes 1..{self.chunk} (its chunk)")

    def _check_noise(self, x_T: Any, z: Any, noise: Any) -> None:
        if len(x_T.shape) != 4 or len(x_T) < 1:
            raise BadInput(f"x_T is {list(x_T.shape)}, expected [B,C,h,w] with B >= 1")
        batch, steps, latent = len(x_T), self.preset.steps, self.preset.latent_shape
        expected = {
            "x_T": (x_T, (batch, *latent)),
            "z": (z, (steps, batch, self.preset.generator.nz)),
            "noise": (noise, (steps, batch, *latent)),
        }
        for name, (array, shape) in expected.items():
            dtype = str(array.dtype).removeprefix("torch.")
            if array.shape != shape or dtype != "float32":
                raise BadInput(
                    f"{name} is {dtype} {list(array.shape)}, expected float32 {list(shape)}"
                )


class NoiseAhead:
    """Draws a seed's noise on the host, the next images' in a thread while the engine computes.

    `end` is the index after the last image.
    """

    def __init__(self, preset: Preset, seed: int, end: int) -> None:
        self.preset, self.seed, self.end = preset, seed, end
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="noise")
        self.ahead: tuple[int, int, Future[Noise]] | None = None  # first, count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.thread.shutdown(cancel_futures=True)

    def take(self, first: int, count: int) -> Noise:
        """The noise of images first..first+count-1. Begins with as many after them."""
        noise = self._drawn(first, count)
        following = min(count, self.end - first - count)
        if following > 0:
            future = self.thread.submit(self._draw, first + count, following)
            self.ahead = first + count, following, future
        return noise

    def _drawn(self, first: int, count: int) -> Noise:
        if self.ahead is None or self.ahead[0] != first or self.ahead[1] < count:
            return self._draw(first, count)
        drawn, self.ahead = self.ahead[2], None  # where memory was short, fewer are drawn anew
        x_T, z, noise = drawn.result()
        return Noise(x_T[:count], z[:, :count], noise[:, :count])

    def _draw(self, first: int, count: int) -> Noise:
        return draw(self.preset, first, count, seed=self.seed)


def default_chunk(preset: Preset, device: str) -> int:
    """Images at once such that no activation passes LARGEST_ACTIVATION; one at least."""
    return most_images(preset, LARGEST_ACTIVATION[device])


def batch_sizes(count: int, batch: int | None, chunk: int) -> Iterator[int]:
    """Sizes of batches of `count` images: `batch` each, or as large as a chunk but alike."""
    if batch is None:
        parts = -(-count // chunk)
        return (-(-(count - part) // parts) for part in range(parts))
    return (min(batch, count - start) for start in range(0, count, batch))


def equal_parts(count: int, chunk: int) -> list[int]:
    """Sizes of the fewest parts of at most `chunk` images: equal, or with one image's difference.

    The largest come first.
    """
    return list(batch_sizes(count, None, chunk))


def checked_chunk(chunk: int, preset: Preset) -> int:
    most = most_images(preset)
    if not 1 <= chunk <= most:
        raise BadInput(f"chunk is {chunk}, and must be in 1..{most}")
    return chunk


def check_request(count: int, seed: int, first: int, batch: int | None) -> None:
    """Raise BadInput unless the request can be served."""
    for name, value in (("num", count), ("batch", batch)):
        if value is not None and value < 1:
            raise BadInput(f"{name} is {value}, and must be at least 1")
    for name, value in (("seed", seed), ("first", first)):
        if not 0 <= value <= MAX_INDEX:
            raise BadInput(f"{name} is {value}, and must be in 0..2^63-1")
    if first + count - 1 > MAX_INDEX:
        raise BadInput(f"first + num is {first + count}, and must not pass 2^63")
