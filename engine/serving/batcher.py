"""One engine for many requests at once: a bounded queue, batches, one computation per image."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from engine.backend import Images
from engine.sampler import Sampler
from engine.serving.queues import Batch, Job, Queue
from engine.slots import Address, images_of, is_drawn_on_host, noise_of
from lddgan.errors import LddganError

Pixels = NDArray[np.uint8]  # [H,W,3]
Gone = asyncio.Future[None]  # done when whoever asked has left
Seen = Callable[[Batch, float | None], None]  # of a batch, its engine's seconds; None: it failed

FLYING: Final = 2  # batches taken from the queue: one computes, the next one's noise is drawn
REMEMBERED: Final = 32  # batches of which the rate is told
AHEAD: Final = 2  # batches that a request of many images asks for before it is sent one


class Busy(LddganError):
    """The queue is full; `seconds` until it will have been computed."""

    def __init__(self, waiting: int, seconds: int) -> None:
        super().__init__(f"{waiting} images wait already; ask again in {seconds} s")
        self.seconds = seconds


class Late(LddganError):
    """An image was not made before its deadline."""


class Left(LddganError):
    """Whoever asked for an image has gone."""


class Batcher:
    """Makes images by address for the tasks of one event loop.

    A batch starts when it is full, or when the engine is free and has been so, and the first image
    has waited, for `wait` seconds: who has just been answered may ask again.  A lone client's image
    does not wait.  At most `most` images wait, of requests that have `timeout` seconds.  If the
    engine finds too little memory for a batch, `shrunk` is told the size that fits, and the batch
    is computed anew in it.
    """

    def __init__(
        self,
        sampler: Sampler,
        queue: Queue,
        *,
        wait: float,
        most: int,
        timeout: float,
        cache_bytes: int,
        seen: Seen,
        shrunk: Callable[[int], None],
    ) -> None:
        self.sampler, self.queue = sampler, queue
        self.wait, self.most, self.timeout = wait, most, timeout
        self.seen, self.shrunk = seen, shrunk
        self.cache = Cache(cache_bytes)
        self.jobs: dict[Address, Job] = {}  # that wait or are computed
        self.door: deque[Gone] = deque()  # who waits for room in the queue
        self.entering = 0  # let in, and not yet in the queue
        self.failures = 0  # batches in a row
        self.flying = 0
        self.freed = 0.0  # when the last batch was done, of time.monotonic
        self.has_company = True  # more than one image was computed or waited then
        self.rates: deque[tuple[int, float]] = deque(maxlen=REMEMBERED)  # images, seconds
        self.changed = asyncio.Event()
        self.tasks: set[asyncio.Task[None]] = set()
        self.drawing = ThreadPoolExecutor(1, thread_name_prefix="noise")
        self.engine = ThreadPoolExecutor(1, thread_name_prefix="engine")

    @property
    def rate(self) -> float | None:
        """Images per second of the engine with full batches, of late. Returns None at first."""
        seconds = sum(seconds for _, seconds in self.rates)
        return sum(images for images, _ in self.rates) / seconds if seconds else None

    def start(self) -> None:
        """Begin to compute, in the running event loop."""
        self._keep(asyncio.create_task(self._dispatch()))

    def close(self) -> None:
        """Stop, and close the engine when it has computed what it has begun."""
        for task in self.tasks:
            task.cancel()
        self.drawing.shutdown()
        self.engine.shutdown()
        self.sampler.close()

    @property
    def capacity(self) -> int:
        """Images that may wait: at most what is made in half the time that a request has."""
        if self.rate is None:
            return self.most
        return max(self.queue.batch, int(min(self.most, self.rate * self.timeout / 2)))

    @property
    def _has_room(self) -> bool:
        if len(self.queue) + self.entering >= self.capacity:
            return False
        return not self.queue.jobs or time.monotonic() - self.queue.oldest < self.timeout / 2

    async def ask(self, address: Address, seconds: float, gone: Gone) -> Job:
        """Queue an image; wait `seconds` for room, first come, first served. Raises Busy, Left."""
        job = self._known(address)
        if job is None:
            await self._turn(seconds, gone)
            job = self._known(address) or self._queued(address)
        return job

    def _known(self, address: Address) -> Job | None:
        """The job of an image that is waited for already, or that was made before."""
        job = self.jobs.get(address)
        found = None if job is not None else self.cache.get(address)
        if found is not None:
            job = Job(address, time.monotonic(), asyncio.get_running_loop().create_future())
            job.image.set_result(found)
        return job

    def _queued(self, address: Address) -> Job:
        job = Job(address, time.monotonic(), asyncio.get_running_loop().create_future())
        self.jobs[address] = job
        self.queue.add(job)
        if not self.flying or (self.flying < FLYING and self.queue.is_full):
            self.changed.set()
        return job

    async def _turn(self, seconds: float, gone: Gone) -> None:
        """Wait until the queue has room."""
        if not self.door and self._has_room:
            return
        turn: Gone = asyncio.get_running_loop().create_future()
        self.door.append(turn)
        first = asyncio.FIRST_COMPLETED
        try:
            await asyncio.wait({turn, gone}, timeout=seconds, return_when=first)
        finally:
            if turn.done():
                self.entering -= 1
            else:
                turn.cancel()
        if gone.done():
            self._open_door()
            raise Left("the client left")
        if turn.cancelled():
            waiting = len(self.queue)
            raise Busy(waiting, math.ceil(waiting / (self.rate or waiting)))

    def _open_door(self) -> None:
        """Let in as many as the queue has room for."""
        while self.door and self._has_room:
            turn = self.door.popleft()
            if not turn.done():  # else it waits no more
                turn.set_result(None)
                self.entering += 1

    async def answer(self, job: Job, seconds: float, gone: Gone) -> Pixels:
        """Wait for an image. A job that nobody waits for any more is dropped before its batch.

        `gone` is done when whoever asked has left.  Raises Late, Left, and what the engine raised.
        """
        job.waiters += 1
        first = asyncio.FIRST_COMPLETED
        try:
            await asyncio.wait({job.image, gone}, timeout=seconds, return_when=first)
        finally:
            self._release(job)
        if job.image.done():
            image: Pixels = job.image.result()
            return image
        if gone.done():
            raise Left("the client left")
        raise Late(f"the image was not made within {seconds:g} s")

    async def images(
        self, addresses: Iterable[Address], seconds: float, gone: Gone
    ) -> AsyncIterator[Pixels]:
        """Make images, in their order, a few batches ahead; each may take `seconds`.

        Raises as `ask` and `answer`.
        """
        ahead: deque[Job] = deque()
        try:
            for address in addresses:
                if len(ahead) >= AHEAD * self.queue.batch:
                    yield await self._next(ahead, seconds, gone)
                job = await self.ask(address, seconds, gone)
                job.waiters += 1
                ahead.append(job)
            while ahead:
                yield await self._next(ahead, seconds, gone)
        finally:
            for job in ahead:
                self._release(job)

    async def _next(self, ahead: deque[Job], seconds: float, gone: Gone) -> Pixels:
        image = await self.answer(ahead[0], seconds, gone)
        self._release(ahead.popleft())
        return image

    def _release(self, job: Job) -> None:
        """One waits less. A job that nobody waits for leaves the queue."""
        job.waiters -= 1
        if job.waiters:
            return
        if job.image.done():
            if not job.image.cancelled():
                job.image.exception()  # has been seen, if there is one
        elif self.queue.jobs.get(job.address) is job:
            self.queue.remove(job)
            del self.jobs[job.address]
            self.changed.set()
            self._open_door()

    async def _dispatch(self) -> None:
        """Start the batches that are due, for ever."""
        while True:
            self.changed.clear()
            waits = None  # seconds until a batch is due; None: not before something changes
            if len(self.queue) and self.flying < FLYING:
                if self.queue.is_full:
                    waits = 0.0
                elif not self.flying:
                    wait = self.wait if self.has_company else 0.0
                    waits = max(self.queue.oldest, self.freed) + wait - time.monotonic()
            if waits is not None and waits <= 0:
                self.flying += 1
                self._keep(asyncio.create_task(self._compute(self.queue.take())))
                self._open_door()
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(waits):
                    await self.changed.wait()

    async def _compute(self, batch: Batch) -> None:
        """Compute a batch and answer its jobs, with the error if there is one."""
        queue = self.queue
        (made,) = await asyncio.gather(self._run(batch), return_exceptions=True)
        self.flying -= 1
        self.freed, self.has_company = time.monotonic(), len(batch.jobs) + len(queue) > 1
        self.changed.set()
        self._open_door()
        if self.sampler.fitting < self.queue.batch:
            self._shrink(self.sampler.fitting)
        if isinstance(made, BaseException):
            self.failures += 1
            self.seen(batch, None)
            self._fail(batch, made)
        elif queue is not self.queue:  # computed in a shape that does not hold any more
            for job in batch.jobs.values():
                self.queue.add(job)
        else:
            self.failures = 0
            for slot in batch.kept:
                self.cache.put(batch.addresses[slot], made[slot].copy())
            for slot, job in batch.jobs.items():
                del self.jobs[job.address]
                job.image.set_result(made[slot])

    async def _run(self, batch: Batch) -> Images:
        loop, sampler, addresses = asyncio.get_running_loop(), self.sampler, batch.addresses
        compute = partial(images_of, sampler, addresses)
        if is_drawn_on_host(sampler, addresses):  # while the engine computes another batch
            noise = await loop.run_in_executor(self.drawing, noise_of, sampler.preset, addresses)
            compute = partial(sampler.run, *noise)
        images, seconds = await loop.run_in_executor(self.engine, timed, compute)
        self.rates.append((len(images), seconds))
        self.seen(batch, seconds)
        return images

    def _fail(self, batch: Batch, error: BaseException) -> None:
        for job in batch.jobs.values():
            del self.jobs[job.address]
            if job.waiters:
                job.image.set_exception(error)
            else:
                job.image.cancel()

    def _shrink(self, fitting: int) -> None:
        """Go on with smaller batches: other images, to the bit."""
        waiting = [*self.queue.jobs.values()]
        self.queue = type(self.queue)(fitting)
        for job in waiting:
            self.queue.add(job)
        self.cache.clear()
        self.shrunk(fitting)

    def _keep(self, task: asyncio.Task[None]) -> None:
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def timed(compute: Callable[[], Images]) -> tuple[Images, float]:
    """Images, and the seconds that they took."""
    start = time.perf_counter()
    return compute(), time.perf_counter() - start


class Cache:
    """The images used last, of at most so many bytes."""

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0
        self.held: OrderedDict[Address, Pixels] = OrderedDict()
        self.hits = 0

    def get(self, address: Address) -> Pixels | None:
        found = self.held.get(address)
        if found is not None:
            self.held.move_to_end(address)
            self.hits += 1
        return found

    def put(self, address: Address, image: Pixels) -> None:
        self.bytes += image.nbytes - getattr(self.held.get(address), "nbytes", 0)
        self.held[address] = image
        while self.bytes > self.most:
            _, oldest = self.held.popitem(last=False)
            self.bytes -= oldest.nbytes

    def clear(self) -> None:
        self.held.clear()
        self.bytes = 0
