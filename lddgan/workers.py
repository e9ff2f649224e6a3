"""Processes that read ahead for this one.

They leave Ctrl-C to it and end with it, and it does not wait for one that has died.
"""

from __future__ import annotations

import pickle
import signal
import sys
from collections.abc import Callable, Generator
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Final, TypeVar

from lddgan.errors import LddganError
from lddgan.memory import memory_named
from lddgan.signals import ENDING, hold_signals

T = TypeVar("T")
Worker = tuple[BaseProcess, Connection]

FAILED: Final = "reading the images failed"


def read_ahead(read: Callable[[int], T], numbers: range, processes: int) -> Generator[T]:
    """Yield `read(number)` in the order of `numbers`; each process reads one ahead (0: this one).

    Close the generator to end the processes.  Raises the LddganErrors of `read`; LddganError if the
    disk fails, memory runs out or a process dies.
    """
    workers: list[Worker] = []
    try:
        with hold_signals():
            for place in range(processes):
                workers.append(start_worker(read, numbers[place::processes], place))
        for place, number in enumerate(numbers):
            found = received(*workers[place % processes]) if workers else attempt(read, number)
            if isinstance(found, LddganError):
                raise found
            yield found
    finally:
        for process, _ in workers:
            process.kill()
        for process, pipe in workers:
            process.join()
            pipe.close()


def start_worker(read: Callable[[int], T], numbers: range, place: int) -> Worker:
    """Start a process that sends `read(number)` for each number through a pipe, one ahead.

    A pipe and not one of PyTorch's queues: it takes no shared memory, of which a container has
    little, and it breaks when its process dies, in the middle of a result too.
    """
    context = get_context()
    pipe, end = context.Pipe(duplex=False)
    process = context.Process(
        target=work, args=(read, numbers, pipe, end), name=f"reader-{place}", daemon=True
    )
    process.start()
    end.close()
    return process, pipe


def work(read: Callable[[int], T], numbers: range, pipe: Connection, end: Connection) -> None:
    """Read in a process of `start_worker`, for as long as somebody takes it."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    pipe.close()  # else sending would wait for this process itself
    if "torch" in sys.modules:  # threads do not survive a fork
        sys.modules["torch"].set_num_threads(1)
    with suppress(BrokenPipeError):
        for number in numbers:
            end.send_bytes(pickle.dumps(attempt(read, number), pickle.HIGHEST_PROTOCOL))


def attempt(read: Callable[[int], T], number: int) -> T | LddganError:
    """What `read` returns, or its error: raised in a worker it would be a traceback."""
    try:
        with memory_named(f"{FAILED}: {{}} has too little memory; use fewer --workers"):
            return read(number)
    except LddganError as error:
        return error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return LddganError(f"{FAILED}: {where}{error.strerror}")


def received(process: BaseProcess, pipe: Connection) -> Any:
    """Take what a worker has sent. Raises LddganError if it is dead."""
    try:
        return pickle.loads(pipe.recv_bytes())
    except (EOFError, OSError):
        process.join()
    code = process.exitcode or 0
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    remedy = "; if memory is short, use fewer --workers" if code == -9 else ""
    raise LddganError(f"{FAILED}: a worker process {how}{remedy}")
