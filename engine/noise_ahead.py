"""Noise drawn on the host while an engine computes."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from lddgan.noise import Noise, draw
from lddgan.preset import Preset


class NoiseAhead:
    """The noise of a seed's images, in order; that of the next ones is drawn in a thread.

    `end` is the index after the last image.
    """

    def __init__(self, preset: Preset, seed: int, end: int) -> None:
        self.preset, self.seed, self.end = preset, seed, end
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="noise")
        self.ahead: tuple[int, int, Future[Noise]] | None = None  # first, count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.thread.shutdown(cancel_futures=True)

    def take(self, first: int, count: int) -> Noise:
        """The noise of images first..first+count-1; as many after them are begun."""
        noise = self._drawn(first, count)
        following = min(count, self.end - first - count)
        if following > 0:
            future = self.thread.submit(self._draw, first + count, following)
            self.ahead = first + count, following, future
        return noise

    def _drawn(self, first: int, count: int) -> Noise:
        if self.ahead is None or self.ahead[0] != first or self.ahead[1] < count:
            return self._draw(first, count)
        x_T, z, noise = self.ahead[2].result()
        return Noise(x_T[:count], z[:, :count], noise[:, :count])

    def _draw(self, first: int, count: int) -> Noise:
        return draw(self.preset, first, count, seed=self.seed)
