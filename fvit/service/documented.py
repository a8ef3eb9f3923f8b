"""What the OpenAPI says beyond what the endpoints' types say."""

from __future__ import annotations

import base64
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from fvit.service.limits import Limits
from fvit.service.problems import MEDIA_TYPE, ProblemBody

DESCRIPTION = """Certificates of images: within a stated ℓ₂ radius the class stays, and at least a share β
of the explanation's top k tokens; within one of its own each token keeps its side of the map. Each
certificate is false with probability at most alpha over the noise, whose seed is drawn when the image is
there. Every error is an RFC 9457 problem."""

TINY = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8ffff3f0005fe02"
        "fedccc59e70000000049454e44ae426082"
    )
).decode()
"""A white pixel as a PNG."""

_BINARY = {"schema": {"type": "string", "format": "binary"}}

IMAGE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "image/png": _BINARY,
            "application/octet-stream": _BINARY,
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "string", "format": "binary"}},
                    "required": ["image"],
                    "additionalProperties": False,
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"image": {"type": "string", "format": "byte"}},
                    "required": ["image"],
                    "additionalProperties": False,
                },
                "example": {"image": TINY},
            },
        },
    }
}
"""PNG, JPEG, WebP, BMP, TIFF, GIF or PPM, in four wrappings."""

RECORD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"description": "A record."}, "example": {"image": "no record"}}
        },
    }
}

METRICS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Prometheus's text format.",
        "content": {"text/plain": {"schema": {"type": "string"}}},
    }
}

HEALTH: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The process lives.",
        "content": {
            "application/json": {
                "schema": {"type": "object", "properties": {"alive": {"const": True}}, "required": ["alive"]},
                "example": {"alive": True},
            }
        },
    }
}

PROBLEMS = {
    400: "What cannot be read as HTTP.",
    401: "No key, or an unknown one.",
    404: "No such model.",
    406: "None of the forms that the client accepts.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is of no known type.",
    422: "The image or the terms cannot be had; `errors` and `detail` say why.",
    429: "Too much for this key or for the queue: Retry-After says when.",
    503: "An engine failed, time ran out, or the service stops.",
}


def answers(model: type[BaseModel], said: str, *, png: bool = False) -> dict[int | str, dict[str, Any]]:
    """A model as JSON, where told also as a PNG."""
    found: dict[int | str, dict[str, Any]] = {200: {"model": model, "description": said}}
    if png:
        found[200]["content"] = {"image/png": _BINARY}
    return found


def streams(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """A model again and again."""
    event = {
        "type": "object",
        "properties": {"event": {"enum": ["certificate", "problem"]}, "data": {"type": "string"}},
        "required": ["event", "data"],
    }
    names = (model.__name__, ProblemBody.__name__)
    line = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in names]}
    said = (
        f"Server-sent events `certificate`, each with a {model.__name__} as its data, or lines of JSON. An "
        "event `problem`, or a line with `type`, ends a stream that failed; all certificates before it hold."
    )
    content = {"text/event-stream": {"schema": event}, "application/x-ndjson": {"schema": line}}
    return {200: {"description": said, "content": content}}


def ready(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The same model at 200 and 503."""
    return {
        200: {"model": model, "description": "Requests are taken."},
        503: {"model": model, "description": "They are not."},
    }


def complete(api: FastAPI, limits: Limits, *, keys: bool) -> None:
    """Put problems and this service's limits into the schema; keys: whether it wants any."""
    schema = get_openapi(title=api.title, version=api.version, description=api.description, routes=api.routes)
    schemas = schema["components"]["schemas"]
    schemas["ProblemBody"] = ProblemBody.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(schemas["ProblemBody"].pop("$defs"))
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    problem = {"schema": {"$ref": "#/components/schemas/ProblemBody"}}
    for methods in schema["paths"].values():
        for operation in methods.values():
            operation["responses"].pop("422", None)
            if "security" in operation:
                for status, said in PROBLEMS.items():
                    if keys or status != 401:
                        operation["responses"].setdefault(
                            str(status), {"description": said, "content": {MEDIA_TYPE: problem}}
                        )
                if not keys:
                    del operation["security"]
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "n":
                    _bound(parameter["schema"], min(limits.n, limits.waiting, limits.copies or limits.n))
                if parameter["name"] == "seconds":
                    _bound(parameter["schema"], limits.seconds)
    api.openapi = lambda: schema  # type: ignore[method-assign]


def _bound(schema: dict[str, Any], most: float) -> None:
    for each in [schema, *schema.get("anyOf", ())]:
        if each.get("type") in ("integer", "number"):
            each["maximum"] = most
