"""The service's description, OpenAPI 3.1."""

from __future__ import annotations

from typing import Any, Final

from engine.serving.encoding import ARCHIVES, PICTURES
from lddgan import __version__

NUMBER: Final = {"type": "string", "pattern": "^(0|[1-9][0-9]{0,18})$"}  # above 2^53 too
ERRORS: Final = {
    "400": "A number, form or body that cannot be used",
    "401": "A token is asked for",
    "404": "No such model",
    "503": "The queue is full, or the service ends: Retry-After says when to come again",
    "504": "The deadline passed",
}
MODEL: Final = "NAME, or NAME@DIGEST, whose answers are the same bytes for ever"


def document(asks_for_token: bool) -> dict[str, Any]:
    """The document, as JSON has it."""
    model = parameter("model", MODEL, {"type": "string"})
    seed = parameter("seed", "0..2^63-1", NUMBER)
    pictures, archives = "|".join(PICTURES), "|".join(ARCHIVES)
    span = rf"^(0|[1-9][0-9]{{0,18}})-(0|[1-9][0-9]{{0,18}})\.({pictures})$"
    one_or_many = rf"^(0|[1-9][0-9]{{0,18}})(\.({pictures})|-(0|[1-9][0-9]{{0,18}})\.({archives}))$"
    columns = parameter("columns", "Default: as square as it can be", {"type": "integer"}, "query")
    deadline = parameter("X-Timeout-Ms", "A deadline of your own", NUMBER, "header")
    media = [*PICTURES.values(), *ARCHIVES.values()]

    def name(told: str, pattern: str) -> dict[str, Any]:
        return parameter("name", told, {"type": "string", "pattern": pattern})

    one = name("INDEX.png|webp|jpg, or FIRST-LAST.zip|tar|npy", one_or_many)
    ends = [parameter("to", "The second seed", NUMBER), parameter("index", "0..2^63-1", NUMBER)]
    paths = {
        "/v1/images/{model}/{seed}/{name}": get(
            "One image, or an archive of several", media, model, seed, one, deadline
        ),
        "/v1/grids/{model}/{seed}/{name}": get(
            "Many images in one", media[:3], model, seed, name("FIRST-LAST.png", span), columns
        ),
        "/v1/mix/{model}/{seed}/{to}/{index}/{name}": get(
            "Step K of N of the walk between two seeds",
            media[:3],
            *(model, seed, *ends, name("K-N.png", span), deadline),
        ),
        "/v1/models": get("All models", ["application/json"]),
        "/v1/models/{model}": get("One model", ["application/json"], model),
        "/v2/models/{model}": get("Open Inference Protocol: tensors", ["application/json"], model),
        "/v2/models/{model}/infer": {
            "post": get("Open Inference Protocol: images", ["application/json"], model)["get"]
            | {
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {"schema": {"type": "object", "required": ["inputs"]}}
                    },
                }
            }
        },
        "/healthz": get("Whether it lives", ["application/json"]),
        "/readyz": get("Whether it takes work", ["application/json"]),
        "/metrics": get("For Prometheus", ["text/plain"]),
    }
    security = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "lddgan", "version": __version__},
        "paths": paths,
    } | ({"components": security, "security": [{"token": []}]} if asks_for_token else {})


def parameter(name: str, told: str, schema: dict[str, Any], place: str = "path") -> dict[str, Any]:
    is_path = place == "path"
    return {"name": name, "in": place, "required": is_path, "description": told, "schema": schema}


def get(summary: str, media: list[str], *parameters: dict[str, Any]) -> dict[str, Any]:
    """A GET, its answer and its errors."""
    problem = {"application/problem+json": {"schema": {"type": "object"}}}
    good = {"description": summary, "content": {kind: {} for kind in media}}
    bad = {code: {"description": told, "content": problem} for code, told in ERRORS.items()}
    described = {
        "summary": summary,
        "parameters": list(parameters),
        "responses": {"200": good} | bad,
    }
    return {"get": described}
