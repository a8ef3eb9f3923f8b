"""A record against its own counts: every number of it derived again, by other means than made it.

To be read beside docs/method.md. Of fvit.certificates.record it uses the shape of a record, and nothing
else: bounds are found by root search in other forms of the same probabilities (cephes' binomial tails,
the product of an urn), ranks by sorting, k0 by counting, quantiles by the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from functools import lru_cache
from itertools import accumulate
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.optimize import brentq
from scipy.special import bdtr, bdtrc

from fvit.certificates.record import Certificate

MOST_FINDINGS = 20
MOST_VOTES, MOST_SIZE = 2**14, 2**11  # so that no record takes longer than a person waits
UNIT = 2**30
BETS = 22
TOTAL = 1 + 1 / 256
Record = dict[str, Any]
Array = NDArray[np.float64]


def verify(record: object) -> list[str]:
    """What does not follow in a record, in plain sentences that name the field; empty where all follows.

    record: what JSON gives, of any kind. What counts cannot tell stays open: whether they are those of
    the image, seed and bundle that are named, the class's label, and how the tokens lie on the grid.
    """
    if not isinstance(record, dict):
        return ["this is no record: a JSON object is needed"]
    if "n0" in record or "copies_drawn" in record:
        return ["not checkable: a record of the first version, without the votes that its radii follow from"]
    try:
        Certificate.model_validate(record, by_alias=True, by_name=False)
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_context=False, include_input=False)
        return [f"{_path(each['loc'])}: {each['msg']}" for each in wrong[:MOST_FINDINGS]]
    if nothing := [name for name, value in record.items() if value is None]:
        return [f"{name} is null: a field without a value is left out" for name in nothing]
    return [*_of_terms(record)] or [*_of_claims(record)][:MOST_FINDINGS]


def _path(places: Sequence[int | str]) -> str:
    """A field's name; what a foreign record calls its own is cut and escaped."""
    names = (place if str(place).isidentifier() else ascii(place) for place in places)
    return ".".join(str(name)[:40] for name in names) or "the record"


def _of_terms(r: Record) -> Iterator[str]:
    """What has to be right before anything can be derived."""
    rows, columns = r["size"]
    # Section 3: thresholds lie 1/(255σ) apart, within 9.1 of 0, and a few more; each is off by 2⁻⁶⁴.
    thresholds = 2 * 9.1 * (255 * r["sigma"]) + 4
    slack = r["n"] * 3 * rows * columns * thresholds / 2**64
    if not math.isclose(r["slack"], slack, rel_tol=1e-9):
        yield f"slack is {r['slack']}, but rounding of the noise takes {slack:.6g} at these n, size and sigma"
    elif slack >= r["alpha"]:
        yield f"alpha is {r['alpha']}, no more than the slack"
    if not (r["copies"] == r["n"] if r["bound"] == "clopper-pearson" else r["copies"] <= r["n"]):
        yield f"copies is {r['copies']}, which does not go with n = {r['n']} and bound {r['bound']}"
    if "decision" in r and r["bound"] != "mixture":
        yield "bound has to be 'mixture' where there is a decision"
    several = r.get("explanations")
    sizes = [each["k"] for each in several] if several else [r["attention"]["k"]]
    if several is not None and (len(sizes) < 2 or several[0] != r["attention"]):
        yield "explanations has to hold several, of which attention is the first"
    if len(set(sizes)) != len(sizes):
        yield "explanations has a k twice"
    if sum(len(a["votes"]) for _, a in _explanations(r)) > MOST_VOTES or max(sizes) > MOST_SIZE:
        yield f"explanations of more than {MOST_VOTES} votes in all, or {MOST_SIZE} tokens, are not checked"
        return
    for name, a in _explanations(r):
        yield from _of_counts(name, a, r)
    if "wealth" in r:
        shape = {len(row) for row in r["wealth"]}
        if len(r["wealth"]) != BETS or shape != {len(r["attention"]["sums"])}:
            yield "wealth has to have a row for each bet and in it a number for each token"
    if ("wealth" in r) != (r["attention"]["aggregate"] == "mean"):
        yield "wealth has to be there where the aggregate is 'mean', and only there"


def _of_counts(name: str, a: Record, r: Record) -> Iterator[str]:
    """Whether the votes and sums of an explanation can be those of so many copies."""
    k, copies, tokens = a["k"], r["copies"], len(a["votes"])
    if not len(a["sums"]) == tokens == math.prod(a["grid"]):
        yield f"{name}.votes and sums have to have a number for each of the {math.prod(a['grid'])} of grid"
        return
    if k >= tokens or k + _lost(k, a["beta"]) > tokens:
        yield f"{name}.k is {k}, too many for {tokens} tokens and beta {a['beta']}"
    if sum(a["votes"]) != k * copies or max(a["votes"]) > copies:
        yield f"{name}.votes cannot be those of {copies} copies with {k} votes each"
    if abs(sum(a["sums"]) / (copies * UNIT) - 1) > TOTAL - 1:
        yield f"{name}.sums cannot be those of {copies} copies whose attributions sum to 1"
    main = r["attention"]
    for field in ("beta", "aggregate", "grid", "sums"):
        if a[field] != main[field]:
            yield f"{name}.{field} differs from attention.{field}"
    for _, larger in _explanations(r):
        pairs = zip(a["votes"], larger["votes"], strict=False)
        if k < larger["k"] and any(less > most for less, most in pairs):
            yield f"{name}.votes: a token has fewer votes in the larger explanation of k = {larger['k']}"


def _of_claims(r: Record) -> Iterator[str]:
    """Every number that the counts give."""
    sure = r["alpha"] - r["slack"]
    explanations = _explanations(r)
    yield from _of_class(r, level=sure / 10)
    for name, a in explanations:
        yield from _of_attention(name, a, r, alpha=sure * 0.9 / len(explanations))
    f, radius = r["faithful"], r["attention"]["radius_l2"]
    if f["radius_l2"] != radius:
        yield f"faithful.radius_l2 is {f['radius_l2']}, but attention.radius_l2 is {radius}"
    moved = radius / r["sigma"]
    if not math.isclose(f["divergence"], f["order"] / 2 * moved * moved, rel_tol=1e-9):
        yield f"faithful.divergence is {f['divergence']}, which order and radius do not give"
    if "decision" in r:
        yield from _of_decision(r, sure=sure, alpha=sure * 0.9 / len(explanations))


def _of_class(r: Record, *, level: float) -> Iterator[str]:
    c, copies = r["class"], r["copies"]
    counts = {int(index): count for index, count in c["counts"].items()}
    if sum(counts.values()) != copies:
        yield f"class.counts sum to {sum(counts.values())}, not to the {copies} copies"
        return
    index = min(counts, key=lambda each: (-counts[each], each))
    if c["index"] != index:
        yield f"class.index is {c['index']}, but class {index} has the most copies"
    lower, _ = _interval(r["bound"], counts[index], copies, level)
    yield from _compared("class.p_lower", c["p_lower"], lower, scale=0, n=copies)
    radius = max(0.0, r["sigma"] * _z(lower))
    yield from _compared("class.radius_l2", c["radius_l2"], radius, scale=r["sigma"], n=copies)
    linf = c["radius_l2"] / math.sqrt(3 * math.prod(r["size"]))
    yield from _compared("class.radius_linf", c["radius_linf"], linf, scale=0)
    if c["abstained"] != (c["radius_l2"] == 0):
        yield f"class.abstained is {c['abstained']} at radius {c['radius_l2']}"


def _of_attention(name: str, a: Record, r: Record, *, alpha: float) -> Iterator[str]:
    k, sigma, n = a["k"], r["sigma"], r["copies"]
    values = a["votes"] if a["aggregate"] == "vote" else a["sums"]
    tokens = _ranked(values)[:k]
    if list(a["tokens"]) != tokens:
        yield f"{name}.tokens are {a['tokens']}, but the {k} largest are {tokens}"
        return
    lower, upper = _bounds(a, r, alpha=alpha)
    kept = sorted(lower[j] for j in tokens)
    chosen = set(tokens)
    rivals = sorted((upper[j] for j in range(len(values)) if j not in chosen), reverse=True)
    radii = []
    for lost in range(1, min(k, len(rivals)) + 1):
        first = lost - 1 if a["aggregate"] == "vote" else 0  # of votes no m does better than 1
        inside, outside = kept[first:lost][::-1], rivals[first:lost][::-1]
        found = _radius(inside, outside, sigma, a["aggregate"], undefined=-math.inf)
        radii.append(max(0.0, found))
    radius = radii[_lost(k, a["beta"]) - 1]
    yield from _compared(f"{name}.radius_l2", a["radius_l2"], radius, scale=sigma, n=n)
    if a["abstained"] != (a["radius_l2"] == 0):
        yield f"{name}.abstained is {a['abstained']} at radius {a['radius_l2']}"
    if len(a["radius_by_beta"]) != len(radii):
        yield f"{name}.radius_by_beta has to have {len(radii)} pairs"
    for place, ((beta, claimed), radius) in enumerate(zip(a["radius_by_beta"], radii, strict=False)):
        yield from _compared(f"{name}.radius_by_beta.{place}.0", beta, (k - place) / k, scale=0)
        yield from _compared(f"{name}.radius_by_beta.{place}.1", claimed, radius, scale=sigma, n=n)
    if len(a["token_radii"]) != k:
        yield f"{name}.token_radii has to have {k} numbers"
    for place, (claimed, token) in enumerate(zip(a["token_radii"], tokens, strict=False)):
        radius = max(0.0, sigma / 2 * (_z(lower[token]) - _z(rivals[0])))
        yield from _compared(f"{name}.token_radii.{place}", claimed, radius, scale=sigma, n=n)
    yield from _of_map(name, a, lower, upper, sigma=sigma, n=n)
    published = _published(a["sums"], k=k, lost=_lost(k, a["beta"])) * sigma
    if not math.isclose(a["published_renyi_radius"], published, rel_tol=1e-6, abs_tol=1e-5 * sigma):
        yield f"{name}.published_renyi_radius is {a['published_renyi_radius']}, but sums give {published:.9g}"


def _of_map(
    name: str, a: Record, lower: list[float], upper: list[float], *, sigma: float, n: int
) -> Iterator[str]:
    """Section 5.3: each token's side and how far it keeps it, in whole steps of the last digit stated."""
    sides, votes = a.get("map_radii"), a["aggregate"] == "vote"
    if ("map_radii" in a, sides is not None) != (votes, votes):
        yield f"{name}.map_radii has to be there where the aggregate is 'vote', and only there"
    if not votes or sides is None:
        return
    if len(sides) != len(lower):
        yield f"{name}.map_radii has to have {len(lower)} numbers"
    last = Decimal(repr(sigma)).adjusted() - 3
    for token, (claimed, low, high) in enumerate(zip(sides, lower, upper, strict=False)):
        radius = sigma * _z(low if low > 0.5 else min(high, 0.5))
        margin = (1e-9 + 1e-14 * n) * max(abs(radius), sigma)
        steps = {int(Decimal(repr(each)).scaleb(-last)) for each in (radius - margin, radius + margin)}
        if Decimal(repr(claimed)).scaleb(-last) not in steps:
            yield f"{name}.map_radii.{token} is {claimed}, but {radius:.6g} follows, cut off at 10^{last}"


def _of_decision(r: Record, *, sure: float, alpha: float) -> Iterator[str]:
    d, a, sigma = r["decision"], r["attention"], r["sigma"]
    most_copies = max(r["class"]["counts"].values())
    lower, upper = (_z(p) * sigma for p in _interval(r["bound"], most_copies, r["copies"], sure / 10))
    yield from _answered("decision.class", d["class"], lower, upper, d["radius"])
    k, lost = a["k"], _lost(a["k"], a["beta"])
    # No choice of tokens has more than: upper bounds at the ranks of the k0 weakest inside, lower bounds at
    # those of the k0 strongest outside, ranked over all tokens, each side by itself.
    lowers, uppers = (sorted(side, reverse=True) for side in _bounds(a, r, alpha=alpha))
    weakest, strongest = uppers[k - lost : k], lowers[k : k + lost][::-1]
    most = _radius(weakest, strongest, sigma, a["aggregate"], undefined=math.inf)
    yield from _answered("decision.attention", d["attention"], a["radius_l2"], most, d["radius"])
    parts = (d["class"], d["attention"])
    answer = "certified" if parts == ("certified", "certified") else "undecided"
    answer = "not certified" if "not certified" in parts else answer
    if d["answer"] != answer:
        yield f"decision.answer is '{d['answer']}', but its parts give '{answer}'"


# --- sections 4 and 5: radii ---------------------------------------------------------------------------


def _radius(
    kept: Sequence[float], rivals: Sequence[float], sigma: float, aggregate: str, *, undefined: float
) -> float:
    """Section 5.1: the best test among m = 1 … k0 of the first m kept against the first m rivals."""
    best = -math.inf
    for m, (inside, outside) in enumerate(zip(accumulate(kept), accumulate(rivals), strict=True), start=1):
        share = m if aggregate == "vote" else 1
        high, low = min(1.0, inside / share), min(1.0, outside / share)
        best = max(best, undefined if high >= 1 or low <= 0 else sigma / 2 * (_z(high) - _z(low)))
    return best


def _z(p: float) -> float:
    """Φ⁻¹(p)."""
    if 0 < p < 1:
        return NormalDist().inv_cdf(p)
    return math.inf if p >= 1 else -math.inf


def _lost(k: int, beta: float) -> int:
    """The fewest tokens whose loss leaves less than βk; a β in whose last digit (k − lost)/k lies is that."""
    return next((lost for lost in range(1, k) if (k - lost) / k < math.nextafter(beta, 0)), k)


def _ranked(values: Sequence[int]) -> list[int]:
    return sorted(range(len(values)), key=lambda j: (-values[j], j))


def _published(sums: Sequence[int], *, k: int, lost: int) -> float:
    """Section 5.4 at σ = 1: the supremum over orders a, on ever finer grids of ln(a − 1)."""
    w = np.sort(np.asarray(sums, np.float64) / sum(sums))[::-1]
    contested, rest = w[k - lost : k + lost], w[: k - lost].sum() + w[k + lost :].sum()
    top = max(float(contested[0]), 1e-300)
    low, high, points, best = math.log(1e-5), math.log(1e4), 400, 0.0
    for _ in range(5):
        grid = np.linspace(low, high, points)
        a = 1 + np.exp(grid)
        mean = top * np.mean((contested / top) ** a[:, None], axis=1) ** (1 / a)
        values = 2 / (a - 1) * np.log(2 * lost * mean + rest)
        at, step = int(values.argmax()), (high - low) / (points - 1)
        best = max(best, float(values[at]))
        low, high, points = max(low, grid[at] - step), min(high, grid[at] + step), 41
    return math.sqrt(best)


# --- section 6: bounds ---------------------------------------------------------------------------------


def _bounds(a: Record, r: Record, *, alpha: float) -> tuple[list[float], list[float]]:
    """(lower, upper) of every token; alpha is that of this explanation."""
    if a["aggregate"] == "mean":
        return _betting(r["wealth"], a["sums"], r["copies"], alpha=alpha)
    # Three quarters of alpha go by the tokens' values, which sum to k, and a quarter evenly (section 6.1).
    level, floor = 0.75 * alpha / a["k"], 0.25 * alpha / len(a["votes"])
    both = [_interval(r["bound"], votes, r["copies"], level, floor) for votes in a["votes"]]
    return [lower for lower, _ in both], [upper for _, upper in both]


@lru_cache(maxsize=200_000)
def _interval(bound: str, count: int, n: int, level: float, floor: float = 0.0) -> tuple[float, float]:
    """The ends of what is not refused when p is tested at level·p + floor (sections 6.2 and 6.3)."""

    def tested_at(p: float) -> float:
        return math.log(max(level * p + floor, 5e-324))

    def from_below(p: float) -> float:
        return math.log(max(bdtrc(count - 1, n, p), 1e-320)) - tested_at(p) - math.log(p)

    def from_above(p: float) -> float:
        return math.log(max(bdtr(count, n, p), 1e-320)) - tested_at(p) - math.log(1 - p)

    def at_any_time(p: float) -> float:
        # An urn of 2p and 2(1−p) balls, to which each copy adds one of its colour, against p itself.
        q = 1 - p
        urn = math.lgamma(count + 2 * p) - math.lgamma(2 * p) + math.lgamma(n - count + 2 * q)
        urn -= math.lgamma(2 * q) + math.lgamma(n + 2)
        return -tested_at(p) - urn + count * math.log(p) + (n - count) * math.log(q)

    below, above = (from_below, from_above) if bound == "clopper-pearson" else (at_any_time, at_any_time)
    first, last = 1e-15, 1 - 2**-53  # the first and the last p that are looked at
    share = min(max(count / n, first), last)
    lower = _root(below, first, share) if count > 0 else 0.0
    upper = _root(above, last, share) if count < n else 1.0
    return lower, upper


def _betting(
    wealth: list[list[int]], sums: list[int], n: int, *, alpha: float
) -> tuple[list[float], list[float]]:
    """(lower, upper) on means of attributions, from the wealth of each bet (section 6.4)."""
    tokens = len(sums)
    alpha /= TOTAL  # shares of TOTAL sum to at most 1
    logs = (np.array(wealth, np.float64) - n) / UNIT  # a unit a copy is what a logarithm may err by
    means = np.minimum(np.array(sums, np.float64) / n / UNIT, 1.0)

    def end(bets: list[float], of: int, rows: Array, level: Callable[[Array], Array], outer: float) -> Array:
        """Where the average wealth of `of` bettors, of whom these bet, reaches 1/level: by halving."""
        refused, kept = np.full(tokens, outer), means
        for _ in range(56):
            p = (refused + kept) / 2
            gains = rows - n * np.log1p(np.outer(bets, p))
            most = gains.max(axis=0)
            out = most + np.log(np.exp(gains - most).sum(axis=0) / of) >= -np.log(level(p))
            refused, kept = np.where(out, p, refused), np.where(out, kept, p)
        return refused / TOTAL

    rising, falling = (
        [0.05 * 4000 ** (i / 11) for i in range(12)],
        [0.98 * (0.002 / 0.98) ** (i / 9) for i in range(10)],
    )
    used = [i for i in range(12) if rising[i] >= tokens / n]
    lower, upper = np.zeros(tokens), np.ones(tokens)
    if used:
        lower = end([rising[i] for i in used], 12, logs[used], lambda p: alpha / 4 * (p + 1 / tokens), 0.0)
    upper = end([share - 1 for share in falling], 10, logs[12:], lambda p: alpha / 2 * p, 1.0)
    return lower.tolist(), upper.tolist()


def _root(left: Callable[[float], float], outer: float, inner: float) -> float:
    """Where `left`, what a hypothesis has left before it is refused, turns from negative at `outer` to
    positive at `inner`; the end of [0, 1] beyond `outer` where it is not negative there."""
    if left(outer) >= 0:
        return float(round(outer))
    return float(brentq(left, outer, inner, xtol=1e-18, rtol=1e-15)) if left(inner) > 0 else inner


# --- comparing -----------------------------------------------------------------------------------------


def _compared(field: str, claimed: float, derived: float, *, scale: float, n: int = 0) -> Iterator[str]:
    """Equal to nine digits; less is let pass where n copies make bounds err outwards by more than that. Where
    nothing follows, nothing may be claimed."""
    size = max(abs(derived), scale)
    if (derived == 0 < claimed) or not -(1e-9 + 1e-14 * n) * size <= claimed - derived <= 1e-9 * size:
        yield f"{field} is {claimed}, but {derived:.12g} follows"


def _answered(field: str, claimed: str, least: float, most: float, radius: float) -> Iterator[str]:
    margin = 1e-9 * radius
    allowed = {"certified"} if least >= radius - margin else set()
    allowed |= {"not certified"} if most < radius + margin else set()
    if least < radius + margin and most >= radius - margin:
        allowed.add("undecided")
    if claimed not in allowed:
        yield f"{field} is '{claimed}', but '{min(allowed)}' follows"


def _explanations(r: Record) -> list[tuple[str, Record]]:
    """Each explanation with the name of its field."""
    if "explanations" in r:
        return [(f"explanations.{place}", each) for place, each in enumerate(r["explanations"])]
    return [("attention", r["attention"])]
