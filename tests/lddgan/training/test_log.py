"""A training's log: its lines against means worked out by hand, TensorBoard's files read back."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lddgan.errors import BadInput, LddganError
from lddgan.pictures import GAP_PIXELS as GAP
from lddgan.pictures import grid
from lddgan.training.log import DPI, Line, TrainingLog, losses_figure, read_losses

ROOT = Path(__file__).parents[3]
STAGE = "generator"
FILE = f"{STAGE}.losses.jsonl"


def losses_of(step: int) -> dict[str, float]:
    """d always, r1 every fifth step, g from step 4 on."""
    found = {"d": float(step)}
    if step % 5 == 0:
        found["r1"] = 10.0 * step
    if step >= 4:
        found["g"] = 2.0 * step - 7
    return found


def run(folder: Path, first: int, end: int, total: int) -> None:
    """Steps first..end-1 of `total`; broken off if end < total."""
    with TrainingLog(folder, STAGE, first, total) as log:
        for step in range(first, end):
            log.note(step, losses_of(step))
        if end == total:
            log.finish()


def lines_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(row) for row in (folder / FILE).read_text().splitlines()]


def events(folder: Path, stage: str = STAGE) -> EventAccumulator:
    sizes = {"scalars": 0, "images": 0}  # all
    return EventAccumulator(str(folder / "tensorboard" / stage), size_guidance=sizes).Reload()


def scalars(found: EventAccumulator, tag: str) -> dict[int, float]:
    points = found.Scalars(tag)
    assert len({point.step for point in points}) == len(points)
    return {point.step: point.value for point in points}


def age(folder: Path) -> None:
    """Make TensorBoard's files look older, for it reads them by their names' seconds."""
    for number, path in enumerate(sorted((folder / "tensorboard" / STAGE).iterdir())):
        path.rename(path.with_name(f"events.out.tfevents.{number:010d}.host"))


# ---- lines ----


def test_lines_are_the_means_over_the_steps_that_have_a_loss(tmp_path: Path) -> None:
    run(tmp_path, 0, 10, 3000)  # intervals of 3 steps; the fourth is not whole
    assert (tmp_path / FILE).read_text().splitlines() == [
        '{"step": 2, "d": 1.0, "r1": 0.0}',
        '{"step": 5, "d": 4.0, "g": 2.0, "r1": 50.0}',
        '{"step": 8, "d": 7.0, "g": 7.0}',
    ]


def test_a_caller_may_use_its_dict_again(tmp_path: Path) -> None:
    losses = {"d": 1.0}
    with TrainingLog(tmp_path, STAGE, 0, 2000) as log:
        log.note(0, losses)
        losses["d"] = 2.0
        log.note(1, losses)
    assert lines_of(tmp_path) == [{"step": 1, "d": 1.5}]


def test_the_last_interval_may_be_short(tmp_path: Path) -> None:
    with TrainingLog(tmp_path, STAGE, 0, 2501) as log:
        for step in range(2501):
            log.note(step, {"d": float(step)})
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == [*range(1, 2501, 2), 2500]
    assert [line["d"] for line in lines] == [*(step - 0.5 for step in range(1, 2501, 2)), 2500]


def test_each_stage_has_its_own(tmp_path: Path) -> None:
    for stage, value in (("autoencoder", 1.0), ("generator", 2.0)):
        with TrainingLog(tmp_path, stage, 0, 1) as log:
            log.note(0, {"l1": value})
            log.finish()
    for stage, value in (("autoencoder", 1.0), ("generator", 2.0)):
        assert read_losses(tmp_path / f"{stage}.losses.jsonl") == [Line(0, {"l1": value})]
        assert scalars(events(tmp_path, stage), f"{stage}/l1") == {0: value}
        assert (tmp_path / f"{stage}.losses.png").is_file()


# ---- resumed runs ----

END, TOTAL = 30, 3000  # intervals of 3 steps


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    run(folder, 0, END, TOTAL)
    return folder


@pytest.mark.parametrize("broken_off", [12, 14, 17])
def test_log_resumed_between_intervals_equals_an_unbroken_one(
    tmp_path: Path, uninterrupted: Path, broken_off: int
) -> None:
    run(tmp_path, 0, broken_off, TOTAL)
    run(tmp_path, 12, END, TOTAL)  # the state was saved after 12 steps
    assert (tmp_path / FILE).read_bytes() == (uninterrupted / FILE).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, "tensorboard"]


@pytest.mark.parametrize("broken_off", [13, 15, 17])
def test_resumed_in_the_middle_one_line_has_fewer_steps(
    tmp_path: Path, uninterrupted: Path, broken_off: int
) -> None:
    run(tmp_path, 0, broken_off, TOTAL)
    run(tmp_path, 13, END, TOTAL)
    found, whole = lines_of(tmp_path), lines_of(uninterrupted)
    assert found[4] == {"step": 14, "d": 13.5, "g": 20.0}  # 13 and 14
    assert whole[4] == {"step": 14, "d": 13.0, "g": 19.0}
    assert found[:4] + found[5:] == whole[:4] + whole[5:]


def test_a_new_run_starts_anew(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("anything")
    run(tmp_path, 0, 4, 5)
    run(tmp_path, 0, 1, 5)
    assert lines_of(tmp_path) == [{"step": 0, "d": 0.0, "r1": 0.0}]


def test_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    run(tmp_path, 0, 5, 5)
    before = (tmp_path / FILE).read_bytes()
    (tmp_path / f"{STAGE}.losses.png").unlink()
    run(tmp_path, 5, 5, 5)
    assert (tmp_path / FILE).read_bytes() == before
    assert (tmp_path / f"{STAGE}.losses.png").is_file()


def test_a_run_resumed_without_a_file_begins_one(tmp_path: Path) -> None:
    run(tmp_path, 3, 5, 9)
    assert [line["step"] for line in lines_of(tmp_path)] == [3, 4]


@pytest.mark.parametrize("half", [b'{"step": 3, "d": 3.', b"{", b"\xc3", b"\0\0\0\0"])
def test_a_half_written_line_is_dropped(tmp_path: Path, half: bytes) -> None:
    run(tmp_path / "whole", 0, 9, 99)
    run(tmp_path, 0, 3, 99)
    with (tmp_path / FILE).open("ab") as file:
        file.write(half)
    assert [line.step for line in read_losses(tmp_path / FILE)] == [0, 1, 2]
    run(tmp_path, 3, 9, 99)
    assert (tmp_path / FILE).read_bytes() == (tmp_path / "whole" / FILE).read_bytes()


@pytest.mark.parametrize("damage", ["", "{", "[1]", "7", '{"d": 1.0}'])
def test_another_damaged_line_is_named_and_left_alone(tmp_path: Path, damage: str) -> None:
    text = f'{{"step": 0, "d": 1.0}}\n{damage}\n{{"step": 2, "d": 1.0}}\n'
    (tmp_path / FILE).write_text(text)
    with pytest.raises(BadInput, match="line 2 holds no losses") as caught:
        TrainingLog(tmp_path, STAGE, 3, 9)
    assert str(tmp_path / FILE) in str(caught.value) and "\n" not in str(caught.value)
    assert (tmp_path / FILE).read_text() == text


KILLED = """
import os, signal, sys
from pathlib import Path
from lddgan.training.log import TrainingLog
with TrainingLog(Path(sys.argv[1]), "generator", 0, 5000) as log:  # intervals of 5 steps
    for step in range(523):
        log.note(step, {"d": float(step)})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_log_lacks_less_than_one_interval(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    expected = {step: step - 2.0 for step in range(4, 520, 5)}
    assert {line["step"]: line["d"] for line in lines_of(tmp_path)} == expected
    assert scalars(events(tmp_path), "generator/d") == expected


# ---- TensorBoard ----


def test_tensorboard_has_the_same_means(tmp_path: Path) -> None:
    with TrainingLog(tmp_path, STAGE, 0, 2000) as log:
        for step in range(40):
            log.note(step, {"d": 1 / (step + 1)} | ({"r1": 0.1 * step} if step % 4 == 0 else {}))
    found, lines = events(tmp_path), lines_of(tmp_path)
    assert sorted(found.Tags()["scalars"]) == ["generator/d", "generator/r1"]
    for name in ("d", "r1"):
        expected = {line["step"]: line[name] for line in lines if name in line}
        assert scalars(found, f"generator/{name}") == pytest.approx(expected, rel=1e-6)
    assert sorted(scalars(found, "generator/r1")) == [*range(1, 40, 4)]


def test_tensorboard_hides_what_is_made_again(tmp_path: Path) -> None:
    with TrainingLog(tmp_path, "autoencoder", 0, 20) as other:
        for step in range(20):
            other.note(step, {"l1": 0.5})
    with TrainingLog(tmp_path, STAGE, 0, 20) as log:
        for step in range(9):
            log.note(step, {"d": 1.0})
            log.add_picture(step + 1, tiles(2))
    age(tmp_path)
    with TrainingLog(tmp_path, STAGE, 6, 20) as log:
        for step in range(6, 12):
            log.note(step, {"d": 2.0})
    found = events(tmp_path)
    assert scalars(found, "generator/d") == dict.fromkeys(range(6), 1.0) | dict.fromkeys(
        range(6, 12), 2.0
    )
    assert [picture.step for picture in found.Images("generator/samples")] == [0, 1, 2, 3, 4, 5]
    assert len(scalars(events(tmp_path, "autoencoder"), "autoencoder/l1")) == 20


# ---- pictures ----


def tiles(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), np.uint8)


def pixels(source: Any) -> np.ndarray:
    with Image.open(source) as picture:
        assert picture.format == "PNG" and picture.mode == "RGB"
        return np.asarray(picture)


def test_a_picture_is_the_grid_of_the_images(tmp_path: Path) -> None:
    images = tiles(5)
    with TrainingLog(tmp_path, STAGE, 0, 5000) as log:
        log.add_picture(1000, images)
    (path,) = (tmp_path / "samples").iterdir()
    assert path.name == "generator-0001000.png"
    found = pixels(path)
    assert np.array_equal(found, grid(images))
    assert found.shape == (2 * 64 + 3 * GAP, 3 * 64 + 4 * GAP, 3)
    for index in range(5):
        top, left = (GAP + place * (64 + GAP) for place in divmod(index, 3))
        assert np.array_equal(found[top : top + 64, left : left + 64], images[index])
    assert (found[64 + 2 * GAP :, -64 - 2 * GAP :] == 255).all()  # there is no sixth
    (shown,) = events(tmp_path).Images("generator/samples")
    (tmp_path / "shown.png").write_bytes(shown.encoded_image_string)
    assert shown.step == 999 and np.array_equal(pixels(tmp_path / "shown.png"), found)


def test_a_folder_with_a_picture_of_the_losses(tmp_path: Path) -> None:
    run(tmp_path, 0, 200, 200)
    figure = losses_figure(STAGE, read_losses(tmp_path / FILE))
    assert len(figure.axes) == 3
    size = (pixels_of(figure.get_figwidth()), pixels_of(figure.get_figheight()))
    with Image.open(tmp_path / f"{STAGE}.losses.png") as picture:
        assert picture.format == "PNG" and picture.size == size
        shown = np.asarray(picture.convert("RGB"))
    assert 0.5 < (shown == 255).mean() < 0.99  # lines on white
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "generator.losses.jsonl",
        "generator.losses.png",
        "tensorboard",
    ]


def pixels_of(inches: float) -> int:
    return round(inches * DPI)


def test_without_losses_nothing_is_drawn(tmp_path: Path) -> None:
    run(tmp_path, 0, 0, 0)
    assert not (tmp_path / f"{STAGE}.losses.png").exists()


# ---- refusals ----


@pytest.mark.parametrize(("package", "extra"), [("tensorboard", "train"), ("matplotlib", "")])
def test_missing_packages_are_named_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    said = rf'{package} is not installed; pip install -e "\.\[{extra}'
    with pytest.raises(LddganError, match=said):
        TrainingLog(tmp_path, STAGE, 0, 5)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_written_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LddganError, match=r"cannot write .*jsonl: (Not a directory|File exists)"):
        TrainingLog(tmp_path / "file", STAGE, 0, 5)
    (tmp_path / "tensorboard").write_text("mine")
    with pytest.raises(LddganError, match=r"cannot write .*: (Not a directory|File exists)"):
        TrainingLog(tmp_path, STAGE, 0, 5)
    assert (tmp_path / "tensorboard").read_text() == "mine"


def test_losses_that_cannot_be_written_are_one_sentence(tmp_path: Path) -> None:
    with TrainingLog(tmp_path, STAGE, 0, 5) as log:
        (tmp_path / FILE).unlink()
        (tmp_path / FILE).mkdir()
        with pytest.raises(LddganError, match=r"cannot write .*jsonl: Is a directory"):
            log.note(0, {"d": 1.0})


def test_a_full_disk_leaves_the_earlier_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path, 0, 5, 9)
    before = (tmp_path / FILE).read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LddganError, match="No space left on device"):
        TrainingLog(tmp_path, STAGE, 3, 9)
    assert (tmp_path / FILE).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, "tensorboard"]
