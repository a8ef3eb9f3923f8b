"""The OpenAPI keeps its word: what fits it and what does not are both answered as it says."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, CheckContext, GenerationMode, Response
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.service.conftest import LIMIT, Serving


def no_server_error(context: CheckContext, response: Response, case: "Case[Any]") -> bool | None:
    """But where a deadline allowed nothing, which is what was asked for."""
    return "urn:fvit:out-of-time" in response.text or not_a_server_error(context, response, case)


CHECKS = [
    no_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]

OPERATIONS = {
    "/v1/predict": "POST",
    "/v1/certify": "POST",
    "/v1/refine": "POST",
    "/v1/verify": "POST",
    "/v1/models": "GET",
    "/metrics": "GET",
    "/healthz": "GET",
    "/readyz": "GET",
}


@pytest.fixture(scope="session")
def small(serve: Callable[..., Serving]) -> Serving:
    """Nothing that is asked of it takes long."""
    return serve("--max-n", "60", "--max-seconds", "1")


def test_every_endpoint_is_described_with_examples(service: Serving) -> None:
    paths = service.client.get("/openapi.json").json()["paths"]
    assert {path: next(iter(methods)).upper() for path, methods in paths.items()} == OPERATIONS
    for methods in paths.values():
        for operation in methods.values():
            assert operation["description"]
            content = operation.get("requestBody", {}).get("content", {})
            assert not content or "example" in content["application/json"]


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        *((path, GenerationMode.POSITIVE) for path in OPERATIONS),
        # /v1/verify judges whatever JSON there is.
        *((path, GenerationMode.NEGATIVE) for path in ("/v1/predict", "/v1/certify", "/v1/refine")),
    ],
)
def test_answers_are_as_documented(small: Serving, path: str, mode: GenerationMode) -> None:
    operation = schemathesis.openapi.from_url(f"{small.address}/openapi.json")[path][OPERATIONS[path]]

    @settings(
        max_examples=12, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def answered(case: "Case[Any]") -> None:
        case.call_and_validate(checks=CHECKS, timeout=LIMIT)

    answered()
    assert httpx.get(f"{small.address}/readyz").status_code == 200
