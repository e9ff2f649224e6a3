"""Rows in files, and the table in the README."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from bench.assemble import common_notes
from bench.report import (
    agreement,
    comparisons,
    engine_name,
    gpu_facts,
    main,
    markdown,
    newest,
    number,
    render,
    rewritten,
    verification,
)
from rich.console import Console

from bench.machine import (
    HOME,
    NO_COMMIT,
    Gpu,
    Machine,
    commit,
    gpu,
    in_words,
    load,
    machine,
    peak_memory_mib,
    torch_settings,
    versions,
)
from bench.roofline import Achieved, Ceilings
from bench.row import (
    RESULTS,
    Agreement,
    BenchRow,
    Finding,
    Measured,
    StageTimes,
    read_records,
    read_results,
    read_rows,
    save_lines,
    save_row,
)
from bench.timing import Trial, summarise
from engine.gpu.driver import FirstGpu
from lddgan.errors import BadInput, LddganError
from lddgan.presets import get_preset

PRESET = get_preset("lsun")
KNOWN = Ceilings(
    matmul_tflops=700.0,
    convolution_tflops=650.0,
    convolution="8x256x256x256",
    copy_gb_per_second=4100.0,
)
SETTINGS = {
    "cuda.matmul.allow_tf32": False,
    "cudnn.allow_tf32": True,
    "cudnn.benchmark": False,
}
README = "# Title\n\n<!-- bench:begin -->\nold\n<!-- bench:end -->\n\nEnd.\n"


def measured(engine: str, whole: float, **more: Any) -> Measured:
    times = {stage: summarise([whole]) for stage in Trial._fields}
    return Measured(
        engine=engine,
        precision="fp32",
        where="CPU",
        chunk=4,
        times=StageTimes.model_validate(times),
        images_per_second=1e3 / whole,
        peak_memory_mib=None,
        **more,
    )


FOUND = Finding(
    date="2025-01-01T00:00:00+00:00",
    commit="c" * 40,
    gpu="H",
    versions={},
    stage="lsun",
    what="batch 1, fused fp16",
    seconds=1.5,
    found={"psnr": float("inf")},
    why_not="no such engine",
)


def row(**changes: Any) -> BenchRow:
    given: dict[str, Any] = {
        "date": "2025-01-01T00:00:00+00:00",
        "commit": None,
        "dataset": "lsun",
        "preset": PRESET.model_dump(),
        "random_weights": True,
        "device": "cpu",
        "batch": 1,
        "seed": 0,
        "trials_asked": 300,
        "trials": 17,
        "nfe": 4,
        "engine": measured("ort", 2500.0),
        "baseline": measured("torch", 4000.0),
        "ratio": 1.6,
        "agreement": Agreement(grey_levels=1, changed=0.0012, psnr=77.0),
        "verification": {},
        "paper_seconds": 1.02,
        "paper_source": "Table 5",
        "machine": Machine(cpu="A CPU", cores=2, load=0.1, gpu=None),
        "versions": {},
        "notes": (),
    }
    return BenchRow(**(given | changes))


def test_markdown() -> None:
    assert markdown([row()]).splitlines() == [
        "| Model | Batch | On | Engine | ms (PyTorch) | ms (engine) | Times as fast | Images/s "
        "| Trials | Images against PyTorch | Verification |",
        "|---|--:|---|---|--:|--:|--:|--:|--:|---|--:|",
        "| lsun \\* | 1 | A CPU, 2 cores | ort fp32 | 4,000 | 2,500 | 1.60 | 0.4 | 17 "
        "| at most 1 grey level, 0.12% of values differ, 77.0 dB | - |",
        "",
        "\\* random weights: timing only",
    ]
    assert "random weights" not in markdown([row(random_weights=False)])


def test_only_the_newest_row_of_each_kind_with_a_baseline_is_shown() -> None:
    on_gpu = Machine(
        cpu="A CPU", cores=2, load=0, gpu=Gpu(name="H", driver="", sm_clock="", power_limit="")
    )
    old, new = row(), row(date="2025-02-01T00:00:00+00:00")
    alone = row(date="2025-03-01T00:00:00+00:00", baseline=None, ratio=None, agreement=None)
    other, elsewhere = row(batch=100), row(machine=on_gpu, dataset="zebra")
    graph = row(machine=on_gpu, engine=measured("trt", 100.0, cuda_graph=True))
    eager = row(machine=on_gpu, engine=measured("trt", 120.0, cuda_graph=False))
    # GPUs first, each with all its rows.
    assert newest([new, alone, old, other, elsewhere, graph, eager]) == [
        *(eager, graph, elsewhere),
        *(new, other),
    ]


@pytest.mark.parametrize(
    ("engine", "found", "shown"),
    [
        (measured("ort", 1.0), {"chain_psnr": 83.96}, "84.0 dB"),
        (measured("ort", 1.0), {"chain_psnr": "Infinity"}, "equal"),
        (measured("trt", 1.0, verification={"chain_psnr": 51.04}), {"chain_psnr": 9}, "51.0 dB"),
        (measured("torch", 1.0), {"chain_psnr": 83.96}, "-"),
    ],
)
def test_the_table_shows_the_verification_of_what_ran(
    engine: Measured, found: dict[str, Any], shown: str
) -> None:
    assert verification(row(engine=engine, verification=found)) == shown
    assert (
        markdown([row(engine=engine, verification=found)]).splitlines()[2].endswith(f"| {shown} |")
    )


@pytest.mark.parametrize(
    ("engine", "shown"),
    [
        (measured("trt", 1.0), "-"),
        (measured("ort", 1.0), "-"),
        (measured("ort", 1.0, verification={"chain_psnr": 51.04, "why_failed": None}), "51.0 dB"),
        (
            measured("ort", 1.0, verification={"chain_psnr": 31.04, "why_failed": "it is off"}),
            "31.0 dB, failed",
        ),
    ],
)
def test_what_the_export_measured_on_a_cpu_is_not_shown_of_a_gpu(
    engine: Measured, shown: str
) -> None:
    assert verification(row(device="cuda", engine=engine, verification={"chain_psnr": 9})) == shown


def test_the_engines_name_says_whether_it_was_one_cuda_graph() -> None:
    assert engine_name(measured("trt", 1.0, cuda_graph=True)) == "trt fp32, CUDA graph"
    assert engine_name(measured("trt", 1.0, cuda_graph=False)) == "trt fp32"


def test_a_row_of_the_fused_engine_says_how_its_decoder_runs() -> None:
    fused = measured("fused", 1.0, plan={"decoder_chunk": {"100": 25}})
    assert gpu_facts(row(device="cuda", engine=fused)) == ["fused: decoder_chunk {'100': 25}"]


def test_a_gpu_row_says_all_that_is_known_of_it(gpu_row: BenchRow, tmp_path: Path) -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(gpu_row))
    text = " ".join(console.export_text().split())
    for said in (
        "trt fp32, CUDA graph",
        "TFLOP/s │ 420 (60%) │ - │",
        "GB/s, at least │ 96 (2%) │ - │",
        "GPU memory in use when warm, all processes, MiB │ 9,000 │ - │",
        "PNG files of the batch: 812 ms more, on one core",
        "TensorRT plan: version 10.16.1, level 3",
        "matrix product 700 TFLOP/s, 3x3 convolution 8x256x256x256 650 TFLOP/s; copy 4,100 GB/s",
        "GPU at work: 345 MHz of 1980 MHz, 80.00 W of 700.00 W, 31 C",
        "verification: equal",
    ):
        assert said in text
    save_row(gpu_row, tmp_path / "rows.jsonl")
    (read,) = read_rows(tmp_path / "rows.jsonl")
    assert read.model_dump_json() == gpu_row.model_dump_json()


@pytest.fixture
def gpu_row() -> BenchRow:
    h200 = Gpu(
        name="NVIDIA H200",
        driver="580.1",
        sm_clock="345 MHz",
        sm_clock_max="1980 MHz",
        power_draw="80.00 W",
        power_limit="700.00 W",
        temperature="31",
    )
    reached = Achieved(
        generator_tflops=300.0,
        decoder_tflops=450.0,
        whole_tflops=420.0,
        matmul_share=0.6,
        bytes=10**9,
        gb_per_second=96.0,
        copy_share=0.02,
    )
    engine = measured(
        "trt",
        150.0,
        cuda_graph=True,
        gpu_memory_mib=9000.0,
        plan={"version": "10.16.1", "level": 3},
        verification={"chain_psnr": float("inf")},
        achieved=reached,
    )
    return row(
        device="cuda",
        engine=engine,
        machine=Machine(cpu="A CPU", cores=2, load=0, gpu=h200),
        png_ms=812.0,
        torch_settings=SETTINGS,
        ceilings=KNOWN,
    )


def test_rows_of_the_first_schema_are_still_read() -> None:
    rows = read_results(HOME / RESULTS)
    first = [row for row in rows if row.schema_version == 1]
    assert {row.dataset for row in first} >= {"celeba_256", "cifar10", "lsun"}
    assert all(row.engine.achieved is None and row.png_ms is None for row in first)


def test_a_finding_lies_between_the_rows_and_is_none(tmp_path: Path) -> None:
    path = tmp_path / "bench" / "results" / "nvidia-h100" / "rows.jsonl"
    save_lines([row(), FOUND], path)
    save_row(row(batch=100), path)
    assert [one.batch for one in read_rows(path)] == [1, 100]
    assert [type(one) for one in read_records(path)] == [BenchRow, Finding, BenchRow]
    assert "no such engine" not in markdown(read_rows(path))
    assert [one.batch for one in read_results(tmp_path / RESULTS)] == [1, 100]  # with the others
    path.write_text(FOUND.model_dump_json().replace('"seconds":1.5', '"seconds":"few"') + "\n")
    with pytest.raises(BadInput, match="line 1 is not a benchmark row: seconds"):
        read_records(path)


def test_a_gpu_without_nvidia_smi_is_known_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.machine.shutil.which", lambda _: None)
    monkeypatch.setattr("bench.machine.find_gpu", lambda: FirstGpu("NVIDIA H100", None))
    found = gpu()
    assert (found.name, found.temperature) == ("NVIDIA H100", None)
    assert found.driver == found.sm_clock == "unknown: nvidia-smi is missing"
    monkeypatch.setattr("bench.machine.find_gpu", lambda: FirstGpu(None, "no NVIDIA GPU"))
    with pytest.raises(LddganError, match="nvidia-smi is missing, which comes with the NVIDIA"):
        gpu()


def test_the_gpu_is_read_from_the_driver_in_its_own_words(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "name": "NVIDIA H200",
        "driver_version": "580.95.05",
        "clocks.sm": "345 MHz",
        "clocks.max.sm": "1980 MHz",
        "clocks.mem": "3201 MHz",
        "clocks.max.mem": "3201 MHz",
        "power.draw": "76.91 W",
        "power.limit": "[N/A]",
        "temperature.gpu": "31",
        "memory.used": "1024 MiB",
        "memory.total": "143771 MiB",
    }
    monkeypatch.setattr(
        "bench.machine.ask_driver",
        lambda fields: ", ".join(values[field] for field in fields.split(",")),
    )
    found = gpu()
    assert (found.name, found.driver, found.sm_clock) == ("NVIDIA H200", "580.95.05", "345 MHz")
    assert (found.sm_clock_max, found.memory_clock) == ("1980 MHz", "3201 MHz")
    assert (found.power_draw, found.power_limit, found.temperature) == ("76.91 W", "[N/A]", "31")
    assert (found.memory_used, found.memory_total) == ("1024 MiB", "143771 MiB")
    before = load()
    here = machine(before, found)
    assert (here.gpu, here.load) == (found, before) and before >= 0
    monkeypatch.setattr("bench.machine.ask_driver", lambda fields: "NVIDIA H200, 580")
    with pytest.raises(LddganError, match="gave 2 values and not 11"):
        gpu()


def test_torchs_settings_are_read_as_they_are() -> None:
    import torch

    assert torch_settings() == {
        "cuda.matmul.allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn.allow_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn.benchmark": False,
    }


def test_how_pytorch_computes_fp32_is_said_of_a_gpus_rows(gpu_row: BenchRow) -> None:
    paper = "PyTorch's fp32: TF32 on in convolutions and off in matrix products, "
    paper += "cudnn.benchmark off, which is the paper's protocol"
    assert in_words(SETTINGS) == paper
    other = in_words(SETTINGS | {"cuda.matmul.allow_tf32": True})
    assert "on in matrix products" in other and "not the paper's protocol" in other
    assert markdown([row(), gpu_row, gpu_row]).splitlines()[-1] == paper
    assert paper not in markdown([row()])
    why = KNOWN.model_copy(update={"note": "ceilings not measured: full"})
    assert common_notes("c", SETTINGS, why) == [paper, "ceilings not measured: full"]
    assert common_notes("c", SETTINGS, KNOWN) == [paper] and common_notes("c", None, None) == []
    assert common_notes(None, None, None) == [NO_COMMIT] and "LDDGAN_COMMIT" in NO_COMMIT


def test_images_at_once_are_those_of_equal_parts() -> None:
    one = measured("ort", 1.0).model_copy(update={"chunk": 32})
    at_once = {label: cells for label, *cells in comparisons(row(batch=100, engine=one))}
    assert at_once["images at once"] == ["25", "4"]


def test_agreement_of_equal_images() -> None:
    assert agreement(row(agreement=Agreement(grey_levels=0, changed=0, psnr=None))) == "all equal"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.012345, "0.01235"), (12.3456, "12.35"), (999.96, "1000"), (12345.6, "12,346")],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


def test_readme_is_rewritten_and_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(README)
    save_row(row(), tmp_path / "bench" / "results" / "lsun-cpu.jsonl")
    assert main([str(readme), "--check"]) == 1
    assert readme.read_text() == README
    assert main([str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("# Title\n\n<!-- bench:begin -->\n| Model") and text.endswith("End.\n")
    assert "old" not in text and "A CPU" in text
    assert main([str(readme), "--check"]) == 0


def test_report_refuses_what_it_cannot_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "missing.md")]) == 2
    readme = tmp_path / "README.md"
    readme.write_text(README)
    assert main([str(readme)]) == 1
    assert "holds no results" in capsys.readouterr().err
    for text in ("", "<!-- bench:end --><!-- bench:begin -->", README + README):
        with pytest.raises(BadInput, match="once each"):
            rewritten(text, "")


def test_a_file_that_is_not_rows_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(BadInput, match="line 1 is not a benchmark row"):
        save_row(row(), path)
    assert path.read_text() == '{"a": 1}\n'
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="cannot read"):
        read_rows(path)
    with pytest.raises(LddganError, match="holds no results"):
        read_results(tmp_path / "none")


def test_facts_of_this_machine() -> None:
    peak = peak_memory_mib()
    assert peak is None or 10 < peak < 1e6
    head = commit()
    assert head is None or len(head.removesuffix("+dirty")) == 40


def test_the_commit_of_a_copy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for named in ("8726293", "c" * 40 + "+dirty"):
        monkeypatch.setenv("LDDGAN_COMMIT", named)
        assert commit() == named
    for named in ("", "main", "C" * 40):
        monkeypatch.setenv("LDDGAN_COMMIT", named)
        with pytest.raises(BadInput, match=f"the commit is '{named}', and must be a hash of git"):
            commit()


def test_versions_name_the_build_of_torch() -> None:
    import torch

    assert versions()["torch"] == torch.__version__ and "python" in versions()
