"""Frechet distance, precision and recall against independent references, and the table."""

from __future__ import annotations

import json
from itertools import product
from math import dist
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import sklearn
from PIL import Image

from bench import quality as photo_quality
from bench.quality import (
    averaged,
    copies,
    frechet_distance,
    main,
    precision_recall,
    quality,
    read_images,
)
from lddgan.checkpoint import Model, save_checkpoint
from lddgan.errors import BadInput

Bits = np.random.Generator


@pytest.fixture
def bits() -> Bits:
    return np.random.default_rng(0)


def white(bits: Bits, count: int, values: int) -> np.ndarray:
    """Rows [count,values] of mean 0 and sample covariance 1, both exact."""
    rows = bits.standard_normal((count, values))
    return np.linalg.qr(rows - rows.mean(axis=0))[0] * np.sqrt(count - 1)


def rotation(bits: Bits, values: int) -> np.ndarray:
    return np.linalg.qr(bits.standard_normal((values, values)))[0]


def save_images(folder: Path, images: np.ndarray) -> Path:
    folder.mkdir()
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return folder


# Frechet distance


def test_distance_of_equal_sets_is_zero(bits: Bits) -> None:
    for rows in (bits.random((200, 12)), bits.random((5, 12)), np.ones((3, 4))):
        assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-6)


def test_distance_of_a_translation_is_its_squared_length(bits: Bits) -> None:
    rows = bits.random((50, 4))
    assert frechet_distance(rows, rows + np.array([3, 0, -4, 0])) == pytest.approx(25)


def test_distance_of_commuting_covariances(bits: Bits) -> None:
    """sum of (s - r)^2 where s and r are the standard deviations along common axes."""
    axes = rotation(bits, 5)
    s, r = np.array([1, 2, 0.5, 3, 0]), np.array([1, 0.1, 4, 3, 2])
    a = white(bits, 60, 5) * s @ axes
    b = white(bits, 90, 5) * r @ axes + 0.5
    assert frechet_distance(a, b) == pytest.approx(((s - r) ** 2).sum() + 5 * 0.25)


def test_distance_in_one_dimension() -> None:
    """Standard deviations sqrt(2) and sqrt(8) with divisor N-1, means 1 and 4."""
    a, b = np.array([[0.0], [2.0]]), np.array([[2.0], [6.0]])
    assert frechet_distance(a, b) == pytest.approx(9 + 2)


def test_distance_against_scipy(bits: Bits) -> None:
    a = bits.standard_normal((80, 9)) @ bits.standard_normal((9, 9))
    b = bits.standard_normal((70, 9)) @ bits.standard_normal((9, 9)) + bits.random(9)
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    gap = a.mean(axis=0) - b.mean(axis=0)
    root = scipy.linalg.sqrtm(cov_a @ cov_b).real
    assert frechet_distance(a, b) == pytest.approx(gap @ gap + np.trace(cov_a + cov_b - 2 * root))


def test_distance_of_fewer_rows_than_values(bits: Bits) -> None:
    """tr (A B)^1/2 is the nuclear norm of the product of the centred rows."""
    a, b = bits.random((7, 20)), bits.random((11, 20)) + 0.1
    x, y = ((rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1) for rows in (a, b))
    shared = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    gap = ((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum()
    expected = gap + (x**2).sum() + (y**2).sum() - 2 * shared
    assert frechet_distance(a, b) == pytest.approx(expected, abs=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected, abs=1e-6)


# Precision and recall


def brute_force(real: list[list[float]], fake: list[list[float]], k: int) -> tuple[float, float]:
    def share(points: list[list[float]], by: list[list[float]]) -> float:
        hits = 0
        for point in points:
            hit = False
            for i, centre in enumerate(by):
                others = [dist(centre, other) for j, other in enumerate(by) if j != i]
                hit = hit or dist(point, centre) <= sorted(others)[k - 1]
            hits += hit
        return hits / len(points)

    return share(fake, real), share(real, fake)


@pytest.mark.parametrize(("k", "values", "apart"), [(1, 2, 0), (3, 2, 0.5), (3, 6, 0.3), (5, 1, 1)])
def test_against_brute_force(bits: Bits, k: int, values: int, apart: float) -> None:
    real = bits.standard_normal((40, values))
    fake = 0.7 * bits.standard_normal((30, values)) + apart
    found = precision_recall(real, fake, k)
    assert found == pytest.approx(brute_force(real.tolist(), fake.tolist(), k))
    assert 0 < sum(found) < 2


def test_against_brute_force_with_ties_and_repeated_points(bits: Bits) -> None:
    for _ in range(5):
        real, fake = (bits.integers(0, 5, (count, 3)).astype(float) for count in (25, 35))
        found = precision_recall(real, fake, 3)
        assert found == pytest.approx(brute_force(real.tolist(), fake.tolist(), 3))


def test_parts_make_no_difference(bits: Bits) -> None:
    real, fake = bits.random((2300, 3)), bits.random((1700, 3)) + 0.3
    whole = precision_recall(real, fake, 3)
    with sklearn.config_context(working_memory=1):  # MiB
        assert precision_recall(real, fake, 3) == whole


def test_equal_sets_are_precise_and_recalled(bits: Bits) -> None:
    rows = bits.random((50, 8))
    assert precision_recall(rows, rows[::-1], 3) == (1, 1)


def test_points_far_away_are_neither(bits: Bits) -> None:
    rows = bits.random((50, 2))
    assert precision_recall(rows, rows + 100, 3) == (0, 0)


def test_one_of_four_modes_is_precise_and_a_quarter_recalled(bits: Bits) -> None:
    mode = np.array(list(product(range(5), range(5))), float)
    modes = np.concatenate([mode + corner for corner in ([0, 0], [99, 0], [0, 99], [99, 99])])
    assert precision_recall(modes, mode, 3) == (1, 0.25)
    assert precision_recall(mode, modes, 3) == (0.25, 1)


def test_one_point_repeated_recalls_itself_alone() -> None:
    real = np.arange(10.0)[:, None]
    assert precision_recall(real, np.full((20, 1), 4.0), 3) == (1, 0.1)


def test_a_ball_reaches_exactly_to_its_kth_neighbour() -> None:
    real = np.array([[0.0], [1.0], [3.0], [6.0]])  # radii to the third: 6, 5, 3, 6
    fake = np.array([[-6.0], [-6.5], [12.0], [12.5]])  # 18.5, 19, 18.5, 19
    assert precision_recall(real, fake, 3) == (0.5, 1)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(BadInput, match=r"^3 images are too few: at least 4 are needed$"):
        precision_recall(np.ones((9, 3)), np.ones((3, 3)), 3)


# Images


def test_averages_are_of_squares(bits: Bits) -> None:
    images = bits.integers(0, 256, (2, 16, 32, 3), dtype=np.uint8)
    found = averaged(images, 8).reshape(2, 8, 8, 3)
    for n, row, column, channel in product(range(2), range(8), range(8), range(3)):
        square = images[n, 2 * row : 2 * row + 2, 4 * column : 4 * column + 4, channel]
        assert found[n, row, column, channel] == pytest.approx(square.mean() / 255)
    with pytest.raises(BadInput, match=r"^images of 20x32 cannot be averaged to 8x8$"):
        averaged(np.zeros((1, 32, 20, 3), np.uint8), 8)


def test_colours_that_are_missing_cost_recall(bits: Bits) -> None:
    noise = bits.integers(-20, 20, (80, 32, 32, 3))
    colours = np.repeat([[200, 50, 50], [50, 50, 200]], 40, axis=0)  # [80,3]
    held_out = (noise + colours[:, None, None]).astype(np.uint8)
    good, poor = quality("both", held_out[::-1], held_out), quality("red", held_out[:40], held_out)
    assert good["precision"] == good["recall"] == 1 and good["frechet"] == pytest.approx(
        0, abs=1e-6
    )
    assert poor["precision"] == 1 and poor["recall"] == 0.5
    gap = 2 * 16 * (75 / 255) ** 2  # two channels, 4x4 averages, half of the difference
    assert poor["frechet"] == pytest.approx(
        2 * gap, rel=0.02
    )  # means, and the spread of two colours
    assert (poor["name"], poor["images"], poor["held_out"]) == ("red", 40, 80)


def test_sizes_must_agree() -> None:
    small, large = (np.zeros((9, side, side, 3), np.uint8) for side in (32, 64))
    with pytest.raises(BadInput, match=r"^x and the held-out images differ in size: 64x64 and 32x"):
        quality("x", large, small)


def test_images_are_read_in_order(bits: Bits, tmp_path: Path) -> None:
    images = bits.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    assert np.array_equal(read_images(save_images(tmp_path / "images", images)), images)


def test_copies_are_nearer_than_training_images_are_to_each_other(bits: Bits) -> None:
    train = bits.integers(0, 256, (200, 16, 16, 3), dtype=np.uint8)
    train[1] = train[0] ^ 8  # the most alike two, 1 % of them
    new = bits.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    nearly = np.stack([train[7] ^ 1, train[9][:, ::-1] ^ 1])  # a copy, and a mirrored one
    assert copies(np.concatenate([new, nearly, train[3:4]]), train, side=16) == 3 / 8
    assert copies(new, train, side=16) == 0


def test_bad_files_are_named(tmp_path: Path) -> None:
    folder = save_images(tmp_path / "images", np.zeros((2, 8, 8, 3), np.uint8))
    Image.new("RGB", (8, 9)).save(folder / "2.png")
    with pytest.raises(BadInput, match=r"2\.png is 8x9, unlike the others$"):
        read_images(folder)
    (folder / "2.png").write_bytes(b"")
    with pytest.raises(BadInput, match=r"2\.png is empty$"):
        read_images(folder)


# The command


@pytest.fixture
def held_out(bits: Bits, tmp_path: Path) -> Path:
    return save_images(tmp_path / "held-out", bits.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8))


def test_one_row_for_the_real_and_one_for_each_checkpoint(
    held_out: Path, tiny_model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_checkpoint(tmp_path / "model.safetensors", tiny_model)
    asked = [str(path), str(path), "--held-out", str(held_out), "--train", str(held_out)]
    main([*asked, "--count", "6", "--json"])
    rows = map(json.loads, capsys.readouterr().out.splitlines())
    real, first, second = (row["facts"] for row in rows)
    assert (real["name"], real["images"], real["held_out"]) == (str(held_out), 6, 8)
    assert real["precision"] == 1 and "psnr" not in real
    assert first == second and first["name"] == str(path) and first["images"] == 6

    main([*asked, "--count", "6"])
    heading, _, real_line, *others = capsys.readouterr().out.strip().splitlines()
    columns = ["images", "precision", "recall", "Frechet", "copies", "mean", "error", "PSNR"]
    assert heading.split() == columns
    assert real_line.split()[:3] == [str(held_out), "6", "1.000"]
    assert others[0].split() == others[1].split() and " ".join(others[0].split()).endswith(
        f"{first['mean_error']:.2f}/255 {first['psnr']:.1f} dB"
    )


def test_the_autoencoder_is_measured_on_the_held_out_images(
    held_out: Path, tiny_model: Model, tmp_path: Path
) -> None:
    import torch

    images = read_images(held_out)
    path = save_checkpoint(tmp_path / "model.safetensors", tiny_model)
    found = photo_quality.checkpoint_quality(path, images, count=4, seed=0)
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    error = (tiny_model.decode(tiny_model.encode(x)) - x).double() * 127.5  # grey levels
    assert found["mean_error"] == pytest.approx(error.abs().mean().item(), abs=0.5)
    mse = error.square().mean().item()
    assert found["psnr"] == pytest.approx(10 * np.log10(255**2 / mse), abs=0.05)


def test_what_cannot_run_is_one_sentence(held_out: Path, tmp_path: Path) -> None:
    asked = ["--held-out", str(held_out)]
    for more, message in (
        (["--train", str(tmp_path / "no")], r"no does not exist$"),
        (["--train", str(held_out), "--count", "0"], r"num is 0, and must be at least 1$"),
        (["--train", str(held_out), "--count", "3"], r"3 images are too few"),
        (["--train", str(held_out), "--seed", "-1"], r"seed is -1"),
        ([str(tmp_path / "no.safetensors")], r"does not exist or is not a file$"),
    ):
        with pytest.raises(SystemExit, match=rf"^error: [^\n]*{message}"):
            main([*more, *asked])
    with pytest.raises(SystemExit, match="2"):
        main(asked)
