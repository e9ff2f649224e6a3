"""A clock that runs of known length move."""

from __future__ import annotations

from collections.abc import Mapping

from lddgan.errors import OutOfMemory


class Stopwatch:
    """A timer (`bench.timing.Timer`), and the decoder that it times: ms by chunk."""

    def __init__(
        self, times: Mapping[int, float], *, largest: int = 127, first: float = 0.0
    ) -> None:
        self.times, self.largest, self.first = times, largest, first
        self.now, self.runs = 0.0, list[int]()

    def run(self, chunk: int) -> None:
        if chunk > self.largest:
            raise OutOfMemory("too little")
        self.now += self.times[chunk] + (0.0 if chunk in self.runs else self.first)
        self.runs.append(chunk)

    def mark(self) -> float:
        return self.now

    def milliseconds(self, start: float, stop: float) -> float:
        return stop - start
