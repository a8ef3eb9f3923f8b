"""Whether copies of another image refute what a certificate says of it (docs/method.md, section 5.6)."""

from __future__ import annotations

import numpy as np

from fvit.certificates.bounds import clopper_pearson
from fvit.certificates.radii import lost_tokens
from fvit.certificates.record import Certificate
from fvit.certificates.tally import Tally


def refuted(certificate: Certificate, tally: Tally, *, distance: float, chance: float) -> list[str]:
    """What is claimed of an image at this ℓ2 distance and cannot be true if these are copies of it: "class",
    "attention" (the set), "token 7" (its side of the map).

    tally: of votes at the certificate's first k, of copies that were drawn after the image was chosen.
    chance: the largest probability that anything true is refuted. Claims whose radius does not exceed the
    distance say nothing there. Raises ValueError where there are no copies or chance is outside (0, 1).
    """
    of_class, claim = certificate.class_, certificate.attention
    found = []
    _, most = clopper_pearson(tally.counts[of_class.index], tally.copies, alpha=chance / 2)
    if of_class.radius_l2 > distance and most < 0.5:
        found.append("class")
    votes = tally.votes[tally.sizes.index(claim.k)]
    lower, upper = clopper_pearson(votes, tally.copies, alpha=chance / 4 / tally.tokens)
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
