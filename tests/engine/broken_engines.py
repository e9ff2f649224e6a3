"""ONNX Runtime engines that are wrong in one way each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backend import Inputs, Made, Program
from engine.backends.ort import OrtBackend
from lddgan.errors import OutOfMemory
from lddgan.preset import Preset

Array = NDArray[Any]


def shifted(image: Array, levels: int) -> Array:
    return np.where(image > 99, image - levels, image + levels).astype(np.uint8)


class Changed(OrtBackend):
    """Base of the engines below: what they upload in place of a result stays in memory."""

    def __init__(self, *args: Any) -> None:
        self.kept: list[Any] = []
        super().__init__(*args)

    def upload(self, array: Array) -> Any:
        self.kept.append(super().upload(array))
        return self.kept[-1]


class OffByTwoAndThree(Changed):
    """Five values of the batch off by 2, seven by 3, wherever the decoder runs."""

    def decode(self, x_0: Any) -> Any:
        image = self.download(super().decode(x_0)).copy()
        flat = image.reshape(-1)
        flat[100:105] = np.where(flat[100:105] > 99, flat[100:105] - 2, flat[100:105] + 2)
        flat[200:207] = np.where(flat[200:207] > 99, flat[200:207] - 3, flat[200:207] + 3)
        return self.upload(image)


class Jittering(Changed):
    """Latents off by up to a hundredth, which is what fp16 is allowed."""

    def step(self, *inputs: Any) -> Any:
        x = self.download(super().step(*inputs))
        jitter = np.random.default_rng(0).uniform(-0.01, 0.01, x.shape)
        return self.upload((x + jitter).astype(np.float32))


class WrongDecoder(Changed):
    def decode(self, x_0: Any) -> Any:
        return self.upload(shifted(self.download(super().decode(x_0)), 3))


class VeryWrongDecoder(Changed):
    def decode(self, x_0: Any) -> Any:
        return self.upload(shifted(self.download(super().decode(x_0)), 5))


class WrongGenerator(Changed):
    def step(self, *inputs: Any) -> Any:
        return self.upload(self.download(super().step(*inputs)) * np.float32(1.0003))


class WrongLastCall(Changed):
    def step(self, x: Any, t: Any, z: Any, noise: Any) -> Any:
        made = super().step(x, t, z, noise)
        wrong = self.download(t) == 0
        return self.upload(self.download(made) * np.float32(1.0003)) if wrong else made


class NotANumber(Changed):
    def step(self, *inputs: Any) -> Any:
        x = self.download(super().step(*inputs)).copy()
        x[-1, 0, 3, 3] = np.nan
        return self.upload(x)


class OneBlankImage(Changed):
    def decode(self, x_0: Any) -> Any:
        image = self.download(super().decode(x_0)).copy()
        image[1] = 128
        return self.upload(image)


class WrongChain(Changed):
    """Right on what is uploaded, wrong on what it made itself."""

    made: Any = None

    def step(self, *inputs: Any) -> Any:
        self.made = super().step(*inputs)
        return self.made

    def decode(self, x_0: Any) -> Any:
        image = super().decode(x_0)
        return self.upload(shifted(self.download(image), 2)) if x_0 is self.made else image


class OtherNoise(Changed):
    def draw(self, preset: Preset, seed: int, first: int, count: int) -> Inputs:
        return super().draw(preset, seed + 1, first, count)


class OneBitOff(Changed):
    def draw(self, preset: Preset, seed: int, first: int, count: int) -> Inputs:
        drawn = super().draw(preset, seed, first, count)
        last = self.download(drawn.noise[-1]).copy()
        last.view(np.int32)[-1, -1, -1, -1] ^= 1
        return drawn._replace(noise=[*drawn.noise[:-1], self.upload(last)])


class StaleGraph(Changed):
    """Draws other noise and replays the first images."""

    first_made: Made | None = None

    def run(self, program: Program, *request: Any) -> Made:
        self.first_made = self.first_made or super().run(program, *request)
        return self.first_made


class ThreeFit(OrtBackend):
    fit = 3

    def decode(self, x_0: Any) -> Any:
        if x_0.shape()[0] > self.fit:
            raise OutOfMemory("the GPU is full")
        return super().decode(x_0)


class NoneFit(ThreeFit):
    fit = 0
