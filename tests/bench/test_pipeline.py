"""The data pipeline of a training, measured with nothing behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench.row import Row, read_rows, write_rows
from bench.tables import print_training
from bench.training_step import Plan, measure_pipeline, read
from lddgan.data.sources import Folder
from lddgan.errors import BadInput
from lddgan.preset import with_values
from tests.bench.scripted import Clock
from tests.conftest import TINY

PRESET = with_values(TINY, {"training.batch": 4})


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Ten images, one of them bad."""
    folder = tmp_path / "images"
    folder.mkdir()
    values = np.random.default_rng(0).integers(0, 256, (9, 40, 48, 3), dtype=np.uint8)
    for number, value in enumerate(values):
        Image.fromarray(value).save(folder / f"{number}.png")
    (folder / "9.png").write_bytes(b"no image")
    return folder


def pipeline(data: Path, batch: int | None = 4, workers: int = 0, trials: int = 5) -> Row:
    return measure_pipeline(PRESET, data, Plan("cpu", batch, trials, 60.0, 0.0), workers, quiet)


def quiet(_: str) -> None: ...


def test_the_pipelines_count_is_the_images_read(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "9.png").unlink()
    reads: list[int] = []
    read_one = Folder.read
    monkeypatch.setattr(Folder, "read", lambda self, at: reads.append(at) or read_one(self, at))
    row = pipeline(images)
    facts = row.facts
    assert facts["read"] == len(reads) == 6 * 4
    assert facts["timed"] == 5 * 4 and facts["seconds"] > 0  # the first batch is not timed
    assert (facts["images"], facts["image_size"], facts["bad"]) == (9, 32, 0)
    assert row.notes[0] == "each image was read 2.7 times, so that it was soon in memory"


def test_workers_read_the_same_number_and_bad_images_are_counted(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = pipeline(images, workers=2, batch=None, trials=4)
    facts = row.facts
    assert (row.batch, facts["read"], facts["timed"], facts["bad"]) == (4, 24, 16, 1)
    write_rows([row], tmp_path / "rows.jsonl")
    (again,) = read_rows(tmp_path / "rows.jsonl")
    assert again.line() == row.line()
    print_training([row])
    text = " ".join(capsys.readouterr().out.split())
    assert "images/s of 32x32, 2 workers, batch 4: 16 images in" in text
    assert "(10 images, 1 bad)" in text


def test_a_pipeline_is_cut_after_one_batch_at_least() -> None:
    clock = Clock()

    def batches() -> Any:
        for size in (4, 4, 4, 4):
            clock.now += 1.0
            yield torch.zeros(size)

    assert read(batches(), 1, 2.0, clock) == ([4, 4, 4], 2.0)
    assert read(batches(), 1, 0.0, clock) == ([4, 4], 1.0)
    assert read(batches(), 2, 9.0, clock) == ([4, 4, 4, 4], 2.0)


def test_all_images_are_a_batch_if_they_are_fewer(images: Path) -> None:
    preset = with_values(PRESET, {"training.batch": 64})
    row = measure_pipeline(preset, images, Plan("cpu", None, 1, 60.0, 0.0), 0, quiet)
    assert row.batch == 10
    with pytest.raises(BadInput, match="10 images are too few: one batch takes 64"):
        pipeline(images, batch=64)
