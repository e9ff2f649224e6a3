"""The ladder: its rungs, what is computed of their times, and one real climb of a tiny model."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from bench import ladder as ladder_module
from bench.cost import Cost
from bench.ladder import (
    Rung,
    Work,
    Workshop,
    climb,
    run_ladder,
    rungs_of,
    sentence,
)
from bench.roofline import Ceilings
from bench.row import Row, newest_session, read_rows, results_file, write_rows
from bench.tables import LADDER, ladder_lines, print_ladder
from bench.timing import Plan
from cli import app
from engine.sampler import Sampler
from export.bundle import DIGITS, open_bundle
from export.graphs import graph_specs
from export.modules import DecoderToImage, GeneratorStep
from export.rewrites import REWRITES, TAKES, Graphs, Rewrite
from lddgan.checkpoint import Model, random_model
from lddgan.errors import BadInput, LddganError
from lddgan.preset import Preset
from lddgan.presets import get_preset
from tests.bench.rows import CPU
from tests.bench.scripted import Clock, Scripted, opened
from tests.conftest import TINY, TINY_VQ
from tests.needs import needs

PRESET = get_preset("digits")  # T = 4
COST = Cost(
    generator_parameters=10,
    decoder_parameters=100,
    generator_macs=1000,
    decoder_macs=5000,
    generator_values=30,
    decoder_values=300,
)
CEILINGS = Ceilings(
    precision="fp32",
    matmul_tflops=2e-7,
    convolution_tflops=4e-7,
    convolution="1x8x8x8",
    copy_gb_per_second=1e-3,
)
SHARED: dict[str, Any] = {
    "dataset": "digits",
    "batch": 4,
    "device": "cpu",
    "machine": CPU,
    "ceilings": CEILINGS,
    "notes": ("a note",),
}


def work(log: Callable[[str], None] = lambda _: None, limit: float = 1000.0) -> Work:
    plan = Plan("cpu", 4, 3, 0, limit)
    fields = SHARED | {"max_seconds": limit}
    return Work(plan, COST, {}, "2025-01-01", fields, log)


class Grey(Scripted):
    """Makes one image of one value."""

    def __init__(self, level: int, *given: Any) -> None:
        super().__init__(*given)
        self.level = level

    def decode(self, x_0: Any) -> Any:
        return super().decode(x_0) + np.uint8(self.level)


def scripted(name: str, clock: Clock, each: float, level: int = 0, poison: bool = False) -> Rung:
    """A rung whose image takes `each` seconds: half in four steps, half in the decoder."""
    backend = Grey(level, "torch" if name == "torch" else "ort", clock, [], each / 8, each / 2)
    backend.poison = poison
    return Rung(name, lambda: opened(backend, PRESET, chunk=4))


def closed() -> Sampler:
    raise LddganError("no such engine here")


def ladder(clock: Clock) -> list[Rung]:
    return [
        scripted("torch", clock, 0.8),
        scripted("ort", clock, 0.4),
        Rung("closed", closed),
        scripted("poisoned", clock, 0.4, poison=True),
        scripted("+ more", clock, 0.1, level=51),
    ]


def climbed(limit: float = 1000.0, log: Callable[[str], None] = lambda _: None) -> list[Row]:
    clock = Clock()
    return list(climb(ladder(clock), work(log, limit), clock))


def test_a_rung_that_fails_is_a_row_with_its_reason() -> None:
    log: list[str] = []
    rows = climbed(log=log.append)
    assert [row.rung for row in rows] == ["torch", "ort", "closed", "poisoned", "+ more"]
    torch_row, ort, shut, poisoned, more = rows
    assert (torch_row.ratio, torch_row.psnr) == (1, None)
    assert ort.whole_ms == pytest.approx(1600)  # four images
    assert ort.ms["generator"].p50 == pytest.approx(800)
    assert ort.images_per_second == pytest.approx(2.5)
    assert (ort.ratio, more.ratio) == pytest.approx((2, 8))
    assert ort.baseline_ms == more.baseline_ms == pytest.approx(3200)
    assert shut.why_not == "no such engine here" and shut.ratio is None
    assert "NaN or Inf" in str(poisoned.why_not)
    assert "closed: did not run: no such engine here" in log
    assert sentence(more).startswith("+ more: 400 ms, 8.00 times as fast as the baseline, 3")


def test_rungs_are_compared_with_ceilings_and_others() -> None:
    rows = climbed()
    more = rows[-1]
    flop = 2 * 4 * (4 * 1000 + 5000)
    assert more.tflops() == pytest.approx(flop / 0.4 / 1e12)
    assert more.share_of("matmul_tflops") == pytest.approx(flop / 0.4 / 1e12 / 2e-7)
    assert more.intensity["generator"] == pytest.approx(2 * 4 * 1000 / (4 * (10 + 4 * 30)))
    assert rows[1].psnr == float("inf")
    assert more.psnr == pytest.approx(20 * np.log10(255 / 51))
    lines = ladder_lines(rows)
    assert lines[-1] == [
        "+ more",
        *("400", "400", "10", "8.00", "4.00"),  # before it ran ort
        *("1.8e-07", "90%", "45%", f"{more.gb_per_second:.4g}", "14.0", "3"),
    ]
    assert (lines[0][5], lines[1][5], lines[1][10]) == ("-", "2.00", "equal")
    assert lines[2] == ["closed", "did not run", *["-"] * (len(LADDER) - 1)]


def test_each_rung_has_its_own_limit_and_one_turn_at_least() -> None:
    trials = [row.trials for row in climbed(limit=5.0) if row.ms]
    assert trials == [1, 1, 1]  # a turn with the baseline takes 3.6 s at the least
    trials = [row.trials for row in climbed(limit=8.0) if row.ms]
    assert trials == [2, 1, 2]


def test_without_the_baseline_there_is_no_ladder() -> None:
    clock = Clock()
    with pytest.raises(LddganError, match="no such engine here"):
        list(climb([Rung("torch", closed), *ladder(clock)], work(), clock))
    broken = scripted("torch", clock, 0.8, poison=True)
    with pytest.raises(LddganError, match="NaN or Inf"):
        list(climb([broken], work(), clock))


def test_the_table_shows_every_rung_and_every_reason(capsys: pytest.CaptureFixture[str]) -> None:
    print_ladder(climbed())
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert lines[0].startswith("digits, batch 4, A CPU, 2 cores; medians, each rung in turns")
    (shown,) = [line.split() for line in lines if line.lstrip().startswith("+ more")]
    assert shown[2:7] == ["400", "400", "10", "8.00", "4.00"]
    assert "closed: did not run: no such engine here" in lines and "! a note" in lines
    assert "…" not in said  # no column is cut
    assert all(word in said for column in LADDER for word in column.split("\n"))


# ---- The rungs ----


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(open_bundle(DIGITS), "cpu", 2, tmp_path, print)


def test_rungs_of_a_cpu_in_their_order(shop: Workshop) -> None:
    found = rungs_of(shop)
    assert [rung.name for rung in found] == [
        "torch",
        "torch, channels-last",
        "torch-compile",
        "openvino, no rewrites",
        "ort, no rewrites",
        *(f"+ {name}" for name in TAKES["fp32"]),
        "ort fp32, the bundle",
        "openvino fp32, the bundle",
        "ort int8, the bundle",
        "openvino int8, the bundle",
    ]


def test_rungs_of_a_gpu_add_fp16_and_its_engines(tmp_path: Path) -> None:
    names = [r.name for r in rungs_of(Workshop(open_bundle(DIGITS), "cuda", 2, tmp_path, print))]
    assert names[:5] == [
        *("torch", "torch, channels-last", "torch-compile", "torch fp16", "torch-compile fp16"),
    ]
    rewrites = [f"+ {name}" for name in TAKES["fp16"]]
    engines = [f"{name} fp16, the bundle" for name in ("ort", "fused", "trt-rtx", "trt")]
    plain = [f"{name}, no rewrites" for name in ("trt", "trt-rtx", "ort")]
    assert names[5:] == [*plain, *rewrites, *engines]


def snapshot(module: torch.nn.Module) -> tuple[str, dict[str, torch.Tensor]]:
    return str(module), {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("preset", [TINY, TINY_VQ], ids=lambda preset: preset.name)
@pytest.mark.parametrize("rewrite", REWRITES, ids=lambda rewrite: rewrite.name)
def test_a_rewrite_leaves_other_graphs_as_they_are(rewrite: Rewrite, preset: Preset) -> None:
    model = random_model(preset)
    generator, autoencoder = copy.deepcopy((model.generator, model.autoencoder))
    graphs = Graphs(
        GeneratorStep(generator, preset).eval(), DecoderToImage(autoencoder, preset).eval(), preset
    )
    both = {"generator": graphs.generator, "decoder": graphs.decoder}
    before = {which: snapshot(module) for which, module in both.items()}
    rewrite.apply(graphs)
    assert rewrite.changes and set(rewrite.changes) <= set(graph_specs(preset))
    for which in set(both) - set(rewrite.changes):
        text, state = snapshot(both[which])
        assert text == before[which][0] and state.keys() == before[which][1].keys()
        assert all(torch.equal(value, before[which][1][name]) for name, value in state.items())


def test_graphs_are_exported_once_for_all_engines(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[tuple[str, ...]] = []

    def note(model: Model, precision: str, rewrites: tuple[str, ...], folder: Path) -> None:
        exported.append(rewrites)

    monkeypatch.setattr(ladder_module, "export_graphs", note)
    monkeypatch.setattr(ladder_module, "open_engine", lambda *_, **__: None)
    for rewrites, engine in (((), "openvino"), ((), "ort"), (TAKES["fp32"], "ort")):
        shop.rewritten(rewrites, engine)
    assert exported == [(), TAKES["fp32"]]


def test_what_cannot_be_exported_is_a_reason(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    import export.exporter  # noqa: F401 - before what it takes from export.to_onnx is replaced

    def refuse(*_: Any) -> None:
        raise torch.onnx.OnnxExporterError("no such operator\nand a long trace")

    monkeypatch.setattr("export.to_onnx.export_graph", refuse)
    with pytest.raises(
        LddganError, match=r"^the generator could not be exported: no such operator$"
    ):
        shop.rewritten(())


def test_a_rung_that_does_not_export_leaves_nothing_in_the_way(
    shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise LddganError("no such operator")

    monkeypatch.setattr(ladder_module, "export_graphs", refuse)
    for engine in ("trt", "ort"):
        with pytest.raises(LddganError, match="no such operator"):
            shop.rewritten((), engine)
    assert not list(shop.folder.iterdir())


# ---- One real climb ----


def few(shop: Workshop) -> Iterator[Rung]:
    """Five rungs, of which two need exports, and one that cannot run."""
    wanted = ("torch", "torch, channels-last", "openvino, no rewrites", "+ phased-upsampling")
    for rung in rungs_of(shop):
        if rung.name in (*wanted, "ort fp32, the bundle"):
            yield rung
    yield Rung("trt", lambda: shop.engine("trt", "fp16"))


@pytest.fixture
def _few_rungs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.ladder.rungs_of", lambda shop: list(few(shop)))
    monkeypatch.setattr("bench.ladder.measure_ceilings", lambda preset, device: CEILINGS)


@pytest.mark.full
@pytest.mark.usefixtures("_few_rungs")
@needs("openvino")
def test_every_rung_makes_the_baselines_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    out, log = tmp_path / "ladder.jsonl", []
    bundle = open_bundle(DIGITS)
    rows = run_ladder(bundle, "cpu", batch=3, trials=2, seed=5, out=out, log=log.append)
    assert [row.line() for row in read_rows(out)] == [row.line() for row in rows]
    assert out.exists() and not list(tmp_path.glob("lddgan-ladder-*"))  # exports are gone
    assert [row.why_not is None for row in rows] == [True] * 5 + [False]
    assert "the trt engine does not run on cpu" in str(rows[5].why_not)
    for row in rows[1:5]:
        assert row.grey_levels is not None and row.grey_levels <= 1 and row.trials == 2
    engines = [row.engine for row in rows if row.ms]
    assert engines == ["torch", "torch", "openvino", "ort", "ort"]
    assert "channels-last" in rows[1].where
    assert sum(line.startswith("exporting the") for line in log) == 2


def test_what_was_measured_before_an_interruption_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> Sampler:
        raise KeyboardInterrupt

    def two(shop: Workshop) -> list[Rung]:
        return [rungs_of(shop)[0], Rung("next", interrupted)]

    monkeypatch.setattr("bench.ladder.rungs_of", two)
    monkeypatch.setattr("bench.ladder.measure_ceilings", lambda preset, device: CEILINGS)
    out = tmp_path / "ladder.jsonl"
    write_rows(climbed(), out)
    with pytest.raises(KeyboardInterrupt):
        run_ladder(open_bundle(DIGITS), "cpu", batch=1, trials=1, seed=0, out=out)
    assert [row.rung for row in read_rows(out)][-2:] == ["+ more", "torch"]


# ---- The command ----


@pytest.mark.parametrize("more", ["--engine=ort", "--precision=fp16", "--no-cuda-graph"])
@pytest.mark.parametrize("asked", ["--ladder", "--plot"])
def test_a_ladder_takes_every_engine(asked: str, more: str) -> None:
    outcome = CliRunner().invoke(app, ["bench", "--bundle", str(DIGITS), asked, more])
    assert isinstance(outcome.exception, BadInput)
    assert "a ladder takes every engine and precision" in str(outcome.exception)


@pytest.mark.usefixtures("_few_rungs")
def test_the_command_measures_prints_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only = [scripted("torch", Clock(), 0.8)]
    monkeypatch.setattr("bench.ladder.rungs_of", lambda shop: only)
    monkeypatch.chdir(tmp_path)
    words = ["bench", "--bundle", str(DIGITS), "--ladder", "--plot", "--batch", "4"]
    outcome = CliRunner().invoke(app, [*words, "--trials", "1", "--device", "cpu"])
    assert outcome.exit_code == 0, outcome.output
    (row,) = newest_session(results_file("digits", "cpu", "ladder"), "rung")
    assert (row.batch, row.trials_asked, row.max_seconds) == (4, 1, 30)
    assert "digits, batch 4" in outcome.output and "3,200" in outcome.output
    assert Path("docs/ladder-digits-cpu.png").is_file()
