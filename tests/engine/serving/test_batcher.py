"""The batcher with an engine that does as it is told."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine.serving.batcher import Batcher, Busy, Late, Left
from engine.serving.queues import Batch, Blocks, FirstCome, Queue, Slots
from engine.slots import Address
from lddgan.errors import LddganError
from lddgan.noise import MAX_INDEX, draw
from lddgan.presets import get_preset

PRESET = get_preset("digits")


class Engine:
    """Makes images [2,2,3] of the first values of x_T; waits, fails or shrinks when told to."""

    preset = PRESET
    backend = SimpleNamespace(draws_on_host=True)

    def __init__(self) -> None:
        self.shapes: list[int] = []
        self.fitting = 64
        self.free = threading.Event()
        self.free.set()
        self.failing = 0

    def run(self, x_T: Any, z: Any, noise: Any) -> Any:
        self.free.wait(20)
        self.shapes.append(len(x_T))
        if self.failing:
            self.failing -= 1
            raise LddganError("NaN")
        return x_T.reshape(len(x_T), -1)[:, :12].copy().view(np.uint8)[:, :12].reshape(-1, 2, 2, 3)

    def close(self) -> None:
        pass


def image_of(address: Address) -> bytes:
    x_T = draw(PRESET, address.index, 1, address.seed).x_T
    return x_T.reshape(-1)[:12].copy().view(np.uint8)[:12].tobytes()


class Bench:
    """An engine, its batcher, and what the batcher told."""

    def __init__(self, queue: Queue, **options: Any) -> None:
        self.engine, self.seen, self.shrunk = Engine(), [], []
        given: dict[str, Any] = {
            "wait": 0.005,
            "most": 64,
            "timeout": 20,
            "cache_bytes": 0,
        } | options
        self.batcher = Batcher(
            self.engine,  # type: ignore[arg-type]
            queue,
            seen=lambda batch, seconds: self.seen.append((batch, seconds)),
            shrunk=self.shrunk.append,
            **given | options,
        )
        self.gone = asyncio.get_running_loop().create_future()
        self.batcher.start()

    async def get(self, address: Address, seconds: float = 20) -> bytes:
        job = await self.batcher.ask(address, seconds, self.gone)
        image = await self.batcher.answer(job, seconds, self.gone)
        return image.tobytes()

    @property
    def batches(self) -> list[Batch]:
        return [batch for batch, _ in self.seen]


def run(work: Callable[[Bench], Awaitable[None]], queue: Queue, **options: Any) -> Bench:
    async def main() -> Bench:
        bench = Bench(queue, **options)
        await work(bench)
        bench.engine.free.set()
        bench.batcher.close()
        return bench

    return asyncio.run(main())


def shuffled(count: int, seed: int) -> list[Address]:
    addresses = [Address(7, index) for index in range(count)]
    random.Random(seed).shuffle(addresses)
    return addresses


@pytest.mark.parametrize("kind", [Slots, Blocks, FirstCome])
def test_every_image_is_its_own_in_any_order(kind: type[Queue]) -> None:
    async def work(bench: Bench) -> None:
        wanted = shuffled(40, 1)
        found = await asyncio.gather(*map(bench.get, wanted))
        assert found == [image_of(one) for one in wanted]

    bench = run(work, kind(8))
    assert set(bench.engine.shapes) == {8}


def test_many_requests_make_the_fewest_batches_and_keep_slots() -> None:
    async def work(bench: Bench) -> None:
        bench.engine.free.clear()
        asked = asyncio.gather(*map(bench.get, shuffled(64, 2)))
        await asyncio.sleep(0)
        bench.engine.free.set()
        await asked

    bench = run(work, Slots(8))
    assert len(bench.batches) == 8
    for batch in bench.batches:
        assert all(job.address.index % 8 == slot for slot, job in batch.jobs.items())


def test_a_lone_image_is_computed_in_the_full_shape_in_its_slot() -> None:
    async def work(bench: Bench) -> None:
        assert await bench.get(Address(3, 13)) == image_of(Address(3, 13))

    bench = run(work, Slots(8))
    assert bench.engine.shapes == [8]
    assert list(bench.batches[0].jobs) == [5]


def test_a_lone_client_does_not_wait_for_others() -> None:
    async def work(bench: Bench) -> None:
        await bench.get(Address(3, 0))
        bench.batcher.wait = 3600
        await bench.get(Address(3, 1))  # the last batch was of one image
        await asyncio.gather(bench.get(Address(3, 2)), bench.get(Address(3, 3)))  # a full one
        with pytest.raises(Late):
            await bench.get(Address(3, 4), seconds=0.05)

    assert len(run(work, Slots(2)).batches) == 3


def test_who_has_just_been_answered_joins_who_waits() -> None:
    async def work(bench: Bench) -> None:
        async def one_after_another(*indices: int) -> None:
            for index in indices:
                await bench.get(Address(3, index))

        bench.engine.free.clear()
        first = asyncio.create_task(one_after_another(0, 1))
        await asyncio.sleep(0.7)  # longer than `wait`: its first image is being computed
        second = asyncio.create_task(one_after_another(2))
        await asyncio.sleep(0.7)
        bench.engine.free.set()
        await asyncio.gather(first, second)

    bench = run(work, Slots(8), wait=0.5)
    assert [len(batch.jobs) for batch in bench.batches] == [1, 2]


def test_blocks_hold_one_seed_and_neighbours_are_kept() -> None:
    async def work(bench: Bench) -> None:
        await bench.get(Address(3, 13))
        assert await bench.get(Address(3, 8)) == image_of(Address(3, 8))

    bench = run(work, Blocks(8), cache_bytes=10_000)
    (batch,) = bench.batches
    assert [one.index for one in batch.addresses] == list(range(8, 16))


def test_the_last_block_ends_where_indices_do() -> None:
    async def work(bench: Bench) -> None:
        last = Address(3, MAX_INDEX)
        assert await bench.get(last) == image_of(last)

    assert run(work, Blocks(5)).engine.shapes == [5]


def test_fast_takes_few_shapes() -> None:
    async def work(bench: Bench) -> None:
        for count in (1, 3, 5, 6):
            await asyncio.gather(*(bench.get(Address(count, index)) for index in range(count)))

    assert set(run(work, FirstCome(6)).engine.shapes) <= {1, 2, 4, 6}


def test_equal_requests_share_one_computation() -> None:
    async def work(bench: Bench) -> None:
        await asyncio.gather(*(bench.get(Address(1, 1)) for _ in range(50)))

    assert len(run(work, Slots(4)).batches) == 1


def test_the_cache_answers_and_stays_within_its_bytes() -> None:
    async def work(bench: Bench) -> None:
        for index in (0, 1, 2, 0, 3, 1):
            assert await bench.get(Address(1, index)) == image_of(Address(1, index))
            assert bench.batcher.cache.bytes <= 36

    bench = run(work, Slots(4), cache_bytes=36)  # three images
    assert bench.batcher.cache.hits == 1  # 0 again; 1 was the one used longest ago when 3 came
    assert len(bench.batches) == 5


def test_a_full_queue_refuses_who_waits_too_long_and_says_when_to_come_again() -> None:
    async def work(bench: Bench) -> None:
        bench.engine.free.clear()
        asked = [asyncio.create_task(bench.get(Address(1, index))) for index in range(10)]
        while len(bench.batcher.queue) < 6:
            await asyncio.sleep(0.01)
        with pytest.raises(Busy, match="6 images wait already") as told:
            await bench.batcher.ask(Address(2, 0), 0.01, bench.gone)
        assert told.value.seconds >= 1
        bench.engine.free.set()
        assert await asyncio.gather(*asked) == [image_of(Address(1, i)) for i in range(10)]

    run(work, Slots(2), most=6)


def test_who_waits_at_the_door_comes_in_first_and_the_queue_stays_within_its_size() -> None:
    async def work(bench: Bench) -> None:
        found: list[int] = []

        async def get(index: int) -> None:
            await bench.get(Address(1, index))
            found.append(index)
            assert len(bench.batcher.queue) <= 4

        asked = [asyncio.create_task(get(index)) for index in range(60)]
        for index in (20, 30, 40):  # of them some leave
            await asyncio.sleep(0)
            asked[index].cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        assert found == [index for index in range(60) if index not in (20, 30, 40)]
        assert (bench.batcher.entering, len(bench.batcher.queue)) == (0, 0)

    run(work, Slots(1), most=4)


def test_no_more_wait_than_are_made_in_half_the_time() -> None:
    async def work(bench: Bench) -> None:
        assert bench.batcher.capacity == 64
        bench.batcher.rates.append((8, 2.0))
        assert bench.batcher.capacity == 8  # 4 images a second, 4 seconds: half of them
        bench.batcher.rates.append((8, 200.0))
        assert bench.batcher.capacity == 4  # a batch
        bench.batcher.timeout = float("inf")
        assert bench.batcher.capacity == 64

    run(work, Slots(4), timeout=4)


def test_late_and_left_work_never_reaches_the_engine() -> None:
    async def work(bench: Bench) -> None:
        bench.engine.free.clear()
        first = [asyncio.create_task(bench.get(Address(1, index))) for index in range(2)]
        await asyncio.sleep(0.05)  # two batches of one have been taken
        with pytest.raises(Late, match=r"within 0\.01 s"):
            await bench.get(Address(1, 2), 0.01)
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        leaving = bench.batcher.answer(bench.batcher._queued(Address(1, 3)), 20, gone)
        task = asyncio.create_task(leaving)
        await asyncio.sleep(0)
        gone.set_result(None)
        with pytest.raises(Left):
            await task
        assert len(bench.batcher.queue) == 0
        bench.engine.free.set()
        await asyncio.gather(*first)
        assert await bench.get(Address(1, 4)) == image_of(Address(1, 4))

    bench = run(work, Slots(1))
    assert [batch.addresses[0].index for batch in bench.batches] == [0, 1, 4]


def test_one_who_leaves_takes_nothing_from_another_who_waits() -> None:
    async def work(bench: Bench) -> None:
        bench.engine.free.clear()
        staying = asyncio.create_task(bench.get(Address(1, 9)))
        await asyncio.sleep(0)
        with pytest.raises(Late):
            await bench.get(Address(1, 9), 0.01)
        bench.engine.free.set()
        assert await staying == image_of(Address(1, 9))

    run(work, Slots(4))


def test_a_failed_batch_is_the_error_of_its_requests_alone() -> None:
    async def work(bench: Bench) -> None:
        bench.engine.failing = 3
        for times in (1, 2, 3):
            with pytest.raises(LddganError, match="NaN"):
                await bench.get(Address(1, 0))
            assert bench.batcher.failures == times
        assert await bench.get(Address(1, 0)) == image_of(Address(1, 0))
        assert bench.batcher.failures == 0

    bench = run(work, Slots(4))
    assert [seconds is None for _, seconds in bench.seen] == [True, True, True, False]


def test_too_little_memory_makes_batches_smaller_and_computes_them_anew() -> None:
    async def work(bench: Bench) -> None:
        real = bench.engine.run

        def halving(x_T: Any, z: Any, noise: Any) -> Any:
            bench.engine.fitting = 4
            return real(x_T, z, noise)

        bench.engine.run = halving  # type: ignore[method-assign]
        wanted = shuffled(24, 3)
        found = await asyncio.gather(*map(bench.get, wanted))
        assert found == [image_of(one) for one in wanted]

    bench = run(work, Slots(8))
    assert bench.shrunk == [4]
    assert bench.engine.shapes[-6:] == [4] * 6
    assert bench.batcher.queue.batch == 4


def test_a_long_request_waits_for_room_and_stops_when_it_is_closed() -> None:
    def addresses() -> Iterator[Address]:
        for index in range(1000):
            asked.append(index)
            yield Address(1, index)

    asked: list[int] = []

    async def work(bench: Bench) -> None:
        images = bench.batcher.images(addresses(), 20, bench.gone)
        first = [await anext(images) for _ in range(20)]
        await images.aclose()  # type: ignore[attr-defined]
        assert [one.tobytes() for one in first] == [image_of(Address(1, i)) for i in range(20)]
        assert len(asked) < 40
        await asyncio.sleep(0.02)
        assert len(bench.batcher.queue) == 0

    run(work, Slots(4), most=4)
