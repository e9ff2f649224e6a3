"""The plans of a bundle on disk: found by everything that makes them valid, checked before use.

<bundle>/engines/<readable name>-<digest of the key>/
    generator.plan  decoder.plan  plan.json         published together, whole or not at all
    verification.json  tuning.json                  added later; of these plans alone
<bundle>/engines/timing-<library>-<GPU>.cache       what the builder measured
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Literal, TypeVar

from pydantic import ValidationError

from engine.backends.trt.build import BuildOptions, build_graph
from engine.backends.trt.key import GpuIdentity, PlanKey, Which, plan_key
from engine.backends.trt.library import Library
from engine.backends.trt.progress import DONE
from engine.backends.trt.timing_cache import read_timing_cache, save_timing_cache
from engine.tuning import Tuning
from engine.verification import Verification
from export.bundle import Bundle, FileEntry, store_folder
from export.graphs import graph_specs
from lddgan.errors import LddganError, why_invalid
from lddgan.files import (
    atomic_folder,
    atomic_write,
    in_turn,
    sha256_of_bytes,
    sha256_of_file,
    sweep,
)
from lddgan.frozen import Frozen
from lddgan.progress import Log, Meter, to_stderr

SCHEMA: Final = 1
RECORD = "plan.json"
VERIFICATION = "verification.json"
TUNING = "tuning.json"
SUFFIX = ".plan"

Sized = TypeVar("Sized", "PlanKey", BuildOptions)


class PlanRecord(Frozen):
    """What `plan.json` promises."""

    schema_version: Literal[1]
    key: PlanKey
    plans: dict[Which, FileEntry]
    seconds: dict[Which, float]  # that each build took


class Stamped(Frozen):
    """A verification of two plans, and their sha256."""

    plans: dict[Which, str]
    content: Verification


class PlanSet:
    """The plans of both graphs, checked, in one folder of the store."""

    def __init__(self, folder: Path, record: PlanRecord, log: Log) -> None:
        self.folder, self.record, self.log = folder, record, log
        self.tuning = Tuning(folder / TUNING, record.key.digest, log)

    @property
    def key(self) -> PlanKey:
        return self.record.key

    def read(self, which: str) -> bytes:
        """Read the plan of a graph. Raises LddganError if it changed since it was checked."""
        path = self.folder / f"{which}{SUFFIX}"
        try:
            content = path.read_bytes()
        except OSError as error:
            raise LddganError(f"cannot read {path}: {error.strerror}; run it again") from error
        if sha256_of_bytes(content) != self.digests[which]:
            raise LddganError(f"{path} changed since it was checked; run it again")
        return content

    def verification(self) -> Verification | None:
        """The stored verification of these plans. Returns None if there is no valid one."""
        path = self.folder / VERIFICATION
        try:
            stamped = Stamped.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            self.log(f"{path} is left aside: {reason(error)}")
            return None
        if dict(stamped.plans) != self.digests:
            self.log(f"{path} is left aside: it is of other plans")
            return None
        return stamped.content

    def save_verification(self, found: Verification) -> None:
        """Keep a verification. Logs the reason if the store cannot be written."""
        stamped = Stamped.model_validate({"plans": self.digests, "content": found})
        try:
            atomic_write(self.folder / VERIFICATION, stamped.model_dump_json(indent=1).encode())
        except LddganError as error:
            self.log(f"the verification is not kept: {error}")

    @property
    def digests(self) -> dict[str, str]:
        return {which: entry.sha256 for which, entry in self.record.plans.items()}


def reason(error: OSError | ValidationError) -> str:
    """Why a file was not taken, in a few words."""
    if isinstance(error, OSError):
        return str(error.strerror)
    return why_invalid(error, "the file")


# ---- finding ----


def find(folder: Path, key: PlanKey, log: Log) -> PlanSet | None:
    """Check the plans of `key`: record, key, sizes and sha256.

    Logs the reason and returns None if they are broken; returns None if there are none.
    """
    place = folder / key.folder_name
    record = read_record(place, log) if place.is_dir() else None
    if record is None:
        return None
    broken = "its key is another" if record.key != key else damage(place, record)
    if broken is not None:
        log(f"{place} is left aside: {broken}")
        return None
    return PlanSet(place, record, log)


def choose(folder: Path, key: PlanKey, batches: Sequence[int | None], log: Log) -> PlanSet | None:
    """Find the first of `best_first` that differs from `key` in size only and is valid.

    Logs what is broken. Returns None if there is none.
    """
    known = [record.key for record in records(folder, log)]
    same = sorted(filter(key.differs_only_in_size, known), key=lambda other: other != key)
    candidates = (find(folder, other, log) for other in best_first(same, batches))
    return next((plans for plans in candidates if plans is not None), None)


def options_before(
    folder: Path, key: PlanKey, batches: Sequence[int | None]
) -> BuildOptions | None:
    """Options of the first of `best_first` with this engine and precision.

    Its plans may be broken or made elsewhere. Returns None if there is none whose record is valid.
    """
    known = [
        BuildOptions(precision=other.precision, profile=other.profile, level=other.level)
        for other in (record.key for record in records(folder, lambda _: None))
        if (other.engine, other.precision) == (key.engine, key.precision)
    ]
    return next(iter(best_first(known, batches)), None)


def best_first(known: Iterable[Sized], batches: Sequence[int | None]) -> list[Sized]:
    """Sort those that take one of `batches` (None: any).

    In order: the first of `batches` that they take, how near they are tuned to it, their level.
    """
    ranked = []
    for one in known:
        taken = [n for n, b in enumerate(batches) if b is None or one.profile.holds(b)]
        if taken:
            batch = batches[taken[0]] or one.profile.opt
            ranked.append(((taken[0], abs(one.profile.opt - batch), -one.level), one))
    return [one for _, one in sorted(ranked, key=lambda pair: pair[0])]


def places(folder: Path) -> list[Path]:
    """List the folders of the store that have their final name."""
    return sorted(folder.glob("[!.]*/"))


def records(folder: Path, log: Log) -> Iterator[PlanRecord]:
    """Read the records that parse and lie in the folder of their key. Logs the others."""
    for place in places(folder):
        record = read_record(place, log)
        if record is not None and record.key.folder_name == place.name:
            yield record
        elif record is not None:
            log(f"{place} is left aside: its key is another")


def read_record(place: Path, log: Log) -> PlanRecord | None:
    """Parse plan.json in `place`. Logs the reason and returns None if it is invalid."""
    try:
        return PlanRecord.model_validate_json((place / RECORD).read_bytes())
    except (OSError, ValidationError) as error:
        log(f"{place} is left aside, its {RECORD} cannot be used: {reason(error)}")
        return None


def damage(place: Path, record: PlanRecord) -> str | None:
    """What is wrong with the plans that `record` lists. Returns None if nothing is."""
    if set(record.plans) != set(record.key.graphs):
        return f"it lists {', '.join(record.plans) or 'no plans'}"
    for which, entry in record.plans.items():
        path = place / f"{which}{SUFFIX}"
        try:
            size = path.stat().st_size
            if size != entry.bytes:
                return f"{path.name} has {size:,} bytes, not {entry.bytes:,}"
            if sha256_of_file(path) != entry.sha256:
                return f"{path.name} is not the plan that was built (sha256 differs)"
        except OSError as error:
            return f"{path.name}: {error.strerror}"
    return None


# ---- building ----


def ensure(
    bundle: Bundle,
    library: Library,
    gpu: GpuIdentity | None,
    options: BuildOptions,
    *,
    log: Log = to_stderr,
    rebuild: bool = False,
    looked: bool = False,
    workspace: int | None = None,
) -> PlanSet:
    """Find the plans of a bundle, or build both graphs and publish them together.

    One process builds a plan, others wait for it. A build that fails leaves what was there
    untouched. `looked`: the caller has already searched and found nothing. Raises BadInput,
    OutOfMemory, LddganError, and KeyboardInterrupt after Ctrl-C.
    """
    folder, key = store_folder(bundle), plan_key(bundle, library, gpu, options)
    found = None if rebuild or looked else find(folder, key, log)
    if found is not None:
        return found
    with in_turn(folder / key.folder_name, log):
        sweep(folder, RECORD, held=key.folder_name)
        found = None if rebuild else find(folder, key, lambda _: None)
        if found is not None:
            return PlanSet(found.folder, found.record, log)
        return build(bundle, library, key, options, folder, log, workspace)


def build(
    bundle: Bundle,
    library: Library,
    key: PlanKey,
    options: BuildOptions,
    folder: Path,
    log: Log,
    workspace: int | None,
) -> PlanSet:
    """Build both graphs into a temporary folder and publish it. The lock of `key` is held."""
    plans, seconds = {}, {}
    timing = folder / f"timing-{key.machine}.cache"
    with atomic_folder(folder / key.folder_name) as temporary:
        for which, spec in graph_specs(bundle.preset).items():
            path, asked = bundle.graph(which, options.precision), options
            if which == "decoder" and not bundle.preset.autoencoder.learned:
                # a codec without layers stays in float32 in every graph (export.fp16.to_half)
                asked = options.model_copy(update={"precision": "fp32"})
            with Meter(f"building the {which}", 0, DONE, log, unit="%") as meter:
                built = build_graph(
                    library,
                    path,
                    spec,
                    asked,
                    timing_cache=read_timing_cache(timing, log),
                    workspace=workspace,
                    progress=meter.follow,
                )
            try:
                save_timing_cache(timing, built.timing_cache)
            except LddganError as error:
                log(f"the timing cache is not kept: {error}")
            atomic_write(temporary / f"{which}{SUFFIX}", built.plan)
            plans[which] = {"sha256": sha256_of_bytes(built.plan), "bytes": len(built.plan)}
            seconds[which] = built.seconds
        record = PlanRecord.model_validate(
            {"schema_version": SCHEMA, "key": key, "plans": plans, "seconds": seconds}
        )
        atomic_write(temporary / RECORD, record.model_dump_json(indent=1).encode())
    return PlanSet(folder / key.folder_name, record, log)
