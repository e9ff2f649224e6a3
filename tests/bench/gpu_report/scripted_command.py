"""A stand-in for lddgan's command line, run as a child: it writes rows and no more.

What it is told to do lies in plan.json in SCRIPT_FOLDER: for some words of a command what happens;
and every call is noted in calls.txt there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from export.bundle import DIGITS


def main(words: list[str], here: Path) -> int:
    with (here / "calls.txt").open("a") as calls:
        calls.write(" ".join(words) + "\n")
    told = json.loads((here / "plan.json").read_text())
    what = next((do for part, do in told.items() if part in " ".join(words)), None)
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what is not None:
        print("some progress\n" + what, file=sys.stderr)
        return 1
    if words[0] == "export":
        write_manifest(Path("exports") / words[words.index("--dataset") + 1])
    if words[0] == "bench" and "--ladder" not in words:
        write_row(words)
    return 0


def write_manifest(folder: Path, precisions: Sequence[str] = ("fp32", "fp16")) -> None:
    """The manifest of the digits as that of a bundle in some precisions."""
    manifest = json.loads((DIGITS / "manifest.json").read_text())
    measured = manifest["verification"]["fp32"]
    manifest["verification"] = dict.fromkeys(precisions, measured)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def write_row(words: list[str]) -> None:
    from bench.row import add_rows
    from tests.bench.rows import row

    def given(option: str) -> str:
        return words[words.index(option) + 1]

    graph = given("--engine") == "trt" and "--no-cuda-graph" not in words
    batch, dataset = int(given("--batch")), given("--dataset")
    made = row(given("--engine"), 100.0, dataset=dataset, batch=batch, cuda_graph=graph)
    add_rows([made], Path(given("--save")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(os.environ["SCRIPT_FOLDER"])))
