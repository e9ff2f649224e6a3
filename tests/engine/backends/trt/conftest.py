"""A bundle that a scripted TensorRT can build, and the real builder that needs no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from export.bundle import (
    MANIFEST,
    SCHEMA,
    Agreement,
    Bundle,
    Manifest,
    file_entries,
    graph_file,
    open_bundle,
)
from export.graphs import graph_specs
from lddgan.presets import get_preset
from tests.engine.backends.trt import setup_cpu_builder as fixture
from tests.engine.backends.trt.scripted import Script
from tests.engine.backends.trt.store import Store

AGREEMENT = Agreement(
    batches=(1,),
    generator_error=0.0,
    decoder_levels=0,
    decoder_changed=0.0,
    decoder_psnr=99.0,
    chain_error=0.0,
    chain_levels=0,
    chain_changed=0.0,
    chain_psnr=99.0,
    code_flips=0.0,
)


@pytest.fixture
def script() -> Script:
    return Script(graph_specs(get_preset("digits")))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle whose graphs are a few bytes."""
    return make_bundle(tmp_path / "bundle")


@pytest.fixture
def store(bundle: Bundle, script: Script) -> Store:
    return Store(bundle, script)


def make_bundle(folder: Path, content: bytes = b"a graph", name: str = "digits") -> Bundle:
    preset = get_preset(name)
    folder.mkdir()
    for which in graph_specs(preset):
        (folder / graph_file(which, "fp16")).write_bytes(which.encode() + content)
    manifest = Manifest(
        schema_version=SCHEMA,
        preset=preset,
        provenance={},
        files=file_entries(folder),
        graphs=graph_specs(preset),
        exporter={},
        verification={"fp16": AGREEMENT},
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return open_bundle(folder)


RunWith = Callable[..., subprocess.CompletedProcess[str]]


def python_with(folder: Path) -> RunWith:
    """Runs `python ARGS` where `tensorrt` is what `folder` holds."""
    root = Path(__file__).resolve().parents[4]
    paths = {
        "PYTHONPATH": os.pathsep.join(map(str, (folder / "site", root))),
        "LD_LIBRARY_PATH": str(folder / "lib"),
    }

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(
            command, env={**os.environ, **paths}, capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture(scope="session")
def ready_builder() -> RunWith:
    """The real builder, if it was set up; skips otherwise."""
    if not fixture.is_ready(fixture.DESTINATION):
        pytest.skip(f"the CPU builder is not set up; `{fixture.COMMAND}` does it")
    return python_with(fixture.DESTINATION / "builder")


@pytest.fixture(scope="session")
def installed() -> Path:
    """The set-up of the real builder and bindings; downloads them the first time."""
    cause = fixture.why_not_here()
    if cause is not None:
        pytest.skip(f"the CPU builder cannot be set up: {cause}")
    subprocess.run([sys.executable, fixture.__file__], check=True)
    return fixture.DESTINATION
