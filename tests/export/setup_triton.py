"""Make an environment with NVIDIA's tritonserver and its Python backend, which need no GPU.

    .venv/bin/python tests/export/setup_triton.py   450 MB

It writes .venv/triton, an environment of the system's Python: the server's stub is linked with that
one's library, and the server comes in the wheel of PyTriton, which wants numpy below 2.  It holds
what lddgan needs to run ONNX Runtime, but not lddgan.  It does nothing if that is already there.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import subprocess
import tomllib
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
DESTINATION = ROOT / ".venv" / "triton"
STAMP = DESTINATION / "made-of.json"
SYSTEM = "/usr/bin/python3"
SERVER = "nvidia-pytriton==0.7.0"
PACKAGES = ("numpy<2", "onnxruntime", "tritonclient[http]")
# What the system's Python must have: python3-venv, and libpython, which the stub loads.
CHECK = """
import ctypes, ensurepip, sys, venv
ctypes.CDLL(f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0")
assert (3, 11) <= sys.version_info < (3, 14), "Python 3.11 to 3.13 is needed"
"""


def main() -> None:
    DESTINATION.parent.mkdir(exist_ok=True)
    with FileLock(DESTINATION.with_suffix(".lock")):
        if not (STAMP.is_file() and json.loads(STAMP.read_text()) == made_of()):
            make()
    print(f"{DESTINATION} is ready")


def why_not_here() -> str | None:
    """Why this machine cannot have it; None if it can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"the wheel is for Linux on x86-64, this is {platform.system()}"
    if not Path(SYSTEM).exists():
        return f"there is no {SYSTEM}"
    done = subprocess.run([SYSTEM, "-c", CHECK], capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"{SYSTEM}: {done.stderr.splitlines()[-1]}"


def needed() -> list[str]:
    """What an installed lddgan would bring, and an engine."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *PACKAGES]


def pins() -> str:
    """The constraints of the other tests, but for numpy."""
    lines = (ROOT / "constraints.txt").read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("numpy=="))


def made_of() -> dict[str, object]:
    version = subprocess.run([SYSTEM, "--version"], capture_output=True, text=True, check=True)
    return {
        "python": version.stdout,
        "packages": [SERVER, *needed()],
        "pins": hashlib.sha256(pins().encode()).hexdigest(),
    }


def make() -> None:
    shutil.rmtree(DESTINATION, ignore_errors=True)
    subprocess.run([SYSTEM, "-m", "venv", DESTINATION], check=True)
    constraints = DESTINATION / "constraints.txt"
    constraints.write_text(pins())
    pip = [DESTINATION / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", SERVER], check=True)
    subprocess.run([*pip, "install", "-c", constraints, *needed()], check=True)
    stub = home() / "python_backend_stubs" / site().parent.name.removeprefix("python")
    shutil.copy(stub / "triton_python_backend_stub", home() / "backends" / "python")
    STAMP.write_text(json.dumps(made_of()))


def site() -> Path:
    """Where its packages are."""
    return next((DESTINATION / "lib").glob("python3.*")) / "site-packages"


def home() -> Path:
    """Where the server is."""
    return site() / "pytriton" / "tritonserver"


if __name__ == "__main__":
    main()
