"""How often does a certificate claim too much, when the truth is known?

    python -m benchmarks.coverage [--runs 20000]

Exact where a recursion over counts can be: how often the class's bounds ever miss. Simulated elsewhere:
worlds as in benchmarks/worlds.py, many at once. A certificate is false where any radius exceeds that of its
formula at the exact values, or any token has the wrong side in the map; the maps are also told by themselves.
A decision is false where it contradicts those values. All are checked at every look, whether or not a run
would have stopped there. Then an adversary who chooses the image, on the package's own noise; and means and
the published plug-in figure.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import ArrayLike, NDArray
from rich.progress import track
from scipy.special import ndtri
from scipy.stats import beta, binom

from benchmarks.keeping import publish
from benchmarks.worlds import World, world
from fvit.certificates.bounds import fixed_bounds, mixture_bounds
from fvit.certificates.claims import attention_claim, class_claim
from fvit.certificates.decisions import decide
from fvit.certificates.literature import exact_radius, published_radius
from fvit.certificates.radii import lost_tokens, map_radii, probit_gap, shortened
from fvit.certificates.tally import UNIT, Tally
from fvit.certificates.terms import Terms
from fvit.runtime.noise import draw, philox_key, thresholds

ALPHAS = (0.1, 0.01)
N, EARLY, K, BETA, SIGMA = 1000, 100, 10, 0.8, 0.5
LOST = lost_tokens(K, beta=BETA)
KINDS = ("scattered", "near ties", "dependent", "halves")
SIZES = ((2, 64), (10, 64), (1000, 196))
AT_ONCE = 100
ROUNDING = 1e-9

Floats = NDArray[np.float64]
Integers = NDArray[np.int32]
Flags = NDArray[np.bool_]


def terms(alpha: float, *, n: int = N, **asked: Any) -> Terms:
    given: dict[str, Any] = {"k": K, "beta": BETA, "aggregate": "vote", "seed": 0, "size": (8, 8)} | asked
    return Terms.of(sigma=SIGMA, n=n, alpha=alpha, **given)


@dataclass
class Rate:
    """How often in so many runs."""

    runs: int = 0
    times: int = 0

    def add(self, found: ArrayLike) -> None:
        self.runs += np.size(found)
        self.times += int(np.count_nonzero(found))

    def told(self) -> dict[str, float]:
        limit = (
            float(beta.ppf(0.95, self.times + 1, self.runs - self.times)) if self.times < self.runs else 1.0
        )
        return {"runs": self.runs, "times": self.times, "rate": self.times / self.runs, "upper limit": limit}


# --- exact: how often bounds ever miss ---------------------------------------------------------------


@functools.cache
def at_every_n(m: int, level: float) -> tuple[Floats, Floats]:
    return mixture_bounds(np.arange(m + 1), m, level=level)


def ever_missed(values: Floats, *, n: int, level: float) -> float:
    """P(the mixture's bounds ever miss one of these three values of sum 1, looking at every copy up to n):
    a copy is of one of three classes."""
    alive = np.zeros((n + 1, n + 1))  # by the copies of the first and of the second
    alive[0, 0], missed = 1.0, 0.0
    for m in range(1, n + 1):
        lower, upper = at_every_n(m, level)
        out = (lower[:, None] > values) | (upper[:, None] < values)
        moved = alive * values[2]
        moved[1:] += alive[:-1] * values[0]
        moved[:, 1:] += alive[:, :-1] * values[1]
        a, b = np.nonzero(moved)
        gone = out[a, 0] | out[b, 1] | out[m - a - b, 2]
        missed += float(moved[a[gone], b[gone]].sum())
        moved[a[gone], b[gone]] = 0.0
        alive = moved
    return missed


def missed_at(value: float, *, n: int, level: float) -> float:
    """P(the bounds at this fixed n miss the value or its complement): two classes."""
    lower, upper = fixed_bounds(np.arange(n + 1), n, level=level)
    out = (lower > value) | (upper < value)
    other = (lower > 1 - value) | (upper < 1 - value)
    return float(binom.pmf(np.arange(n + 1), n, value)[out | other[::-1]].sum())


def exact() -> dict[str, dict[float, float]]:
    """The largest probability of a miss over a grid of truths, for each level."""
    two = [np.array([p, 1 - p, 0.0]) for p in 1 - np.geomspace(0.5, 0.003, 10)]
    grid = itertools.combinations_with_replacement((0.02, 0.1, 0.2, 0.33, 0.6, 0.9), 2)
    three = [np.array([p, q, 1 - p - q]) for p, q in grid if p + q < 1]
    every = np.linspace(0.5, 0.999, 500)
    return {
        "two values, fixed n of 100 or 1,000": {
            level: max(missed_at(p, n=n, level=level) for p in every.tolist() for n in (100, 1000))
            for level in ALPHAS
        },
        "two values, every n up to 500": {
            level: max(ever_missed(values, n=500, level=level) for values in two) for level in ALPHAS
        },
        "three values, every n up to 150": {
            level: max(ever_missed(values, n=150, level=level) for values in three) for level in ALPHAS
        },
    }


# --- simulated: many worlds at once ------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Worlds:
    """classes, one-hot [W,M,C], votes [W,M,N] and probabilities [W,M] of the prototypes of W worlds."""

    classes: NDArray[np.float32]
    votes: NDArray[np.float32]
    probabilities: Floats

    def exactly(self) -> tuple[Floats, Floats]:
        """(class probabilities [W,C], token values [W,N])."""
        of_classes, of_tokens = (
            np.einsum("wm,wmx->wx", self.probabilities, each.astype(np.float64))
            for each in (self.classes, self.votes)
        )
        return of_classes, of_tokens

    def counts(self, rng: np.random.Generator, looks: tuple[int, ...]) -> tuple[Integers, Integers]:
        """(class counts [W,L,C], votes [W,L,N]) at each look."""
        steps = rng.multinomial(np.diff(looks, prepend=0), self.probabilities[:, None, :])
        times = steps.cumsum(axis=1).astype(np.float32)  # which holds integers of this size exactly
        return (times @ self.classes).astype(np.int32), (times @ self.votes).astype(np.int32)

    def one(self, i: int) -> World:
        """A world as benchmarks/worlds.py has it; an attribution is its votes in equal shares."""
        votes, labels = self.votes[i].astype(np.float64), self.classes[i].argmax(axis=1)
        return World(votes / K, labels, self.probabilities[i], classes=self.classes.shape[2], k=(K,))


def worlds(kind: str, rng: np.random.Generator, *, runs: int, classes: int, tokens: int) -> Worlds:
    """scattered: values of all sizes. near ties: every token around place k, and the leading class and the
    others together, within noise of each other. dependent: one coin turns both at once. halves: a copy has k
    of 2k tokens or the k others, each as often as its opposite but for a hundredth, and the classes alike."""
    prototypes = {2: 8, 10: 20}.get(classes, 100)
    shape, place = (runs, prototypes), np.arange(tokens)
    shared = rng.choice([0, K - LOST], (runs, 1, 1))  # tokens that every copy votes for
    if kind == "scattered":
        scores = rng.gumbel(size=(*shape, tokens)) - rng.uniform(0.02, 0.6, (runs, 1, 1)) * place
        probabilities = rng.dirichlet(np.full(prototypes, 0.5), runs)
        leading = rng.random(shape) < rng.uniform(0.4, 1, (runs, 1))
    elif kind == "near ties":
        contested = np.where(place < 2 * K - shared, 0.0, -2.0) + rng.random((*shape, tokens))
        scores = np.where(place < shared, 2.0, contested)
        probabilities = rng.dirichlet(np.full(prototypes, 50.0), runs)
        leading = np.broadcast_to(np.arange(prototypes) < prototypes // 2, shape)
    elif kind == "halves":
        one = rng.random((runs, prototypes // 2, 2 * K)).argsort(axis=2) < K
        scores = np.full((*shape, tokens), -1.0)
        scores[..., : 2 * K] = np.stack([one, ~one], axis=2).reshape(*shape, 2 * K)
        lean = rng.uniform(0.49, 0.51, (runs, prototypes // 2)) / (prototypes // 2)
        probabilities = np.stack([lean, 2 / prototypes - lean], axis=2).reshape(shape)
        leading = np.broadcast_to(np.arange(prototypes) % 2 == 0, shape)
    else:
        heads = np.arange(prototypes) == 0
        tails = (place < shared) | ((place >= K) & (place < 2 * K - shared))
        scores = np.where(heads[:, None], place < K, tails).astype(np.float64)
        coin = rng.uniform(0.5, 0.99, (runs, 1))
        probabilities = np.where(heads, coin, (1 - coin) / (prototypes - 1))
        leading = np.broadcast_to(heads, shape)
    votes = np.zeros((*shape, tokens), np.float32)
    np.put_along_axis(votes, np.argpartition(-scores, K, axis=2)[..., :K], 1, axis=2)
    labels = np.where(leading, 0, rng.integers(1, classes, shape))
    names = np.unique(labels, return_inverse=True)[1].reshape(shape)  # classes that no copy has cost nothing
    return Worlds(np.eye(names.max() + 1, dtype=np.float32)[names], votes, probabilities)


@dataclass(frozen=True, eq=False)
class Bounds:
    """The package's bounds of every count at every look, and the radii of sides by them: [L, n+1] each."""

    lower: Floats
    upper: Floats
    sides: Floats

    @classmethod
    def at(cls, looks: tuple[int, ...], *, fixed: bool, **levels: float) -> Bounds:
        found, bounds = np.zeros((2, len(looks), looks[-1] + 1)), fixed_bounds if fixed else mixture_bounds
        for row, m in enumerate(looks):
            found[:, row, : m + 1] = bounds(np.arange(m + 1), m, **levels)
        lower, upper = found
        return cls(lower, upper, shortened(map_radii(lower, upper, sigma=SIGMA), sigma=SIGMA))

    def of(self, counts: Integers) -> tuple[Floats, Floats]:
        """counts [W,L] or [W,L,…], a row of bounds for each look."""
        places = self._places(counts)
        return self.lower.take(places), self.upper.take(places)

    def sides_of(self, counts: Integers) -> Floats:
        """As `of`: the signed radii."""
        return self.sides.take(self._places(counts))

    def _places(self, counts: Integers) -> Integers:
        rows = np.arange(counts.shape[1], dtype=np.int32).reshape(-1, *[1] * (counts.ndim - 2))
        return np.asarray(counts + rows * self.lower.shape[1])

    def miss(self, counts: Integers, exact: Floats) -> Flags:
        """counts [W,L,X], exact [W,X] -> [W,L]: whether any is missed."""
        lower, upper = self.of(counts)
        missed = (lower > exact[:, None] + ROUNDING) | (upper < exact[:, None] - ROUNDING)
        return np.asarray(missed.any(axis=2))


def class_radii(p: Floats) -> Floats:
    return SIGMA * ndtri(np.clip(p, 0.5, 1.0))


def set_radii(inside: Floats, outside: Floats) -> Floats:
    """[…,k]: of the explanation, for every k0 (docs/method.md, section 5.1: one pair of tokens decides)."""
    return np.maximum(0.0, SIGMA / 2 * probit_gap(np.sort(inside), -np.sort(-outside)))


def own_radii(inside: Floats, outside: Floats) -> Floats:
    """[…,k]: of every token (section 5.2)."""
    return np.maximum(0.0, SIGMA / 2 * probit_gap(inside, outside.max(axis=-1, keepdims=True)))


class Drawn:
    """Worlds with their copies counted at each look, and what is true of the class and the tokens that lead
    there; ties to the lower index."""

    def __init__(self, chosen: Worlds, rng: np.random.Generator, looks: tuple[int, ...]) -> None:
        self.worlds, self.looks = chosen, looks
        self.class_values, self.token_values = chosen.exactly()
        self.classes, self.votes = chosen.counts(rng, looks)
        self.most = self.classes.max(axis=2)
        leader = self.classes.argmax(axis=2)
        self.true_class = class_radii(np.take_along_axis(self.class_values, leader, axis=1))
        tokens = self.votes.shape[2]
        keys = np.sort(self.votes * tokens + np.arange(tokens, dtype=np.int32)[::-1])[..., ::-1]
        self.inside, self.outside = np.split(keys[..., : 2 * K] // tokens, 2, axis=2)
        values = np.broadcast_to(self.token_values[:, None], self.votes.shape)
        values = np.take_along_axis(values, tokens - 1 - keys % tokens, axis=2)
        inside, outside = values[..., :K], np.sort(values[..., K:])[..., -K:]
        self.true_sides = SIGMA * ndtri(np.clip(self.token_values, 1e-12, 1 - 1e-12))
        self.true_set, self.true_own = set_radii(inside, outside), own_radii(inside, outside)
        ranked = np.sort(self.token_values)[:, ::-1]
        self.best_set = np.maximum(0.0, SIGMA / 2 * probit_gap(ranked[:, K - LOST], ranked[:, K + LOST - 1]))
        self.best_class = class_radii(self.class_values.max(axis=1))
        near = np.minimum(self.best_class, self.best_set) * np.exp(rng.uniform(-1.5, 1.5, len(ranked)))
        self.asked = np.clip(near, 0.01, 5 * SIGMA)

    def false_maps(self, of_tokens: Bounds, *, looks: Sequence[int]) -> tuple[Flags, Flags]:
        """[W, looks] whether any token has the wrong side or keeps its own less far than its radius says; and
        [W, N] which have a side at the last look. The bounds are at these looks."""
        claimed = of_tokens.sides_of(self.votes[:, looks])
        wrong = np.abs(claimed) > np.sign(claimed) * self.true_sides[:, None] + ROUNDING
        return np.asarray(wrong.any(axis=2)), claimed[:, -1] != 0

    def false_certificates(
        self, of_class: Bounds, of_tokens: Bounds, *, looks: Sequence[int]
    ) -> tuple[Flags, Flags]:
        """[W, looks] whether any radius of class, set or places is too large, and whether the explanation has
        one at all; the bounds are at these looks."""
        inside, outside = of_tokens.of(self.inside[:, looks])[0], of_tokens.of(self.outside[:, looks])[1]
        sets = set_radii(inside, outside)
        false = class_radii(of_class.of(self.most[:, looks])[0]) > self.true_class[:, looks] + ROUNDING
        false |= np.any(sets > self.true_set[:, looks] + ROUNDING, axis=2)
        false |= np.any(own_radii(inside, outside) > self.true_own[:, looks] + ROUNDING, axis=2)
        return false, sets[..., LOST - 1] > 0

    def false_decisions(self, of_class: Bounds, of_tokens: Bounds) -> tuple[Flags, Flags]:
        """[W,L] whether an answer at the radius that is asked of each world is false, and whether both parts
        have one."""
        asked, best_class, best_set = (each[:, None] for each in (self.asked, self.best_class, self.best_set))
        low, high = (class_radii(each) for each in of_class.of(self.most))
        survivor, challenger = (
            of_tokens.of(each) for each in (self.inside[..., K - LOST], self.outside[..., LOST - 1])
        )
        least, most = (SIGMA / 2 * probit_gap(survivor[i], challenger[1 - i]) for i in (0, 1))
        return (
            ((low >= asked) & (self.true_class < asked - ROUNDING))
            | ((high < asked) & (best_class >= asked + ROUNDING))
            | ((least >= asked) & (self.true_set[..., LOST - 1] < asked - ROUNDING))
            | ((most < asked) & (best_set >= asked + ROUNDING))
        ), ((low >= asked) & (least >= asked)) | (high < asked) | (most < asked)

    def missed(self, of_class: Bounds, of_tokens: Bounds) -> Flags:
        return of_class.miss(self.classes, self.class_values) | of_tokens.miss(self.votes, self.token_values)

    def tally(self, i: int, look: int) -> Tally:
        tally = Tally(self.classes.shape[2], self.votes.shape[2], (K,))
        tally.copies = self.looks[look]
        tally.counts += self.classes[i, look]
        tally.votes[0] += self.votes[i, look]
        tally.sums += tally.votes[0] * UNIT // K
        return tally


def by_the_package(drawn: Drawn, i: int, look: int, made: Terms) -> tuple[bool, bool]:
    """What Drawn says of one world at one look, but by the package's claims and one world's own judgement."""
    truth, tally = drawn.worlds.one(i), drawn.tally(i, look)
    if made.radius is not None:
        decision = decide(tally, made)
        return truth.false_decision(decision, tally, made), decision.answer != "undecided"
    of_class = class_claim(tally, made, labels=[""] * len(tally.counts))
    explained = attention_claim(tally, made, k=K, grid=(1, len(tally.sums)))
    false = truth.false_class(of_class, made) or truth.false_attention(explained, made)
    return false, explained.radius_l2 > 0


def simulate(kind: str, *, classes: int, tokens: int, runs: int, seed: int) -> dict[float, dict[str, Rate]]:
    """Rates for each alpha, from the same copies."""
    rng = np.random.default_rng(seed)
    looks = terms(ALPHAS[0], refining=True).looks
    every = range(len(looks))
    ends = [next(i for i in every if looks[i] >= EARLY), every[-1]]
    rates: dict[float, dict[str, Rate]] = {alpha: defaultdict(Rate) for alpha in ALPHAS}
    for first in range(0, runs, AT_ONCE):
        chosen = worlds(kind, rng, runs=min(AT_ONCE, runs - first), classes=classes, tokens=tokens)
        drawn = Drawn(chosen, rng, looks)
        i, look = int(rng.integers(len(drawn.asked))), int(rng.integers(len(looks)))
        for alpha, rate in rates.items():
            always = bounds(alpha, looks, tokens=tokens, fixed=False)
            once = bounds(alpha, tuple(looks[end] for end in ends), tokens=tokens, fixed=True)
            at_ends, made = drawn.false_certificates(*once, looks=ends)
            maps, sure = drawn.false_maps(once[1], looks=ends)
            at_ends |= maps
            for end, words in enumerate(("early", "late")):
                rate[f"certificate, {words}"].add(at_ends[:, end])
                rate[f"map, {words}"].add(maps[:, end])
            rate["sides"].add(sure)
            assert by_the_package(drawn, i, ends[1], terms(alpha)) == (at_ends[i, 1], made[i, 1])
            refined, made = drawn.false_certificates(*always, looks=every)
            maps, _ = drawn.false_maps(always[1], looks=every)
            refined |= maps
            rate["map, every look"].add(maps.any(axis=1))
            rate["refinement"].add(refined.any(axis=1))
            rate["certified"].add(made[:, -1])
            assert by_the_package(drawn, i, look, terms(alpha, refining=True)) == (
                refined[i, look],
                made[i, look],
            )
            decided, made = drawn.false_decisions(*always)
            rate["decision"].add(decided.any(axis=1))
            rate["decided"].add(made.any(axis=1))
            asked = terms(alpha, radius=drawn.asked[i])
            assert by_the_package(drawn, i, look, asked) == (decided[i, look], made[i, look])
            rate["any bound"].add(drawn.missed(*always).any(axis=1))
    return rates


@functools.cache
def bounds(alpha: float, looks: tuple[int, ...], *, tokens: int, fixed: bool) -> tuple[Bounds, Bounds]:
    """Of classes, and of tokens."""
    made = terms(alpha, refining=not fixed)
    return (
        Bounds.at(looks, fixed=fixed, level=made.class_level),
        Bounds.at(looks, fixed=fixed, **made.token_levels(K, tokens=tokens)),
    )


# --- an adversary who chooses the image, on the package's noise --------------------------------------


def adversary(alpha: float, *, images: int, known: int, unknown: int) -> dict[str, dict[str, float]]:
    """Class bounds from 100 copies of images whose class is 1 where pixel 0 with its noise stays bright.

    The adversary takes the image whose bound exceeds the truth the most. Either the certificate is made with
    that same seed, or with seeds that the adversary did not know.
    """
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 256, (images, 3, 2, 2), dtype=np.uint8)
    pixels[:, 0, 0, 0] = rng.integers(130, 256, images)
    digests = [rng.bytes(32) for _ in range(images)]  # stand for those of the pixels, which all differ
    law = thresholds(SIGMA)
    brightness = pixels[:, 0, 0, 0].astype(np.int64)
    # P(t ≥ 128 − brightness) = 1 − Θ_j/2⁶⁴ at j = 127 − brightness.
    truth = 1 - law.table[127 - brightness - law.first].astype(np.float64) / 2.0**64
    lower, _ = fixed_bounds(np.arange(EARLY + 1), EARLY, level=terms(alpha, n=EARLY).class_level)

    def excess(image: int, seed: int) -> float:
        key = philox_key(digests[image], size=(2, 2), seed=seed)
        noise = draw(np.arange(EARLY), size=pixels[0].size, key=key, sigma=SIGMA)
        bright = int((brightness[image] + noise[:, 0] >= 128).sum())
        return float(lower[bright] - truth[image])

    chosen = [int(np.argmax([excess(i, seed) for i in range(images)])) for seed in range(known)]
    same, other, any_image = Rate(), Rate(), Rate()
    same.add(np.array([excess(i, seed) > ROUNDING for seed, i in enumerate(chosen)]))
    others = range(known, known + unknown)
    other.add(np.array([excess(chosen[seed % known], seed) > ROUNDING for seed in others]))
    any_image.add(np.array([excess(seed % images, seed) > ROUNDING for seed in others]))
    return {
        "the seed is known": same.told(),
        "the seed is not known": other.told(),
        "nobody chooses": any_image.told(),
    }


# --- means, and the plug-in figure -------------------------------------------------------------------


def small_worlds(seed: int, runs: int) -> Iterator[tuple[World, np.random.Generator]]:
    rng = np.random.default_rng(seed)
    for _ in range(runs):
        yield world(rng, classes=2, tokens=8, k=(3,), prototypes=6), rng


def means(alpha: float, *, runs: int) -> dict[str, dict[str, float]]:
    """Certificates, refinements and decisions of means, checked at every look, by the package's claims."""
    false: dict[str, list[bool]] = defaultdict(list)
    for truth, rng in small_worlds(2, runs):
        asked = terms(alpha, n=200, k=3, aggregate="mean", radius=float(rng.choice([0.01, 0.03, 0.1])))
        growing = terms(alpha, n=200, k=3, aggregate="mean", refining=True)
        fixed = terms(alpha, n=200, k=3, aggregate="mean")
        tally, wrong = truth.tally(fixed), {"refinement": False, "decision": False}
        for look in growing.looks:
            truth.draw(rng, tally, look - tally.copies)
            wrong["refinement"] |= wrongly(truth, tally, growing)
            wrong["decision"] |= truth.false_decision(decide(tally, asked), tally, asked)
        for name, each in (wrong | {"certificate": wrongly(truth, tally, fixed)}).items():
            false[name].append(each)
    rates = {name: Rate() for name in false}
    for name, rate in rates.items():
        rate.add(np.array(false[name]))
    return {name: rate.told() for name, rate in rates.items()}


def wrongly(truth: World, tally: Tally, made: Terms) -> bool:
    claims = (class_claim(tally, made, labels=["0", "1"]), attention_claim(tally, made, k=3, grid=(2, 4)))
    return truth.false_class(claims[0], made) or truth.false_attention(claims[1], made)


def published(*, runs: int) -> dict[str, float]:
    """How often the plug-in figure from 400 copies exceeds itself at the exact means, and the exact worst
    case of those means."""
    above_itself, above_worst = 0, 0
    for truth, rng in small_worlds(3, runs):
        made = terms(0.1, n=400, k=3, beta=0.6)
        tally = truth.tally(made)
        truth.draw(rng, tally, 400)
        values = truth.probabilities @ truth.attributions
        at = {"k": 3, "beta": 0.6, "sigma": SIGMA}
        estimated = published_radius(tally.sums / tally.sums.sum(), **at)  # type: ignore[arg-type]
        above_itself += estimated > published_radius(values, **at)  # type: ignore[arg-type]
        above_worst += estimated > exact_radius(values, **at)  # type: ignore[arg-type]
    return {"runs": runs, "above itself": above_itself / runs, "above the worst case": above_worst / runs}


# --- all of it ---------------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    lines = [
        "Exact: the largest probability that any of a class's bounds misses, over a grid of truths.",
        "",
        "| | " + " | ".join(f"level {level:g}" for level in ALPHAS) + " |",
        "|---|" + "---|" * len(ALPHAS),
        *(
            f"| {name} | " + " | ".join(f"{p:.4f}" for p in row.values()) + " |"
            for name, row in result["exact"].items()
        ),
        "",
        f"Simulated: {result['runs']:,} worlds a row, n up to {N:,}, k = {K}, β = {BETA}; false claims "
        "with the 95 % upper limit. Refinements and decisions are checked at every look.",
        "",
        f"| classes, tokens | worlds | α | certificates at {EARLY} copies | at {N:,} | refinements "
        f"| decisions | any bound ever misses | maps alone at {EARLY} copies | at {N:,} | at any look "
        "| certified, decided, sides known |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]

    def said(rate: dict[str, float]) -> str:
        return f"{rate['rate']:.3%} (< {rate['upper limit']:.3%})"

    for row in result["rows"]:
        rates = row["rates"]
        columns = (
            "certificate, early", "certificate, late", "refinement", "decision", "any bound",
            "map, early", "map, late", "map, every look",
        )  # fmt: skip
        lines.append(
            f"| {row['classes']:,}, {row['tokens']} | {row['kind']} | {row['alpha']:g} | "
            + " | ".join(said(rates[name]) for name in columns)
            + f" | {rates['certified']['rate']:.0%}, {rates['decided']['rate']:.0%}, "
            f"{rates['sides']['rate']:.0%} |"
        )
    lines += [
        "",
        f"An adversary takes from {result['adversary']['images']:,} images the one that a seed flatters "
        "most; false bounds on the class:",
        "",
        "| α | with that seed | with seeds that were not known | where nobody chooses |",
        "|---|---|---|---|",
    ]
    for alpha, rows in result["adversary"]["rates"].items():
        lines.append(f"| {alpha:g} | " + " | ".join(map(said, rows.values())) + " |")
    lines += [
        "",
        f"Means of 8 tokens in {result['means']['certificate']['runs']:,} worlds, at most 200 copies, "
        f"α = {ALPHAS[0]:g}; false claims: "
        + ", ".join(f"{name}s {said(rate)}" for name, rate in result["means"].items())
        + ".",
    ]
    plug_in = result["published"]
    lines += [
        "",
        f"The published plug-in figure from 400 copies is above its own value at the exact means in "
        f"{plug_in['above itself']:.0%} of {plug_in['runs']:,} worlds, above the exact worst case in "
        f"{plug_in['above the worst case']:.1%}.",
    ]
    return "\n".join(lines) + "\n"


def main(runs: Annotated[int, typer.Option(help="Simulated for each row and alpha.")] = 20_000) -> None:
    rows = []
    for seed, ((classes, tokens), kind) in enumerate(track(list(itertools.product(SIZES, KINDS)), "worlds")):
        rates = simulate(kind, classes=classes, tokens=tokens, runs=runs, seed=seed)
        for alpha, by_name in rates.items():
            found = {name: rate.told() for name, rate in by_name.items()}
            rows.append({"classes": classes, "tokens": tokens, "kind": kind, "alpha": alpha, "rates": found})
    images = 3000
    result = {
        "exact": exact(),
        "runs": runs,
        "rows": rows,
        "adversary": {
            "images": images,
            "rates": {alpha: adversary(alpha, images=images, known=20, unknown=runs) for alpha in ALPHAS},
        },
        "means": means(ALPHAS[0], runs=max(1, runs // 60)),
        "published": published(runs=max(1, runs // 20)),
    }
    publish("coverage", result, markdown(result))


if __name__ == "__main__":
    typer.run(main)
