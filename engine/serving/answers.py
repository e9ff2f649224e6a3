"""Reading addresses, and writing answers: headers, errors, streams."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Final, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from engine.serving.batcher import Busy, Gone, Late, Left
from engine.serving.gate import Problem, Receive, Scope, Send
from engine.serving.served import Served
from lddgan.errors import LddganError, OutOfMemory
from lddgan.noise import MAX_INDEX
from lddgan.progress import to_stderr

T = TypeVar("T")

BODY_BYTES: Final = 1 << 20
IMMUTABLE: Final = "max-age=31536000, immutable"
BRIEF: Final = "max-age=60"  # which model a name is may change
NUMBER: Final = r"(0|[1-9][0-9]{0,18})"  # one way to write each: an address is permanent
ONE: Final = re.compile(rf"{NUMBER}\.([a-z]+)")
SPAN: Final = re.compile(rf"{NUMBER}-{NUMBER}\.([a-z]+)")


class Stale(LddganError):
    """A model changed while it made an answer."""


class Stream(Response):
    """An answer that is sent as it is made, until the client goes."""

    def __init__(
        self, parts: AsyncIterator[bytes], gone: Gone, headers: Mapping[str, str], media: str
    ) -> None:
        self.parts, self.gone = parts, gone
        self.status_code, self.media_type, self.background = 200, media, None
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the parts. If one fails, the answer stays incomplete and the connection closes."""
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        part = {"type": "http.response.body", "more_body": True}
        try:
            await send(start)
            async for data in self.parts:
                await send(part | {"body": data})
            await send(part | {"body": b"", "more_body": False})
        except (LddganError, TimeoutError) as error:
            to_stderr(f"{scope['path']}: ended early: {error}")
        finally:
            self.gone.cancel()


@contextmanager
def watched(request: Request) -> Iterator[Gone]:
    """A future that is done when the client has gone."""
    gone = asyncio.ensure_future(left(request))
    try:
        yield gone
    finally:
        gone.cancel()


def headers_of(request: Request, model: Served, suffix: str, for_all: bool) -> dict[str, str]:
    """Headers of an answer that is the same bytes for ever: its address names them.

    `for_all`: no token is asked for, so caches between the service and its clients may keep it.
    """
    _, v1, kind, named, rest = request.scope["path"].split("/", 4)
    pinned = f"{model.name}@{model.digest}"
    path = f"/{v1}/{kind}/{pinned}/{rest}{suffix}"
    is_exact = model.way != "fast"
    age = IMMUTABLE if is_exact and named == pinned else BRIEF
    return {
        "ETag": f'"{path}"' if is_exact else f'W/"{path}"',
        "Cache-Control": f"{'public' if for_all else 'private'}, {age}",
        "Content-Location": path,
    }


def check_digest(model: Served, digest: str) -> None:
    """Raise Stale if a model is no longer the one of `digest`."""
    if model.digest != digest:
        raise Stale(f"{model.name}@{digest} has become {model.name}@{model.digest}")


def number(name: str, text: str) -> int:
    """A number of an address. Raises Problem."""
    if not re.fullmatch(NUMBER, text) or int(text) > MAX_INDEX:
        raise Problem(400, f"{name} is {text[:40]!r}, and must be a number in 0..2^63-1")
    return int(text)


def indices(span: re.Match[str], most: int) -> range:
    """The indices of FIRST-LAST. Raises Problem for none or too many."""
    first, last = number("the first index", span[1]), number("the last index", span[2])
    if not 1 <= last + 1 - first <= most:
        raise Problem(400, f"{first}-{last} is {last + 1 - first} images, and may be 1..{most}")
    return range(first, last + 1)


def check_form(form: str, forms: Mapping[str, str]) -> None:
    if form not in forms:
        raise Problem(400, f".{form[:40]} is none of .{', .'.join(forms)}")


def is_known(request: Request, etag: str) -> bool:
    """Whether the client holds this answer (RFC 9110, If-None-Match, which compares weakly)."""
    given = request.headers.get("if-none-match", "")
    held = {one.strip().removeprefix("W/") for one in given.split(",")}
    return "*" in held or etag.removeprefix("W/") in held


async def body(request: Request) -> bytes:
    """The body of a request. Raises Problem for a large one, Left for half of one."""
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > BODY_BYTES:
                raise Problem(413, f"the body is larger than {BODY_BYTES} bytes")
            parts.append(part)
    except ClientDisconnect as error:
        raise Left("the client left") from error
    return b"".join(parts)


async def left(request: Request) -> None:
    """Return when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def begun(first: T, others: AsyncIterator[T]) -> AsyncIterator[T]:
    yield first
    async for other in others:
        yield other


async def answer_http(request: Request, error: Exception) -> Response:
    status: int = getattr(error, "status_code", 404)
    detail = "there is nothing here" if status == 404 else f"{request.method} is not allowed here"
    return Problem(status, detail, **(getattr(error, "headers", None) or {})).response()


async def answer_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return error.response()


async def answer_failure(request: Request, error: Exception) -> Response:
    """What the batcher and the engine raise, as an answer."""
    if isinstance(error, Busy):
        return Problem(503, str(error), Retry_After=str(error.seconds)).response()
    if isinstance(error, OutOfMemory | Stale):
        return Problem(503, str(error), Retry_After="1").response()
    if isinstance(error, Late):
        return Problem(504, str(error)).response()
    if isinstance(error, Left):
        return Response(status_code=499)
    return Problem(500, str(error)).response()
