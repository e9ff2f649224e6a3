"""Rows that nobody measured."""

from __future__ import annotations

from typing import Any

from bench.machine import Gpu, Machine
from bench.roofline import Ceilings
from bench.row import Row
from bench.timing import Summary, Trial, summarise
from lddgan.presets import get_preset

CPU = Machine(cpu="A CPU", cores=2, load=0.1, gpu=None)
H200 = Gpu(
    name="NVIDIA H200",
    driver="580.1",
    sm_clock="345 MHz",
    sm_clock_max="1980 MHz",
    power_draw="80.00 W",
    power_limit="700.00 W",
    temperature="31",
)
CEILINGS = Ceilings(
    matmul_tflops=700.0,
    convolution_tflops=650.0,
    convolution="8x256x256x256",
    copy_gb_per_second=4100.0,
)
PAPERS_SETTINGS = {
    "cuda.matmul.allow_tf32": False,
    "cudnn.allow_tf32": True,
    "cudnn.benchmark": False,
}


def every_stage(ms: float) -> dict[str, Summary]:
    return {stage: summarise([ms]) for stage in Trial._fields}


def row(engine: str = "ort", whole: float = 2500.0, **changes: Any) -> Row:
    """A row of lsun on a CPU, beside PyTorch that takes 4 s."""
    given: dict[str, Any] = {
        "schema_version": 3,
        "kind": "engine",
        "session": "2025-01-01T00:00:00+00:00",
        "date": "2025-01-01T00:00:00+00:00",
        "commit": None,
        "versions": {},
        "machine": CPU,
        "dataset": "lsun",
        "preset": get_preset("lsun").model_dump(mode="json"),
        "random_weights": True,
        "device": "cpu",
        "batch": 1,
        "seed": 0,
        "trials_asked": 300,
        "trials": 17,
        "engine": engine,
        "precision": "fp32",
        "where": "CPU",
        "chunk": 4,
        "ms": every_stage(whole),
        "baseline_ms": 4000.0,
        "grey_levels": 1,
        "changed": 0.0012,
        "psnr": 77.0,
    }
    return Row(**(given | changes))


def gpu_row() -> Row:
    """TensorRT on a GPU, all that is known of it."""
    return row(
        "trt",
        150.0,
        device="cuda",
        precision="fp16",
        cuda_graph=True,
        machine=CPU.model_copy(update={"gpu": H200}),
        gpu_memory_mib=9000.0,
        facts={"version": "10.16.1", "level": 3},
        verification={"chain_psnr": float("inf")},
        flop={"generator": 30 * 10**12, "decoder": 33 * 10**12},
        least_bytes=14_400_000_000,
        png_ms=812.0,
        torch_settings=PAPERS_SETTINGS,
        ceilings=CEILINGS,
    )
