"""Whether copies of another image refute what a certificate says of it (docs/method.md, section 5.6)."""

from __future__ import annotations

import numpy as np

from fvit.certificates.bounds import clopper_pearson
from fvit.certificates.radii import lost_tokens
from fvit.certificates.record import Certificate
from fvit.certificates.tally import Tally

DOUBT = 0.16
"""The level of each bound, a standard error from its share, at which further copies are worth their time."""


def doubted(certificate: Certificate, tally: Tally, *, distance: float) -> list[str]:
    """What `refuted` would say if every value lay within a standard error of its share: no more than a reason
    to draw further copies, which alone decide. Raises as it does."""
    return _contradicted(certificate, tally, distance=distance, class_level=DOUBT, token_level=DOUBT)


def refuted(certificate: Certificate, tally: Tally, *, distance: float, chance: float) -> list[str]:
    """What is claimed of an image at this ℓ2 distance and cannot be true if these are copies of it: "class",
    "attention" (the set), "token 7" (its side of the map).

    tally: of votes at the certificate's first k, of copies that were drawn after the image was chosen.
    chance: the largest probability that anything true is refuted. Claims whose radius does not exceed the
    distance say nothing there. Raises ValueError where there are no copies, chance is outside (0, 1), or the
    certificate is about means, of which votes say nothing.
    """
    token_level = chance / 4 / tally.tokens
    return _contradicted(
        certificate, tally, distance=distance, class_level=chance / 2, token_level=token_level
    )


def _contradicted(
    certificate: Certificate, tally: Tally, *, distance: float, class_level: float, token_level: float
) -> list[str]:
    of_class, claim = certificate.class_, certificate.attention
    if claim.aggregate != "vote":
        raise ValueError(f"the votes of copies say nothing of a certificate of the {claim.aggregate}")
    found = []
    _, most = clopper_pearson(tally.counts[of_class.index], tally.copies, alpha=class_level)
    if of_class.radius_l2 > distance and most < 0.5:
        found.append("class")
    votes = tally.votes[tally.sizes.index(claim.k)]
    lower, upper = clopper_pearson(votes, tally.copies, alpha=token_level)
    inside = np.zeros(tally.tokens, np.bool_)
    inside[list(claim.tokens)] = True
    lost = lost_tokens(claim.k, beta=claim.beta)
    if claim.radius_l2 > distance and tally.tokens - claim.k >= lost:
        weakest, strongest = np.sort(upper[inside])[lost - 1], np.sort(lower[~inside])[-lost]
        if weakest < strongest:
            found.append("attention")
    if claim.map_radii is not None:
        radii = np.asarray(claim.map_radii)
        wrong = ((radii > distance) & (upper < 0.5)) | ((-radii > distance) & (lower > 0.5))
        found += [f"token {token}" for token in np.flatnonzero(wrong)]
    return found
