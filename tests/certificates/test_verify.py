import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fvit.certificates.verify import verify
from tests.certificates.conftest import Make
from tests.certificates.test_record import EVERY_KIND

Record = dict[str, Any]


@EVERY_KIND
@pytest.mark.parametrize("n", [300, 777, 5000])
def test_all_of_an_honest_record_follows(make: Make, kind: dict[str, Any], n: int) -> None:
    for seed in range(3):
        record = json.loads(json.dumps(make(n=n, seed=seed, **kind).to_dict()))
        assert verify(record) == []


@pytest.mark.parametrize("radius", [0.005, 0.06, 0.11, 0.2, 0.9])
@pytest.mark.parametrize("aggregate", ["vote", "mean"])
@pytest.mark.parametrize("copies", [24, 60, 400])
def test_all_of_an_honest_decision_follows(make: Make, radius: float, aggregate: str, copies: int) -> None:
    assert verify(make(n=1000, copies=copies, radius=radius, aggregate=aggregate).to_dict()) == []


def put(path: str, value: Any) -> Callable[[Record], None]:
    """A change of one field; a value that is callable is given the old one."""

    def change(record: Record) -> None:
        *way, last = path.split(".")
        part: Any = record
        for step in way:
            part = part[int(step)] if isinstance(part, list) else part[step]
        key: Any = int(last) if isinstance(part, list) else last
        part[key] = value(part[key]) if callable(value) else value

    return change


def drop(path: str) -> Callable[[Record], None]:
    def change(record: Record) -> None:
        *way, last = path.split(".")
        part: Any = record
        for step in way:
            part = part[step]
        del part[last]

    return change


def several(*changes: Callable[[Record], None]) -> Callable[[Record], None]:
    def change(record: Record) -> None:
        for each in changes:
            each(record)

    return change


def more(value: float) -> float:
    return value * 1.01 + 1e-6


def twice(value: float) -> float:
    return 2 * value


def other(answer: str) -> str:
    return "undecided" if answer == "certified" else "certified"


def nested(depth: int) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = [value]
    return value


def nested_object(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


ALTERATIONS: dict[str, Callable[[Record], None]] = {
    # each number
    "sigma": put("sigma", 0.26),
    "sigma and its slack": several(
        put("sigma", 0.5), put("slack", lambda old: old * (18.2 * 127.5 + 4) / (18.2 * 63.75 + 4))
    ),
    "alpha": put("alpha", 0.01),
    "smaller alpha": put("alpha", 0.0009),
    "slack": put("slack", 0.0),
    "slack, a little": put("slack", lambda old: old * 1.001),
    "n": put("n", 2000),
    "copies": put("copies", 999),
    "n and copies": several(put("n", 1001), put("copies", 1001)),
    "size": put("size", [64, 64]),
    "bound": put("bound", "clopper-pearson"),
    "bound, the other": put("bound", "betting"),
    # the class
    "class": put("class.index", 8),
    "count": put("class.counts.3", lambda old: old + 1),
    "counts moved": several(put("class.counts.3", lambda x: x + 1), put("class.counts.0", lambda x: x - 1)),
    "a class with no copies": put("class.counts.77", 0),
    "a class that is no number": put("class.counts.three", 5),
    "a class with a sign": put("class.counts.-1", 5),
    "a class in other digits": several(
        put("class.counts.3", lambda x: x - 5), put("class.counts.3\N{ARABIC-INDIC DIGIT TWO}", 5)
    ),
    "count and bound together": several(put("class.counts.3", lambda x: x + 5), put("class.p_lower", more)),
    "p_lower": put("class.p_lower", more),
    "p_lower and radius": several(put("class.p_lower", 0.95), put("class.radius_l2", 0.41121340673786804)),
    "class radius": put("class.radius_l2", more),
    "class radius, the last digits": put("class.radius_l2", lambda old: old * (1 + 1e-7)),
    "linf radius": put("class.radius_linf", more),
    "both class radii": several(put("class.radius_l2", twice), put("class.radius_linf", twice)),
    "class abstained": put("class.abstained", True),
    # the explanation
    "a token": put("attention.tokens.0", 63),
    "order of tokens": put("attention.tokens", lambda old: old[::-1]),
    "a token twice": put("attention.tokens", lambda old: [old[0], *old[:-1]]),
    "tokens, too few": put("attention.tokens", lambda old: old[:-1]),
    "grid": put("attention.grid", [8, 9]),
    "k": put("attention.k", 9),
    "beta": put("attention.beta", 0.7),
    "beta below the smallest": put("attention.beta", 0.1),
    "beta, in the seventh digit": put("attention.beta", 0.8000001),
    "beta, in the last digits": put("attention.beta", 0.8 + 1e-15),
    "aggregate": put("attention.aggregate", "mean"),
    "a vote": put("attention.votes.0", lambda x: x - 1),
    "votes moved": several(
        put("attention.votes.0", lambda x: x - 30), put("attention.votes.40", lambda x: x + 30)
    ),
    "votes beyond the copies": several(
        put("attention.votes.0", 2000), put("attention.votes.1", lambda x: x - 1000)
    ),
    "votes, too few": put("attention.votes", lambda old: old[:-1]),
    "votes and sums of fewer tokens": several(
        put("attention.votes", lambda old: old[:-1]), put("attention.sums", lambda old: old[:-1])
    ),
    "sums": put("attention.sums.3", lambda old: old * 2),
    "sums, all halved": put("attention.sums", lambda old: [each // 2 for each in old]),
    "attention radius": put("attention.radius_l2", more),
    "attention radius everywhere": several(put("attention.radius_l2", 0.5), put("faithful.radius_l2", 0.5)),
    "attention radius, curve and faithful": several(
        put("attention.radius_l2", 0.5), put("faithful.radius_l2", 0.5), put("faithful.divergence", 4.0),
        put("attention.radius_by_beta.2.1", 0.5),
    ),
    "attention abstained": put("attention.abstained", lambda old: not old),
    "token radius": put("attention.token_radii.0", more),
    "token radii, too few": put("attention.token_radii", lambda old: old[:-1]),
    "map radius": put("attention.map_radii.0", lambda old: round(old + 0.0001, 4)),
    "map radius, smaller": put("attention.map_radii.0", lambda old: round(old - 0.0001, 4)),
    "map radius, a digit more": put("attention.map_radii.0", lambda old: round(old - 0.00001, 5)),
    "side": put("attention.map_radii.0", lambda old: -old),
    "side of a token outside": put("attention.map_radii.63", lambda old: -old),
    "side closed": put("attention.map_radii.63", 0.0),
    "side, far beyond": put("attention.map_radii.63", -1e300),
    "map radii, too few": put("attention.map_radii", lambda old: old[:-1]),
    "map radii, too many": put("attention.map_radii", lambda old: [*old, 0.0]),
    "map radii, none": put("attention.map_radii", []),
    "map radii as nothing": put("attention.map_radii", None),
    "map missing": drop("attention.map_radii"),
    "curve": put("attention.radius_by_beta.0.1", more),
    "curve's beta": put("attention.radius_by_beta.0.0", 0.95),
    "curve, too short": put("attention.radius_by_beta", lambda old: old[:-1]),
    "curve, a pair of three": put("attention.radius_by_beta.0", [1.0, 0.1, 0.1]),
    "published radius": put("attention.published_renyi_radius", lambda old: old + 0.01),
    # the rest
    "faithful radius": put("faithful.radius_l2", more),
    "divergence": put("faithful.divergence", lambda old: old / 2),
    "order": put("faithful.order", 3.0),
    "decision's radius": put("decision.radius", 0.4),
    "decision on the class": put("decision.class", "not certified"),
    "decision on the explanation": put("decision.attention", other),
    "answer": put("decision.answer", other),
    "whole decision": put(
        "decision", {"radius": 0.4, "class": "certified", "attention": "certified", "answer": "certified"}
    ),
    "decision missing": several(drop("decision"), put("bound", "clopper-pearson")),
    "wealth where votes count": put("wealth", [[0] * 64] * 22),
    "explanations of one": put("explanations", []),
    # nonsense
    "radius as text": put("class.radius_l2", "0.5"),
    "true as a number": put("class.radius_l2", True),
    "copies as a float": put("copies", 1000.0),
    "nothing as a number": put("sigma", None),
    "NaN": put("attention.radius_l2", math.nan),
    "infinity": put("attention.radius_l2", math.inf),
    "negative": put("attention.token_radii.3", -0.1),
    "huge": put("copies", 10**30),
    "huge beyond text": put("seed", 10**5000),
    "huge as a float": put("class.radius_l2", 10**400),
    "huge votes": put("attention.votes.5", 2**80),
    "sigma of nothing": put("sigma", 1e-320),
    "sigma beyond all": put("sigma", 1e308),
    "alpha of one": put("alpha", 1),
    "deep lists": put("attention.votes", nested(50_000)),
    "deep objects": put("class", nested_object(50_000)),
    "deep in another place": put("more", nested_object(50_000)),
    "markup": put("attention.aggregate", "[bold]vote[/bold]<script>"),
    "a field with markup": put("[red]x[/red]", 1),
    "a field with lines": put("a\nb\x1b[31m" + "c" * 10_000, 1),
    "hash": put("sha256", "x" * 64),
    "hash of pixels": put("pixels_sha256", "0" * 63),
    "another name": several(put("class_", 1), drop("class")),
    "an object for a list": put("attention.tokens", {"0": 1}),
    "a list for an object": put("class", []),
    "engine without a device": drop("engine.device"),
}  # fmt: skip


@pytest.mark.parametrize("name", ALTERATIONS)
def test_an_altered_record_is_found(make: Make, name: str) -> None:
    record = json.loads(json.dumps(make(n=1000, radius=0.1).to_dict()))
    ALTERATIONS[name](record)
    found = verify(record)
    assert found
    assert all(isinstance(each, str) and "\n" not in each and len(each) < 1000 for each in found)


@pytest.mark.parametrize("part", ["class", "attention"])
def test_nothing_follows_and_so_little_is_claimed_is_found(make: Make, part: str) -> None:
    record = json.loads(json.dumps(make(copies=8, radius=0.1).to_dict()))
    assert verify(record) == []
    assert record["class"]["abstained"] and record["attention"]["abstained"]
    tiny = 2e-10 * record["sigma"]
    record[part] |= {"radius_l2": tiny, "abstained": False}
    if part == "class":
        record[part]["radius_linf"] = tiny / math.sqrt(3 * math.prod(record["size"]))
    else:
        record[part]["radius_by_beta"] = [[beta, tiny] for beta, _ in record[part]["radius_by_beta"]]
        record[part]["token_radii"] = [tiny for _ in record[part]["token_radii"]]
        record["faithful"] |= {"radius_l2": tiny, "divergence": (tiny / record["sigma"]) ** 2}
    assert any(f"{part}.radius_l2 is" in each for each in verify(record))


def test_sizes_that_cannot_be_of_the_same_copies_are_found(make: Make) -> None:
    """Of three, the two that are not the main one are compared too."""
    record = json.loads(json.dumps(make(n=300, k=[30, 5, 10]).to_dict()))
    assert verify(record) == []
    votes = record["explanations"][1]["votes"]
    last = record["explanations"][2]["votes"].index(min(record["explanations"][2]["votes"]))
    first = votes.index(max(votes))
    more = record["explanations"][2]["votes"][last] + 1 - votes[last]
    votes[last] += more
    votes[first] -= more
    assert any("fewer votes in the larger explanation of k = 10" in each for each in verify(record))


def test_every_field_is_missed_and_no_kind_of_value_ends_in_a_traceback(make: Make) -> None:
    for kind in ({"k": [10, 5], "radius": 0.1}, {"aggregate": "mean"}):
        record = json.loads(json.dumps(make(**kind).to_dict()))
        for *way, last in paths(record):
            part: Any = record
            for step in way:
                part = part[step]
            honest = part[last]
            value: Any
            for value in (None, "x", -1, 0, 1, 0.5, 1e300, math.nan, [], {}, [[]], True, 2**70):
                part[last] = value
                verify(record)
            if isinstance(part, dict) and last not in ("decision", "explanations"):
                del part[last]
                assert verify(record), (way, last)
            part[last] = honest


def paths(value: Any, way: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every field, of long lists the first two places."""
    if isinstance(value, dict):
        return [path for key in value for path in [(*way, key), *paths(value[key], (*way, key))]]
    if isinstance(value, list):
        return [
            path
            for place in range(min(2, len(value)))
            for path in [(*way, place), *paths(value[place], (*way, place))]
        ]
    return []


@pytest.mark.parametrize("kind", [{"n": 300}, {"n": 300, "k": [10, 30], "radius": 0.1}, {"side": 14}])
def test_an_edited_side_or_radius_of_any_token_is_found(make: Make, kind: dict[str, Any]) -> None:
    record = json.loads(json.dumps(make(**kind).to_dict()))
    assert verify(record) == []
    claims = record.get("explanations", [record["attention"]])
    for place, claim in enumerate(claims):
        for token, honest in enumerate(claim["map_radii"]):
            edits = {round(honest + 0.0001, 4), round(honest - 0.0001, 4), -honest, 0.0, 0.3} - {honest}
            for edited in edits:
                claim["map_radii"][token] = edited
                if place == 0:
                    record["attention"]["map_radii"][token] = edited
                assert any(f"map_radii.{token} " in each for each in verify(record)), (token, edited)
            claim["map_radii"][token] = honest
            record["attention"]["map_radii"][token] = claims[0]["map_radii"][token]
    assert verify(record) == []


def test_a_map_of_means_is_found(make: Make) -> None:
    for value in ([0.0] * 64, None):
        record = make(aggregate="mean").to_dict()
        record["attention"]["map_radii"] = value
        assert any("only there" in each for each in verify(record))


@pytest.mark.parametrize("wealth", [lambda old: old + 10**10, lambda old: old - 10**12])
def test_altered_wealth_is_found(make: Make, wealth: Callable[[int], int]) -> None:
    record = make(aggregate="mean").to_dict()
    assert record["attention"]["radius_l2"] > 0
    for token in record["attention"]["tokens"]:
        for row in record["wealth"]:
            row[token] = wealth(row[token])
    assert verify(record)


def test_a_smaller_explanation_with_more_votes_is_found(make: Make) -> None:
    record = make(k=[10, 5]).to_dict()
    votes = record["explanations"][1]["votes"]
    votes[60], votes[0] = votes[60] + 50, votes[0] - 50
    assert any("fewer votes" in each for each in verify(record))
    record = make(k=[10, 5]).to_dict()
    record["explanations"][0], record["explanations"][1] = (
        record["explanations"][1],
        record["explanations"][0],
    )
    assert any("first" in each for each in verify(record))


def test_a_record_of_the_first_version_is_said_to_be_one() -> None:
    old = {
        "image": "x.png",
        "sha256": "0",
        "n0": 100,
        "n": 1000,
        "copies_drawn": 1100,
        "class": {"count": 993},
    }
    assert len(verify(old)) == 1
    assert "not checkable" in verify(old)[0]


@pytest.mark.parametrize("value", [None, 1, "text", [], [{}], True, math.nan])
def test_what_is_no_object_is_no_record(value: Any) -> None:
    assert "no record" in verify(value)[0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_nothing_that_json_can_hold_ends_in_a_traceback(data: st.DataObject) -> None:
    assert verify(data.draw(st.dictionaries(st.text(max_size=8), JSON))) or True


def test_changes_of_any_number_are_found(make: Make) -> None:
    """By one, or a part in a thousand; but for the seed, the time, one unit of 2⁻³⁰ in a sum, and a radius to
    decide that is answered alike."""
    rng = random.Random(0)
    for kind in ({"k": [10, 5], "radius": 0.1}, {"refining": True}, {"aggregate": "mean"}):
        record = json.loads(json.dumps(make(**kind).to_dict()))
        for *way, last in paths(record):
            part: Any = record
            for step in way:
                part = part[step]
            honest = part[last]
            exempt = {"seed", "seconds", "wealth", "sums"} & {*way, last} or [*way, last] == [
                "decision",
                "radius",
            ]
            if exempt or not isinstance(honest, int | float):
                continue
            if isinstance(honest, bool):
                part[last] = not honest
            elif isinstance(honest, int):
                part[last] = honest + rng.choice([-1, 1])
            else:
                part[last] = honest * 1.001 + 1e-3
            assert verify(record), (way, last)
            part[last] = honest
        assert verify(record) == []
