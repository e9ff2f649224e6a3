"""What every request passes: the token, the drain, the clock, the counters and the log."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.responses import JSONResponse

from engine.serving.limits import Limits
from engine.serving.metrics import Metrics
from lddgan.progress import to_stderr

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN: Final = ("/", "/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")  # to everybody
DRAIN_SECONDS: Final = 1  # after which a client may find another process
NOSNIFF: Final = (b"x-content-type-options", b"nosniff")
BUFFERED_BYTES: Final = 1 << 16
STALLED_SECONDS: Final = 30.0  # in which a client reads nothing: its connection is closed


class Problem(Exception):
    """An answer that is an error: RFC 9457, application/problem+json."""

    def __init__(self, status: int, detail: str, **headers: str) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def response(self) -> JSONResponse:
        return JSONResponse(
            {"status": self.status, "detail": self.detail, "error": self.detail},
            self.status,
            {"Cache-Control": "no-store", **self.headers},
            "application/problem+json",
        )


class Gate:
    """The service's outermost layer, which counts what is in flight."""

    def __init__(self, app: App, limits: Limits, metrics: Metrics) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self.is_draining = False
        self.active = 0  # requests whose answers are not complete

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        start, code = time.perf_counter(), 499  # as nginx counts clients that left
        headers_sent = False

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal code, headers_sent
            if message["type"] == "http.response.start":
                code, headers_sent = message["status"], True
                message["headers"] = [*message["headers"], NOSNIFF]
            if len(message.get("body", b"")) < BUFFERED_BYTES and not message.get("more_body"):
                await send(message)  # the system takes it at once
                return
            async with asyncio.timeout(STALLED_SECONDS):
                await send(message)

        self.active += 1
        try:
            app = self.refusal(scope) or self.app
            await app(scope, receive, sending)
        except TimeoutError:  # the connection is closed, as its answer is incomplete
            if not headers_sent:
                raise
        finally:
            self.active -= 1
            self.record(scope, code, time.perf_counter() - start)

    def refusal(self, scope: Scope) -> App | None:
        """The answer to a request that may not pass. Returns None for one that may."""
        path: str = scope["path"]
        if path in OPEN:
            return None
        if self.limits.tokens and not has_token(Headers(scope=scope), self.limits.tokens):
            told = "this service asks for a token: Authorization: Bearer TOKEN"
            return Problem(401, told, WWW_Authenticate="Bearer").response()
        if self.is_draining and path != "/metrics":
            return Problem(503, "the service is ending", Retry_After=str(DRAIN_SECONDS)).response()
        return None

    def record(self, scope: Scope, code: int, seconds: float) -> None:
        route = getattr(scope.get("endpoint"), "__name__", "none")
        self.metrics.requests.labels(route, str(code)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        if self.limits.access_log:
            client = (scope.get("client") or ("",))[0]
            line = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "client": client,
                "method": scope["method"],
                "path": scope["path"],
                "code": code,
                "ms": round(1000 * seconds, 2),
            }
            to_stderr(json.dumps(line))


def has_token(headers: Headers, tokens: Sequence[str]) -> bool:
    """Whether a request names one of the tokens; the time it takes does not tell how nearly."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    found = [hmac.compare_digest(given.encode(), token.encode()) for token in tokens]
    return scheme.lower() == "bearer" and any(found)
