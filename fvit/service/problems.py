"""Errors as RFC 9457 problems: what was wrong, and what to do."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, Field

MEDIA_TYPE = "application/problem+json"

Kind = Literal[
    "invalid-request", "invalid-image", "invalid-terms", "unknown-model", "not-found", "not-allowed",
    "not-acceptable", "unsupported-type", "too-large", "too-slow", "key-needed", "over-limit", "busy",
    "out-of-time", "engine-failed", "stopping", "internal",
]  # fmt: skip


class Wrong(BaseModel):
    """One value of a request that is wrong."""

    where: str
    what: str


class ProblemBody(BaseModel):
    """RFC 9457. type: urn:fvit: and a word that programs can tell problems by. instance: of the request."""

    type: Annotated[str, Field(examples=["urn:fvit:invalid-terms"])]
    title: Annotated[str, Field(examples=["Unprocessable Content"])]
    status: Annotated[int, Field(ge=400, le=599, examples=[422])]
    detail: Annotated[str, Field(examples=["σ = 0: the noise level must be positive and finite"])]
    instance: str | None = None
    errors: list[Wrong] | None = None


TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    406: "Not Acceptable",
    408: "Request Timeout",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


class Problem(Exception):
    """What a request is answered instead of what it wants.

    retry_after: seconds, where the same request may do better later. fields: (where, what) of wrong values.
    """

    def __init__(
        self,
        status: int,
        kind: Kind,
        detail: str,
        *,
        retry_after: float | None = None,
        fields: list[tuple[str, str]] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.fields = status, kind, detail, fields
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after)))

    def body(self, *, request_id: str | None = None) -> bytes:
        """The problem as JSON."""
        return (
            ProblemBody(
                type=f"urn:fvit:{self.kind}",
                title=TITLES.get(self.status, "Error"),
                status=self.status,
                detail=self.detail,
                instance=None if request_id is None else f"urn:fvit:request:{request_id}",
                errors=None if self.fields is None else [Wrong(where=a, what=b) for a, b in self.fields],
            )
            .model_dump_json(exclude_none=True)
            .encode()
        )


def stopping(seconds: float) -> Problem:
    """For who comes, or is not done, when the service ends."""
    return Problem(
        503,
        "stopping",
        "this service is stopping: ask again in a moment, or ask another",
        retry_after=seconds,
    )
