"""A sampling into a file or folder that may be stopped: what is there of it, and going on."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from engine.kept_images import Origin
from engine.sampler import Sampler
from lddgan.errors import BadInput, Stopped, command, why_invalid
from lddgan.extras import usable_cores
from lddgan.files import LOCK, atomic_write, refuse_used
from lddgan.pictures import Batch, form_of, indices, parts_folder, write_images
from lddgan.progress import Meter

MANIFEST: Final = "sampling.json"  # among the images


class Sampling(Origin):
    """How the images of a folder are made, also those that are not there yet."""

    num: int
    batch: int | None  # as asked for
    chunk: int  # images computed at once, at most
    bundle: str | None  # sha256 of its manifest


def again() -> str:
    """This command, going on."""
    more = () if "--resume" in sys.argv else ("--resume",)
    return command(*sys.argv[1:], *more)


def find_sampling(out: Path, resume: bool) -> Sampling | None:
    """Read how an unfinished sampling into `out` was begun. Returns None if it is to begin.

    Raises BadInput if there is one and not `resume`, or the other way round, or for other files.
    """
    form, folder = form_of(out), parts_folder(out)
    path, ours = folder / MANIFEST, {LOCK}
    begun = None
    if form != "grid" and path.exists():
        try:
            begun = Sampling.model_validate_json(path.read_bytes())
        except ValidationError as error:
            why = why_invalid(error, "the file")
            raise BadInput(f"{path}: {why}; name another --out") from error
        wanted = range(begun.first, begun.first + begun.num)
        there = indices(folder, check=False)
        if resume:
            ours |= {MANIFEST, *(f"{index:06d}.png" for index in wanted)}
        elif form == "array" or not there.issuperset(wanted):
            raise BadInput(
                f"{out} is unfinished, with {len(there):,} of {begun.num:,} images of seed "
                f"{begun.seed}; go on with its command and --resume, or delete {folder}"
            )
    elif resume:
        told = f"no sampling into a folder or an .npz was begun at {out}"
        raise BadInput(f"{told}; drop --resume")
    if form == "folder":
        refuse_used(out, *ours)
    return begun


def write_sampling(out: Path, sampler: Sampler, asked: Sampling, begun: Sampling | None) -> Meter:
    """Make and write the images that are not there yet. Returns what was measured.

    They are made in the batches of one go, so that they are the same to the bit (unless the memory
    was too small for a batch).  Raises BadInput if `begun` is another sampling; Stopped on Ctrl-C.
    """
    form, folder = form_of(out), parts_folder(out)
    there: set[int] = set()
    if begun is not None:
        old, new = begun.model_dump(), asked.model_dump()
        differs = [f"{key} {old[key]} (now {new[key]})" for key in old if old[key] != new[key]]
        if differs:
            told = f"{out} was begun with {', '.join(differs)}"
            raise BadInput(f"{told}; repeat its settings, or name another --out")
        there = indices(folder)
    elif form != "grid":
        if form == "array":
            shutil.rmtree(folder, ignore_errors=True)  # of a process killed when it began
        atomic_write(folder / MANIFEST, asked.model_dump_json(indent=1).encode())
    parts = list(sampler.batches(asked.num, asked.first, asked.batch))
    missing = [part for part in parts if not there.issuperset(part)]
    done = asked.num - sum(map(len, missing))
    # A CPU engine keeps all cores busy itself.
    threads = usable_cores() if sampler.backend.device == "cuda" else 1
    origin = asked.model_dump_json(include=set(Origin.model_fields))
    with Meter("sampling", done, asked.num, None, unit="images") as meter:
        try:
            batches = make(sampler, asked, parts[0], missing)
            write_images(out, batches, meter.advance, origin=origin, threads=threads)
        except KeyboardInterrupt as error:
            if form == "grid":
                raise
            count = len(indices(folder, check=False))
            told = f"stopped: {count:,} of {asked.num:,} images are there"
            raise Stopped(f"{told}; go on with {again()}", signal.SIGINT) from error
    return meter


def make(sampler: Sampler, asked: Sampling, first: range, missing: list[range]) -> Iterator[Batch]:
    """Make the batches `missing`.

    A CUDA graph that is captured for the first batch also makes smaller ones, with other bits than
    their own graph: hence the first is made, if only for that.
    """
    if sampler.backend.captures and missing and missing[0] != first:
        next(sampler.numbered([first], asked.seed, first.stop))
    return sampler.numbered(missing, asked.seed, asked.first + asked.num)
