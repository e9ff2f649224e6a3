"""Steps of a tiny training, measured. Nothing is asserted about speed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from bench.machine import Gpu
from bench.row import kept_rows
from bench.timing import summarise
from bench.training import child as training_child
from bench.training.child import measure
from bench.training.measure import (
    BIG,
    COMPILED,
    EAGER,
    PATIENCE,
    VARIANTS,
    bench_training,
    compared,
    default_batch,
    in_child,
    measure_variants,
    presets_of,
    variants_of,
)
from bench.training.pipeline import count, measure_pipeline
from bench.training.row import (
    Found,
    Job,
    Measured,
    PipelineRow,
    Row,
    Timed,
    TrainingRow,
    append_row,
    mean_step,
    read_rows,
    training_file,
)
from bench.training.table import print_training
from cli import app
from lddgan.data.sources import Folder
from lddgan.errors import BadInput, LddganError, OutOfMemory
from lddgan.preset import AutoencoderTraining, with_values
from lddgan.presets import get_preset
from lddgan.training.loop import NotFinite
from lddgan.training.settings import Settings
from tests.bench.scripted import Clock
from tests.conftest import TINY

EVERY = 5  # steps, one of which has R1
PRESET = TINY.model_copy(
    update={
        "training": TINY.training.model_copy(update={"batch": 4, "r1_every": EVERY}),
        "autoencoder_training": AutoencoderTraining(lr=1e-4, batch=2, epochs=1, disc_start=7),
    }
)
JOB = Job(preset=PRESET, stage="generator", variant=EAGER, device="cpu", trials=2, max_seconds=60.0)


def in_here(job: Job, limit: float) -> Measured | str:
    """Instead of a process of its own."""
    return measure(job)


def timed(ms: float) -> Timed:
    return Timed(trials=3, ms=summarise([ms]))


def made_up(scale: float = 1.0, **changes: Any) -> Measured:
    """What a child might find."""
    given: dict[str, Any] = {
        "plain": timed(10 * scale),
        "with_r1": timed(30 * scale),
        "encode": timed(6 * scale),
        "peak_memory_mib": 1234.5,
        "peak_encoding_mib": 2345.6,
        "threads": 1,
        "gpu": None,
    }
    return Measured(**(given | changes))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingRow]:
    """Both stages, each as it was shown and as it was read from its file."""
    path, shown = tmp_path_factory.mktemp("rows") / "rows.jsonl", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.training.measure.in_child", in_here)
        bench_training([PRESET], "cpu", trials=2, out=path, show=shown.append, log=lambda _: None)
    assert [row.model_dump_json() for row in read_rows(path)] == [
        row.model_dump_json() for row in shown
    ]
    return [row for row in shown if isinstance(row, TrainingRow)]


def found(row: TrainingRow) -> list[Found]:
    return [result.found for result in row.results if result.found is not None]


def test_every_variant_of_both_stages_has_times_and_memory(rows: list[TrainingRow]) -> None:
    assert [(row.dataset, row.stage) for row in rows] == [
        ("tiny", "generator"),
        ("tiny", "autoencoder"),
    ]
    for row in rows:
        assert [result.variant for result in row.results] == list(VARIANTS)
        assert len(found(row)) == len(VARIANTS)
        for one in found(row):
            kinds = [one.measured.plain, one.measured.with_r1, one.measured.encode]
            present = [kind for kind in kinds if kind is not None]
            assert len(present) == (3 if row.stage == "generator" else 1)
            assert all(kind.ms.p50 > 0 and kind.trials == 2 for kind in present)
            assert one.images_per_second == pytest.approx(row.batch / one.step_ms * 1e3)
            peak = one.measured.peak_memory_mib
            assert peak is None or peak > 0


def test_the_mean_step_is_weighted_by_how_often_r1_comes(rows: list[TrainingRow]) -> None:
    generator, autoencoder = rows
    assert (generator.r1_every, autoencoder.r1_every) == (EVERY, None)
    for one in found(generator):
        plain, with_r1 = one.measured.plain, one.measured.with_r1
        assert plain is not None and with_r1 is not None
        weighted = (EVERY - 1) / EVERY * plain.ms.p50 + with_r1.ms.p50 / EVERY
        assert one.step_ms == pytest.approx(weighted)
    for one in found(autoencoder):
        assert one.measured.plain is not None and one.step_ms == one.measured.plain.ms.p50
    assert mean_step(made_up(), 2) == 20
    assert mean_step(made_up(plain=None), 1) == 30
    with pytest.raises(ValueError, match="two kinds"):
        mean_step(made_up(), None)


def test_the_baseline_is_eager_fp32_and_the_ratios_are_to_it(rows: list[TrainingRow]) -> None:
    for row in rows:
        variant, first = row.results[0].variant, found(row)[0]
        assert (variant.bf16, variant.channels_last, variant.compile) == (False, False, False)
        assert first.ratio == 1
        for one in found(row):
            assert one.ratio == pytest.approx(first.step_ms / one.step_ms)
    assert found(rows[0])[0].encoded_ratio == 1 and found(rows[1])[0].encoded_ratio is None


def test_the_encoding_is_apart() -> None:
    twice = compared(made_up(0.5, encode=timed(12.0)), made_up(), 4, 2)
    assert (twice.step_ms, twice.ratio) == (10, 2)
    assert (twice.encoded_ms, twice.encoded_ratio) == (22, pytest.approx(26 / 22))
    assert twice.images_per_second == 400
    assert twice.encoded_images_per_second == pytest.approx(4e3 / 22)


def test_a_row_says_what_was_left_out(rows: list[TrainingRow]) -> None:
    generator, autoencoder = (" ".join(row.notes) for row in rows)
    assert "weights as initialised" in generator and "LPIPS" not in generator
    assert "LPIPS is included, with random weights" in autoencoder
    assert "the patch discriminator takes part" in autoencoder
    assert [(row.batch, row.training_batch) for row in rows] == [(4, 4), (2, 2)]
    assert "in training" not in generator + autoencoder
    assert rows[0].versions["torch"] and rows[0].machine.gpu is None


def test_a_child_measures_alone() -> None:
    job = JOB.model_copy(update={"trials": 2, "max_seconds": 0.0})
    measured = in_child(job, 120.0)
    assert isinstance(measured, Measured), measured
    assert measured.plain is not None and measured.plain.trials == 1  # no second one fits
    assert measured.peak_memory_mib is None or measured.peak_memory_mib > 50


def test_a_child_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def program(code: str) -> None:
        monkeypatch.setattr("bench.training.measure.PROGRAM", (sys.executable, "-c", code))

    program("import sys; sys.exit('error: too much')")
    assert in_child(JOB, 60.0) == "too much"
    program("print('no JSON')")
    assert in_child(JOB, 60.0) == "it ended without a result"


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (NotFinite("its loss g is nan"), LddganError, "its loss g is nan"),
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory, "too little memory"),
    ],
)
def test_what_goes_wrong_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    raised: type[Exception],
    message: str,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("bench.training.child.generator_stage", fail)
    with pytest.raises(raised, match=message):
        measure(JOB)
    assert training_child.main([JOB.model_dump_json()]) == 1
    assert message in capsys.readouterr().err


def test_every_step_may_have_r1() -> None:
    preset = with_values(PRESET, {"training.r1_every": 1})
    measured = measure(JOB.model_copy(update={"preset": preset, "trials": 1}))
    assert measured.plain is None and measured.with_r1 is not None
    assert mean_step(measured, 1) == measured.with_r1.ms.p50


def test_a_variant_that_fails_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []

    def child(job: Job, limit: float) -> Measured | str:
        limits.append(limit)
        return "too slow" if job.variant.bf16 else made_up(0.5 if job.variant.channels_last else 1)

    monkeypatch.setattr("bench.training.measure.in_child", child)
    monkeypatch.setattr("bench.training.measure.LEAST", 1e-9)
    results = measure_variants(JOB, VARIANTS, 2, lambda _: None)
    assert [result.why_not for result in results] == [None, None, "too slow"]
    assert results[1].found is not None and results[1].found.ratio == 2
    assert results[2].found is None
    assert limits[1] == limits[2] < PATIENCE * 10  # what the baseline took is what they are given


def test_without_the_baseline_there_is_no_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def child(job: Job, limit: float) -> Measured | str:
        return "too large" if job.stage == "generator" else made_up(with_r1=None, encode=None)

    monkeypatch.setattr("bench.training.measure.in_child", child)
    path = tmp_path / "rows.jsonl"
    with pytest.raises(LddganError, match=r"^tiny, generator: the baseline did not run: too large"):
        bench_training([PRESET], "cpu", out=path, log=lambda _: None)
    (row,) = read_rows(path)
    assert isinstance(row, TrainingRow) and row.stage == "autoencoder"


def test_batches_and_variants_of_each_device() -> None:
    assert [preset.name for preset in presets_of(None)] == list(BIG)
    lsun, cifar10 = get_preset("lsun"), get_preset("cifar10")
    for stage, whole, few in (("generator", 128, 8), ("autoencoder", 16, 2)):
        assert default_batch(lsun, stage, "cuda") == whole
        assert default_batch(lsun, stage, "cpu") == few
    assert default_batch(cifar10, "autoencoder", "cpu") == 8
    assert default_batch(PRESET, "generator", "cpu") == 4
    assert variants_of("generator", "cuda") == (*VARIANTS, COMPILED)
    assert variants_of("autoencoder", "cuda") == variants_of("generator", "cpu") == VARIANTS


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"batch": 6}, "batch is 6, and must be below 4 or a multiple of it"),
        ({"trials": 0}, "trials is 0"),
        ({"max_seconds": -1.0}, "max-seconds is -1"),
        (
            {"presets": [TINY.model_copy(update={"autoencoder_training": None})]},
            "does not say how to",
        ),
        ({"presets": [PRESET, PRESET], "data": Path("x")}, "name it with --dataset"),
    ],
)
def test_bad_input(changes: dict[str, Any], message: str) -> None:
    given = {"presets": [PRESET], "device": "cpu"} | changes
    with pytest.raises(BadInput, match=message):
        bench_training(**given)


def test_a_file_of_something_else_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"kind":"training-steps"}\n')
    with pytest.raises(BadInput, match="line 1 is not a row of a training"):
        bench_training([PRESET], "cpu", out=path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="cannot read"):
        read_rows(path)


def test_rows_do_not_disturb_those_of_the_engines(rows: list[TrainingRow], tmp_path: Path) -> None:
    assert training_file("lsun", "cuda") == Path("bench/results/training/lsun-gpu.jsonl")
    append_row(rows[0], tmp_path / training_file("lsun", "cpu"))
    assert kept_rows(tmp_path / "bench" / "results") == []


def test_the_table(rows: list[TrainingRow], capsys: pytest.CaptureFixture[str]) -> None:
    failed = rows[0].results[2].model_copy(update={"found": None, "why_not": "too slow"})
    gpu = Gpu(name="NVIDIA H200", driver="580", sm_clock="", power_limit="")
    shown = rows[0].model_copy(
        update={
            "results": (*rows[0].results[:2], failed),
            "device": "cuda",
            "machine": rows[0].machine.model_copy(update={"gpu": gpu}),
        }
    )
    print_training(shown)
    print_training(rows[1])
    text = " ".join(capsys.readouterr().out.split())
    for said in (
        "tiny: the generator's step, batch 4, NVIDIA H200; medians",
        "bf16 channels-last did not run",
        "bf16 channels-last: too slow",
        "peak memory is what torch allocated on the GPU",
        "mean: of 5 steps, one of which has R1",
        "! weights as initialised",
        "tiny: the autoencoder's step, batch 2",
        "peak memory is the process's",
    ):
        assert said in text
    assert "…" not in text


# ---- the data pipeline ----


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


def pipeline(data: Path, **changes: Any) -> PipelineRow:
    given: dict[str, Any] = {"batch": 4, "workers": 0, "trials": 5, "max_seconds": 60.0}
    return measure_pipeline(PRESET, data, "cpu", load=0.0, **(given | changes))


def test_the_pipelines_count_is_the_images_read(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (images / "9.png").unlink()
    reads: list[int] = []
    read = Folder.read
    monkeypatch.setattr(Folder, "read", lambda self, at: reads.append(at) or read(self, at))
    row = pipeline(images)
    assert row.read == len(reads) == 6 * 4 and row.timed == 5 * 4  # the first batch is not timed
    assert row.images_per_second == pytest.approx(20 / row.seconds) and row.seconds > 0
    assert (row.images, row.image_size, row.bad) == (9, 32, 0)
    assert row.notes == ("each image was read 2.7 times, so that it was soon in memory",)


def test_workers_read_the_same_number_and_bad_images_are_counted(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = pipeline(images, workers=2, batch=None, trials=4)
    assert (row.batch, row.read, row.timed, row.bad) == (4, 24, 16, 1)
    append_row(row, tmp_path / "rows.jsonl")
    (again,) = read_rows(tmp_path / "rows.jsonl")
    assert again == row
    print_training(row)
    text = " ".join(capsys.readouterr().out.split())
    assert "images/s of 32x32, 2 workers, batch 4: 16 images in" in text
    assert "(10 images, 1 bad)" in text


def test_a_pipeline_is_cut_after_one_batch_at_least() -> None:
    clock = Clock()

    def batches() -> Any:
        for size in (4, 4, 4, 4):
            clock.now += 1.0
            yield torch.zeros(size)

    assert count(batches(), 1, 2.0, clock)[:] == (12, 2, 8, 2.0)
    assert count(batches(), 1, 0.0, clock)[:] == (8, 1, 4, 1.0)
    assert count(batches(), 2, 9.0, clock)[:] == (16, 2, 8, 2.0)


def test_fewer_images_than_a_batch(images: Path) -> None:
    preset = with_values(PRESET, {"training.batch": 64})
    row = measure_pipeline(
        preset, images, "cpu", batch=None, workers=0, trials=1, max_seconds=60.0, load=0.0
    )
    assert row.batch == 10
    with pytest.raises(BadInput, match="10 images are too few: one batch takes 64"):
        pipeline(images, batch=64)


# ---- the command line ----


def lddgan(*words: object) -> tuple[int, str, BaseException | None]:
    outcome = CliRunner().invoke(app, [str(word) for word in words])
    return outcome.exit_code, outcome.stdout, outcome.exception


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--train --engine ort", "--train measures no engine; leave out"),
        ("--train --precision fp32", "--train measures no engine"),
        ("--train --bundle x", "--train measures no engine"),
        ("--train --seed 1", "--train measures no engine"),
        ("--train --no-cuda-graph", "--train measures no engine"),
        ("--train --ladder", "--train measures no engine"),
        ("--train --plot", "--train measures no engine"),
        ("--train --workers 2", "--workers read the images of --data"),
        ("--train --data x", "name it with --dataset"),
        ("--train --dataset zebra", "zebra"),
        ("--train --batch 6", "batch is 6"),
        ("--data x", "belong to --train"),
        ("--workers 0", "belong to --train"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words: str, message: str) -> None:
    code, _, error = lddgan("bench", *words.split())
    assert code != 0 and isinstance(error, BadInput) and message in str(error)


def test_the_command_prints_a_row_after_the_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, images: Path
) -> None:
    asked: list[tuple[str, str, int]] = []

    def child(job: Job, limit: float) -> Measured:
        section = "training" if job.stage == "generator" else "autoencoder_training"
        asked.append((job.preset.name, job.stage, getattr(job.preset, section).batch))
        return made_up() if job.stage == "generator" else made_up(with_r1=None, encode=None)

    monkeypatch.setattr("bench.training.measure.in_child", child)
    monkeypatch.chdir(tmp_path)
    words = ("bench", "--train", "--device", "cpu", "--json")
    code, out, error = lddgan(*words, "--dataset", "cifar10", "--batch", 4, "--data", images)
    assert code == 0, error
    kept = read_rows(training_file("cifar10", "cpu"))
    assert [row.model_dump_json() for row in kept] == out.splitlines()
    assert [kind(row) for row in kept] == ["data-pipeline", "generator", "autoencoder"]
    assert asked == [
        ("cifar10", stage, 4) for stage in ("generator", "autoencoder") for _ in VARIANTS
    ]
    assert isinstance(kept[1], TrainingRow) and "batch 4, and 256 in training" in kept[1].notes
    asked.clear()
    code, out, _ = lddgan(*words, "--save", "all.jsonl")
    assert code == 0 and len(read_rows(Path("all.jsonl"))) == 6
    assert {name for name, _, _ in asked} == set(BIG)


def kind(row: Row) -> str:
    return row.stage if isinstance(row, TrainingRow) else row.kind


def test_a_job_reaches_the_child_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Job, Settings]] = []

    def stage(job: Job, settings: Settings, _: object) -> Measured:
        given.append((job, settings))
        return made_up()

    monkeypatch.setattr("bench.training.child.generator_stage", stage)
    job = JOB.model_copy(update={"variant": COMPILED, "max_seconds": float("inf")})
    assert training_child.main([job.model_dump_json()]) == 0
    ((again, settings),) = given
    assert again == job and again.preset == PRESET
    assert settings.bf16 and settings.channels_last and settings.compile
    assert settings.device == "cpu"
