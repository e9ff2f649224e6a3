"""Listening: the socket, slow and broken clients, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from types import FrameType
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from engine.serving.app import Service
from lddgan.errors import LddganError
from lddgan.progress import to_stderr

HEADER_BYTES: Final = 16_384
HEADER_SECONDS: Final = 10.0  # for a request's headers, from the connection or the last answer
BACKLOG: Final = 1024
TICK_SECONDS: Final = 0.02


class Protocol(H11Protocol):
    """HTTP/1.1 of h11; a connection whose next request does not come whole in time is closed."""

    waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._met()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._met()
        super().connection_lost(exc)

    def _expect(self) -> None:
        self._met()
        self.waiting = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _met(self) -> None:
        if self.waiting is not None:
            self.waiting.cancel()
            self.waiting = None


class Server(uvicorn.Server):
    """Ends in order: the first signal stops new work, the second one ends the process."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self.ending = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.ending:
            os._exit(128 + sig)
        self.ending = True
        self.service.gate.is_draining = True

    async def on_tick(self, counter: int) -> bool:
        if not self.ending:
            return await super().on_tick(counter)
        return await self.drained()

    async def drained(self) -> bool:
        """Wait for what is in flight, for at most --drain seconds."""
        gate, limits = self.service.gate, self.service.limits
        until = time.monotonic() + limits.drain
        to_stderr(f"ending: {gate.active} requests are in flight")
        while gate.active and time.monotonic() < until:
            await asyncio.sleep(TICK_SECONDS)
        if gate.active:
            to_stderr(f"{gate.active} requests were cut off after {limits.drain:g} s")
            self.force_exit = True
        return True


def listen(host: str, port: int) -> socket.socket:
    """Open the socket. Raises LddganError if the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        opened = socket.create_server((host, port), family=family, backlog=BACKLOG)
        # asyncio sets it on sockets that name their protocol; without it a body waits 40 ms
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return opened
    except OSError as error:
        why = str(error.strerror).partition(" (")[0]  # the rest names the address again
        told = f"cannot listen on {host} port {port}: {why}; give another --host or --port"
        raise LddganError(told) from error


def run(service: Service, socket: socket.socket) -> None:
    """Answer requests until a signal ends it."""
    asyncio.run(_run(service, socket))


async def _run(service: Service, socket: socket.socket) -> None:
    config = uvicorn.Config(
        service.gate,
        http=Protocol,
        ws="none",
        proxy_headers=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        h11_max_incomplete_event_size=HEADER_BYTES,
    )
    for model in service.models.values():
        model.batcher.start()
    await Server(config, service).serve(sockets=[socket])
