from typing import Any, Protocol

import numpy as np
import pytest

from fvit.certificates.record import Certificate
from fvit.certificates.tally import Tally
from fvit.certificates.terms import Terms


class Make(Protocol):
    def __call__(
        self, *, n: int = ..., seed: int = ..., copies: int | None = ..., side: int = ..., **terms: Any
    ) -> Certificate: ...


def drawn(terms: Terms, *, copies: int, seed: int, side: int = 8) -> Tally:
    """Copies of a made-up model with 10 classes and side × side tokens, counted. The first ten tokens are
    strong, and the others the weaker the later they come."""
    rng, tokens = np.random.default_rng(seed), side * side
    tally = Tally(10, tokens, terms.k, betting=terms.aggregate == "mean")
    logits = rng.normal(size=(copies, 10)) + 3 * np.eye(10)[3]
    strength = 1.0 + 9 * (np.arange(tokens) < 10) + 3.2 * np.arange(tokens)[::-1] / tokens
    attribution = rng.gamma(strength, size=(copies, tokens))
    attribution /= attribution.sum(axis=1, keepdims=True)
    tally.add(logits.astype(np.float32), attribution.astype(np.float32))
    return tally


@pytest.fixture
def make() -> Make:
    """A certificate of made-up copies."""

    def certificate(
        *, n: int = 1000, seed: int = 0, copies: int | None = None, side: int = 8, **asked: Any
    ) -> Certificate:
        given: dict[str, Any] = {
            "sigma": 0.25, "alpha": 1e-3, "k": 10, "beta": 0.8, "aggregate": "vote", "seed": seed,
            "size": (64, 48),
        }  # fmt: skip
        terms = Terms.of(n=n, **(given | asked))
        return Certificate.of(
            drawn(terms, copies=copies or n, seed=seed, side=side),
            terms,
            image="photo.png",
            sha256="0" * 64,
            pixels_sha256="1" * 64,
            labels=[f"class {index}" for index in range(10)],
            grid=(side, side),
            engine={"name": "onnxruntime", "device": "cpu", "precision": "fp32"},
            bundle="2" * 64,
            seconds=1.5,
        )

    return certificate
