"""Figures of a data set: ratios of sums over its images, each with a bootstrap interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Key: TypeAlias = "tuple[str | float, ...]"
"""What a figure is of."""

Row: TypeAlias = "Mapping[Key, tuple[float, float]]"
"""One image's part of every figure: numerator and denominator, both 0 where the image has none."""

Figure: TypeAlias = "dict[str, float | int]"
"""value, low and high, and how many images it is of; without the others where these are 0."""

RESAMPLES = 2000
LEVEL = 0.95
SEED = 0
AT_ONCE = 50
"""Resamples that are summed at once, for memory's sake."""

DIGITS = 6


class Rows:
    """The images' parts, as they are added; every row has the keys of the first."""

    def __init__(self) -> None:
        self._keys: list[Key] = []
        self._rows: list[NDArray[np.float64]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: Row) -> None:
        self._keys = self._keys or list(row)
        self._rows.append(np.array([row[key] for key in self._keys], np.float64))

    def figures(self) -> Figures:
        """At least one row must be there."""
        parts = np.stack(self._rows)
        return Figures(self._keys, parts[..., 0], parts[..., 1])


class Figures:
    """Ratios Σ numerators / Σ denominators over the images, by key.

    keys: [F]. numerators, denominators: [M,F]. The interval is the middle 95 % of the ratios of 2,000
    resamples of the images, drawn with replacement (percentile bootstrap: Efron & Tibshirani 1993, chapter
    13); all figures share the resamples. The same rows give the same figures to the bit.
    """

    def __init__(
        self, keys: list[Key], numerators: NDArray[np.float64], denominators: NDArray[np.float64]
    ) -> None:
        self._places = {key: place for place, key in enumerate(keys)}
        self._images = (denominators > 0).sum(axis=0)
        whole = np.ones((1, len(numerators)))
        self._values = _ratios(whole, numerators, denominators)[0]
        draw = np.random.default_rng(SEED)
        self._resampled = np.concatenate(
            [
                _ratios(_weights(draw, len(numerators)), numerators, denominators)
                for _ in range(RESAMPLES // AT_ONCE)
            ]
        )

    def of(self, *keys: Key) -> Figure:
        """The figure of a key, or the mean of those of several."""
        places = [self._places[key] for key in keys]
        images = int(self._images[places].min())
        if not images:
            return {"images": 0}
        return _figure(self._values[places].mean(), self._resampled[:, places].mean(axis=1), images)

    def difference(self, keys: Sequence[Key], others: Sequence[Key]) -> Figure:
        """How much larger the figure of some keys is than that of others, of the same images in pairs."""
        places, against = ([self._places[key] for key in each] for each in (keys, others))
        images = int(self._images[[*places, *against]].min())
        if not images:
            return {"images": 0}
        value = self._values[places].mean() - self._values[against].mean()
        resampled = self._resampled[:, places].mean(axis=1) - self._resampled[:, against].mean(axis=1)
        return _figure(value, resampled, images)


def _figure(value: float, resampled: NDArray[np.float64], images: int) -> Figure:
    edges = np.array([1 - LEVEL, 1 + LEVEL]) / 2
    low, high = np.quantile(resampled[np.isfinite(resampled)], edges)
    return {
        "value": round(float(value), DIGITS),
        "low": round(float(low), DIGITS),
        "high": round(float(high), DIGITS),
        "images": images,
    }


def _weights(draw: np.random.Generator, images: int) -> NDArray[np.float64]:
    """[AT_ONCE, images]: how often each image is in each resample."""
    return draw.multinomial(images, np.full(images, 1 / images), size=AT_ONCE).astype(np.float64)


def _ratios(
    weights: NDArray[np.float64], numerators: NDArray[np.float64], denominators: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[resamples, F]; no number where nothing with a denominator was drawn."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((weights @ numerators) / (weights @ denominators))
