"""Make TensorRT importable where there is no GPU, far enough to build plans with its real parser.

    .venv/bin/python tests/engine/backends/trt/setup_cpu_builder.py   150 MB of wheels

It writes to .venv/tensorrt-cpu:
    builder/    `import tensorrt`: the bindings of TensorRT 11 over the builder of TensorRT-RTX;
                what it builds cannot be run here
    bindings/   four versions' bindings, TensorRT-RTX's among them, over empty libraries: names and
                signatures only
It does nothing if that is already there, and what is there is whole: it appears by one rename.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
DESTINATION = HERE.parents[3] / ".venv" / "tensorrt-cpu"
STAMP = "made-of.json"
COMMAND = ".venv/bin/python tests/engine/backends/trt/setup_cpu_builder.py"

RTX = ("onnxruntime-ep-nv-tensorrt-rtx-cu13", "0.5.0")  # a wheel that holds TensorRT-RTX 1.7.1
BINDINGS = {
    "8.6.1": "tensorrt-bindings",
    "10.16.1.11": "tensorrt-cu13-bindings",
    "11.4.0.106": "tensorrt-cu13-bindings",
    "1.7.1.116": "tensorrt-rtx-cu13-bindings",
}
DRIVES_RTX = "11.4.0.106"  # the bindings whose classes are laid out as TensorRT-RTX 1.7's
LAST_PYTHON = {"8.6.1": (3, 11)}  # of the wheels that exist


def main() -> None:
    destination = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else DESTINATION
    if is_ready(destination):
        print(f"{destination} is ready")
        return
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tensorrt-cpu.", dir=destination.parent) as work:
        made = make(Path(work))
        if destination.exists():
            os.replace(destination, Path(work) / "old")
        os.replace(made, destination)
    print(f"{destination} is ready")


def is_ready(destination: Path) -> bool:
    """True if a finished set-up of these very versions and sources is there."""
    stamp = destination / STAMP
    return stamp.is_file() and json.loads(stamp.read_text()) == made_of()


def why_not_here() -> str | None:
    """Why this machine cannot have it; None if it can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"the wheels are for Linux on x86-64, this is {platform.system()}"
    missing = [tool for tool in ("gcc", "nm", "readelf") if shutil.which(tool) is None]
    return f"{missing[0]} is missing" if missing else None


def versions() -> list[str]:
    """The versions whose bindings exist for this Python."""
    return [v for v in BINDINGS if sys.version_info[:2] <= LAST_PYTHON.get(v, (9, 9))]


def made_of() -> dict[str, object]:
    sources = [HERE / "cpu_builder.c", Path(__file__).resolve()]
    return {
        "python": list(sys.version_info[:2]),
        "rtx": list(RTX),
        "bindings": versions(),
        "sources": [hashlib.sha256(path.read_bytes()).hexdigest() for path in sources],
    }


def make(work: Path) -> Path:
    """Make everything in `work`; returns the finished folder."""
    made, wheels = work / "made", work / "wheels"
    for version in versions():
        site = made / "bindings" / version / "site"
        unpack(download(BINDINGS[version], version, wheels), site)
        bindings = next(site.glob("*_bindings/*.so"))
        alias(site, bindings.parent.name)
        compile_stubs(bindings, site.parent / "lib")
    builder = made / "builder"
    shutil.copytree(made / "bindings" / DRIVES_RTX / "site", builder / "site")
    unpack(download(*RTX, wheels), work / "rtx")
    compile_builder(work / "rtx", builder / "lib")
    (made / STAMP).write_text(json.dumps(made_of()))
    return made


def download(package: str, version: str, folder: Path) -> Path:
    """One wheel, without what it depends on."""
    target = folder / f"{package}-{version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "-d", target, f"{package}=={version}"], check=True)
    return next(target.glob("*.whl"))


def unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)


def alias(site: Path, package: str) -> None:
    """`tensorrt`, the name that the package with the libraries has."""
    (site / "tensorrt").mkdir()
    text = f"from {package} import *\nfrom {package} import __version__\n"
    (site / "tensorrt" / "__init__.py").write_text(text)


def compile_stubs(bindings: Path, folder: Path) -> None:
    """Empty libraries with exactly the symbols that the bindings want from TensorRT."""
    folder.mkdir()
    wanted = [
        line.split()[-1]
        for line in output("nm", "-D", "--undefined-only", bindings).splitlines()
        if " U " in line and "@" not in line
    ]
    symbols = [name for name in wanted if not name.startswith(("Py", "_Py"))]
    source = folder / "stub.c"
    source.write_text("".join(f"int {name}(void) {{ return 0; }}\n" for name in symbols))
    for index, library in enumerate(needed(bindings)):
        file = source if index == 0 else "/dev/null"  # one library holds them all
        gcc(folder / library, "-w", "-x", "c", file)
    source.unlink()


def needed(bindings: Path) -> list[str]:
    """The TensorRT libraries that the bindings are linked with."""
    lines = output("readelf", "-d", bindings).splitlines()
    names = [line.split("[")[1].rstrip("]") for line in lines if "(NEEDED)" in line]
    return [name for name in names if name.startswith(("libnv", "libtensorrt"))]


def compile_builder(rtx: Path, folder: Path) -> None:
    folder.mkdir()
    builder = next(rtx.glob("*/libtensorrt_rtx.so.*"))
    parser = next(rtx.glob("*/libtensorrt_onnxparser_rtx.so.*"))
    for library in (builder, parser):
        os.replace(library, folder / library.name)
    source = HERE / "cpu_builder.c"
    gcc(folder / "libnvinfer.so.11", "-DBUILDER", f'-DTARGET="{builder.name}"', source)
    gcc(folder / "libnvonnxparser.so.11", "-DPARSER", f'-DTARGET="{parser.name}"', source)
    gcc(folder / "libnvinfer_plugin.so.11", "-DPLUGIN", source)


def gcc(library: Path, *arguments: object) -> None:
    shared = ["gcc", "-shared", "-fPIC", "-O1", f"-Wl,-soname,{library.name}", "-o", library]
    subprocess.run([*map(str, (*shared, *arguments)), "-ldl"], check=True)


def output(*command: object) -> str:
    done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)
    return done.stdout


if __name__ == "__main__":
    main()
