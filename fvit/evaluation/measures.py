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

Target = Literal["class", "attention"]
TARGETS: tuple[Target, ...] = ("class", "attention")
"""What an attack is on: what the model says, or the k tokens of its explanation."""

Norm = Literal["linf", "l2"]
BUDGETS: tuple[tuple[Norm, float], ...] = (("linf", 2), ("linf", 4), ("linf", 8), ("l2", 0.5), ("l2", 1.0))
"""How far an attack may go: ℓ∞ in 255ths; ℓ2 in shares of the certified radius of its target."""

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


def draws(seed: int, pixels_sha256: str) -> list[int]:
    """What all that is random about an image is drawn from, so that images of one seed are independent."""
    return [seed, int(pixels_sha256[:32], 16)]


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


class Said(Part):
    """The class that a model says of an image, and how many of the k tokens that are first in its explanation
    of the image as it is are there as well."""

    index: Index
    shared: Count


class Attack(Part):
    """An attack on a model's class or explanation within a budget: how far it went, in ℓ2, and what the model
    says there."""

    model: Model
    target: Target
    norm: Norm
    budget: Annotated[float, Field(gt=0)]
    distance: Annotated[float, Field(ge=0)]
    said: Said


class Attacked(Part):
    """All attacks on one image. untouched: what as many other copies as judge an attack say of the image as
    it is. Attacks on a claim that has no radius, by shares of it, are left out."""

    untouched: Said
    attacks: Annotated[tuple[Attack, ...], Row]


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
    adversarial: Attacked | None = None
