"""Build a plan with the real builder and press Ctrl-C at the first sign of progress.

usage: interrupted_build.py DATASET FILE
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from engine.backends.trt.build import BuildOptions, build_graph
from engine.backends.trt.library import load
from export.graphs import graph_specs
from lddgan.presets import get_preset


def main(dataset: str, file: str) -> None:
    heard: list[int] = []

    def progress(done: int, total: int) -> None:
        heard.append(done)
        if len(heard) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    path = Path(file)
    spec = graph_specs(get_preset(dataset))[path.name.partition(".")[0]]
    try:
        build_graph(
            load("trt"),
            path,
            spec,
            BuildOptions(precision="fp16"),
            timing_cache=None,
            workspace=None,
            progress=progress,
        )
    except KeyboardInterrupt:
        print("interrupted at", heard[-1])


main(*sys.argv[1:])
