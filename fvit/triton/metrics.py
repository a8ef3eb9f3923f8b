"""The queue's figures at Triton's metrics port."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import triton_python_backend_utils as pb_utils

from fvit.runtime.figures import FIGURES, Figure
from fvit.runtime.queue import Statistics


class Metrics:
    """Told to Triton when they have changed: it cannot ask for them."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        self._families: list[Any] = []
        self._metrics: list[tuple[Figure, Any]] = []
        self._told: dict[str, float] = {}
        for figure in FIGURES:
            kind = pb_utils.MetricFamily.COUNTER if figure.counts else pb_utils.MetricFamily.GAUGE
            family = pb_utils.MetricFamily(name=figure.name, description=figure.words, kind=kind)
            self._families.append(family)  # which ends with this object, and its metrics with it
            self._metrics.append((figure, family.Metric(labels=dict(labels))))

    def tell(self, statistics: Statistics) -> None:
        """Tell what has changed since the last call."""
        for figure, metric in self._metrics:
            before, now = self._told.get(figure.name, 0.0), float(figure.of(statistics))
            if now == before:
                continue
            if figure.counts:
                metric.increment(now - before)
            else:
                metric.set(now)
            self._told[figure.name] = now
