"""One bundle, one scripted TensorRT, and the plans that are built with it."""

from __future__ import annotations

from pathlib import Path

from engine.backends.trt.build import BuildOptions, Profile
from engine.backends.trt.key import GpuIdentity, PlanKey, plan_key
from engine.backends.trt.plans import PlanSet, ensure
from export.bundle import Bundle, store_folder
from tests.engine.backends.trt.scripted import BOTH, Script

GPU = GpuIdentity("NVIDIA H200", "9.0")
OTHER_GPU = GpuIdentity("NVIDIA GeForce RTX 4090", "8.9")
OPTIONS = BuildOptions(precision="fp16")


def sized(low: int, best: int, high: int, level: int = 3) -> BuildOptions:
    return BuildOptions(precision="fp16", profile=Profile(min=low, opt=best, max=high), level=level)


class Store:
    """One bundle, one scripted TensorRT, and what is logged."""

    def __init__(self, bundle: Bundle, script: Script) -> None:
        self.bundle, self.script = bundle, script
        self.lines: list[str] = []

    @property
    def folder(self) -> Path:
        return store_folder(self.bundle)

    def ensure(
        self,
        options: BuildOptions = OPTIONS,
        gpu: GpuIdentity | None = GPU,
        version: str = BOTH,
        rebuild: bool = False,
    ) -> PlanSet:
        library = self.script.library(version)
        return ensure(self.bundle, library, gpu, options, log=self.lines.append, rebuild=rebuild)

    def said(self, words: str) -> bool:
        return any(words in line for line in self.lines)

    def key(self, options: BuildOptions = OPTIONS, gpu: GpuIdentity | None = GPU) -> PlanKey:
        return plan_key(self.bundle, self.script.library(), gpu, options)

    def visible(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.name[0] != ".")

    def temporary(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob(".*.tmp"))


def flip(folder: Path) -> None:
    """Damage one bit of a plan."""
    path = folder / "decoder.plan"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
