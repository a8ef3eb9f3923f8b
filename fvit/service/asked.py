"""What a request asks: its terms, its picture, the form of its answer."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from fvit.certificates.radii import Aggregate
from fvit.errors import FvitError
from fvit.runtime.images import Picture, read_encoded
from fvit.service.problems import Problem
from fvit.service.wire import ClientGone

Answer = TypeVar("Answer")

BODY_SECONDS = 30.0
"""How long the body of a request may take."""

Model = Annotated[
    str | None, Field(description="One of /v1/models; the first unless told.", max_length=64, examples=[None])
]
Sigma = Annotated[float, Field(gt=0, description="Noise level σ, in units of [0,1] pixels.")]
Alpha = Annotated[float, Field(gt=0, lt=1, description="Probability that anything claimed is false.")]
Sizes = Annotated[
    list[Annotated[int, Field(ge=1)]],
    Field(min_length=1, max_length=8, description="Explanation sizes in tokens, the main one first."),
]
Beta = Annotated[float, Field(gt=0, le=1, description="Share of the top k tokens that must survive.")]
Copies = Annotated[int, Field(ge=1, description="Noisy copies; with a radius or a limit of time, at most.")]
Radius = Annotated[
    float | None, Field(gt=0, description="Only decide whether class and explanation hold at this ℓ2 radius.")
]
Smoothed = Annotated[Aggregate, Field(description="Smooth top-k votes or attributions.")]


class _Terms(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: Model = None
    sigma: Sigma = 0.25
    alpha: Alpha = 1e-3


class PredictTerms(_Terms):
    """What /v1/predict may be asked."""

    n: Copies = 32


class CertifyTerms(_Terms):
    """What /v1/certify may be asked."""

    n: Copies = 1000
    k: Sizes = [10]
    beta: Beta = 0.8
    radius: Radius = None
    aggregate: Smoothed = "vote"


class RefineTerms(_Terms):
    """What /v1/refine may be asked."""

    n: Annotated[int | None, Field(ge=1, description="Copies, at most; the service's limit unless told.")] = (
        None
    )
    seconds: Annotated[float, Field(gt=0, description="Seconds after the first copies, at most.")] = 10
    k: Sizes = [10]
    beta: Beta = 0.8
    aggregate: Smoothed = "vote"


async def unless_gone(request: Request, work: Awaitable[Answer], *, seconds: float | None = None) -> Answer:
    """The work's result; the work is cancelled, and ClientGone raised, when the client leaves before. The
    body has to have been read. Raises asyncio.TimeoutError when so many seconds have passed."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(left(request))
    try:
        await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone if gone.done() else asyncio.TimeoutError
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.wait({task, gone})


async def left(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def read_picture(request: Request, *, size: tuple[int, int], max_body: int, max_pixels: int) -> Picture:
    """The image of a request, at a model's size: as its body, as the part `image` of a form, or base64 in
    JSON. Raises the Problem of one that cannot be had. Nothing of it touches a disk."""
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if not (kind.startswith("image/") or kind in BODIES):
        raise Problem(
            415, "unsupported-type", "send the image as image/*, application/octet-stream, "
            "multipart/form-data with a part named image, or application/json with image in base64",
        )  # fmt: skip
    body = await read_body(request, limit=max_body)
    if kind == "multipart/form-data":
        body = await _part(request, body)
    elif kind == "application/json":
        body = _unpacked(body)
    try:
        return await asyncio.to_thread(read_encoded, body, size=size, max_pixels=max_pixels)
    except FvitError as error:
        raise Problem(422, "invalid-image", str(error)) from error


BODIES = ("application/octet-stream", "multipart/form-data", "application/json")


async def read_body(request: Request, *, limit: int) -> bytes:
    """The body; raises the Problem of one that is too large, before it is read where it says so, or too
    slow."""
    too_large = Problem(413, "too-large", f"a request may have {limit:,} bytes: send a smaller one")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and float(declared) > limit:  # Python refuses integers of thousands of digits
        raise too_large

    async def gathered() -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
        return bytes(body)

    try:
        return await asyncio.wait_for(gathered(), BODY_SECONDS)
    except asyncio.TimeoutError:
        raise Problem(
            408,
            "too-slow",
            f"the body was not there after {BODY_SECONDS:g} s",
            headers={"Connection": "close"},
        ) from None
    except ClientDisconnect:
        raise ClientGone from None


def parsed_json(body: bytes) -> Any:
    """What JSON holds; raises the Problem of what is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Problem(422, "invalid-request", "the body is no JSON: broken, or cut off") from None


def preferred(request: Request, offers: Sequence[str]) -> str:
    """The media type of `offers` that the client's Accept likes most, the first among equals. Raises the
    Problem of one that likes none."""
    weights = dict.fromkeys(offers, 0.0)
    exact = dict.fromkeys(offers, -1)
    for part in ",".join(request.headers.getlist("accept") or ["*/*"]).split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        for offer in offers:
            family = offer.partition("/")[0] + "/*"
            if kind in (offer, family, "*/*"):
                precision = (kind != "*/*") + (kind == offer)
                if precision > exact[offer]:
                    exact[offer], weights[offer] = precision, weight
    best = max(offers, key=lambda offer: weights[offer])
    if not weights[best] > 0:
        raise Problem(406, "not-acceptable", f"this can be had as {', '.join(offers)}: change Accept")
    return best


async def _part(request: Request, body: bytes) -> bytes:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(request.headers, stream(), max_files=1, max_fields=0)
    parser.spool_max_size = len(body) + 1  # in memory, not on a disk
    try:
        part = (await parser.parse()).get("image")
        if part is None or isinstance(part, str):
            raise Problem(422, "invalid-request", "the form has no part named image that is a file")
        return await part.read()
    except (MultiPartException, KeyError, ValueError) as error:
        raise Problem(422, "invalid-request", "the form is broken, or has more than the image") from error


def _unpacked(body: bytes) -> bytes:
    found = parsed_json(body)
    if not isinstance(found, dict) or set(found) != {"image"} or not isinstance(found["image"], str):
        raise Problem(422, "invalid-request", 'the JSON has to be {"image": "…"} with the file in base64')
    try:
        return base64.b64decode(found["image"], validate=True)
    except (binascii.Error, ValueError):
        raise Problem(422, "invalid-request", "image is not in base64 (RFC 4648, with padding)") from None
