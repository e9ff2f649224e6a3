"""The whole path at full size, in processes and environments of their own (`make test-full`)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from export.bundle import open_bundle
from tests.bundles import EXPORT_SECONDS, PEAK, exported_by_command, peak_gb, python

EXPORT_GB, SAMPLE_GB = 6.0, 4.0  # at most, of memory

pytestmark = [pytest.mark.full, pytest.mark.timeout(EXPORT_SECONDS)]


def lddgan(*args: object, cwd: Path) -> str:
    """Standard output of `lddgan ARGS`, which must succeed."""
    return python("-m", "lddgan", *args, cwd=cwd)


@pytest.mark.parametrize("dataset", ["cifar10", "celeba_256", "lsun"])
def test_export_bench_sample(dataset: str, tmp_path: Path) -> None:
    folder = exported_by_command(dataset)
    assert float((folder / PEAK).read_text()) < EXPORT_GB
    assert open_bundle(folder / "exports" / dataset).precisions == ("fp32", "fp16")
    verified = lddgan("verify", "--engine", "ort", "--num", 2, "--json", cwd=folder)
    found = json.loads(verified)
    assert found["images"] == 2 and found["why_failed"] is None
    measured = lddgan("bench", "--batch", 2, "--trials", 3, "--json", cwd=folder)
    row = json.loads(measured.splitlines()[0])
    assert row["grey_levels"] <= 1
    assert row["preset"]["name"] == dataset
    out = tmp_path / "four.npz"
    many = ("sample", "--engine", "ort", "--num", 4, "--batch", 100, "--out", out)
    assert peak_gb(*many, cwd=folder) < SAMPLE_GB
    images = np.load(out)["images"]
    assert images.shape[0] == 4
    assert len({image.tobytes() for image in images}) == 4


def test_published_files_to_the_recorded_latents(tmp_path: Path) -> None:
    from lddgan import open_engine
    from tests.published_files import content_file, kl_file, official_state, recorded

    state = official_state("cifar10/generator")
    raw = {name: tensor + 1 for name, tensor in state.items()}
    generator = content_file(tmp_path / "content.pth", raw, state)
    autoencoder = kl_file(tmp_path / "model.ckpt", official_state("cifar10/autoencoder"))
    files = ("--generator", generator, "--autoencoder", autoencoder, "--out", "cifar10.safetensors")
    out = lddgan("import", "--dataset", "cifar10", *files, cwd=tmp_path)
    assert "autoencoder: 3 tensors under loss. are not needed" in out
    lddgan("export", "--checkpoint", "cifar10.safetensors", "--precision", "fp32", cwd=tmp_path)
    case = {name: tensor.numpy() for name, tensor in recorded("cifar10_sampler").items()}
    sampler = open_engine(tmp_path / "exports" / "cifar10", engine="ort", device="cpu")
    assert not sampler.random_weights
    latents = sampler.denoise(sampler.upload(case["x_T"], case["z"], case["noise"])).numpy()
    assert np.abs(latents - case["x_0"]).max() <= 1e-3 * np.abs(case["x_0"]).max()
