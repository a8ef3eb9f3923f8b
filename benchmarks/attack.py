"""Does an adversary find anything inside a certified radius, and how often outside twice of it?

    python -m benchmarks.attack BUNDLE [--images 50]

Two adversaries, each against the class, the explanation, and the sides of two tokens, one that is in and one
that is out, drawn at random: one follows gradients of the smoothed objective through the torch models
(expectation over noisy copies), one tries random directions. What they propose lies between the 8-bit images,
as the certificates allow, and is judged by the engine on fresh copies: a claim is broken where these refute
it. Gradients are computed in bf16 where the CPU multiplies that; the engine is the fastest that is installed.
Every image is kept in the work folder as it is done, so a run that was stopped continues.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import Tensor

import fvit
from benchmarks.keeping import publish, resumed
from fvit.certificates.refuting import doubted, refuted
from fvit.demo.data import compositions
from fvit.evaluation.adversarial import BEYOND_CHANCE, CONFIRMED, JUST_INSIDE, fresh
from fvit.export.attacking import Adversary, Loss, away_from_class, away_from_tokens
from fvit.export.training import fastest_arithmetic
from fvit.runtime.images import Picture

Floats = NDArray[np.float32]


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
    rng, sides = np.random.default_rng(seed), np.array(certificate.attention.map_radii)
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

    def of_side(logits: Tensor, attribution: Tensor) -> Tensor:
        # A copy votes for the token where it lies above the k-th largest of the others.
        logs = attribution.clamp(min=1e-12).log()
        others = torch.cat([logs[:, : claim.token], logs[:, claim.token + 1 :]], dim=1)
        edge = others.topk(certificate.attention.k, dim=1).values[:, -1]
        votes = torch.sigmoid(4 * (logs[:, claim.token] - edge))
        return votes.mean() if claim.name == "a token out" else -votes.mean()

    if claim.name == "class":
        return away_from_class(certificate.class_.index)
    return away_from_tokens(certificate.attention.tokens) if claim.name == "attention" else of_side


def adversary_of(vit: fvit.FaithfulViT, effort: Effort) -> Adversary:
    """Of the embedded model."""
    return Adversary.of(
        vit.bundle, weights=None, denoiser=None, adm_flags=None, steps=effort.steps, copies=effort.copies
    )


def random_proposals(pixels: Floats, *, radius: float, effort: Effort, seed: int) -> list[Floats]:
    """Points on the sphere in random directions, smooth and white in turn."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(effort.directions):
        cells = 64 if number % 2 else 8
        direction = np.kron(rng.normal(size=(3, cells, cells)), np.ones((1, 64 // cells, 64 // cells)))
        found.append((pixels + radius * direction / np.linalg.norm(direction)).astype(np.float32))
    return found


def broken(
    vit: fvit.FaithfulViT,
    claim: Claim,
    certificate: fvit.Certificate,
    proposal: Floats,
    *,
    effort: Effort,
    seed: int,
) -> bool:
    """Whether fresh copies refute a claim: few that cast doubt on it, then many that decide."""
    few = fresh(vit, proposal, certificate, copies=effort.judged, seed=seed)
    if claim.refuted not in doubted(certificate, few, distance=0):
        return False
    many = fresh(vit, proposal, certificate, copies=CONFIRMED, seed=seed + 1)
    return claim.refuted in refuted(certificate, many, distance=0, chance=BEYOND_CHANCE)


def attack(
    vit: fvit.FaithfulViT,
    adversary: Adversary,
    picture: Picture,
    certificate: fvit.Certificate,
    *,
    scale: float,
    effort: Effort,
    seed: int,
) -> dict[str, bool]:
    """Attack what a certificate claims at `scale` times the radii: of each claim whether it was broken."""
    pixels: Floats = np.divide(picture.pixels, 255, dtype=np.float32)
    outcome = {}
    for claim in claims(certificate, seed=seed):
        reach = scale * claim.radius
        loss = loss_of(claim, certificate)
        # The stronger adversary first: what it breaks needs no other.
        with torch.autocast("cpu", torch.bfloat16, enabled=fastest_arithmetic() == "bf16"):
            followed = adversary.follow(
                pixels, loss=loss, norm="l2", radius=reach, sigma=certificate.sigma,
                draw=np.random.default_rng(seed),
            )  # fmt: skip
        proposals = [followed, *random_proposals(pixels, radius=reach, effort=effort, seed=seed)]
        outcome[claim.name] = any(
            broken(vit, claim, certificate, each, effort=effort, seed=seed) for each in proposals
        )
    return outcome


SCALES = {"inside": JUST_INSIDE, "twice": 2.0}


def main(
    bundle: Annotated[Path, typer.Argument(help="The demo bundle.")],
    images: Annotated[int, typer.Option(help="Held-out compositions to attack.")] = 50,
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
                name: attack(vit, adversary, picture, certificate, scale=scale, effort=effort, seed=i)
                for name, scale in SCALES.items()
            }

        digest, engine = vit.bundle.digest, vit.engine
        journal = work / f"{digest[:12]}-{engine['name']}-{n}.jsonl"
        done = resumed(journal, images, measure, words="attacking")
    result: dict[str, Any] = {
        "bundle": digest, "engine": engine, "images": images, "n": n, "effort": vars(effort),
    }  # fmt: skip
    for name in SCALES:
        for claim in CLAIMS:
            tried = [each[name][claim] for each in done if claim in each[name]]
            result[f"{claim}, {name}"] = {"attacked": len(tried), "broken": sum(tried)}
    publish("attack", result, markdown(result))


def markdown(result: dict[str, Any]) -> str:
    effort = result["effort"]
    lines = [
        f"{result['images']} held-out images, n = {result['n']:,}, σ = 0.25, α = 0.001, "
        f"{result['engine']['name']}, {result['engine']['precision']}. "
        f"For each claim {effort['directions']} random directions and "
        f"{effort['steps']} gradient steps over {effort['copies']} copies each; "
        f"proposals judged on {effort['judged']} fresh copies.",
        "",
        "| claim | at | attacked | broken |",
        "|---|---|---|---|",
    ]
    for claim in CLAIMS:
        for name, scale in SCALES.items():
            found = result[f"{claim}, {name}"]
            lines.append(f"| {claim} | {scale:g} × radius | {found['attacked']} | {found['broken']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
