"""The endpoints of a real server, over real sockets."""

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import fvit
from fvit.certificates.record import Certificate
from fvit.certificates.verify import verify
from tests.service.conftest import Serving, problem


def posted(service: Serving, path: str, image: Path, **terms: Any) -> httpx.Response:
    return service.client.post(path, params=terms, content=image.read_bytes())


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Server-sent events as (event, data)."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if fields:
            found.append((fields["event"], json.loads(fields["data"])))
    return found


def test_every_answer_is_the_one_of_its_own_image_and_what_the_record_gives_offline(
    service: Serving, vit: fvit.FaithfulViT, samples: list[Path]
) -> None:
    """Many at once, with different terms; every record is computed again from its own seed."""
    asked = [
        (sample, {"n": 48 + 2 * i, "sigma": 0.25 if i % 2 else 0.5}) for i, sample in enumerate(samples[:8])
    ]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda each: posted(service, "/v1/certify", each[0], **each[1]), asked))
    for (sample, terms), answer in zip(asked, answers, strict=True):
        record = answer.json()
        assert verify(record) == []
        certificate = Certificate.model_validate(record)
        picture = vit.read(sample)
        assert record["pixels_sha256"] == picture.pixels_sha256
        assert record["sha256"] == picture.sha256
        assert (record["n"], record["sigma"]) == (terms["n"], terms["sigma"])
        again = vit.recount(picture, certificate.terms, copies=certificate.copies).to_dict()
        for own in (record, again):
            del own["seconds"], own["image"]
        assert record == again


def test_a_prediction_has_the_class_the_map_and_the_seed(
    service: Serving, vit: fvit.FaithfulViT, samples: list[Path]
) -> None:
    found = posted(service, "/v1/predict", samples[3], n=16).json()
    again = vit.predict(samples[3], n=16, seed=found["seed"])
    assert (found["index"], found["label"]) == (again.index, again.label)
    assert found["attention"] == again.attention.tolist()
    assert sum(found["counts"].values()) == found["n"] == 16


def test_an_image_may_come_as_body_form_or_base64(service: Serving, samples: list[Path]) -> None:
    content = samples[0].read_bytes()
    post, path = service.client.post, "/v1/predict?n=12"
    ways = [
        post(path, content=content),
        post(path, content=content, headers={"Content-Type": "image/png"}),
        post(path, files={"image": ("../../a\nname.png", content)}),
        post(path, json={"image": base64.b64encode(content).decode()}),
    ]
    assert [way.status_code for way in ways] == [200] * 4
    assert len({way.json()["sha256"] for way in ways}) == 1


@pytest.mark.parametrize(("path", "width"), [("/v1/predict", 512), ("/v1/certify", 512 + 8 + 512)])
def test_the_map_may_be_a_picture(service: Serving, samples: list[Path], path: str, width: int) -> None:
    """That of a certificate has the explanation and the certified map beside it."""
    answer = service.client.post(
        path, params={"n": 40}, content=samples[0].read_bytes(), headers={"Accept": "image/png, */*;q=0.1"}
    )
    assert answer.headers["content-type"] == "image/png"
    drawn = Image.open(io.BytesIO(answer.content))
    assert drawn.size == (width, 512)
    assert len(np.unique(np.asarray(drawn).reshape(-1, 3), axis=0)) > 100


@pytest.mark.parametrize("kind", ["text/event-stream", "application/x-ndjson"])
def test_a_refinement_grows_and_every_certificate_follows(
    service: Serving, samples: list[Path], kind: str
) -> None:
    answer = service.client.post(
        "/v1/refine", params={"n": 36}, content=samples[0].read_bytes(), headers={"Accept": kind}
    )
    assert answer.headers["content-type"].startswith(kind)
    if kind == "text/event-stream":
        assert {event for event, _ in events(answer.text)} == {"certificate"}
        shown = [data for _, data in events(answer.text)]
    else:
        shown = [json.loads(line) for line in answer.text.splitlines()]
    copies = [each["copies"] for each in shown]
    assert copies == sorted(set(copies))
    assert copies[-1] == 36
    assert [verify(each) for each in shown] == [[]] * len(shown)


def test_a_refinement_ends_with_its_time(service: Serving, samples: list[Path]) -> None:
    answer = posted(service, "/v1/refine", samples[0], seconds=0.001)
    ((event, data),) = events(answer.text)
    assert (event, data["copies"]) == ("certificate", 24)


def test_a_decision_is_answered(service: Serving, samples: list[Path]) -> None:
    record = posted(service, "/v1/certify", samples[1], n=2000, radius=0.01).json()
    assert record["decision"]["answer"] == "certified"
    assert record["copies"] < 2000
    assert verify(record) == []


@pytest.mark.parametrize("radius", [{}, {"radius": 0.45}])
def test_a_deadline_gives_the_best_certificate_that_time_allows(
    faulty: Serving, samples: list[Path], radius: dict[str, float]
) -> None:
    """With time for some copies of twenty thousand."""
    terms: dict[str, Any] = {"n": 20_000, "sigma": 0.5, **radius}
    seconds = 1
    while True:  # until the machine has time for a look
        answer = faulty.client.post(
            "/v1/certify", params=terms, content=samples[5].read_bytes(),
            headers={"Fvit-Deadline": str(seconds)},
        )  # fmt: skip
        if answer.status_code == 200:
            break
        problem(answer, 503, "out-of-time")
        seconds *= 2
    record = answer.json()
    assert 24 <= record["copies"] < 20_000
    assert verify(record) == []
    faulty.until("fvit_rows_waiting", lambda waiting: waiting == 0)


def test_a_deadline_that_allows_nothing_says_so(service: Serving, samples: list[Path]) -> None:
    answer = service.client.post(
        "/v1/certify", content=samples[0].read_bytes(), headers={"Fvit-Deadline": "1e-6"}
    )
    problem(answer, 503, "out-of-time")
    assert int(answer.headers["retry-after"]) >= 1


def test_records_are_verified(service: Serving, samples: list[Path]) -> None:
    record = posted(service, "/v1/certify", samples[0], n=40).json()
    assert service.client.post("/v1/verify", json=record).json() == {"follows": True, "findings": []}
    record["class"]["radius_l2"] += 0.1
    found = service.client.post("/v1/verify", json=record).json()
    assert not found["follows"]
    assert any("class.radius_l2" in finding for finding in found["findings"])
    assert service.client.post("/v1/verify", content=b"[]").json()["follows"] is False


def test_models_say_what_may_be_asked(service: Serving, vit: fvit.FaithfulViT) -> None:
    found = service.client.get("/v1/models").json()
    (model,) = found["models"]
    assert model["name"] == "demo"
    assert model["bundle"] == vit.bundle.digest
    assert model["labels"] == list("0123456789")
    assert (model["explanation"], model["explained"]) == ("attention", None)
    assert found["limits"]["n"] == 20000
    assert service.client.get(found["samples"][0]).headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    "terms",
    [
        {"sigma": 0}, {"sigma": "nan"}, {"sigma": 1000}, {"alpha": 1}, {"n": 1}, {"n": 20_001}, {"k": 65},
        {"k": [3, 3]}, {"beta": 2}, {"radius": -1}, {"radius": 9}, {"aggregate": "median"}, {"sgima": 0.5},
        {"seed": 1}, {"n": "many"},
    ],
)  # fmt: skip
def test_terms_that_cannot_hold_are_refused_with_what_to_do(
    service: Serving, samples: list[Path], terms: dict[str, Any]
) -> None:
    answer = posted(service, "/v1/certify", samples[0], **terms)
    problem(answer, 422, "over-limit" if terms == {"n": 20_001} else "invalid-terms")


def test_what_is_not_there_is_a_problem_too(service: Serving, samples: list[Path]) -> None:
    problem(service.client.get("/v2/predict"), 404, "not-found")
    problem(service.client.get("/v1/predict"), 405, "not-allowed")
    problem(posted(service, "/v1/predict", samples[0], model="other"), 404, "unknown-model")
    answer = service.client.post(
        "/v1/predict", content=samples[0].read_bytes(), headers={"Accept": "text/html"}
    )
    problem(answer, 406, "not-acceptable")
    answer = service.client.post("/v1/predict", content=b"x", headers={"Content-Type": "text/plain"})
    problem(answer, 415, "unsupported-type")


def test_a_request_is_one_line_of_the_log_with_its_id_and_nothing_of_its_content(
    service: Serving, samples: list[Path]
) -> None:
    answer = service.client.post(
        "/v1/predict?n=12", content=samples[0].read_bytes(),
        headers={"X-Request-ID": "mine-1", "Authorization": "Bearer a-secret"},
    )  # fmt: skip
    assert answer.headers["x-request-id"] == "mine-1"
    line = service.wait_for(lambda line: line.get("id") == "mine-1")
    assert (line["endpoint"], line["model"], line["n"], line["copies"]) == ("/v1/predict", "demo", 12, 12)
    assert line["status"] == 200
    assert line["waiting"] >= 0
    assert 0 < line["computing"] <= line["seconds"]
    assert "a-secret" not in json.dumps(service.lines)
    forged = service.client.get("/healthz", headers={"X-Request-ID": 'a"b'})
    assert forged.headers["x-request-id"] != 'a"b'


def test_metrics_count_what_was_done(service: Serving, samples: list[Path]) -> None:
    before = {
        name: service.metric(name, model="demo")
        for name in ("fvit_copies_total", "fvit_class_radius_count", "fvit_first_certificate_seconds_count")
    }
    posted(service, "/v1/refine", samples[0], n=30)
    after = {name: service.metric(name, model="demo") for name in before}
    assert after["fvit_copies_total"] >= before["fvit_copies_total"] + 30
    assert after["fvit_class_radius_count"] == before["fvit_class_radius_count"] + 1
    first = "fvit_first_certificate_seconds_count"
    assert after[first] == before[first] + 1
    assert service.metric("fvit_devices", model="demo") > 0
    assert service.metric("fvit_copies_per_second", model="demo") > 0
