"""The wheel in environments of its own: beside modules of the same names, and without PyTorch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from lddgan.checkpoint import random_model, save_checkpoint
from tests import published_files as files
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parents[1]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
NAMES = ("engine", "export", "bench", "cli")
FOREIGN = "raise RuntimeError('this is not a module of lddgan')\n"


def outcome(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command that does not find the repository on its path."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def run(*command: object, cwd: Path) -> str:
    """Standard output of a command, which must succeed."""
    done = outcome(*command, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    command = (*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)
    subprocess.run(command, check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, what the tests have, and packages of the same names."""
    home = tmp_path_factory.mktemp("environment")
    venv.create(home)
    python = home / "bin" / "python"
    site = Path(
        run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=home).strip()
    )
    (site / "shared.pth").write_text(sysconfig.get_path("purelib"))
    run(*PIP, "--python", python, "install", "--no-deps", wheel, cwd=home)
    for name in NAMES:
        (site / name).mkdir()
        (site / name / "__init__.py").write_text(FOREIGN)
    return python


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A working folder with modules of the same names."""
    (tmp_path / "bench").mkdir()
    for name in ("engine.py", "export.py", "bench/__init__.py", "cli.py"):
        (tmp_path / name).write_text(FOREIGN)
    return tmp_path


def test_imports_are_moved_wherever_they_stand() -> None:
    moved = pytest.importorskip("hatch_build").with_moved_imports
    assert moved("import bench.row as row\n", "x.py") == "import lddgan.bench.row as row\n"
    assert moved("def f():\n    from engine import a\n", "x.py").endswith(
        " lddgan.engine import a\n"
    )
    served = (ROOT / "export" / "triton" / "model.py").read_text()  # imports lddgan alone
    assert moved(served, "model.py") == served
    unmoved = "from lddgan.noise import draw\nimport enginery\nx = 'from engine import y'\n"
    assert moved(unmoved, "x.py") == unmoved
    with pytest.raises(ValueError, match=r"x.py:1: write `import engine.sampler as"):
        moved("import engine.sampler\n", "x.py")


@pytest.mark.full
@pytest.mark.timeout(900)
def test_wheel_holds_one_package_and_its_data(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"lddgan"}
    held = {name.removeprefix("lddgan/") for name in names if name.startswith("lddgan/")}
    assert {"py.typed", "cli.py", "engine/gpu/noise.cu", "assets/digits/manifest.json"} <= held
    assert {"assets/emoji/manifest.json", "assets/NOTICE", "export/web/page/noise.mjs"} <= held
    assert "engine/serving/page/index.html" in held
    assert {"export/triton/config.pbtxt", "export/triton/graph.pbtxt"} <= held
    assert not any(
        name.startswith(("bench/gpu_report", "bench/studies", "bench/results")) for name in held
    )


@pytest.mark.full
@pytest.mark.timeout(900)
def test_modules_of_the_same_names_are_left_alone(python: Path, project: Path) -> None:
    program = "import lddgan\nlddgan.Sampler\nlddgan.export_bundle\nprint(lddgan.__file__)"
    assert Path(run(python, "-c", program, cwd=project)).is_relative_to(python.parents[1])
    for name in NAMES:
        assert FOREIGN.strip() in outcome(python, "-c", f"import {name}", cwd=project).stderr


@pytest.mark.full
@pytest.mark.timeout(900)
def test_commands_work_beside_modules_of_the_same_names(python: Path, project: Path) -> None:
    def lddgan(*words: object) -> str:
        return run(python, "-m", "lddgan", *words, cwd=project)

    generator = files.netg_file(project / "netG.pth", files.zero_state("cifar10/generator"))
    autoencoder = files.kl_file(project / "kl.ckpt", files.zero_state("cifar10/autoencoder"))
    given = ("--generator", generator, "--autoencoder", autoencoder)
    out = lddgan("import", "--dataset", "cifar10", *given, "--out", "cifar10.safetensors")
    assert "a cifar10 model" in out
    save_checkpoint(project / "tiny.safetensors", random_model(TINY))
    given = ("--checkpoint", "tiny.safetensors", "--precision", "fp32")
    lddgan("export", *given, "--out", "bundle")
    bundle = ("--bundle", "bundle")
    assert "4 images of tiny" in lddgan("sample", *bundle, "--num", 4, "--out", "x.npz")
    run(python.with_name("lddgan"), "sample", *bundle, "--num", 4, "--out", "y.npz", cwd=project)
    out = lddgan("bench", *bundle, "--batch", 2, "--trials", 2, "--json")
    row = json.loads(out.splitlines()[0])
    assert row["baseline_ms"] > 0
    assert "trained" in lddgan("train-autoencoder", "--dataset", "digits", "--steps", 1)
    measured = ("--dataset", "digits", "--batch", 4, "--max-seconds", 0)
    lddgan("bench", "--train", *measured, "--save", "training.jsonl")  # in processes of their own
    rows = [json.loads(line) for line in (project / "training.jsonl").read_text().splitlines()]
    assert len(rows) == 6  # three variants of two stages
    assert all("why_not" not in row and row["ms"] for row in rows)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_wheel_samples_without_torch(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    install = (*PIP, "--python", python, "install", "-c", ROOT / "constraints.txt")
    run(*install, f"{wheel}[cpu]", cwd=tmp_path)
    assert outcome(python, "-c", "import torch", cwd=tmp_path).returncode == 1
    lddgan = python.with_name("lddgan")
    out = run(lddgan, "sample", "--num", 4, "--out", "x.npz", cwd=tmp_path)
    assert "4 images of emoji" in out and "fp32" in out
    out = run(lddgan, "bench", "--batch", 4, "--trials", 2, "--json", cwd=tmp_path)
    assert "baseline_ms" not in json.loads(out)
