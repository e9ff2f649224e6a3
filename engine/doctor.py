"""`lddgan doctor`: what can run here, and why the rest cannot."""

from __future__ import annotations

import os
import platform
import shutil
import sys

from engine.gpu.driver import find_gpu
from engine.registry import survey
from lddgan.extras import INSTALL, usable_cores, version_of
from lddgan.frozen import Frozen

PACKAGES = (
    "lddgan",
    "numpy",
    "torch",
    "triton",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-core",
    "pycuda",
    "safetensors",
    "scikit-learn",
)


class EngineState(Frozen):
    engine: str
    device: str
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
    engines: list[EngineState]

    @property
    def chosen(self) -> EngineState | None:
        """What `--engine auto` takes."""
        return next((state for state in self.engines if state.why_not is None), None)


def examine() -> Report:
    """Look at this machine; starts nothing on a GPU."""
    return Report(
        python=sys.version.split()[0],
        system=platform.platform(),
        processor=processor_name(),
        cores=usable_cores(),
        free_disk_gb=round(shutil.disk_usage(".").free / 1e9, 1),
        gpu=find_gpu().description,
        packages={name: version_of(name) for name in PACKAGES},
        engines=[EngineState(**candidate._asdict()) for candidate in survey()],
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
    table = Table("engine", "device", "runs here")
    for state in report.engines:
        verdict = "[green]yes[/]" if state.why_not is None else f"no: {escape(state.why_not)}"
        table.add_row(state.engine, state.device, verdict)
    console.print(table)
    installed = [f"{name} {found}" for name, found in report.packages.items() if found]
    missing = [name for name, found in report.packages.items() if not found]
    console.print("installed: " + ", ".join(installed), highlight=False)
    console.print("not installed: " + ", ".join(missing), highlight=False)
    chosen = report.chosen
    if chosen is None:
        console.print(f"no engine runs here: {INSTALL['onnxruntime']}", markup=False)
    else:
        narrow = ", or ort for small models" if chosen.engine == "openvino" else ""
        console.print(f"--engine auto takes {chosen.engine} on {chosen.device}{narrow}")
