"""Which of the images that are waited for are computed together, and in which slots."""

from __future__ import annotations

from abc import ABC, abstractmethod
from asyncio import Future
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from engine.slots import Address, filled
from lddgan.noise import MAX_INDEX


@dataclass(eq=False, slots=True)
class Job:
    """An image that somebody waits for: equal requests share it."""

    address: Address
    since: float  # when it was asked for first, of time.monotonic
    image: Future[Any]  # uint8 [H,W,3]
    waiters: int = 0


class Batch(NamedTuple):
    """What is computed at once."""

    addresses: list[Address]  # of each slot
    jobs: dict[int, Job]  # by slot
    kept: Iterable[int]  # slots whose images are those of their addresses


class Queue(ABC):
    """Jobs in the order in which they came, for an engine that computes `batch` images at once."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.jobs: dict[Address, Job] = {}

    def __len__(self) -> int:
        return len(self.jobs)

    @property
    def oldest(self) -> float:
        """When the first of them was asked for."""
        return next(iter(self.jobs.values())).since

    def add(self, job: Job) -> None:
        self.jobs[job.address] = job

    def remove(self, job: Job) -> None:
        del self.jobs[job.address]

    @property
    @abstractmethod
    def is_full(self) -> bool:
        """Whether waiting for more gains nothing."""

    @abstractmethod
    def take(self) -> Batch:
        """Remove the jobs of the next batch."""


class Slots(Queue):
    """Image i in slot i mod B, whatever is beside it."""

    def __init__(self, batch: int) -> None:
        super().__init__(batch)
        self.waiting: list[dict[Address, Job]] = [{} for _ in range(batch)]

    def add(self, job: Job) -> None:
        super().add(job)
        self.waiting[job.address.index % self.batch][job.address] = job

    def remove(self, job: Job) -> None:
        super().remove(job)
        del self.waiting[job.address.index % self.batch][job.address]

    @property
    def is_full(self) -> bool:
        return all(self.waiting)

    def take(self) -> Batch:
        jobs = {
            slot: next(iter(waiting.values()))
            for slot, waiting in enumerate(self.waiting)
            if waiting
        }
        for job in jobs.values():
            self.remove(job)
        here = [jobs[slot].address if slot in jobs else None for slot in range(self.batch)]
        return Batch(filled(here), jobs, jobs.keys())


class Blocks(Queue):
    """Images kB..kB+B-1 of one seed together, for an engine whose images depend on neighbours."""

    def start_of(self, address: Address) -> Address:
        return replace(address, index=address.index - address.index % self.batch)

    @property
    def is_full(self) -> bool:
        return bool(self.jobs)  # a block is computed whole, whoever waits for how much of it

    def take(self) -> Batch:
        start = self.start_of(next(iter(self.jobs)))
        slots = range(min(self.batch, MAX_INDEX + 1 - start.index))
        block = [replace(start, index=start.index + slot) for slot in slots]
        jobs = {slot: self.jobs[one] for slot, one in enumerate(block) if one in self.jobs}
        for job in jobs.values():
            self.remove(job)
        return Batch(block + block[:1] * (self.batch - len(block)), jobs, slots)


class FirstCome(Queue):
    """As many as there are, up to B, in one of few shapes: a power of two, or B."""

    @property
    def is_full(self) -> bool:
        return len(self.jobs) >= self.batch

    def take(self) -> Batch:
        jobs = dict(enumerate([*self.jobs.values()][: self.batch]))
        for job in jobs.values():
            self.remove(job)
        addresses = [job.address for job in jobs.values()]
        shape = min(self.batch, 1 << (len(jobs) - 1).bit_length())
        return Batch(addresses + addresses[:1] * (shape - len(jobs)), jobs, jobs.keys())
