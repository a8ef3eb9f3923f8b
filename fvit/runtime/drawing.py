"""The certified map over its picture, in three tones.

In is light with an outline, open is grey and hatched, out is dark. Each channel of colour by itself is
lighter in the one than in the other, whatever the picture: so the map reads alike in grey, and to eyes that
mix the channels in other ways.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fvit.certificates.record import Certificate

TONES = {
    1: ((255, 242, 204), (0.78, 1.0)),
    0: ((217, 235, 255), (0.36, 0.5)),
    -1: ((191, 204, 255), (0.03, 0.2)),
}
"""Of each side: a tint, and between which shares of it the picture's greys lie."""

HATCH = 0.56
"""The share of its tint that the lines across an open token have."""


def map_radius(certificate: Certificate) -> float:
    """Where a picture shows the map: at the radius that was to be decided, else as far as the explanation
    is certified, at 0 where it is not."""
    decision = certificate.decision
    return certificate.attention.radius_l2 if decision is None else decision.radius


def draw_map(pixels: NDArray[np.uint8], sides: NDArray[np.int8], *, size: tuple[int, int]) -> Image.Image:
    """RGB of `size` (width, height). pixels [3,H,W]: the picture. sides [rows, columns]: 1 in, −1 out, 0 open
    (docs/method.md, section 5.3)."""
    width, height = size
    grey = np.asarray(Image.fromarray(pixels.transpose(1, 2, 0)).convert("L").resize(size)) / 255
    rows, columns = sides.shape
    down, across = (np.arange(height) + 0.5) * rows / height, (np.arange(width) + 0.5) * columns / width
    side = sides[np.ix_(down.astype(int), across.astype(int))]
    token = min(height / rows, width / columns)  # the shorter side of one, in pixels
    shares, tints = np.zeros((height, width)), np.zeros((height, width, 3))
    for which, (tint, (low, high)) in TONES.items():
        shares = np.where(side == which, low + (high - low) * grey, shares)
        tints = np.where((side == which)[..., None], tint, tints)
    lines = np.add.outer(np.arange(height), np.arange(width)) % max(4, round(token / 5)) < max(1, token / 20)
    shares = np.where((side == 0) & lines, HATCH, shares)
    colours = tints * shares[..., None]
    edge = np.minimum.outer(_to_edge(down) * height / rows, _to_edge(across) * width / columns)
    colours[(side == 1) & (edge < max(1, token / 16))] = 255
    return Image.fromarray(np.rint(colours).astype(np.uint8))


def _to_edge(places: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far each place is from the nearer edge of its token, in tokens."""
    inside = places % 1
    return np.minimum(inside, 1 - inside)
