"""Every command of the README runs, as it stands there: on small models of the same names."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

import lddgan as package
from engine.gpu.driver import why_no_gpu
from lddgan.preset import AutoencoderTraining, with_values
from lddgan.presets import PRESETS
from tests import published_files, test_cli
from tests.engine.serving.service import serving

lddgan = test_cli.lddgan  # the fixture: a command in a folder of its own

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHELL = [
    line for block in re.findall(r"(?ms)^```bash\n(.*?)^```", README) for line in block.splitlines()
]
COMMANDS = [line.partition("#")[0].strip() for line in SHELL if line.startswith("lddgan ")]


@pytest.fixture(scope="module", autouse=True)
def _small_models(one_thread: None) -> None:
    """Models of the names that the README uses, which a CPU trains and runs in seconds."""
    patch = pytest.MonkeyPatch()
    small = published_files.tiny_preset()
    quick = {"training.batch": 4, "training.epochs": 1}
    cheap = AutoencoderTraining(lr=1e-4, batch=4, epochs=1, perceptual_weight=0, disc_weight=0)
    for name in ("cifar10", "lsun"):
        own = {"name": name, "paper": PRESETS[name].paper, "autoencoder_training": cheap}
        model = small.model_copy(update=own)
        patch.setitem(PRESETS, name, with_values(model, quick))
    patch.setitem(__import__("bench.run").run.MAX_SECONDS, "cpu", 1.0)
    yield
    patch.undo()


def write_what_people_bring() -> None:
    """The files that the README's commands name, in the current folder."""
    cifar10 = PRESETS["cifar10"]
    state = published_files.network_state(cifar10, "generator")
    published_files.netg_file(Path("netG_950.pth"), state)
    state = published_files.network_state(cifar10, "autoencoder")
    published_files.kl_file(Path("16x16x4_551.ckpt"), state)
    Path("photos").mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (256, 256, 3), np.uint8)
        Image.fromarray(pixels).save(f"photos/{number}.png")


@pytest.mark.full
@pytest.mark.timeout(900)  # of 16 commands
def test_commands_run_in_their_order(lddgan) -> None:
    write_what_people_bring()
    without_gpu = why_no_gpu()
    for command in COMMANDS:
        if command.startswith("lddgan serve"):
            continue  # until it is told to end
        outcome = lddgan(*shlex.split(command)[1:])
        if without_gpu and ("trt" in command or command.startswith("lddgan build")):
            assert outcome.code == 1 and "no NVIDIA GPU" in outcome.err, command
        else:
            assert outcome.code == 0, f"{command}: {outcome.err}"
    assert Path("grid.png").stat().st_size > 1000
    python(README)


def test_the_service_answers_the_curl_of_the_readme() -> None:
    pytest.importorskip("uvicorn")
    (command,) = (line for line in COMMANDS if line.startswith("lddgan serve"))
    (curl,) = (line for line in SHELL if line.startswith("curl "))
    with serving(*shlex.split(command)[2:], "--batch", "8") as service:
        answer = service.get(urlsplit(curl.split()[-1]).path)
    assert Image.open(io.BytesIO(answer.body)).size == (64, 64)


def python(text: str) -> None:
    """Run the README's Python."""
    (program,) = re.findall(r"(?ms)^```python\n(.*?)^```", text)
    names: dict[str, object] = {}
    exec(program, names)
    images = names["images"]
    assert isinstance(images, np.ndarray) and images.shape == (100, 16, 16, 3)


def test_other_lines_name_what_there_is() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    others = [line for line in SHELL if not line.startswith("lddgan ")]
    for line in others:
        words = shlex.split(line)
        if words[0] == "make":
            done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True)
            assert done.returncode == 0, line
        elif words[0] != "curl":
            assert words[:2] == ["pip", "install"], line
            extras = re.findall(r"\[(.*?)\]", line)[0].split(",")
            assert set(extras) <= set(project["optional-dependencies"]), line
    assert len(others) == 8


def test_linked_files_exist() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)|src=\"([^\"]+)\"", page.read_text()):
            assert (page.parent / (target[0] or target[1])).exists(), (page.name, target)
    assert package.__version__
