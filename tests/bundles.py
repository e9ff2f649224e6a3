"""Bundles that all test processes share: made once, and anew when what makes them has changed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from lddgan.extras import version_of

ROOT = Path(__file__).parents[1]
EXPORTERS = ("torch", "onnx", "onnxscript", "onnxruntime")
BIG = ("lsun", "celeba_256", "cifar10")
PEAK = "peak_gb"  # in the folder of a bundle that a command exported
MEASURING = """
import resource, subprocess, sys
subprocess.run([sys.executable, "-m", "lddgan", *sys.argv[1:]], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def shared(
    name: str, make: Callable[[Path], object], meanwhile: Callable[[], object] = lambda: None
) -> Path:
    """The folder that `make` fills; it belongs to the sources and to the exporters' versions.

    While another process fills it, this one does `meanwhile`.
    """
    digest = hashlib.sha256(repr([version_of(package) for package in EXPORTERS]).encode())
    for path in sorted(p for f in ("export", "lddgan") for p in (ROOT / f).rglob("*.py")):
        digest.update(path.read_bytes())
    folder = ROOT / "build" / "test-bundles" / f"{name}-{digest.hexdigest()[:16]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    done = folder.with_suffix(".done")
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        meanwhile()
        lock.acquire()
    try:
        if not done.exists():
            make(folder)
            done.touch()
    finally:
        lock.release()
    return folder


def exported_by_command(dataset: str, *, waits: bool = False) -> Path:
    """Where `lddgan export --dataset DATASET` has made exports/DATASET, of random weights.

    While another process makes it, this one makes the next of BIG, unless it `waits`.
    """

    def make(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        peak = peak_gb("export", "--dataset", dataset, cwd=folder)
        (folder / PEAK).write_text(str(peak))

    def make_next() -> None:
        if not waits:
            exported_by_command(BIG[(BIG.index(dataset) + 1) % len(BIG)], waits=True)

    return shared(f"big-{dataset}", make, make_next)


def peak_gb(*args: object, cwd: Path) -> float:
    """Largest resident size of `lddgan ARGS` in GB."""
    return int(python("-c", MEASURING, *args, cwd=cwd).splitlines()[-1]) / 1e6


def python(*args: object, cwd: Path) -> str:
    """Standard output of `python ARGS` on all cores, which must succeed."""
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def exported(  # type: ignore[no-untyped-def]
    model, precisions: Sequence[str], meanwhile: Callable[[], object] = lambda: None
) -> Path:
    """A bundle of a model in memory."""
    from export.exporter import export_bundle

    def make(folder: Path) -> None:
        export_bundle(model, folder, precisions)

    return shared(model.preset.name, make, meanwhile)
