"""Does an adversary find anything inside a certified radius, and how often at twice and four times of it?

    python -m benchmarks.attack BUNDLE [--images 200] [--beyond 50]

Two adversaries, each against the class, the explanation, and the sides of two tokens, one that is in and one
that is out, drawn at random: one follows gradients of the smoothed objective through the torch models
(expectation over noisy copies), one tries random directions. What they propose lies between the 8-bit images,
as the certificates allow, and is judged by the engine on fresh copies: a claim is broken where these refute
it, which takes a class that 44 % of them have or fewer. So that an adversary that breaks nothing shows what
it can do, the least support that it leaves a claim is told beside what the claim has without it, and the
first images are attacked far outside their radii too. Gradients are computed in bf16 where the CPU multiplies
that; the engine is the fastest that is installed. Every image is kept in the work folder as it is done, so a
run that was stopped continues.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor

import fvit
from benchmarks.keeping import publish, resumed
from fvit.certificates.bounds import clopper_pearson
from fvit.certificates.refuting import doubted, refuted
from fvit.demo.data import compositions
from fvit.evaluation.adversarial import BEYOND_CHANCE, CONFIRMED, JUST_INSIDE, fresh
from fvit.export.attacking import Adversary, Loss, away_from_class
from fvit.export.training import fastest_arithmetic
from fvit.runtime.images import Picture

Floats = NDArray[np.float32]
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Effort:
    """How hard an adversary tries: gradient steps, copies a step, random directions; and copies that judge a
    proposal."""

    steps: int = 10
    copies: int = 16
    directions: int = 4
    judged: int = 100


@dataclass(frozen=True)
class Claim:
    """What is attacked, and the radius that it has. token: of whose side it speaks, if it does."""

    name: str
    radius: float
    token: int = -1

    @property
    def refuted(self) -> str:
        """What `refuted` calls it."""
        return self.name if self.token < 0 else f"token {self.token}"


CLAIMS = ("class", "attention", "a token in", "a token out")


def claims(certificate: fvit.Certificate, *, seed: int) -> list[Claim]:
    """Those of a certificate that say anything; of each side one token, drawn at random."""
    rng, sides = np.random.default_rng([seed, 2]), np.array(certificate.attention.map_radii)
    found = [
        Claim("class", certificate.class_.radius_l2),
        Claim("attention", certificate.attention.radius_l2),
    ]
    for name, tokens in ((CLAIMS[2], np.flatnonzero(sides > 0)), (CLAIMS[3], np.flatnonzero(sides < 0))):
        if len(tokens):
            token = int(rng.choice(tokens))
            found.append(Claim(name, abs(float(sides[token])), token))
    return [claim for claim in found if claim.radius > 0]


def loss_of(claim: Claim, certificate: fvit.Certificate) -> Loss:
    """What grows as the claim breaks."""

    attention = certificate.attention

    def votes(attribution: Tensor, token: int) -> Tensor:
        # A copy votes for a token where it lies above the k-th largest of the others.
        logs = attribution.clamp(min=1e-12).log()
        others = torch.cat([logs[:, :token], logs[:, token + 1 :]], dim=1)
        edge = others.topk(attention.k, dim=1).values[:, -1]
        return torch.sigmoid(4 * (logs[:, token] - edge)).mean()

    def of_tokens(logits: Tensor, attribution: Tensor) -> Tensor:
        if claim.name == "a token out":
            return votes(attribution, claim.token)
        tokens = attention.tokens if claim.name == "attention" else [claim.token]
        return -torch.stack([votes(attribution, token) for token in tokens]).mean()

    return away_from_class(certificate.class_.index) if claim.name == "class" else of_tokens


def adversary_of(vit: fvit.FaithfulViT, effort: Effort) -> Adversary:
    """Of the embedded model."""
    return Adversary.of(
        vit.bundle, weights=None, denoiser=None, adm_flags=None, steps=effort.steps, copies=effort.copies
    )


def random_proposals(pixels: Floats, *, radius: float, effort: Effort, seed: int) -> list[Floats]:
    """Points on the sphere in random directions, smooth and white in turn."""
    rng = np.random.default_rng([seed, 1])
    found = []
    for number in range(effort.directions):
        cells = 64 if number % 2 else 8
        direction = np.kron(rng.normal(size=(3, cells, cells)), np.ones((1, 64 // cells, 64 // cells)))
        found.append((pixels + radius * direction / np.linalg.norm(direction)).astype(np.float32))
    return found


@dataclass(frozen=True)
class Outcome:
    """Whether a claim was broken; the share of fresh copies that support it (of its tokens the mean), before
    and at the least."""

    broken: bool
    before: float
    least: float


def support(claim: Claim, certificate: fvit.Certificate, *, counts: Counts, votes: Counts) -> float:
    """counts [C] and votes [N] of some copies."""
    copies = int(counts.sum())
    if claim.name == "class":
        return float(counts[certificate.class_.index] / copies)
    tokens = certificate.attention.tokens if claim.name == "attention" else [claim.token]
    share = float(votes[list(tokens)].mean() / copies)
    return 1 - share if claim.name == "a token out" else share


def judged(
    vit: fvit.FaithfulViT,
    claim: Claim,
    certificate: fvit.Certificate,
    proposal: Floats,
    *,
    effort: Effort,
    seed: int,
    decide: bool,
) -> tuple[bool, float]:
    """Whether fresh copies refute a claim: few that cast doubt on it, then, where it is to be decided, many
    that do. And the few's support."""
    few = fresh(vit, proposal, certificate, copies=effort.judged, seed=seed)
    found = support(claim, certificate, counts=few.counts, votes=few.votes[0])
    if not decide or claim.refuted not in doubted(certificate, few, distance=0):
        return False, found
    many = fresh(vit, proposal, certificate, copies=CONFIRMED, seed=seed + 1)
    return claim.refuted in refuted(certificate, many, distance=0, chance=BEYOND_CHANCE), found


def attack(
    vit: fvit.FaithfulViT,
    adversary: Adversary,
    picture: Picture,
    certificate: fvit.Certificate,
    *,
    scale: float,
    effort: Effort,
    seed: int,
) -> dict[str, Outcome]:
    """Attack what a certificate claims at `scale` times the radii: of each claim what came of it."""
    pixels: Floats = np.divide(picture.pixels, 255, dtype=np.float32)
    untouched = fresh(vit, pixels, certificate, copies=effort.judged, seed=seed)
    outcome = {}
    for claim in claims(certificate, seed=seed):
        reach = scale * claim.radius
        loss = loss_of(claim, certificate)
        # The stronger adversary first: what it breaks need not be decided again.
        with torch.autocast("cpu", torch.bfloat16, enabled=fastest_arithmetic() == "bf16"):
            followed = adversary.follow(
                pixels, loss=loss, norm="l2", radius=reach, sigma=certificate.sigma,
                draw=np.random.default_rng([seed, 3]),
            )  # fmt: skip
        proposals = [followed, *random_proposals(pixels, radius=reach, effort=effort, seed=seed)]
        broken, left = False, []
        for one in proposals:
            now, share = judged(vit, claim, certificate, one, effort=effort, seed=seed, decide=not broken)
            broken = broken or now
            left.append(share)
        before = support(claim, certificate, counts=untouched.counts, votes=untouched.votes[0])
        outcome[claim.name] = Outcome(broken, before, min(left))
    return outcome


INSIDE = {"inside": JUST_INSIDE}
BEYOND = {"twice": 2.0, "four times": 4.0}
SCALES = INSIDE | BEYOND


def main(
    bundle: Annotated[str, typer.Argument(help="The demo bundle.")],
    images: Annotated[int, typer.Option(help="Held-out compositions to attack.")] = 200,
    beyond: Annotated[int, typer.Option(help="So many of them, the first, outside their radii too.")] = 50,
    n: Annotated[int, typer.Option(help="Copies of each image.")] = 1000,
    work: Annotated[Path, typer.Option(help="Folder for finished images.")] = Path("build/attack"),
) -> None:
    effort = Effort()
    data = compositions(images, seed=78, split="held-out")
    with fvit.load(bundle, device="auto") as vit:
        adversary = adversary_of(vit, effort)

        def measure(i: int) -> dict[str, Any]:
            picture = vit.read(data.images[i])
            (certificate,) = vit.certify_many([picture], vit.terms(n=n, seed=i))
            return {
                name: {
                    claim: vars(outcome)
                    for claim, outcome in attack(
                        vit, adversary, picture, certificate, scale=scale, effort=effort, seed=i
                    ).items()
                }
                for name, scale in (SCALES if i < beyond else INSIDE).items()
            }

        digest, engine = vit.bundle.digest, vit.engine
        asked = sha256(f"{n} {effort} {SCALES} {beyond}".encode()).hexdigest()
        journal = work / f"{digest[:12]}-{engine['name']}-{asked[:8]}.jsonl"
        done = resumed(journal, images, measure, words="attacking")
    result: dict[str, Any] = {
        "bundle": digest, "engine": engine, "images": images, "beyond": beyond, "n": n,
        "effort": vars(effort),
    }  # fmt: skip
    for name in SCALES:
        for claim in CLAIMS:
            tried = [each[name][claim] for each in done if claim in each.get(name, {})]
            broken = sum(each["broken"] for each in tried)
            result[f"{claim}, {name}"] = {
                "attacked": len(tried),
                "broken": broken,
                "at most": float(clopper_pearson(broken, len(tried), alpha=0.05)[1]) if tried else 1.0,
                "before": [*np.quantile([each["before"] for each in tried] or [1.0], [0.5, 0])],
                "least": [*np.quantile([each["least"] for each in tried] or [1.0], [0.5, 0])],
            }
    publish("attack", result, markdown(result))


def markdown(result: dict[str, Any]) -> str:
    effort = result["effort"]
    lines = [
        f"{result['images']} held-out images ({result['beyond']} of them beyond their radii too), "
        f"n = {result['n']:,}, σ = 0.25, α = 0.001, "
        f"{result['engine']['name']}, {result['engine']['precision']}. "
        f"For each claim {effort['directions']} random directions and "
        f"{effort['steps']} gradient steps over {effort['copies']} copies each; "
        f"proposals judged on {effort['judged']} fresh copies, and where these cast doubt on a claim, on "
        f"{CONFIRMED:,} more: broken is what those refute, as they do a true claim with chance "
        f"{BEYOND_CHANCE:g}.",
        "",
        "Support: the share of these that have the class, or of its tokens' votes: median (smallest) over "
        "images, without the attack and the least that any proposal left.",
        "",
        "| claim | at | attacked | broken | rate, 95 % upper limit | support without | least |",
        "|---|---|---|---|---|---|---|",
    ]
    for claim in CLAIMS:
        for name, scale in SCALES.items():
            found = result[f"{claim}, {name}"]
            before, least = (
                f"{100 * middle:.0f} % ({100 * low:.0f} %)"
                for middle, low in (found["before"], found["least"])
            )
            lines.append(
                f"| {claim} | {scale:g} × radius | {found['attacked']} | {found['broken']} "
                f"| {100 * found['at most']:.1f} % | {before} | {least} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
