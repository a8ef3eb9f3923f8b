"""Attacks on one image: an adversary proposes, the bundle's engine judges (docs/evaluation.md)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fvit.certificates.claims import top_tokens
from fvit.certificates.radii import in_digits
from fvit.certificates.record import Certificate
from fvit.certificates.refuting import doubted, refuted
from fvit.certificates.tally import Tally
from fvit.errors import FvitError
from fvit.evaluation.measures import (
    BUDGETS,
    MODELS,
    TARGETS,
    Attack,
    Attacked,
    Measures,
    Model,
    Norm,
    Said,
    Target,
    draws,
)
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.images import Picture
from fvit.runtime.loading import ON_CPU
from fvit.runtime.pictures import written_whole
from fvit.runtime.plain import classify_plain

Floats: TypeAlias = NDArray[np.float32]
Pixels: TypeAlias = "NDArray[np.uint8] | Floats"
"""[3,H,W] of the bundle's size: 8-bit, or between that in [0,1]."""

STEP_COPIES = 8
"""Noisy copies behind each step of an attack on the smoothed model."""

JUDGED = 100
"""Copies of an attacked image that say what the smoothed model says of it."""

CONFIRMED, BEYOND_CHANCE = 2000, 1e-6
"""Copies that decide where those are doubtful, and the probability with which they may refute what is true.
"""

JUST_INSIDE = 0.999
"""Of a radius: the edge itself belongs to neither side in floating point."""

AT_ONCE = 8
"""Copies of an image between the 8-bit ones that a core takes at once."""

BROKEN = "broken"
"""The folder of images that break a certificate."""


class Adversary(Protocol):
    """Proposes an image [3,H,W] in [0,1], no further than `radius` of [0,1] in the norm from this one, of
    which the model says another class than `index`, or where that is None, explains by other tokens.

    sigma: of the smoothed model; None is the plain one. draw: all that is random, so that the same gives the
    same. Raises CancelledError where `stopped` says so.
    """

    def attack(
        self,
        pixels: Floats,
        *,
        index: int | None,
        tokens: Sequence[int],
        norm: Norm,
        radius: float,
        sigma: float | None,
        draw: np.random.Generator,
        stopped: Callable[[], bool],
    ) -> Floats: ...


class BrokenCertificate(FvitError):
    """What was certified is not so."""


@dataclass(frozen=True, eq=False)
class Attacking:
    """What attacks the images of an evaluation.

    folder: in which an image that breaks a certificate is kept. stopped: whether to give up.
    """

    vit: FaithfulViT
    adversary: Adversary
    folder: Path
    stopped: Callable[[], bool]

    def attacked(self, picture: Picture, certificate: Certificate, measures: Measures) -> Attacked:
        """Every attack on an image, whose other measures are given. The same give the same.

        Raises BrokenCertificate where copies of an attacked image refute what is certified of it,
        CancelledError where it was stopped.
        """
        claim = certificate.attention
        clean: dict[Model, tuple[int, Sequence[int]]] = {
            "plain": (
                measures.plain.index,
                top_tokens(np.asarray(measures.attribution), claim.k).tolist(),
            ),
            "smoothed": (certificate.class_.index, claim.tokens),
        }
        seed = int(np.random.default_rng(certificate.seed).integers(2**63))
        untouched = _said(
            fresh(self.vit, picture.pixels, certificate, copies=JUDGED, seed=seed), claim.tokens
        )
        attacks = [
            self._attack(picture, certificate, model, target, norm, budget, *clean[model], place=place)
            for place, (model, target, norm, budget) in enumerate(_each(certificate))
        ]
        return Attacked(untouched=untouched, attacks=tuple(attacks))

    def _attack(
        self,
        picture: Picture,
        certificate: Certificate,
        model: Model,
        target: Target,
        norm: Norm,
        budget: float,
        index: int,
        tokens: Sequence[int],
        *,
        place: int,
    ) -> Attack:
        draw = np.random.default_rng([*draws(certificate.seed, picture.pixels_sha256), place])
        radius = budget / 255 if norm == "linf" else budget * JUST_INSIDE * _radius(certificate, target)
        proposed = self.adversary.attack(
            np.divide(picture.pixels, 255, dtype=np.float32),
            index=index if target == "class" else None,
            tokens=tokens,
            norm=norm,
            radius=radius,
            sigma=certificate.sigma if model == "smoothed" else None,
            draw=draw,
            stopped=self.stopped,
        )
        pixels = rounded(proposed, picture.pixels, budget=int(budget)) if norm == "linf" else proposed
        distance = float(np.linalg.norm(in_units(pixels) - in_units(picture.pixels)))
        if model == "plain":
            logits, attribution = classify_plain(self.vit, pixels[None])
            top = top_tokens(attribution[0], len(tokens))
            said = Said(index=int(logits[0].argmax()), shared=len(set(top.tolist()) & set(tokens)))
        else:
            tally = fresh(self.vit, pixels, certificate, copies=JUDGED, seed=int(draw.integers(2**63)))
            if doubted(certificate, tally, distance=distance):
                self._confirm(picture, pixels, certificate, distance, seed=int(draw.integers(2**63)))
            said = _said(tally, tokens)
        return Attack(
            model=model, target=target, norm=norm, budget=budget, distance=round(distance, 6), said=said
        )

    def _confirm(
        self, picture: Picture, pixels: Pixels, certificate: Certificate, distance: float, *, seed: int
    ) -> None:
        tally = fresh(self.vit, pixels, certificate, copies=CONFIRMED, seed=seed)
        broken = refuted(certificate, tally, distance=distance, chance=BEYOND_CHANCE)
        if not broken:
            return
        file = self.folder / BROKEN / f"{picture.pixels_sha256}.npy"
        try:
            file.parent.mkdir(exist_ok=True)
            with written_whole(file) as part, part.open("wb") as opened:
                np.save(opened, in_units(pixels).astype(np.float32))
        except OSError as error:
            raise FvitError(f"cannot write {file}: {error.strerror}") from error
        of_class, attention = certificate.class_, certificate.attention
        raise BrokenCertificate(
            f"the certificate of {picture.name} is broken: it holds to ℓ2 radii of "
            f"{in_digits(of_class.radius_l2, digits=4)} (class) and "
            f"{in_digits(attention.radius_l2, digits=4)} (attention), and {CONFIRMED:,} copies of {file}, at "
            f"{distance:.4g}, refute it ({', '.join(broken)}). Unless it is one of the share of "
            f"{certificate.alpha:g} that may be false by chance, this is a bug: please report it with that "
            "file, the record and the bundle"
        )


def broken_in(folder: Path) -> list[str]:
    """SHA-256 of the pixels of the images in an output folder whose certificates an attack broke."""
    return sorted(file.stem for file in (folder / BROKEN).glob("*.npy"))


def fresh(vit: FaithfulViT, pixels: Pixels, certificate: Certificate, *, copies: int, seed: int) -> Tally:
    """Copies of an image with the certificate's σ, counted as it counts them.

    8-bit images are drawn and counted by the devices, as those of any other picture. Between them what is
    smoothed starts at the 8-bit grid all the same (docs/method.md, section 3): copies are round(255(x + σz)),
    with z from NumPy's generator.
    """
    if pixels.dtype == np.uint8:
        picture = vit.read(pixels.transpose(1, 2, 0))
        return vit.tallied(picture, replace(certificate.terms, n=copies, seed=seed), copies=copies)
    tally = Tally(vit.pipeline.classes, vit.pipeline.tokens, (certificate.attention.k,))
    exact, sigma = pixels.astype(np.float64), certificate.sigma

    def some(first: int) -> tuple[Floats, Floats]:
        draw = np.random.default_rng([seed, first])
        noise = draw.standard_normal((min(AT_ONCE, copies - first), *pixels.shape))
        noisy = np.rint(255 * (exact + sigma * noise)).astype(np.float32) / np.float32(255)
        return vit.pipeline(noisy, sigma=np.full(len(noisy), sigma, np.float32))

    cores = len(os.sched_getaffinity(0)) if vit.engine["device"] in ON_CPU else 1
    with ThreadPoolExecutor(cores, thread_name_prefix="fvit-fresh") as workers:
        for logits, attribution in workers.map(some, range(0, copies, AT_ONCE)):
            tally.add(logits, attribution)
    return tally


def rounded(proposed: Floats, clean: NDArray[np.uint8], *, budget: int) -> NDArray[np.uint8]:
    """The 8-bit image next to a proposal [3,H,W] in [0,1] that lies no further than so many 255ths from a
    clean one in any value."""
    values, centre = np.rint(255 * proposed.astype(np.float64)), clean.astype(np.int64)
    low, high = np.maximum(centre - budget, 0), np.minimum(centre + budget, 255)
    return np.clip(values, low, high).astype(np.uint8)


def in_units(pixels: Pixels) -> NDArray[np.float64]:
    """In [0,1]."""
    return pixels.astype(np.float64) / (255 if pixels.dtype == np.uint8 else 1)


def _each(certificate: Certificate) -> Iterator[tuple[Model, Target, Norm, float]]:
    for model in MODELS:
        for target in TARGETS:
            for norm, budget in BUDGETS:
                # A claim that abstains has no radius, and one that nothing can break no end.
                if norm == "linf" or 0 < _radius(certificate, target) < math.inf:
                    yield model, target, norm, budget


def _radius(certificate: Certificate, target: Target) -> float:
    return certificate.class_.radius_l2 if target == "class" else certificate.attention.radius_l2


def _said(tally: Tally, tokens: Sequence[int]) -> Said:
    top = top_tokens(tally.votes[0], len(tokens))
    return Said(index=int(tally.counts.argmax()), shared=len(set(top.tolist()) & set(tokens)))
