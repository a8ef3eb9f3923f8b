"""Does an adversary find anything inside a certified radius, and how often outside twice of it?

    python -m benchmarks.attack BUNDLE [--images 50]

Two adversaries, each against the class, the explanation, and the sides of two tokens, one that is in and one
that is out, drawn at random: one follows gradients of the smoothed objective through the torch models
(expectation over noisy copies), one tries random directions. What they propose lies between the 8-bit images,
as the certificates allow, and is judged by the engine on fresh copies. Every image is kept in the work folder
as it is done, so a run that was stopped continues.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from numpy.typing import NDArray
from scipy.stats import binomtest
from torch import Tensor

import fvit
from benchmarks.keeping import publish, resumed
from fvit.certificates.claims import top_tokens
from fvit.certificates.radii import lost_tokens
from fvit.certificates.tally import Tally
from fvit.demo import models
from fvit.demo.data import compositions
from fvit.export.classifiers import ExplainedClassifier
from fvit.export.denoisers import OneShotDenoiser, load_diffusers
from fvit.runtime.images import Picture

Floats = NDArray[np.float32]
Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits [B,C] and attribution [B,N] of noisy copies to what an adversary wants more of."""

BATCH = 4
"""Copies that a core takes at once."""


@dataclass(frozen=True)
class Effort:
    """How hard an adversary tries: gradient steps, copies a step, random directions; and batches of
    copies that judge a proposal."""

    steps: int = 10
    copies: int = 16
    directions: int = 4
    judged: int = 25


@dataclass(frozen=True)
class Claim:
    """What is attacked, and the radius that it has. token: of whose side it speaks, if it does."""

    name: str
    radius: float
    token: int = -1


CLAIMS = ("class", "attention", "a token in", "a token out")

WRONG_BY_CHANCE = 1e-3
"""A side is broken where so many fresh copies on the other one would be rarer than this at one half."""


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
    explanation = certificate.attention

    def of_class(logits: Tensor, attribution: Tensor) -> Tensor:
        return F.cross_entropy(logits, torch.full((len(logits),), certificate.class_.index))

    def of_attention(logits: Tensor, attribution: Tensor) -> Tensor:
        inside = torch.zeros(attribution.shape[1])
        inside[list(explanation.tokens)] = 1
        return (attribution * (1 - 2 * inside)).sum(dim=1).mean()

    def of_side(logits: Tensor, attribution: Tensor) -> Tensor:
        # A copy votes for the token where it lies above the k-th largest of the others.
        logs = attribution.clamp(min=1e-12).log()
        others = torch.cat([logs[:, : claim.token], logs[:, claim.token + 1 :]], dim=1)
        votes = torch.sigmoid(4 * (logs[:, claim.token] - others.topk(explanation.k, dim=1).values[:, -1]))
        return votes.mean() if claim.name == "a token out" else -votes.mean()

    return {"class": of_class, "attention": of_attention}.get(claim.name, of_side)


class Adversary:
    """The embedded model in torch, differentiable from the noisy copies to logits and attribution."""

    def __init__(self) -> None:
        diffusion = load_diffusers(models.DENOISER)
        self.schedule = diffusion.schedule
        self.denoiser = OneShotDenoiser(diffusion, image_size=(64, 64), output_size=(64, 64))
        self.classifier = ExplainedClassifier(models.load_classifier())

    def follow(
        self,
        pixels: Floats,
        certificate: fvit.Certificate,
        *,
        radius: float,
        loss: Loss,
        effort: Effort,
        seed: int,
    ) -> Floats:
        """Projected gradient ascent on the ℓ2 sphere of this radius, of the mean loss over noisy copies."""
        draw = torch.Generator().manual_seed(seed)
        clean = torch.from_numpy(pixels)
        sigma = certificate.sigma
        levels = torch.full((effort.copies,), sigma)
        timesteps = torch.full((effort.copies,), self.schedule.timestep(sigma))
        delta = torch.randn(clean.shape, generator=draw)
        delta *= radius / delta.norm()
        for _ in range(effort.steps):
            delta.requires_grad_(True)
            noise = torch.randn((effort.copies, *clean.shape), generator=draw)
            # Only the direction matters here, and noise moves it more than bf16 does.
            with torch.autocast("cpu", torch.bfloat16):
                images = self.denoiser(clean + delta + sigma * noise, levels, timesteps)
                logits, attribution = self.classifier(images)
            (gradient,) = torch.autograd.grad(loss(logits.float(), attribution.float()), delta)
            with torch.no_grad():
                delta = delta + 0.5 * radius * gradient / gradient.norm().clamp(min=1e-12)
                delta = delta * (radius / delta.norm())
        return (clean + delta.detach()).numpy()


def random_proposals(pixels: Floats, *, radius: float, effort: Effort, seed: int) -> list[Floats]:
    """Points on the sphere in random directions, smooth and white in turn."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(effort.directions):
        cells = 64 if number % 2 else 8
        direction = np.kron(rng.normal(size=(3, cells, cells)), np.ones((1, 64 // cells, 64 // cells)))
        found.append((pixels + radius * direction / np.linalg.norm(direction)).astype(np.float32))
    return found


def fresh(
    vit: fvit.FaithfulViT, proposal: Floats, certificate: fvit.Certificate, *, effort: Effort, seed: int
) -> Tally:
    """Fresh copies of a proposal, counted."""
    rng = np.random.default_rng(seed)
    tally = Tally(vit.pipeline.classes, vit.pipeline.tokens, (certificate.attention.k,))
    sigma = np.full(BATCH, certificate.sigma, np.float32)

    def some(noise: NDArray[np.float64]) -> tuple[Floats, Floats]:
        # What is smoothed starts at the 8-bit grid, wherever its argument lies (docs/method.md, section 3).
        noisy = np.rint(255 * (proposal + certificate.sigma * noise)).astype(np.float32) / np.float32(255)
        return vit.pipeline(noisy, sigma=sigma)

    noises = [rng.normal(size=(len(sigma), *proposal.shape)) for _ in range(effort.judged)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as cores:
        for logits, attribution in cores.map(some, noises):
            tally.add(logits, attribution)
    return tally


def broken(claim: Claim, certificate: fvit.Certificate, tally: Tally) -> bool:
    """Whether fresh copies say otherwise: another class has most of them; fewer than βk of the tokens are in
    their top k; or, beyond chance, the token is on the other side."""
    explanation = certificate.attention
    if claim.name == "class":
        return int(tally.counts.argmax()) != certificate.class_.index
    if claim.name == "attention":
        kept = set(top_tokens(tally.votes[0], explanation.k)) & set(explanation.tokens)
        return explanation.k - len(kept) >= lost_tokens(explanation.k, beta=explanation.beta)
    votes = int(tally.votes[0, claim.token])
    other = "less" if claim.name == "a token in" else "greater"
    return bool(binomtest(votes, tally.copies, 0.5, alternative=other).pvalue <= WRONG_BY_CHANCE)


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
        proposals = [
            adversary.follow(pixels, certificate, radius=reach, loss=loss, effort=effort, seed=seed),
            *random_proposals(pixels, radius=reach, effort=effort, seed=seed),
        ]
        outcome[claim.name] = any(
            broken(claim, certificate, fresh(vit, each, certificate, effort=effort, seed=seed))
            for each in proposals
        )
    return outcome


# Just inside: the boundary itself belongs to neither side in floating point.
SCALES = {"inside": 0.999, "twice": 2.0}


def main(
    bundle: Annotated[Path, typer.Argument(help="The demo bundle.")],
    images: Annotated[int, typer.Option(help="Held-out compositions to attack.")] = 50,
    n: Annotated[int, typer.Option(help="Copies of each image.")] = 1000,
    work: Annotated[Path, typer.Option(help="Folder for finished images.")] = Path("build/attack"),
) -> None:
    adversary, effort = Adversary(), Effort()
    data = compositions(images, seed=78, split="held-out")
    with fvit.load(bundle) as vit:

        def measure(i: int) -> dict[str, Any]:
            picture = vit.read(data.images[i])
            (certificate,) = vit.certify_many([picture], vit.terms(n=n, seed=i))
            return {
                name: attack(vit, adversary, picture, certificate, scale=scale, effort=effort, seed=i)
                for name, scale in SCALES.items()
            }

        digest, precision = vit.bundle.digest, vit.bundle.manifest.precision
        done = resumed(work / f"{digest[:12]}-{n}.jsonl", images, measure, words="attacking")
    result: dict[str, Any] = {
        "bundle": digest, "precision": precision, "images": images, "n": n, "effort": vars(effort),
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
        f"{result['precision']}. For each claim {effort['directions']} random directions and "
        f"{effort['steps']} gradient steps over {effort['copies']} copies each; "
        f"proposals judged on {BATCH * effort['judged']} fresh copies.",
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
