"""What is measured of one image beside its certificate, as one line of measures.jsonl (docs/evaluation.md).

Nothing in it depends on the image's label: that is asked when tables are made.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fvit.certificates.claims import Index, Part, Row
from fvit.certificates.record import Digest
from fvit.evaluation.perturbing import Fill

Explanation = Literal["plain", "smoothed"]
EXPLANATIONS: tuple[Explanation, ...] = ("plain", "smoothed")
"""That of the classifier on the image as it is; the mean over the copies behind the denoiser."""

Model = Literal["plain", "smoothed"]
MODELS: tuple[Model, ...] = ("plain", "smoothed")
"""Who judges an image: the classifier as it is; the most frequent class of copies behind the denoiser."""

Order = Literal["positive", "negative"]
ORDERS: tuple[Order, ...] = ("positive", "negative")
"""Which tokens are removed first: the most relevant, or the least."""

Tokens = Literal["in", "out", "random", "all out", "random, as all out"]
TOKENS: tuple[Tokens, ...] = ("in", "out", "random", "all out", "random, as all out")
"""Certified in and out, equally many of both and of any; all that are certified out, and as many of any."""

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Judged(Part):
    """What a model says of an image: the class with the largest probability, or share of the copies; and the
    share of the class that is explained, which is what the model says of the image as it is unless the bundle
    always explains the same class."""

    index: Index
    share: Share


class Curve(Part):
    """Tokens removed in an order of an explanation, 1 to 9 tenths of them: what a model says each time, as
    Judged has it."""

    explanation: Explanation
    order: Order
    fill: Fill
    model: Model
    indices: Annotated[tuple[Index, ...], Row]
    shares: Annotated[tuple[Share, ...], Row]


class Removal(Part):
    """A set of tokens removed, so many, and what a model says then."""

    tokens: Tokens
    count: Count
    fill: Fill
    model: Model
    judged: Judged


class Cut(Part):
    """An explanation cut into object and background: of the labelled pixels, those taken for the object, and
    those of them that are."""

    predicted: Count
    hit: Count


class Segmentation(Part):
    """An explanation against the mask: cut at its mean, and at 0, 1/20 … 19/20 of its range."""

    explanation: Explanation
    at_mean: Cut
    at: Annotated[tuple[Cut, ...], Row]
    average_precision: Share


class Masked(Part):
    """The mask: SHA-256 of its values, how many pixels are not void and how many are the object's, and the
    tokens that touch the object."""

    sha256: Digest
    labelled: Count
    object: Count
    tokens: Annotated[tuple[Index, ...], Row]
    segmentations: Annotated[tuple[Segmentation, ...], Row]


class Measures(Part):
    """All measures of one image.

    seed: of its certificate. plain, smoothed: what the classifier and the copies of the certificate say of
    the image as it is. attribution: the classifier's explanation there, [N], to six digits.
    """

    image: str
    pixels_sha256: Digest
    seed: Annotated[int, Field(ge=0, lt=2**64)]
    plain: Judged
    smoothed: Judged
    attribution: Annotated[tuple[Share, ...], Row]
    curves: Annotated[tuple[Curve, ...], Row]
    removals: Annotated[tuple[Removal, ...], Row]
    mask: Masked | None = None
