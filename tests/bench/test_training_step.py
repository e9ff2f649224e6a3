"""Steps of a tiny training, measured. Nothing is asserted about speed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from bench import training_step
from bench.row import Row, read_rows, results_file
from bench.tables import encoded_ms, print_training, step_ms
from bench.timing import summarise
from bench.training_step import (
    BIG,
    COMPILED,
    EAGER,
    PATIENCE,
    VARIANTS,
    Plan,
    bench_training,
    in_child,
    measure,
    measure_stage,
    row_to_fill,
    variants_of,
)
from cli import app
from lddgan.errors import BadInput, LddganError, OutOfMemory
from lddgan.preset import AutoencoderTraining, Preset, resized, with_values
from lddgan.presets import get_preset
from lddgan.training.loop import NotFinite
from lddgan.training.settings import Settings
from tests.bench.rows import CPU, H200
from tests.conftest import TINY

EVERY = 5  # steps, one of which has R1
PRESET = TINY.model_copy(
    update={
        "training": TINY.training.model_copy(update={"batch": 4, "r1_every": EVERY}),
        "autoencoder_training": AutoencoderTraining(lr=1e-4, batch=2, epochs=1, disc_start=7),
    }
)
PLAN = Plan("cpu", None, 2, 60.0, CPU)
JOB = row_to_fill(PRESET, "generator", PLAN).model_copy(update={"variant": EAGER})
AUTOENCODER = row_to_fill(PRESET, "autoencoder", PLAN).model_copy(update={"variant": EAGER})


def in_here(job: Row, limit: float) -> Row:
    """Instead of a process of its own."""
    return measure(job)


def made_up(job: Row = JOB, scale: float = 1.0, **changes: Any) -> Row:
    """What a child might find."""
    times = {"plain": 10.0}
    if job.stage == "generator":
        times |= {"with_r1": 30.0, "encode": 6.0}
    given: dict[str, Any] = {
        "trials": 3,
        "peak_memory_mib": 1234.5,
        "facts": {"encode_peak_mib": 2345.6},
        "ms": {name: summarise([scale * ms]) for name, ms in times.items()},
    }
    return job.model_copy(update=given | changes)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> list[list[Row]]:
    """Both stages, each as it was shown; the file holds the same rows."""
    path, shown = tmp_path_factory.mktemp("rows") / "rows.jsonl", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_step, "in_child", in_here)
        bench_training([PRESET], "cpu", trials=2, out=path, show=shown.append, log=lambda _: None)
    assert [row.line() for row in read_rows(path)] == [row.line() for one in shown for row in one]
    return shown


def test_every_variant_of_both_stages_has_times_and_memory(stages: list[list[Row]]) -> None:
    generator, autoencoder = stages
    for stage, rows in (("generator", generator), ("autoencoder", autoencoder)):
        assert [row.variant for row in rows] == variants_of(stage, "cpu")  # type: ignore[arg-type]
        assert len({row.session for row in rows}) == 1
        for row in rows:
            assert (row.dataset, row.stage, row.trials, row.why_not) == ("tiny", stage, 2, None)
            kinds = {"plain", "with_r1", "encode"} if stage == "generator" else {"plain"}
            assert set(row.ms) == kinds and all(ms.p50 > 0 for ms in row.ms.values())
            assert row.peak_memory_mib is None or row.peak_memory_mib > 0
    assert (generator[0].batch, autoencoder[0].batch) == (4, 2)


def test_the_mean_step_is_weighted_by_how_often_r1_comes() -> None:
    row = made_up()
    assert step_ms(row) == pytest.approx((EVERY - 1) / EVERY * 10 + 30 / EVERY)
    assert encoded_ms(row) == pytest.approx(step_ms(row) + 6)
    of_autoencoder = made_up(AUTOENCODER)
    assert (step_ms(of_autoencoder), encoded_ms(of_autoencoder)) == (10, None)


def test_a_row_says_what_was_left_out(stages: list[list[Row]]) -> None:
    generator, autoencoder = (rows[0] for rows in stages)
    assert any("weights as initialised" in note for note in generator.notes)
    assert not any("LPIPS" in note for note in generator.notes)
    assert "LPIPS is included, with random weights" in autoencoder.notes
    assert "the patch discriminator takes part" in autoencoder.notes
    assert not any("in training" in note for note in (*generator.notes, *autoencoder.notes))
    assert generator.versions["torch"] and generator.machine and generator.machine.gpu is None


def test_a_child_measures_alone() -> None:
    row = in_child(JOB.model_copy(update={"max_seconds": 0.0}), 120.0)
    assert row.why_not is None and row.trials == 1  # no second one fits
    assert row.peak_memory_mib is None or row.peak_memory_mib > 50
    assert "as few as 1 of 2 trials: more do not fit in 0 s (--max-seconds)" in row.notes


def test_a_child_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def program(code: str) -> None:
        monkeypatch.setattr("bench.training_step.PROGRAM", (sys.executable, "-c", code))

    program("import sys; sys.exit('error: too much')")
    row = in_child(JOB, 60.0)
    assert (row.why_not, row.variant, row.batch, row.ms) == ("too much", EAGER, 4, {})
    program("print('no JSON')")
    assert in_child(JOB, 60.0).why_not == "it ended without a result"


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

    monkeypatch.setattr("bench.training_step.generator_stage", fail)
    with pytest.raises(raised, match=message):
        measure(JOB)
    assert training_step.main([JOB.line()]) == 1
    assert message in capsys.readouterr().err


def test_every_step_may_have_r1() -> None:
    preset = with_values(PRESET, {"training.r1_every": 1}).model_dump()
    row = measure(JOB.model_copy(update={"preset": preset, "trials_asked": 1}))
    assert "plain" not in row.ms and step_ms(row) == row.ms["with_r1"].p50


def test_a_variant_that_fails_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []

    def child(job: Row, limit: float) -> Row:
        limits.append(limit)
        return made_up(job, why_not="too slow" if job.variant == "bf16 channels-last" else None)

    monkeypatch.setattr(training_step, "in_child", child)
    monkeypatch.setattr(training_step, "LEAST_SECONDS", 1e-9)
    rows = list(measure_stage(PRESET, "generator", PLAN, lambda _: None))
    assert [row.why_not for row in rows] == [None, None, "too slow"]
    assert limits[1] == limits[2] < PATIENCE * 10  # what the baseline took is what they are given


def test_a_stage_without_its_baseline_has_no_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def child(job: Row, limit: float) -> Row:
        return made_up(job, why_not="too large" if job.stage == "generator" else None)

    monkeypatch.setattr(training_step, "in_child", child)
    path = tmp_path / "rows.jsonl"
    with pytest.raises(LddganError, match=r"^tiny, generator: the baseline did not run: too large"):
        bench_training([PRESET], "cpu", trials=1, out=path, log=lambda _: None)
    assert {row.stage for row in read_rows(path)} == {"autoencoder"}


def test_batches_and_variants_of_each_device() -> None:
    lsun, cifar10 = get_preset("lsun"), get_preset("cifar10")
    for stage, whole, few in (("generator", 128, 8), ("autoencoder", 16, 2)):
        assert row_to_fill(lsun, stage, PLAN._replace(device="cuda")).batch == whole
        assert row_to_fill(lsun, stage, PLAN).batch == few
    assert row_to_fill(cifar10, "autoencoder", PLAN).batch == 8
    assert row_to_fill(PRESET, "generator", PLAN).batch == 4
    assert variants_of("generator", "cuda") == list(VARIANTS) and COMPILED in VARIANTS
    eager = [name for name in VARIANTS if name != COMPILED]
    assert variants_of("autoencoder", "cuda") == variants_of("generator", "cpu") == eager


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 6}, "batch is 6, and must be below 4 or a multiple of it"),
        (
            {"presets": [TINY.model_copy(update={"autoencoder_training": None})]},
            "does not say how to",
        ),
    ],
)
def test_bad_input(changes: dict[str, Any], message: str) -> None:
    given = {"presets": [PRESET], "device": "cpu", "trials": 1} | changes
    with pytest.raises(BadInput, match=message):
        bench_training(**given)


def test_where_nothing_is_learned_only_the_generator_is_measured(tmp_path: Path) -> None:
    values = {"generator.kind": "wavelet-ncsnpp", "generator.ch_mult": (1, 2), "generator.nf": 8}
    small = values | {"generator.blocks": 1, "discriminator.ngf": 4, "discriminator.layers": 3}
    preset = resized(get_preset("wddgan-cifar10"), 32, small | {"training.batch": 4})
    shown: list[list[Row]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_step, "in_child", in_here)
        patch.setattr(training_step, "VARIANTS", {EAGER: {}})
        given: dict[str, Any] = {"trials": 1, "out": tmp_path / "rows.jsonl", "show": shown.append}
        bench_training([preset], "cpu", **given, log=lambda _: None)
    ((row,),) = shown
    assert (row.stage, set(row.ms)) == ("generator", {"plain", "with_r1", "encode"})


def test_a_file_of_something_else_is_refused_first(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"kind":"training"}\n')
    with pytest.raises(BadInput, match="line 1 is not a benchmark row"):
        bench_training([PRESET], "cpu", trials=1, out=path)


def test_a_stage_is_printed_with_its_ratios(capsys: pytest.CaptureFixture[str]) -> None:
    gpu = {"device": "cuda", "machine": CPU.model_copy(update={"gpu": H200}), "notes": ("a note",)}
    other, third = (JOB.model_copy(update={"variant": name}) for name in list(VARIANTS)[1:3])
    print_training(
        [made_up(**gpu), made_up(other, 0.5, **gpu), made_up(third, why_not="too slow", **gpu)]
    )
    print_training([made_up(AUTOENCODER)])
    text = " ".join(capsys.readouterr().out.split())
    for said in (
        "tiny: the generator's step, batch 4, NVIDIA H200; medians",
        "fp32 10 30 14 285.7 1.00 1,234 6 200 1.00 2,346 3",
        "fp32 channels-last 5 15 7 571.4 2.00 1,234 3 400 2.00 2,346 3",
        "bf16 channels-last did not run",
        "bf16 channels-last: too slow",
        "peak memory is what torch allocated on the GPU",
        "mean: of 5 steps, one of which has R1",
        "! a note",
        "tiny: the autoencoder's step, batch 2",
        "fp32 10 200 1.00 1,234 3",
        "peak memory is the process's",
    ):
        assert said in text
    assert "…" not in text


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
        ("--train --dataset zebra", "zebra"),
        ("--train --batch 6", "batch is 6"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words: str, message: str) -> None:
    code, _, error = lddgan("bench", *words.split())
    assert code != 0 and isinstance(error, BadInput) and message in str(error)


def test_the_command_keeps_and_prints_every_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, str, int]] = []

    def child(job: Row, limit: float) -> Row:
        asked.append((job.dataset, str(job.stage), job.batch))
        return made_up(job)

    monkeypatch.setattr(training_step, "in_child", child)
    monkeypatch.chdir(tmp_path)
    words = ("bench", "--train", "--device", "cpu", "--json", "--batch")
    code, out, error = lddgan(*words, 1, "--dataset", "cifar10")
    assert code == 0, error
    path = results_file("cifar10", "cpu", "training")
    kept = read_rows(path)
    assert [row.line() for row in kept] == out.splitlines()
    stages = ["generator"] * 3 + ["autoencoder"] * 3
    assert [row.stage for row in kept] == stages
    assert asked == [("cifar10", stage, 1) for stage in stages]
    asked.clear()
    code, out, _ = lddgan(*words, 4, "--save", "all.jsonl")
    assert code == 0 and len(read_rows(Path("all.jsonl"))) == 18
    assert {name for name, _, _ in asked} == set(BIG)


def test_a_row_reaches_its_process_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[tuple[Preset, Settings]] = []

    def stage(preset: Preset, settings: Settings, *_: object) -> Any:
        given.append((preset, settings))
        return {"plain": [1.0]}, {}

    monkeypatch.setattr(training_step, "generator_stage", stage)
    plan = PLAN._replace(batch=1, max_seconds=float("inf"))
    asked = row_to_fill(PRESET, "generator", plan).model_copy(update={"variant": COMPILED})
    assert training_step.main([asked.line()]) == 0
    made = Row.model_validate_json(capsys.readouterr().out)
    ((preset, settings),) = given
    assert preset == with_values(PRESET, {"training.batch": 1})
    assert settings.bf16 and settings.channels_last and settings.compile
    assert settings.device == "cpu"
    assert made.model_copy(update={"ms": {}, "facts": {}, "trials": 0, "notes": ()}).line() == (
        asked.model_copy(update={"notes": ()}).line()
    )
    assert "batch 1, and 4 in training" in made.notes
