"""The service's addresses."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Final, Self, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from engine.backend import Images
from engine.registry import open_engine
from engine.serving.answers import (
    ONE,
    SPAN,
    Stream,
    answer_failure,
    answer_http,
    answer_problem,
    begun,
    body,
    check_digest,
    check_form,
    headers_of,
    indices,
    is_known,
    left,
    number,
    watched,
)
from engine.serving.batcher import Gone, Pixels
from engine.serving.encoding import (
    ARCHIVES,
    PICTURES,
    encoded,
    npy_parts,
    tar_parts,
    zip_parts,
)
from engine.serving.gate import Gate, Problem
from engine.serving.inference import infer_answer, metadata, read_inference
from engine.serving.limits import Limits
from engine.serving.metrics import Metrics
from engine.serving.openapi import document
from engine.serving.page import page_response
from engine.serving.served import Served
from engine.slots import Address
from export.bundle import Bundle
from lddgan import __version__
from lddgan.errors import BadInput, LddganError
from lddgan.extras import usable_cores
from lddgan.names import DeviceName, Precision
from lddgan.pictures import grid

T = TypeVar("T")

GRID_IMAGES: Final = 256  # of one request, at most
ARCHIVE_IMAGES: Final = 10_000
WALK_STEPS: Final = 10_000
DOOR_SECONDS: Final = 1.0  # for room in the queue: refusing at once costs what the engine needs
SMALL_PIXELS: Final = 64 * 64  # an image that is encoded sooner than a thread is woken


class Service:
    """The models, and the answers to what is asked about them."""

    def __init__(self, models: Sequence[Served], limits: Limits, metrics: Metrics) -> None:
        self.models = {model.name: model for model in models}
        self.limits, self.metrics = limits, metrics
        self.encoders = ThreadPoolExecutor(usable_cores(), thread_name_prefix="encoder")
        self.gate = Gate(self._app(), limits, metrics)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.encoders.shutdown()
        for model in self.models.values():
            model.batcher.close()

    def _app(self) -> Starlette:
        of_one, of_model = "/{model}/{seed}/{name}", "/v2/models/{model}"
        routes: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "/": self.page,
            "/healthz": self.health,
            "/readyz": self.ready,
            "/metrics": self.metric,
            "/openapi.json": self.openapi,
            "/v1/models": self.list_models,
            "/v1/models/{model}": self.model,
            f"/v1/images{of_one}": self.images,
            f"/v1/grids{of_one}": self.grid,
            "/v1/mix/{model}/{seed}/{to}/{index}/{name}": self.mix,
            "/v2": self.server_metadata,
            "/v2/health/live": self.health,
            "/v2/health/ready": self.ready,
            of_model: self.model_metadata,
            f"{of_model}/ready": self.model_ready,
            f"{of_model}/versions/{{version}}": self.model_metadata,
            f"{of_model}/versions/{{version}}/ready": self.model_ready,
        }
        posts = {f"{of_model}/infer": self.infer}
        posts[f"{of_model}/versions/{{version}}/infer"] = self.infer
        app = Starlette(
            routes=[Route(path, handler) for path, handler in routes.items()]
            + [Route(path, handler, methods=["POST"]) for path, handler in posts.items()],
            exception_handlers={
                404: answer_http,
                405: answer_http,
                Problem: answer_problem,
                LddganError: answer_failure,
            },
        )
        app.router.redirect_slashes = False  # an address is written in one way
        return app

    # ---- images ----

    async def images(self, request: Request) -> Response:
        """One image, or an archive of several."""
        model, seed = self._asked(request)
        name = request.path_params["name"]
        one, span = ONE.fullmatch(name), SPAN.fullmatch(name)
        if one:
            index, form = number("index", one[1]), one[2]
            check_form(form, PICTURES)
            return await self._picture(request, model, Address(seed, index), form)
        if not span:
            raise Problem(400, f"{name[:40]!r} is neither INDEX.FORM nor FIRST-LAST.FORM")
        form = span[3]
        check_form(form, ARCHIVES)
        wanted = indices(span, ARCHIVE_IMAGES)
        return await self._archive(request, model, seed, wanted, form)

    async def mix(self, request: Request) -> Response:
        """A step of the walk between two seeds."""
        model, seed = self._asked(request)
        to = number("the second seed", request.path_params["to"])
        index = number("index", request.path_params["index"])
        span = SPAN.fullmatch(request.path_params["name"])
        if not span or not 1 <= int(span[2]) <= WALK_STEPS or int(span[1]) > int(span[2]):
            raise Problem(400, f"a step is K-N.FORM, K in 0..N and N in 1..{WALK_STEPS}")
        step, steps, form = int(span[1]), int(span[2]), span[3]
        check_form(form, PICTURES)
        if step == 0 or to == seed:
            picture = Address(seed, index)
        elif step == steps:
            picture = Address(to, index)
        else:
            picture = Address(seed, index, to, step / steps)
        return await self._picture(request, model, picture, form)

    async def grid(self, request: Request) -> Response:
        """Many images in one picture."""
        model, seed = self._asked(request)
        span = SPAN.fullmatch(request.path_params["name"])
        if not span:
            raise Problem(400, "a grid is FIRST-LAST.FORM")
        check_form(span[3], PICTURES)
        wanted = indices(span, GRID_IMAGES)
        asked = request.query_params.get("columns")
        columns = None if asked is None else number("columns", asked)
        if columns is not None and not 1 <= columns <= len(wanted):
            raise Problem(400, f"columns is {columns}, and must be in 1..{len(wanted)}")

        async def made(gone: Gone) -> bytes:
            addresses = [Address(seed, index) for index in wanted]
            images = await self._all(model, addresses, gone)
            return await self._in_pool(lambda: encoded(grid(images, columns), span[3]))

        suffix = "" if columns is None else f"?columns={columns}"
        return await self._answer(request, model, made, PICTURES[span[3]], suffix)

    async def _picture(
        self, request: Request, model: Served, address: Address, form: str
    ) -> Response:
        async def made(gone: Gone) -> bytes:
            seconds = self._seconds(request)
            job = await model.batcher.ask(address, min(seconds, DOOR_SECONDS), gone)
            image = await model.batcher.answer(job, seconds, gone)
            return await self._encoded(image, form)

        return await self._answer(request, model, made, PICTURES[form])

    async def _answer(
        self,
        request: Request,
        model: Served,
        make: Callable[[Gone], Awaitable[bytes]],
        media: str,
        suffix: str = "",
    ) -> Response:
        """What `make` makes, or 304 without making it."""
        digest, headers = model.digest, self._headers(request, model, suffix)
        if is_known(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        with watched(request) as gone:
            made = await make(gone)
        check_digest(model, digest)
        return Response(made, headers=headers, media_type=media)

    async def _archive(
        self, request: Request, model: Served, seed: int, wanted: range, form: str
    ) -> Response:
        """Many images, sent as they are made."""
        headers = self._headers(request, model)
        if is_known(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        name = f"{model.name}-{seed}-{wanted[0]}-{wanted[-1]}.{form}"
        headers["Content-Disposition"] = f'attachment; filename="{name}"'

        def parts(images: AsyncIterator[Pixels]) -> AsyncIterator[bytes]:
            if form == "npy":
                return npy_parts(images, len(wanted))
            of_form = tar_parts if form == "tar" else zip_parts
            return of_form(images, wanted[0], self._encoded)

        gone = asyncio.ensure_future(left(request))
        images = self._stream(model, [Address(seed, index) for index in wanted], gone)
        try:
            first = await anext(images)  # what fails at once has a status of its own
        except LddganError:
            gone.cancel()
            raise
        return Stream(parts(begun(first, images)), gone, headers, ARCHIVES[form])

    async def _stream(
        self, model: Served, addresses: Sequence[Address], gone: Gone
    ) -> AsyncIterator[Pixels]:
        """Images in their order. Raises Problem if the model changes meanwhile."""
        digest = model.digest
        async for image in model.batcher.images(addresses, self.limits.timeout, gone):
            check_digest(model, digest)
            yield image

    async def _all(self, model: Served, addresses: Sequence[Address], gone: Gone) -> Images:
        return np.stack([image async for image in self._stream(model, addresses, gone)])

    async def _encoded(self, image: Pixels, form: str) -> bytes:
        if image.shape[0] * image.shape[1] <= SMALL_PIXELS:
            return encoded(image, form)
        return await self._in_pool(lambda: encoded(image, form))

    async def _in_pool(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.encoders, work)

    def _headers(self, request: Request, model: Served, suffix: str = "") -> dict[str, str]:
        return headers_of(request, model, suffix, for_all=not self.limits.tokens)

    def _seconds(self, request: Request) -> float:
        """How long an image may take: X-Timeout-Ms, if that is less than --timeout."""
        asked = request.headers.get("x-timeout-ms")
        if asked is None:
            return self.limits.timeout
        return min(self.limits.timeout, number("X-Timeout-Ms", asked) / 1000)

    def _asked(self, request: Request) -> tuple[Served, int]:
        """The model and the seed of an address. Raises Problem."""
        given = request.path_params
        return self._model(given["model"]), number("seed", given["seed"])

    def _model(self, named: str) -> Served:
        """The model of NAME or NAME@DIGEST. Raises Problem if it is not served."""
        name, _, digest = named.partition("@")
        model = self.models.get(name)
        if model is None:
            raise Problem(
                404, f"no model {name[:40]!r} here; /v1/models lists {', '.join(self.models)}"
            )
        if digest != model.digest and "@" in named:
            raise Problem(404, f"{name}@{digest[:40]} is not served here; {name}@{model.digest} is")
        return model

    # ---- about the service ----

    async def page(self, request: Request) -> Response:
        """The page to play with."""
        return page_response()

    async def list_models(self, request: Request) -> Response:
        return JSONResponse([model.told() for model in self.models.values()])

    async def model(self, request: Request) -> Response:
        return JSONResponse(self._model(request.path_params["model"]).told())

    async def health(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        why = "the service is ending" if self.gate.is_draining else None
        failed = (model.why_not_ready for model in self.models.values())
        why = why or next((one for one in failed if one is not None), None)
        if why is not None:
            raise Problem(503, why)
        return JSONResponse({"ready": True})

    async def metric(self, request: Request) -> Response:
        media = "text/plain; version=0.0.4; charset=utf-8"
        return PlainTextResponse(self.metrics.text(), media_type=media)

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(document(bool(self.limits.tokens)))

    # ---- the Open Inference Protocol ----

    async def server_metadata(self, request: Request) -> Response:
        extensions = ["binary_tensor_data"]
        return JSONResponse({"name": "lddgan", "version": __version__, "extensions": extensions})

    async def model_metadata(self, request: Request) -> Response:
        return JSONResponse(metadata(self._version(request)))

    async def model_ready(self, request: Request) -> Response:
        why = self._version(request).why_not_ready
        if why is not None:
            raise Problem(503, why)
        return JSONResponse({"ready": True})

    async def infer(self, request: Request) -> Response:
        model = self._version(request)
        asked = read_inference(await body(request), request.headers, model)
        with watched(request) as gone:
            images = await self._all(model, asked.addresses, gone)
        content, headers = await self._in_pool(lambda: infer_answer(asked, images, model))
        return Response(content, headers=headers)

    def _version(self, request: Request) -> Served:
        model = self._model(request.path_params["model"])
        version = request.path_params.get("version", model.digest)
        if version != model.digest:
            raise Problem(404, f"{model.name} is of version {model.digest}, not {version[:40]}")
        return model


def open_service(
    bundles: Sequence[Bundle], asked: tuple[str, Precision | None, DeviceName], limits: Limits
) -> Service:
    """Open the engines of bundles. Raises BadInput for names that are no addresses."""
    names = [bundle.preset.name for bundle in bundles]
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
            raise BadInput(f"the model's name {name!r} fits no address; export it under another")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput(f"two bundles are named {twice}; serve each on a port of its own")
    metrics = Metrics()
    with ExitStack() as on_failure:
        models = []
        for bundle in bundles:
            sampler = open_engine(bundle, *asked, batch=limits.batch)
            on_failure.callback(sampler.close)
            models.append(Served(bundle, sampler, limits, metrics))
        on_failure.pop_all()  # who has the service closes them
    return Service(models, limits, metrics)
