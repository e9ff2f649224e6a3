"""Bundles that all test processes share: made once, and anew when what makes them has changed."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock, Timeout

from lddgan.extras import version_of

ROOT = Path(__file__).parents[1]
EXPORTERS = ("torch", "onnx", "onnxscript", "onnxruntime")
BIG = ("lsun", "celeba_256", "cifar10")
PEAK = "peak_gb"  # in the folder of a bundle that a command exported
EXPORT_SECONDS = 2400  # of a test that may have to export big models first, both at once


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
    """Largest resident size of `lddgan ARGS` in GB; it must succeed."""
    with tempfile.TemporaryFile("w+") as said:
        command = [sys.executable, "-m", "lddgan", *map(str, args)]
        process = subprocess.Popen(command, cwd=cwd, env=all_cores(), stdout=said, stderr=said)
        with ExitStack() as on_timeout:
            on_timeout.callback(process.kill)
            _, status, used = os.wait4(process.pid, 0)
            on_timeout.pop_all()
        said.seek(0)
        assert status == 0, said.read()
    return used.ru_maxrss / 1e6


def all_cores() -> dict[str, str]:
    """The environment without the limit of one thread that the test workers have."""
    return {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}


def python(*args: object, cwd: Path) -> str:
    """Standard output of `python ARGS` on all cores, which must succeed."""
    done = subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env=all_cores(),
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

    return shared("-".join([model.preset.name, *precisions]), make, meanwhile)
