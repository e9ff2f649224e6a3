"""A sampling that was stopped goes on, and ends with the bytes of one that was not."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import sampling
from engine.graphed import captured_size
from engine.kept_images import Origin
from engine.sampler import Sampler
from engine.sampling import Sampling, find_sampling, write_sampling
from lddgan.errors import BadInput, LddganError, Stopped
from lddgan.pictures import Batch, parts_folder
from tests.conftest import TINY
from tests.engine.test_sampler import Scripted

FIRST, NUM = 99_998, 11


class BatchBound(Scripted):
    """Its images differ with the number of images that are computed at once."""

    def decode(self, x_0: Any) -> Any:
        images = super().decode(x_0)
        images[:, 0, 0] = len(x_0)
        return images


class Capturing(BatchBound):
    """Runs a batch with what it captured for another size, if that is not much larger."""

    captures, device = True, "cpu"

    def __init__(self) -> None:
        super().__init__()
        self.captured: dict[int, None] = {}

    def run(self, program: Any, preset: Any, seed: int, first: int, count: int) -> Any:
        size = captured_size(self.captured, count, 1)
        self.captured[size] = None
        made = super().run(program, preset, seed, first, size)
        return made._replace(x_0=made.x_0[:count], image=made.image[:count])

    draws_on_host = False


def opened(kind: type[Scripted] = BatchBound, chunk: int = 3) -> tuple[Sampler, Scripted]:
    backend = kind()
    return Sampler(backend, TINY, random_weights=True, chunk=chunk), backend


def asked(sampler: Sampler, **other: Any) -> Sampling:
    made = Origin.of(sampler, "0" * 64, 5, FIRST).model_dump()
    made |= {"num": NUM, "batch": 4, "chunk": sampler.chunk, "bundle": None}
    return Sampling(**(made | other))


def sample(out: Path, kind: type[Scripted] = BatchBound, *, resume: bool = False) -> list[int]:
    """Sample, as the command does; returns the sizes that were computed at once."""
    sampler, backend = opened(kind)
    begun = find_sampling(out, resume)
    write_sampling(out, sampler, asked(sampler), begun)
    return [size for what, size, _ in backend.calls if what == "decode"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the next sampling end with an error when the second batch is asked for."""
    make = sampling.make

    def stop(error: BaseException) -> None:
        def broken(*args: Any) -> Iterator[Batch]:
            yield next(iter(make(*args)))
            monkeypatch.setattr(sampling, "make", make)
            raise error

        monkeypatch.setattr(sampling, "make", broken)

    return stop


@pytest.mark.parametrize("name", ["x.npz", "v0.1"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), LddganError("the disk is full")])
def test_stopped_sampling_ends_with_the_same_bytes(
    tmp_path: Path,
    stopping: Any,
    name: str,
    error: BaseException,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["lddgan", "sample", "--out", str(tmp_path / name)])
    whole, out = tmp_path / "whole" / name, tmp_path / name
    whole.parent.mkdir()
    assert sample(whole) == [2, 2, 2, 2, 3]  # of batches of 4, 4 and 3
    stopping(error)
    with pytest.raises(Stopped if isinstance(error, KeyboardInterrupt) else LddganError) as caught:
        sample(out)
    if isinstance(error, KeyboardInterrupt):
        go_on = f"`lddgan sample --out {out} --resume`"
        assert str(caught.value) == f"stopped: 4 of 11 images are there; go on with {go_on}"
    with pytest.raises(
        BadInput, match="is unfinished, with 4 of 11 images of seed 5; go on with its"
    ):
        find_sampling(out, resume=False)
    assert sample(out, resume=True) == [2, 2, 3]
    if name == "x.npz":
        assert out.read_bytes() == whole.read_bytes() and np.load(out)["first"] == FIRST
        assert Origin.model_validate_json(str(np.load(out)["origin"])).seed == 5
        assert not parts_folder(out).exists()
    else:
        assert files(out) == files(whole) and len(files(out)) == NUM + 1  # and how they are made


def test_what_is_missing_is_made_in_its_batch(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    sample(whole)
    shutil.copytree(whole, out)
    (out / f"{FIRST + 5}.png").unlink()
    cut = out / f"{FIRST + 9}.png"
    cut.write_bytes(cut.read_bytes()[:-9])  # it opens, and is damaged
    assert sample(out, resume=True) == [2, 2, 3]
    assert files(out) == files(whole)
    assert sample(out, resume=True) == []


def test_first_graph_is_captured_for_what_is_missing(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert sample(whole, Capturing) == [2, 2, 2, 2, 3]
    shutil.copytree(whole, out)
    for path in sorted(out.glob("*.png"))[-3:]:
        path.unlink()
    assert sample(out, Capturing, resume=True) == [2, 2, 3]
    assert files(out) == files(whole)


@pytest.mark.parametrize(
    ("field", "value"),
    [("num", 12), ("seed", 6), ("batch", None), ("where", "elsewhere"), ("bundle", "1" * 64)],
)
def test_another_sampling_is_not_gone_on_with(tmp_path: Path, field: str, value: Any) -> None:
    out = tmp_path / "out"
    sample(out)
    before, (sampler, backend) = files(out), opened()
    other = asked(sampler, **{field: value})
    with pytest.raises(BadInput, match=rf"was begun with {field} \S+ \(now {value}\); repeat"):
        write_sampling(out, sampler, other, find_sampling(out, resume=True))
    assert files(out) == before and backend.calls == []


def test_other_files_and_nothing_are_not_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for path in (out, tmp_path / "x.npz", tmp_path / "grid.png"):
        with pytest.raises(BadInput, match=r"no sampling .* was begun at .*; drop --resume"):
            find_sampling(path, resume=True)
    sample(out)
    with pytest.raises(BadInput, match=r"holds other files \(099998\.png\)"):
        find_sampling(out, resume=False)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"holds other files \(notes\.txt\)"):
        find_sampling(out, resume=True)
