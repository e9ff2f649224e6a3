"""The names that options and packages share. Imports nothing, so that `--help` is quick."""

from __future__ import annotations

from typing import Final, Literal

Device = Literal["cpu", "cuda"]
DeviceName = Literal["auto", Device]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
FLOATS: Final[tuple[Precision, ...]] = ("fp32", "fp16")  # of graphs; bf16 has none
PRECISIONS: Final[tuple[Precision, ...]] = (*FLOATS, "int8")  # of graphs; int8: on CPUs
Wanted = Literal["fp32", "fp16", "int8", "both", "all", "none"]  # of an export

Regulariser = Literal["kl", "vq", "none"]  # of latents
Loss = Literal["adversarial", "reconstruction", "weighted"]  # of the generator
Convert = Literal["strict", "rgb"]  # what becomes of images that are not RGB: refused, or converted
