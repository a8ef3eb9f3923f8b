"""Certificates as rows for a person: one row a record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from fvit.certificates.claims import AttentionClaim, ClassClaim
from fvit.certificates.radii import in_digits
from fvit.certificates.record import Certificate
from fvit.certificates.terms import Terms
from fvit.commands import one_line

Row = tuple[str, ...]


def row_of(certificate: Certificate) -> Row:
    """A record's cells. Radii are ℓ2, and a dash stands for abstention."""
    of_class, decision = certificate.class_, certificate.decision
    return (
        one_line(Path(certificate.image).stem),
        "abstains" if of_class.abstained else one_line(of_class.label),
        f"{100 * of_class.counts.get(str(of_class.index), 0) / certificate.copies:.1f} %",
        _radius(of_class),
        *map(_radius, certificate.attentions),
        f"{certificate.copies:,}",
        f"{certificate.seconds:.1f}",
        *([] if decision is None else [decision.answer]),
    )


def table_of(rows: Sequence[Row], terms: Terms) -> Table:
    """The rows of records that were made on these terms."""
    title = (
        f"σ = {terms.sigma:g}, n = {terms.n:,}, α = {terms.alpha:g}, "
        f"k = {', '.join(map(str, terms.k))}, β = {terms.beta:g}, {terms.aggregate}"
    )
    drawn = Table(title=title)
    drawn.add_column("image", overflow="fold", min_width=10)
    drawn.add_column("class")
    attentions = [f"attention k={k}" for k in terms.k] if len(terms.k) > 1 else ["attention radius"]
    for heading in ("share", "class radius", *attentions, "copies", "seconds"):
        drawn.add_column(heading, justify="right")
    if terms.radius is not None:
        drawn.add_column(f"at radius {terms.radius:g}", no_wrap=True)
    for row in rows:
        drawn.add_row(*map(Text, row))
    return drawn


def _radius(claim: ClassClaim | AttentionClaim) -> str:
    return "–" if claim.abstained else in_digits(claim.radius_l2, digits=3)
