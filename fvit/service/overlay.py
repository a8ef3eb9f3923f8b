"""The attention map, and the certified map, over their picture, as a PNG."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fvit.certificates.record import Certificate
from fvit.runtime.drawing import draw_map, map_radius
from fvit.runtime.images import Picture

SIDE = 512
"""Pixels of the longer side of what is drawn, or the picture's where it is larger."""

GAP = 8
"""Pixels between two maps."""

GLOW = np.array([[8, 8, 24], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], np.float64)
"""From no attention to all of it."""

CERTIFIED, OPEN = (0, 200, 140), (138, 147, 166)


def draw_attention(picture: Picture, attention: NDArray[np.float64]) -> bytes:
    """attention [rows, columns] as light on the darkened picture."""
    return _png(_light(picture, attention))


def draw_certificate(picture: Picture, certificate: Certificate) -> bytes:
    """The smoothed explanation, its k tokens outlined: green where they are certified, the stronger the
    larger its radius; beside it, for votes, the certified map (docs/method.md, section 5.3)."""
    claim = certificate.attention
    image = _light(picture, claim.smoothed.reshape(claim.grid))
    height, width = image.height / claim.grid[0], image.width / claim.grid[1]
    pen, most = ImageDraw.Draw(image), max(*claim.token_radii, 1e-12)
    for token, radius in zip(claim.tokens, claim.token_radii, strict=True):
        row, column = divmod(token, claim.grid[1])
        box = (column * width + 2, row * height + 2, (column + 1) * width - 3, (row + 1) * height - 3)
        pen.rectangle(box, outline=OPEN if claim.abstained else CERTIFIED, width=1 + round(4 * radius / most))
    if claim.map_radii is None:
        return _png(image)
    both = Image.new("RGB", (2 * image.width + GAP, image.height), "white")
    both.paste(image)
    sides = claim.map(map_radius(certificate))
    both.paste(draw_map(picture.pixels, sides, size=image.size), (image.width + GAP, 0))
    return _png(both)


def _light(picture: Picture, attention: NDArray[np.float64]) -> Image.Image:
    rows, columns = picture.pixels.shape[1:]
    scale = max(1.0, SIDE / max(rows, columns))
    size = (round(columns * scale), round(rows * scale))
    shares = attention / max(float(attention.max()), 1e-12)
    places = np.linspace(0, 1, len(GLOW))
    colours = np.stack([np.interp(shares, places, channel) for channel in GLOW.T], axis=-1)
    tiles = Image.fromarray(colours.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    grey = Image.fromarray(picture.pixels.transpose(1, 2, 0)).convert("L").resize(size)
    return Image.blend(grey.convert("RGB"), tiles, 0.6)


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
