"""Rows of `lddgan bench --train`: JSON lines under bench/results/training/.

They lie in a folder of their own because every .jsonl file right under bench/results/ holds rows of
bench/row.py, or ladders.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, TypeAdapter

from bench.machine import Gpu, Machine
from bench.roofline import Device
from bench.row import RESULTS, read_lines, save_lines
from bench.timing import Summary
from lddgan.frozen import Frozen
from lddgan.preset import Preset

FOLDER: Final = RESULTS / "training"

StageName = Literal["generator", "autoencoder"]


class Variant(Frozen):
    """How the networks are run, by the switches of `lddgan train`."""

    name: str
    bf16: bool = False
    channels_last: bool = False
    compile: bool = False


class Job(Frozen):
    """What one process measures."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    preset: Preset  # with the batches to be measured
    stage: StageName
    variant: Variant
    device: Device
    trials: int  # at most
    max_seconds: float  # of the steps, and of the encoding; one trial of each is always made


class Timed(Frozen):
    """One kind of work."""

    trials: int
    ms: Summary


class Measured(Frozen):
    """What one process measured.

    Memory is what torch allocated at most on a GPU, and on a CPU the process's peak resident
    memory, interpreter and libraries included; None if the system does not say.
    """

    plain: Timed | None  # the autoencoder's step, or D's and G's without R1 if there are any
    with_r1: Timed | None  # D's and G's step with R1
    encode: Timed | None  # images to what latents are drawn from; None of the autoencoder's stage
    peak_memory_mib: float | None  # of the steps
    peak_encoding_mib: float | None  # of the steps and the encoding
    threads: int  # of torch on the CPU
    gpu: Gpu | None  # right after the steps


class Found(Frozen):
    """What follows from a `Measured`; `encoded` is with the encoding of the images."""

    measured: Measured
    step_ms: float  # `mean_step`
    images_per_second: float
    ratio: float  # the baseline's step_ms / step_ms
    encoded_ms: float | None
    encoded_images_per_second: float | None
    encoded_ratio: float | None


class Result(Frozen):
    """One variant: what was found, or why it did not run."""

    variant: Variant
    found: Found | None
    why_not: str | None


class TrainingRow(Frozen):
    """One stage of one preset, in every variant; the first of them, eager fp32, is the baseline."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    kind: Literal["training-steps"] = "training-steps"
    schema_version: Literal[1] = 1
    date: str  # UTC, ISO 8601
    commit: str | None
    dataset: str  # the preset's name
    preset: dict[str, Any]  # with its own batches
    stage: StageName
    device: Device
    batch: int
    training_batch: int  # the preset's
    r1_every: int | None  # None of the autoencoder's stage
    trials_asked: int
    max_seconds: float  # limit on the trials of each variant
    results: tuple[Result, ...]
    machine: Machine
    versions: dict[str, str]
    torch_settings: dict[str, bool] | None  # on a GPU: how PyTorch computes fp32
    notes: tuple[str, ...]  # what a reader must know


class PipelineRow(Frozen):
    """The data pipeline of a training alone: images read, decoded, resized and put into batches."""

    kind: Literal["data-pipeline"] = "data-pipeline"
    schema_version: Literal[1] = 1
    date: str  # UTC, ISO 8601
    commit: str | None
    dataset: str
    source: str
    images: int  # in the source
    image_size: int
    batch: int
    workers: int  # processes; 0: the process of the training itself
    read: int  # images that came, in whole batches
    bad: int  # images of the source that others stood in for
    timed: int  # of `read`, those after the workers' first batches
    seconds: float  # that these took
    images_per_second: float
    machine: Machine
    versions: dict[str, str]
    notes: tuple[str, ...]


Row = TrainingRow | PipelineRow
ROWS: TypeAdapter[Row] = TypeAdapter(Annotated[Row, Field(discriminator="kind")])


def mean_step(found: Measured, r1_every: int | None) -> float:
    """Milliseconds of a training step: the medians, each weighted by how often its kind comes."""
    medians = [one.ms.p50 for one in (found.plain, found.with_r1) if one is not None]
    if len(medians) == 1:
        return medians[0]
    if r1_every is None:
        raise ValueError("two kinds of steps, and nothing says how often each comes")
    plain, with_r1 = medians
    return ((r1_every - 1) * plain + with_r1) / r1_every


def training_file(dataset: str, device: Device) -> Path:
    """Where rows of this kind are kept: bench/results/training/lsun-cpu.jsonl"""
    return FOLDER / f"{dataset}-{'gpu' if device == 'cuda' else 'cpu'}.jsonl"


def append_row(row: Row, path: Path) -> Path:
    """Add a row to a .jsonl file. Raises BadInput if the file holds something else."""
    return save_rows([*(read_rows(path) if path.exists() else []), row], path)


def save_rows(rows: Sequence[Row], path: Path) -> Path:
    """Write a .jsonl file of rows, whole or not at all."""
    return save_lines(rows, path)


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, in its order. Raises BadInput naming the line that is not one."""
    return read_lines(path, ROWS, "a row of a training")
