"""The endpoints, each from a request to the stretches that it becomes and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

from fastapi import Depends, FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

import fvit
from fvit.certificates.record import Certificate
from fvit.certificates.terms import FIRST_LOOK
from fvit.certificates.verify import verify
from fvit.demo import SAMPLES
from fvit.errors import FvitError
from fvit.runtime.faithful import FaithfulViT, Prediction
from fvit.runtime.images import Picture
from fvit.service import documented
from fvit.service.asked import (
    CertifyTerms,
    PredictTerms,
    RefineTerms,
    parsed_json,
    preferred,
    read_body,
    read_picture,
    unless_gone,
)
from fvit.service.keys import Keys
from fvit.service.limits import Limits, Meter, check_waiting
from fvit.service.metrics import Metrics
from fvit.service.overlay import draw_attention, draw_certificate
from fvit.service.problems import MEDIA_TYPE, TITLES, Kind, Problem
from fvit.service.streams import EVENTS, LINES, Stream
from fvit.service.wire import App, ClientGone, Entry, Life, Wire

JSON, PNG = "application/json", "image/png"

RECORD = 1 << 20
"""Bytes of a record that /v1/verify takes: those of 3,000 tokens."""

PAGE = Path(__file__).parent / "page"
SHARED = Path(fvit.__file__).parent / "page"
TYPES = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".png": PNG}
POLICY = "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'"

Deadline = Annotated[
    float | None,
    Header(
        alias="Fvit-Deadline", gt=0, le=86400, allow_inf_nan=False,
        description="Seconds until which an answer is of use: a certificate then rests on the copies "
        "that there are.",
    ),
]  # fmt: skip


class PredictionBody(BaseModel):
    """A smoothed prediction. index and label are missing where it abstains; counts: copies of each class that
    any has; attention [rows][columns]: mean attribution, summing to 1."""

    model_config = ConfigDict(extra="forbid")

    model: str
    index: int | None = None
    label: str | None = None
    abstained: bool
    counts: dict[str, int]
    attention: list[list[float]]
    sigma: float
    n: int
    alpha: float
    seed: int
    sha256: str
    pixels_sha256: str
    bundle: str
    seconds: float


class FindingsBody(BaseModel):
    """follows: whether every claim of the record follows from its counts. findings: what does not."""

    follows: bool
    findings: list[str]


class ModelBody(BaseModel):
    """A model that can be asked. sigmas: the least and the largest σ. explained: the class whose logit its
    explanations explain, "predicted" or an index; null where they depend on none. device_count: those that
    work."""

    name: str
    labels: list[str]
    image_size: list[int]
    grid: list[int]
    sigmas: list[float]
    explanation: str
    explained: str | int | None
    classifier: str
    denoiser: str
    engine: dict[str, str]
    device_count: int
    bundle: str


class ModelsBody(BaseModel):
    """The models, the first of which is the default, and what may be asked of them."""

    models: list[ModelBody]
    limits: dict[str, float | None]
    samples: list[str]


class ReadyBody(BaseModel):
    """Whether requests are taken; of each model the devices that work, those it began with, rows waiting."""

    ready: bool
    models: dict[str, dict[str, int]]


class Service:
    """Models behind HTTP. keys: None where anybody may ask. `app` is the ASGI application."""

    def __init__(
        self, models: Mapping[str, FaithfulViT], *, limits: Limits, keys: Keys | None, life: Life
    ) -> None:
        self._models, self._limits, self._keys, self._life = dict(models), limits, keys, life
        self._devices = {name: vit.queue.statistics.devices for name, vit in models.items()}
        self._metrics = Metrics(lambda: {name: vit.queue.statistics for name, vit in self._models.items()})
        self._meter = Meter(limits)
        self._verifying = ThreadPoolExecutor(1, thread_name_prefix="fvit-verify")
        self._files = _page_files()
        api = FastAPI(
            title="FViT", version=_version(), docs_url=None, redoc_url=None, redirect_slashes=False,
            description=documented.DESCRIPTION,
        )  # fmt: skip
        self._routes(api)
        documented.complete(api, limits, keys=keys is not None)
        self.app: App = Wire(cast(App, api), life=life, metrics=self._metrics)

    def _routes(self, api: FastAPI) -> None:
        api.exception_handler(Problem)(_told)
        api.exception_handler(RequestValidationError)(_told_invalid)
        api.exception_handler(HTTPException)(_told_http)
        api.exception_handler(Exception)(_told_fault)
        api.exception_handler(ClientGone)(_told_nobody)
        key = [Depends(self._caller)]
        image = documented.IMAGE
        certificate = documented.answers(Certificate, "The certificate.", png=True)
        api.post(
            "/v1/predict", dependencies=key, openapi_extra=image, response_model=None,
            responses=documented.answers(PredictionBody, "The smoothed class and attention.", png=True),
        )(self.predict)  # fmt: skip
        api.post(
            "/v1/certify", dependencies=key, openapi_extra=image, response_model=None, responses=certificate
        )(self.certify)
        api.post(
            "/v1/refine", dependencies=key, openapi_extra=image, response_model=None,
            responses=documented.streams(Certificate),
        )(self.refine)  # fmt: skip
        api.post(
            "/v1/verify", dependencies=key, openapi_extra=documented.RECORD, response_model=None,
            responses=documented.answers(FindingsBody, "What does not follow."),
        )(self.verify)  # fmt: skip
        api.get(
            "/v1/models", dependencies=key, response_model=None,
            responses=documented.answers(ModelsBody, "The models."),
        )(self.models)  # fmt: skip
        api.get("/metrics", dependencies=key, response_model=None, responses=documented.METRICS)(self.metrics)
        api.get("/healthz", response_model=None, responses=documented.HEALTH)(self.healthz)
        api.get(
            "/readyz", response_model=None, responses=documented.ready(ReadyBody)
        )(self.readyz)  # fmt: skip
        for path in self._files:
            api.get(path, include_in_schema=False, response_model=None)(self.file)

    async def predict(
        self, request: Request, terms: Annotated[PredictTerms, Query()], deadline: Deadline = None
    ) -> Response:
        """The smoothed class, or abstention, and the smoothed attention map; no radius."""
        kind, entry = preferred(request, (JSON, PNG)), _entry(request)
        vit, picture = await self._begin(request, terms, n=terms.n, rows=terms.n)
        with _invalid_terms():
            growing = vit.predicting(picture, sigma=terms.sigma, n=terms.n, alpha=terms.alpha)
        try:
            found = await unless_gone(request, asyncio.wrap_future(growing), seconds=_left(entry, deadline))
        except asyncio.TimeoutError:
            raise self._late(vit, deadline) from None
        except FvitError as error:
            raise _failed(error) from error
        entry.computing = time.perf_counter() - (growing.started or entry.started)
        entry.waiting, entry.copies = entry.elapsed - entry.computing, terms.n
        self._metrics.abstained.labels(entry.endpoint, entry.model, "class").observe(found.index is None)
        if kind == PNG:
            return Response(await asyncio.to_thread(draw_attention, picture, found.attention), media_type=PNG)
        return JSONResponse(_prediction(found, entry, terms, picture, vit))

    async def certify(
        self, request: Request, terms: Annotated[CertifyTerms, Query()], deadline: Deadline = None
    ) -> Response:
        """The certificate of one image: class and attention. With a deadline and no radius it is a
        refinement's, which holds whenever it ends."""
        kind, entry = preferred(request, (JSON, PNG)), _entry(request)
        growing_n = terms.radius is not None or deadline is not None
        rows = min(terms.n, FIRST_LOOK) if growing_n else terms.n
        vit, picture = await self._begin(request, terms, n=terms.n, rows=rows)
        with _invalid_terms():
            wanted = vit.terms(
                sigma=terms.sigma, n=terms.n, alpha=terms.alpha, k=terms.k, beta=terms.beta,
                radius=terms.radius, aggregate=terms.aggregate,
                refining=deadline is not None and terms.radius is None,
            )  # fmt: skip
        best: list[Certificate] = []
        growing = vit.certifying(picture, wanted, on_look=best.append if deadline is not None else None)
        try:
            found = await unless_gone(request, asyncio.wrap_future(growing), seconds=_left(entry, deadline))
        except asyncio.TimeoutError:
            if not best:
                raise self._late(vit, deadline) from None
            found = best[-1]
        except FvitError as error:
            raise _failed(error) from error
        self._certified(entry, found, rows=rows)
        if kind == PNG:
            return Response(await asyncio.to_thread(draw_certificate, picture, found), media_type=PNG)
        return JSONResponse(found.to_dict())

    async def refine(
        self, request: Request, terms: Annotated[RefineTerms, Query()], deadline: Deadline = None
    ) -> Response:
        """Certificates as they grow, all of them true at once with probability 1 − alpha, until n copies or
        so many seconds. Closing the connection ends it."""
        kind, entry = preferred(request, (EVENTS, LINES)), _entry(request)
        if terms.seconds > self._limits.seconds:
            raise Problem(422, "over-limit", f"seconds may be up to {self._limits.seconds:g} here")
        n = terms.n or min(self._limits.n, self._limits.copies or self._limits.n, self._limits.waiting)
        rows = min(n, FIRST_LOOK)
        vit, picture = await self._begin(request, terms, n=n, rows=rows)
        asked: dict[str, Any] = {
            "sigma": terms.sigma, "alpha": terms.alpha, "k": terms.k, "beta": terms.beta,
            "aggregate": terms.aggregate,
        }  # fmt: skip
        with _invalid_terms():
            vit.terms(n=n, refining=True, **asked)
        shown = cast(
            AsyncGenerator[Certificate, None], vit.refine_async(picture, n=n, seconds=terms.seconds, **asked)
        )
        try:
            first = await unless_gone(request, anext(shown), seconds=_left(entry, deadline))
        except asyncio.TimeoutError:
            raise self._late(vit, deadline) from None
        except FvitError as error:
            raise _failed(error) from error
        entry.waiting = entry.elapsed - first.seconds
        self._metrics.first.labels(entry.model).observe(entry.elapsed)
        left = _left(entry, deadline)
        return Stream(
            request, first, shown, kind=kind,
            until=None if left is None else asyncio.get_running_loop().time() + left,
            on_end=lambda last: self._certified(entry, last, rows=rows),
        )  # fmt: skip

    async def verify(self, request: Request) -> Response:
        """Whether every claim of a record follows from its counts, derived again by other means."""
        entry = _entry(request)
        self._meter.take(entry.key or "", copies=0)
        body = await read_body(request, limit=min(RECORD, self._limits.body))
        record = parsed_json(body)
        loop = asyncio.get_running_loop()
        findings = await unless_gone(request, loop.run_in_executor(self._verifying, verify, record))
        return JSONResponse({"follows": not findings, "findings": findings})

    async def models(self) -> Response:
        """The models, what may be asked of them, and the page's samples."""
        found = [
            ModelBody(
                name=name,
                labels=list(vit.bundle.manifest.labels),
                image_size=list(vit.pipeline.image_size),
                grid=list(vit.bundle.manifest.grid),
                sigmas=[float(vit.pipeline.schedule.sigmas[place]) for place in (0, -1)],
                explanation=vit.bundle.manifest.explanation,
                explained=vit.bundle.manifest.explained,
                classifier=vit.bundle.manifest.classifier,
                denoiser=vit.bundle.manifest.denoiser,
                engine=vit.engine,
                device_count=vit.queue.statistics.devices,
                bundle=vit.bundle.digest,
            )
            for name, vit in self._models.items()
        ]
        samples = [path for path in self._files if path.startswith("/samples/")]
        return JSONResponse(
            ModelsBody(models=found, limits=asdict(self._limits), samples=samples).model_dump()
        )

    async def healthz(self) -> Response:
        """Whether the process lives."""
        return JSONResponse({"alive": True})

    async def readyz(self) -> Response:
        """Whether requests are taken: 503 while the service stops, and where a model has no device left."""
        models = {}
        for name, vit in self._models.items():
            found = vit.queue.statistics
            models[name] = {"devices": found.devices, "of": self._devices[name], "waiting": found.waiting}
        ready = not self._life.stops.is_set() and all(each["devices"] for each in models.values())
        return JSONResponse({"ready": ready, "models": models}, status_code=200 if ready else 503)

    async def metrics(self) -> Response:
        """Prometheus's text format."""
        return Response(self._metrics.page(), media_type="text/plain; version=1.0.0")

    async def file(self, request: Request) -> Response:
        """The page, from memory: no path of a client's is ever opened."""
        content, kind = self._files[request.scope["route"].path]
        return Response(
            content, media_type=kind, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        )

    async def _caller(
        self,
        request: Request,
        credentials: Annotated[
            HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))
        ] = None,
    ) -> None:
        entry = _entry(request)
        entry.endpoint = request.scope["route"].path
        if self._keys is None:
            return
        entry.key = self._keys.name_of(credentials.credentials) if credentials else None
        if entry.key is None:
            raise Problem(
                401, "key-needed", "send a key that this service knows: Authorization: Bearer KEY",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    async def _begin(
        self, request: Request, terms: PredictTerms | CertifyTerms | RefineTerms, *, n: int, rows: int
    ) -> tuple[FaithfulViT, Picture]:
        """The model and the picture of a request that may be served; rows: that it will queue at once."""
        entry = _entry(request)
        name = terms.model or next(iter(self._models))
        if name not in self._models:
            raise Problem(404, "unknown-model", f"there is no such model: {', '.join(self._models)}")
        vit = self._models[name]
        entry.model, entry.n = name, n
        self._limits.check_copies(n)
        check_waiting(vit.queue, rows, most=self._limits.waiting)
        self._meter.take(entry.key or "", copies=rows)
        picture = await read_picture(
            request, size=vit.pipeline.image_size, max_body=self._limits.body, max_pixels=self._limits.pixels
        )
        # Others came meanwhile; nothing comes from here on.
        check_waiting(vit.queue, rows, most=self._limits.waiting)
        return vit, picture

    def _certified(self, entry: Entry, found: Certificate, *, rows: int) -> None:
        entry.copies, entry.computing = found.copies, found.seconds
        if entry.waiting is None:
            entry.waiting = max(0.0, entry.elapsed - found.seconds)
        self._meter.add(entry.key or "", copies=found.copies - rows)
        self._metrics.certified(found, endpoint=entry.endpoint, model=entry.model)

    def _late(self, vit: FaithfulViT, deadline: float | None) -> Problem:
        found = vit.queue.statistics
        return Problem(
            503, "out-of-time", f"no answer could be had in {deadline:g} s: allow more",
            retry_after=found.waiting / found.rate if found.rate else 1,
        )  # fmt: skip


class _invalid_terms:
    """What cannot be asked of a model is the client's to change."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FvitError):
            raise Problem(422, "invalid-terms", str(error)) from error


def _failed(error: FvitError) -> Problem:
    return Problem(503, "engine-failed", f"{error}: ask again", retry_after=1)


def _entry(request: Request) -> Entry:
    return cast(Entry, request.state.entry)


def _left(entry: Entry, deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - entry.elapsed)


def _prediction(
    found: Prediction, entry: Entry, terms: PredictTerms, picture: Picture, vit: FaithfulViT
) -> dict[str, Any]:
    return PredictionBody(
        model=entry.model,
        index=found.index,
        label=found.label,
        abstained=found.index is None,
        counts={str(index): int(count) for index, count in enumerate(found.counts) if count},
        attention=found.attention.tolist(),
        sigma=terms.sigma,
        n=terms.n,
        alpha=terms.alpha,
        seed=found.seed,
        sha256=picture.sha256,
        pixels_sha256=picture.pixels_sha256,
        bundle=vit.bundle.digest,
        seconds=round(entry.computing or 0.0, 3),
    ).model_dump(exclude_none=True)


def _response(request: Request, problem: Problem) -> Response:
    return Response(
        problem.body(request_id=_entry(request).id),
        status_code=problem.status,
        headers=problem.headers,
        media_type=MEDIA_TYPE,
    )


async def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return _response(request, error)


async def _told_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    fields = [(".".join(map(str, each["loc"]))[:100], str(each["msg"])) for each in error.errors()][:20]
    said = "; ".join(f"{name}: {what}" for name, what in fields[:3])
    return _response(request, Problem(422, "invalid-terms", said, fields=fields))


async def _told_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kinds: dict[int, tuple[Kind, str]] = {
        404: ("not-found", "there is nothing here: see /openapi.json for what there is"),
        405: ("not-allowed", "this method is not for this path: see /openapi.json"),
    }
    kind, said = kinds.get(error.status_code, ("invalid-request", TITLES.get(error.status_code, "wrong")))
    return _response(request, Problem(error.status_code, kind, said, headers=dict(error.headers or {})))


async def _told_fault(request: Request, error: Exception) -> Response:
    return _response(request, Problem(500, "internal", "this is a fault of the service's: it is logged"))


async def _told_nobody(request: Request, error: Exception) -> Response:
    _entry(request).gone = True
    return Response(status_code=204)


def _page_files() -> dict[str, tuple[bytes, str]]:
    files = {"/": PAGE / "index.html"}
    files |= {f"/{name}": PAGE / name for name in ("page.css", "page.js")}
    files |= {f"/{name}": SHARED / name for name in ("common.css", "canvas.js")}
    files |= {f"/samples/{file.name}": file for file in sorted(SAMPLES.glob("*.png"))}
    return {path: (file.read_bytes(), TYPES[file.suffix]) for path, file in files.items()}


def _version() -> str:
    from importlib.metadata import version

    return version("fvit")
