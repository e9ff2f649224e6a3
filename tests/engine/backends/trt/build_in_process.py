"""Build a bundle's plans with the scripted TensorRT, as a process of its own.

usage: build_in_process.py BUNDLE COUNTS [HOLD]

One line per build is added to the file COUNTS; a build goes on only once the file HOLD exists.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from engine.backends.trt.build import BuildOptions
from engine.backends.trt.plans import ensure
from export.bundle import open_bundle
from tests.engine.backends.trt.scripted import Script


def main(folder: str, counts: str, hold: str | None = None) -> None:
    bundle = open_bundle(folder)
    script = Script(bundle.manifest.graphs)

    def begun() -> None:
        with Path(counts).open("a") as file:
            file.write(script.builds[-1] + "\n")
        while hold is not None and not Path(hold).exists():
            time.sleep(0.02)

    script.during = begun
    plans = ensure(bundle, script.library(), None, BuildOptions(precision="fp16"), log=say)
    say(plans.folder.name)


def say(line: str) -> None:
    print(line, flush=True)


main(*sys.argv[1:])
