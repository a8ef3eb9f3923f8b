"""What Prometheus scrapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from fvit.certificates.record import Certificate
from fvit.runtime.figures import FIGURES
from fvit.runtime.queue import Statistics

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
RADII = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0)


class Metrics:
    """Counters of one service. statistics: of every model's queue, by its name, when asked."""

    def __init__(self, statistics: Callable[[], Mapping[str, Statistics]]) -> None:
        self._registry = registry = CollectorRegistry()
        registry.register(_Queues(statistics))
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.open = Gauge("fvit_requests_open", "Requests under way.", registry=registry)
        self.requests = Counter(
            "fvit_requests", "Requests answered.", ["endpoint", "model", "status"], registry=registry
        )
        self.seconds = Histogram(
            "fvit_request_seconds", "From a request's head to the end of its answer.",
            ["endpoint", "model", "outcome"], buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.waiting = Histogram(
            "fvit_waiting_seconds", "From a request's head until a device takes its first copy.",
            ["endpoint", "model"], buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.first = Histogram(
            "fvit_first_certificate_seconds", "From a refinement's head to its first certificate.",
            ["model"], buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.class_radius = Histogram(
            "fvit_class_radius", "Class radii of certificates, 0 where they abstain.",
            ["model"], buckets=RADII, registry=registry,
        )  # fmt: skip
        self.attention_radius = Histogram(
            "fvit_attention_radius", "Attention radii of certificates, 0 where they abstain.",
            ["model"], buckets=RADII, registry=registry,
        )  # fmt: skip
        self.abstained = Histogram(
            "fvit_abstained", "1 for each abstention, else 0: its mean is their share.",
            ["endpoint", "model", "claim"], buckets=(0.0, 1.0), registry=registry,
        )  # fmt: skip
        self.answers = Counter(
            "fvit_decisions", "Decisions at a radius.", ["model", "answer"], registry=registry
        )

    def certified(self, certificate: Certificate, *, endpoint: str, model: str) -> None:
        """The certificate that a request ended with."""
        of_class, attention = certificate.class_, certificate.attention
        self.class_radius.labels(model).observe(of_class.radius_l2)
        self.attention_radius.labels(model).observe(attention.radius_l2)
        self.abstained.labels(endpoint, model, "class").observe(of_class.abstained)
        self.abstained.labels(endpoint, model, "attention").observe(attention.abstained)
        if certificate.decision is not None:
            self.answers.labels(model, certificate.decision.answer).inc()

    def page(self) -> bytes:
        """All of them in Prometheus's text format."""
        return generate_latest(self._registry)


class _Queues(Collector):
    """The queues' own figures, read when they are asked for."""

    def __init__(self, statistics: Callable[[], Mapping[str, Statistics]]) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        found = self._statistics()
        for figure in FIGURES:
            family = CounterMetricFamily if figure.counts else GaugeMetricFamily
            metric = family(figure.name, figure.words, labels=["model"])
            for model, statistics in found.items():
                metric.add_metric([model], figure.of(statistics))
            yield metric
