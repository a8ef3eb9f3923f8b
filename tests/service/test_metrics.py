"""Metrics, and that the dashboard and the handbook name those that there are."""

import json
import re
from pathlib import Path

import pytest

from fvit.certificates.record import Certificate
from fvit.runtime.queue import Statistics
from fvit.service.metrics import Metrics
from tests.service.conftest import Serving

DOCS = Path(__file__).parents[2] / "docs"


def exported(text: str) -> set[str]:
    """Names of samples: a histogram's have suffixes."""
    names: set[str] = set()
    for name, kind in re.findall(r"^# TYPE (\w+) (\w+)$", text, flags=re.MULTILINE):
        suffixes = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
        names.update(name + suffix for suffix in suffixes)
    return names


@pytest.fixture
def text(service: Serving) -> str:
    return service.client.get("/metrics").text


def test_every_metric_of_the_dashboard_is_exported(text: str) -> None:
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked += [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
    named = set(re.findall(r"\b(?:fvit|process)_\w+", " ".join(asked)))
    assert len(named) > 10
    assert named <= exported(text)


def test_the_handbook_explains_every_metric(text: str) -> None:
    kinds = dict(re.findall(r"^# TYPE (fvit_\w+) (\w+)$", text, flags=re.MULTILINE))
    bare = {name for name in kinds if not name.endswith("_created")}
    named = set(re.findall(r"`(fvit_\w+)`", (DOCS / "serving.md").read_text()))
    assert named == bare


def test_a_queue_s_figures_and_a_certificate_s_become_samples(service: Serving, samples: list[Path]) -> None:
    found = Statistics(copies=30, batches=10, room=40, waiting=7, devices=2, rate=12.5)
    metrics = Metrics(lambda: {"one": found})
    record = service.client.post("/v1/certify?n=40&radius=0.01", content=samples[0].read_bytes()).json()
    metrics.certified(Certificate.model_validate(record), endpoint="/v1/certify", model="one")
    said = metrics.page().decode()
    for line in (
        'fvit_copies_total{model="one"} 30.0',
        'fvit_batch_rows_total{model="one"} 40.0',
        'fvit_rows_waiting{model="one"} 7.0',
        'fvit_copies_per_second{model="one"} 12.5',
        'fvit_class_radius_count{model="one"} 1.0',
        f'fvit_class_radius_sum{{model="one"}} {record["class"]["radius_l2"]}',
        f'fvit_decisions_total{{answer="{record["decision"]["answer"]}",model="one"}} 1.0',
    ):
        assert line in said.splitlines()
