"""`lddgan doctor`: what can run here, and why the rest cannot."""

from __future__ import annotations

import os
import platform
import shutil
import sys

from engine.gpu.driver import find_gpu
from engine.registry import ENGINES, find_engine, survey
from lddgan.data.decode import FORMATS, NO_AVIF, READS_AVIF
from lddgan.extras import INSTALL, usable_cores, version_of
from lddgan.frozen import Frozen
from lddgan.presets import PRESETS

OWN_PACKAGES = ("lddgan", "numpy", "onnx", "onnxscript", "pycuda", "safetensors", "scikit-learn")


class EngineState(Frozen):
    engine: str
    device: str
    precisions: tuple[str, ...]
    why_not: str | None  # None: it runs


class Report(Frozen):
    """The machine, the packages and the engines."""

    python: str
    system: str
    processor: str
    cores: int
    free_disk_gb: float  # where the command was run
    gpu: str | None  # name, driver version and memory, as the driver says
    packages: dict[str, str | None]
    images: tuple[str, ...]  # formats that are read to train on
    engines: list[EngineState]
    auto: dict[str, str]  # model -> the engine and device that `--engine auto` takes


def examine() -> Report:
    """Look at this machine. Starts nothing on a GPU."""
    engines = [
        EngineState(
            engine=name,
            device=where,
            precisions=find_engine(name).precisions[where],
            why_not=why_not,
        )
        for name, where, why_not in survey()
    ]
    best = {
        name: next((found for found in survey(preset=preset) if found.why_not is None), None)
        for name, preset in PRESETS.items()
    }
    needed = (package for name in ENGINES for package in find_engine(name).packages)
    return Report(
        python=sys.version.split()[0],
        system=platform.platform(),
        processor=processor_name(),
        cores=usable_cores(),
        free_disk_gb=round(shutil.disk_usage(".").free / 1e9, 1),
        gpu=find_gpu().description,
        packages={name: version_of(name) for name in dict.fromkeys((*OWN_PACKAGES, *needed))},
        images=tuple(sorted(FORMATS)),
        engines=engines,
        auto={name: f"{it.engine} on {it.device}" for name, it in best.items() if it is not None},
    )


def processor_name() -> str:
    """Model name of the CPU."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def print_report(report: Report) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    console.print(f"Python {report.python} on {report.system}")
    console.print(f"{report.processor}, {report.cores} cores, {report.free_disk_gb} GB free here")
    console.print(report.gpu or "no NVIDIA GPU", markup=False)
    console.print("engines, best first:")
    table = Table("engine", "device", "precisions", "runs here")
    for state in report.engines:
        verdict = "[green]yes[/]" if state.why_not is None else f"no: {escape(state.why_not)}"
        table.add_row(state.engine, state.device, ", ".join(state.precisions), verdict)
    console.print(table)
    installed = [f"{name} {found}" for name, found in report.packages.items() if found]
    missing = [name for name, found in report.packages.items() if not found]
    console.print("installed: " + ", ".join(installed), highlight=False)
    console.print("not installed: " + ", ".join(missing), highlight=False)
    avif = "" if READS_AVIF else f"; {NO_AVIF}"
    console.print("reads images: " + ", ".join(report.images) + avif, highlight=False, markup=False)
    if not report.auto:
        console.print(f"no engine runs here: {INSTALL['onnxruntime']}", markup=False)
    for choice in dict.fromkeys(report.auto.values()):
        models = ", ".join(name for name, chosen in report.auto.items() if chosen == choice)
        console.print(f"--engine auto takes {choice} for {models}")
