"""A certificate: everything claimed of one image, with the counts that it follows from, as JSON and back."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Annotated, Any

from pydantic import Field

from fvit.certificates.claims import (
    AttentionClaim,
    ClassClaim,
    Part,
    Radius,
    Row,
    Side,
    attention_claim,
    class_claim,
)
from fvit.certificates.decisions import Decision, decide
from fvit.certificates.radii import renyi_divergence
from fvit.certificates.tally import Tally
from fvit.certificates.terms import MOST_COPIES, Bound, Terms

ORDER = 2.0
"""The Rényi order at which a record states its divergence; the bound is linear in the order."""

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Wealth = Annotated[int, Field(gt=-(2**62), lt=2**62)]
Copies = Annotated[int, Field(ge=1, le=MOST_COPIES)]


class Faithful(Part):
    """Nearer than radius_l2 the mean class distribution moves by at most `divergence` in D_order."""

    radius_l2: Radius
    order: Annotated[float, Field(gt=1)]
    divergence: Annotated[float, Field(ge=0)]


class Engine(Part):
    """What ran the graphs, as the bundle and the device call themselves."""

    name: str
    device: str
    precision: str


class Certificate(Part):
    """One image's certificate; false with probability at most alpha over the noise drawn.

    docs/record.md has every field with its unit. Two tools say everything else: `to_dict` and
    `model_validate` go to JSON's objects and back, `model_json_schema` is the schema.
    """

    image: str
    sha256: Digest
    pixels_sha256: Digest
    size: Annotated[tuple[Side, Side], Row]
    sigma: Annotated[float, Field(gt=0)]
    alpha: Annotated[float, Field(gt=0, lt=1)]
    slack: Annotated[float, Field(ge=0, lt=1)]
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    n: Copies
    copies: Copies
    class_: Annotated[ClassClaim, Field(alias="class")]
    attention: AttentionClaim
    explanations: Annotated[tuple[AttentionClaim, ...], Row] | None = None
    wealth: Annotated[tuple[Annotated[tuple[Wealth, ...], Row], ...], Row] | None = None
    faithful: Faithful
    bound: Bound
    decision: Decision | None = None
    engine: Engine
    bundle: Digest
    fvit: str
    seconds: Annotated[float, Field(ge=0)]

    @classmethod
    def of(
        cls,
        tally: Tally,
        terms: Terms,
        *,
        image: str,
        sha256: str,
        pixels_sha256: str,
        labels: Sequence[str],
        grid: tuple[int, int],
        engine: Mapping[str, str],
        bundle: str,
        seconds: float,
    ) -> Certificate:
        """What the copies in the tally certify, on these terms."""
        if terms.seed is None:
            raise ValueError("a certificate needs the seed that its copies were drawn from")
        claims = tuple(attention_claim(tally, terms, k=k, grid=grid) for k in terms.k)
        radius = claims[0].radius_l2
        return cls(
            image=image,
            sha256=sha256,
            pixels_sha256=pixels_sha256,
            size=terms.size,
            sigma=terms.sigma,
            alpha=terms.alpha,
            slack=terms.slack,
            seed=terms.seed,
            n=terms.n,
            copies=tally.copies,
            class_=class_claim(tally, terms, labels=labels),
            attention=claims[0],
            explanations=claims if len(claims) > 1 else None,
            wealth=tuple(map(tuple, tally.wealth.tolist())) if terms.aggregate == "mean" else None,
            faithful=Faithful(
                radius_l2=radius,
                order=ORDER,
                divergence=renyi_divergence(radius, order=ORDER, sigma=terms.sigma),
            ),
            bound=terms.bound,
            decision=None if terms.radius is None else decide(tally, terms),
            engine=Engine(**engine),
            bundle=bundle,
            fvit=_version(),
            seconds=seconds,
        )

    @property
    def attentions(self) -> tuple[AttentionClaim, ...]:
        """One claim for each explanation size, the main one first."""
        return self.explanations or (self.attention,)

    @property
    def terms(self) -> Terms:
        """The terms that it was made on."""
        return Terms(
            sigma=self.sigma,
            n=self.n,
            alpha=self.alpha,
            k=tuple(claim.k for claim in self.attentions),
            beta=self.attention.beta,
            aggregate=self.attention.aggregate,
            seed=self.seed,
            size=self.size,
            radius=None if self.decision is None else self.decision.radius,
            refining=self.decision is None and self.bound == "mixture",
        )

    def to_dict(self) -> dict[str, Any]:
        """One record of certificates.jsonl: what JSON holds, nothing that is None."""
        return self.model_dump(mode="json", exclude_none=True)


@functools.cache
def _version() -> str:
    return version("fvit")
