"""Backends whose calls take a known time on a clock that only they move."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.backend import Backend, Made, Program
from engine.sampler import Sampler
from engine.timing import HostTimer
from lddgan.preset import Preset


class Clock:
    """Seconds, as the backends below let them pass."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Scripted(Backend):
    """Takes `step` seconds an image and call of the generator, `decode` an image."""

    precision = "fp32"
    device = "cpu"
    where = "a script"

    def __init__(self, name: str, clock: Clock, calls: list[Any], step: float, decode: float):
        self.name, self.clock, self.calls = name, clock, calls
        self.step_seconds, self.decode_seconds = step, decode
        self.poison = False
        self.blank = False  # images of one value, as NaN in the decoder makes

    def timer(self) -> HostTimer:
        return HostTimer(self.clock)

    def upload(self, array: Any) -> Any:
        return array

    def download(self, array: Any) -> Any:
        return array

    def step(self, x: Any, t: Any, z: Any, noise: Any) -> Any:
        self.clock.now += self.step_seconds * len(x)
        self.calls.append((self.name, "step", len(x)))
        return np.full_like(x, np.nan) if self.poison else x

    def decode(self, x_0: Any) -> Any:
        self.clock.now += self.decode_seconds * len(x_0)
        self.calls.append((self.name, "decode", len(x_0)))
        return self.marked(np.zeros((len(x_0), 32, 32, 3), np.uint8))

    def marked(self, images: Any) -> Any:
        if not self.blank:
            images[:, -1, -1] ^= 1
        return images


class Fused(Scripted):
    """One launch takes `launch` seconds an image; a download takes `download` seconds an array.

    What a launch gives is overwritten by the next one, as on a GPU.
    """

    device = "cuda"

    def __init__(self, clock: Clock, calls: list[Any], launch: float, download: float):
        super().__init__("fused", clock, calls, step=0.001, decode=0.002)
        self.captures = True
        self.launch_seconds, self.download_seconds = launch, download
        self.image = np.zeros((127, 32, 32, 3), np.uint8)

    def draw(self, preset: Preset, seed: int, first: int, count: int) -> Any:
        self.clock.now += 0.003 * count
        return super().draw(preset, seed, first, count)

    def download(self, array: Any) -> Any:
        self.clock.now += self.download_seconds
        return array.copy()

    def run(self, program: Program, preset: Preset, seed: int, first: int, count: int) -> Made:
        self.clock.now += self.launch_seconds * count
        self.calls.append((self.name, "launch", count))
        x_0 = np.full((count, *preset.latent_shape), np.nan if self.poison else 0.5, np.float32)
        indices = np.arange(first, first + count).reshape(-1, 1, 1, 1)
        self.image[:count] = indices
        return Made(x_0, self.marked(self.image[:count]))


def opened(backend: Scripted, preset: Preset, chunk: int) -> Sampler:
    return Sampler(backend, preset, random_weights=False, chunk=chunk)
