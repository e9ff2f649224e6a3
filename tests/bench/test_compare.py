"""Several models in turns: their rows, their table, and what is refused before any is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.compare import compare, named_bundles
from bench.cost import measure_cost
from bench.row import Row, read_rows
from bench.tables import print_compared
from cli import app
from export.bundle import DIGITS, Bundle, open_bundle
from lddgan.errors import BadInput
from lddgan.presets import get_preset
from tests.bench.rows import row


@pytest.fixture
def exports(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in which the tiny model is the bundle of wddgan-lsun."""
    monkeypatch.chdir(tmp_path)
    Path("exports").mkdir()
    Path("exports/wddgan-lsun").symlink_to(tiny_bundle)


@pytest.fixture
def digits() -> Bundle:
    return open_bundle(DIGITS)  # fp32 only


def holding(bundle: Bundle, *precisions: str) -> Bundle:
    """A bundle as if only these precisions of it had been exported."""
    kept = {name: bundle.manifest.verification[name] for name in precisions}
    return Bundle(bundle.folder, bundle.manifest.model_copy(update={"verification": kept}))


def run(*bundles: Bundle, **changes: Any) -> list[Row]:
    given: dict[str, Any] = {"batch": 3, "trials": 2, "seed": 1} | changes
    engine, precision = given.pop("engine", "auto"), given.pop("precision", None)
    return compare(bundles, engine, precision, "cpu", **given)


def test_models_take_turns_without_a_baseline(tiny_bundle: Path, digits: Bundle) -> None:
    first, second = run(digits, open_bundle(tiny_bundle), precision="fp32")
    assert (first.kind, first.session) == ("compare", second.session)
    assert [(one.dataset, one.preset["steps"]) for one in (first, second)] == [
        ("digits", 4),
        ("tiny", 3),
    ]
    assert (first.random_weights, second.random_weights) == (False, True)
    for one, preset in ((first, digits.preset), (second, open_bundle(tiny_bundle).preset)):
        assert (one.batch, one.trials, one.seed, one.precision) == (3, 2, 1, "fp32")
        assert one.baseline_ms is None and one.psnr is None and one.peak_memory_mib is None
        work = 2 * 3 * preset.steps * measure_cost(preset).generator_macs
        assert one.flop["generator"] == work
        assert ("random weights: timing only" in one.notes) == (one is second)


def test_comparison_is_printed_and_kept(exports: None) -> None:
    options = ["--batch", "2", "--trials", "1", "--precision", "fp32", "--save", "a.jsonl"]
    done = CliRunner().invoke(app, ["bench", "--compare", "digits,wddgan-lsun", *options])
    assert done.exit_code == 0, done.output
    kept = read_rows(Path("a.jsonl"))
    assert [(one.kind, one.dataset) for one in kept] == [("compare", "digits"), ("compare", "tiny")]
    assert "tiny: random weights: timing only" in done.output


def test_ratios_are_to_the_first_model_ours_and_the_papers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ms = {"ddgan-lsun": 9000.0, "wddgan-lsun": 4500.0, "lsun": 3000.0, "digits": 10.0}
    rows = [
        row(whole=whole, dataset=name, preset=get_preset(name).model_dump(), batch=5)
        for name, whole in ms.items()
    ]
    print_compared([*rows[:3], rows[3].model_copy(update={"notes": ("cut",)})])
    out = capsys.readouterr().out
    cells = {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}
    # engine, T; ms of generator, decoder, whole; images/s, ratio; the paper's seconds and ratio
    ddgan = "ddgan-lsun ort fp32 4 9,000 9,000 9,000 0.5556 1.00 3.42 1.00 Table 5"
    assert cells["ddgan-lsun"] == ddgan.split()
    assert cells["wddgan-lsun"][7:] == ["1.111", "2.00", "1.54", "2.22", "Table", "5"]
    assert cells["lsun"][7:] == ["1.667", "3.00", "1.02", "3.35", "Table", "5"]
    assert cells["digits"][8:] == ["900.00", "-", "-", "-"]
    assert "batch 5, 17 of 300 trials, A CPU, 2 cores; medians" in out
    assert "! digits: cut" in out


@pytest.mark.parametrize(
    ("held", "asked", "message"),
    [
        (("fp32",), {"precision": "fp16"}, "digits holds fp32, not fp16; run `lddgan export"),
        (
            ("fp32",),
            {"precision": "fp16", "engine": "ort"},
            "digits holds fp32, not fp16; run `lddgan export",
        ),
        ((), {"precision": "fp32"}, "holds a checkpoint without graphs, not fp32"),
        (("fp32",), {}, "tiny would run in fp16 on cpu and digits in fp32 on cpu; give one --prec"),
        (("fp32",), {"batch": 0}, "batch is 0"),
    ],
)
def test_unlike_models_are_refused_before_any_is_opened(
    tiny_bundle: Path,
    digits: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    held: tuple[str, ...],
    asked: dict[str, Any],
    message: str,
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr("bench.compare.open_engine", lambda *given, **_: opened.append(given))
    tiny = holding(open_bundle(tiny_bundle), *(asked.get("precision") or "fp16",))
    with pytest.raises(BadInput, match=message):
        run(tiny, holding(digits, *held), **asked)
    assert opened == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("digits,mnist", "unknown data set 'mnist'; known: cifar10, "),
        ("digits,", "--compare has no name beside a comma: 'digits,'"),
        ("digits, digits", "--compare names digits twice; name each model once"),
        ("digits", "--compare digits is one model; name two or more: ddgan-lsun,lsun"),
        ("digits,ddgan-lsun", "no bundle at exports/ddgan-lsun; run `lddgan export --dataset ddg"),
        ("ddgan-lsun,mnist", "unknown data set 'mnist'"),
    ],
)
def test_names_that_are_no_two_bundles_are_refused(exports: None, names: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        named_bundles(names)


def test_named_bundles_come_in_their_order(exports: None) -> None:
    found = named_bundles("wddgan-lsun, digits")
    assert [bundle.preset.name for bundle in found] == ["tiny", "digits"]


@pytest.mark.parametrize(
    "other",
    [
        *(["--dataset", "lsun"], ["--bundle", "x"], ["--ladder"], ["--plot"], ["--train"]),
        *(["--verify"], ["--no-cuda-graph"]),
    ],
)
def test_a_comparison_goes_with_nothing_else(other: list[str]) -> None:
    done = CliRunner().invoke(app, ["bench", "--compare", "digits,lsun", *other])
    assert isinstance(done.exception, BadInput)
    assert "--compare" in str(done.exception) and "leave out" in str(done.exception)
    assert other[0] in str(done.exception)
