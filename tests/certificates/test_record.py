import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fvit.certificates.record import Certificate
from fvit.certificates.terms import Terms
from fvit.errors import FvitError
from tests.certificates.conftest import Make

KINDS: list[dict[str, Any]] = [
    {},
    {"radius": 0.1},
    {"refining": True, "copies": 300},
    {"aggregate": "mean"},
    {"aggregate": "mean", "radius": 0.02, "k": [10, 4]},
    {"k": [10, 5, 20], "beta": 0.3},
]
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


@EVERY_KIND
def test_a_record_is_json_and_the_certificate_comes_back_from_it(make: Make, kind: dict[str, Any]) -> None:
    certificate = make(**kind)
    line = json.dumps(certificate.to_dict(), allow_nan=False)
    assert Certificate.model_validate_json(line) == certificate
    assert Certificate.model_validate(json.loads(line)) == certificate
    assert json.dumps(Certificate.model_validate_json(line).to_dict()) == line


@EVERY_KIND
def test_the_terms_come_back_from_a_record(make: Make, kind: dict[str, Any]) -> None:
    terms = make(n=900, seed=5, **kind).terms
    sizes = kind.get("k", 10)
    assert terms == Terms.of(
        sigma=0.25, n=900, alpha=1e-3, k=sizes, beta=kind.get("beta", 0.8),
        aggregate=kind.get("aggregate", "vote"), seed=5, size=(64, 48),
        radius=kind.get("radius"), refining=kind.get("refining", False),
    )  # fmt: skip


def test_a_record_holds_what_its_numbers_follow_from(make: Make) -> None:
    record = make(radius=0.1).to_dict()
    assert list(record) == [
        "image", "sha256", "pixels_sha256", "size", "sigma", "alpha", "slack", "seed", "n", "copies", "class",
        "attention", "faithful", "bound", "decision", "engine", "bundle", "fvit", "seconds",
    ]  # fmt: skip
    assert sum(record["class"]["counts"].values()) == record["copies"] == 1000
    assert len(record["attention"]["votes"]) == len(record["attention"]["sums"]) == 64
    assert sum(record["attention"]["votes"]) == 10 * 1000
    assert record["decision"]["class"] in ("certified", "not certified", "undecided")


def test_only_means_need_their_wealth_and_only_several_sizes_are_listed(make: Make) -> None:
    assert not {"wealth", "explanations", "decision"} & set(make().to_dict())
    several = make(k=[10, 5], aggregate="mean").to_dict()
    assert [each["k"] for each in several["explanations"]] == [10, 5]
    assert several["explanations"][0] == several["attention"]
    assert len(several["wealth"]) == 22


def test_parts_can_be_used_by_their_names(make: Make) -> None:
    certificate = make(k=[10, 5], radius=0.1)
    assert certificate.class_.label == "class 3"
    assert [claim.k for claim in certificate.attentions] == [10, 5]
    assert certificate.attentions[0] is certificate.explanations[0]  # type: ignore[index]
    assert certificate.decision is not None
    assert certificate.decision.class_ == "certified"
    assert certificate.attention.smoothed.shape == (64,)
    assert certificate.attention.smoothed.sum() == pytest.approx(10)
    assert dict(certificate.attention.curve)[0.8] == certificate.attention.radius_l2


def test_the_map_says_of_every_token_whether_it_is_in_out_or_open_at_a_radius(make: Make) -> None:
    certificate, seen = make(n=100, k=[10, 30], refining=True), set()
    for claim in certificate.attentions:
        radii = claim.map_radii
        assert radii is not None
        every = claim.map()
        assert every.shape == (8, 8)
        assert every.dtype == np.int8
        seen |= set(every.ravel().tolist())
        edge = max(radii)  # at its own radius a side still counts as certified, as an answer at a radius does
        for radius in (0.0, 0.05, edge, edge + 1e-9):
            expected = [0 if r == 0 or abs(r) < radius else 1 if r > 0 else -1 for r in radii]
            assert claim.map(radius).ravel().tolist() == expected
        assert not claim.map(9.0).any()
        shares = claim.smoothed.reshape(8, 8)
        assert shares[every == 1].min() > 0.5 > shares[every == -1].max()
    assert seen == {-1, 0, 1}
    with pytest.raises(FvitError, match="radius = -0.1"):
        certificate.attention.map(-0.1)
    with pytest.raises(FvitError, match="radius = nan"):
        certificate.attention.map(math.nan)


def test_means_have_no_map(make: Make) -> None:
    certificate = make(aggregate="mean")
    assert "map_radii" not in certificate.to_dict()["attention"]
    with pytest.raises(FvitError, match="certify votes"):
        certificate.attention.map()


@pytest.mark.parametrize("sigma", [0.05, 0.25, 1.0])
def test_the_map_of_196_tokens_takes_less_than_two_kilobytes(make: Make, sigma: float) -> None:
    record = make(side=14, sigma=sigma, n=5000).to_dict()
    before = len(json.dumps(record, ensure_ascii=False).encode())
    assert len(record["attention"].pop("map_radii")) == 196
    assert before - len(json.dumps(record, ensure_ascii=False).encode()) < 2000


def test_a_certificate_does_not_change(make: Make) -> None:
    certificate = make()
    with pytest.raises(ValidationError, match="frozen"):
        certificate.sigma = 1.0
    with pytest.raises(ValidationError, match="frozen"):
        certificate.class_.radius_l2 = 1.0


def test_the_schema_and_the_documentation_name_every_field(make: Make) -> None:
    schema = Certificate.model_json_schema(by_alias=True)
    assert set(make(k=[10, 5], aggregate="mean", radius=0.1).to_dict()) == set(schema["properties"])
    documented = re.findall(
        r"^\| `([^`]+)`", Path("docs/record.md").read_text(encoding="utf-8"), re.MULTILINE
    )

    def fields(properties: dict[str, Any], prefix: str = "") -> set[str]:
        found = set()
        for name, about in properties.items():
            part = about.get("$ref") or next((a["$ref"] for a in about.get("anyOf", []) if "$ref" in a), None)
            found.add(prefix + name)
            if part is not None:
                found |= fields(schema["$defs"][part.rsplit("/", 1)[1]]["properties"], f"{prefix}{name}.")
        return found

    assert set(documented) == fields(schema["properties"])
