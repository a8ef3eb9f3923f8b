from typing import Any, Protocol

import numpy as np
import pytest

from fvit.certificates.record import Certificate
from fvit.certificates.tally import Tally
from fvit.certificates.terms import Terms


class Make(Protocol):
    def __call__(
        self, *, n: int = ..., seed: int = ..., copies: int | None = ..., **terms: Any
    ) -> Certificate: ...


def drawn(terms: Terms, *, copies: int, seed: int) -> Tally:
    """Copies of a made-up model with 10 classes and 64 tokens, counted."""
    rng = np.random.default_rng(seed)
    tally = Tally(10, 64, terms.k, betting=terms.aggregate == "mean")
    logits = rng.normal(size=(copies, 10)) + 3 * np.eye(10)[3]
    attribution = rng.gamma(1.0 + 9 * (np.arange(64) < 10) + 0.05 * np.arange(64)[::-1], size=(copies, 64))
    attribution /= attribution.sum(axis=1, keepdims=True)
    tally.add(logits.astype(np.float32), attribution.astype(np.float32))
    return tally


@pytest.fixture
def make() -> Make:
    """A certificate of made-up copies."""

    def certificate(*, n: int = 1000, seed: int = 0, copies: int | None = None, **asked: Any) -> Certificate:
        given: dict[str, Any] = {
            "sigma": 0.25, "alpha": 1e-3, "k": 10, "beta": 0.8, "aggregate": "vote", "seed": seed,
            "size": (64, 48),
        }  # fmt: skip
        terms = Terms.of(n=n, **(given | asked))
        return Certificate.of(
            drawn(terms, copies=copies or n, seed=seed),
            terms,
            image="photo.png",
            sha256="0" * 64,
            pixels_sha256="1" * 64,
            labels=[f"class {index}" for index in range(10)],
            grid=(8, 8),
            engine={"name": "onnxruntime", "device": "cpu", "precision": "fp32"},
            bundle="2" * 64,
            seconds=1.5,
        )

    return certificate
