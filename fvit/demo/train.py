"""Train the embedded FViT:  python -m fvit.demo.train classifier | denoiser | student | tuned | samples

Seeded and resumable: step i draws its batch, augmentation and noise from (seed, i) alone, and a
checkpoint is kept in the work folder, so a run that was stopped continues to the same weights
(up to the arithmetic of the machine). Needs the `export` extra.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fvit.demo import SAMPLES, models
from fvit.demo.data import LABELS, SIZE, Compositions, compositions
from fvit.export.classifiers import ExplainedClassifier
from fvit.export.distillation import train_student
from fvit.export.students import Student
from fvit.export.training import Settings, drawing, fastest_arithmetic
from fvit.export.tuning import train_classifier
from fvit.runtime.schedule import Schedule

app = typer.Typer(add_completion=False, help=__doc__)

WorkOption = Annotated[Path, typer.Option(help="Folder for the data pool and the checkpoints.")]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.")]
StepsOption = Annotated[int, typer.Option(help="Optimiser steps.")]
BatchOption = Annotated[int, typer.Option(help="Images a step.")]
PoolOption = Annotated[int, typer.Option(help="Training compositions drawn once and kept.")]
MixedOption = Annotated[str, typer.Option(help="Arithmetic of the training: bf16, fp16 or no (fp32).")]

WORK = Path("build/demo-training")
ARITHMETIC = fastest_arithmetic()
CHECKPOINT_EVERY = 200
NOISE_RANGE = (0.05, 1.0)
"""σ in pixel units, log-uniform: the noise levels that the denoiser is trained on."""


@app.command()
def classifier(
    seed: SeedOption = 0,
    steps: StepsOption = 5000,
    batch: BatchOption = 128,
    pool: PoolOption = 40_000,
    work: WorkOption = WORK,
) -> None:
    """Train the ViT on clean and mildly noisy compositions, with a label for each token."""
    torch.manual_seed(seed)
    images, labels, masks = training_pool(work, count=pool, seed=seed)
    model = TokenLabelled(models.new_classifier())

    def loss(step: int) -> Tensor:
        draw = drawing(seed, step)
        chosen = torch.randint(len(images), (batch,), generator=draw)
        pixels = _recolour(images[chosen].float() / 255, draw)
        sigma = 0.1 * torch.rand(batch, 1, 1, 1, generator=draw)
        pixels = pixels + sigma * torch.randn(pixels.shape, generator=draw)
        moved = _shift(torch.cat([pixels, masks[chosen, None].float()], dim=1), draw)
        with torch.autocast("cpu", torch.bfloat16):
            logits, token_logits = model((moved[:, :3] - 0.5) / 0.5)
        of_image = F.cross_entropy(logits.float(), labels[chosen], label_smoothing=0.1)
        digit = F.avg_pool2d(moved[:, 3:], 8).flatten(1) > 0.1
        of_tokens = torch.where(digit, labels[chosen, None], len(LABELS))
        return of_image + F.cross_entropy(token_logits.float().transpose(1, 2), of_tokens)

    checkpoint = work / f"classifier-{seed}-{steps}-{batch}-{pool}.pt"
    average = _optimise(model, loss, steps=steps, peak=1e-3, work=checkpoint).vit
    accuracy = _accuracy(average, compositions(1000, seed=seed, split="held-out"))
    record = {
        "command": _command("classifier", seed, steps, batch, pool),
        "held_out_clean_accuracy": accuracy,
        "torch": torch.__version__,
    }
    models.save_weights(average, models.CLASSIFIER, record=record)
    print(record)


@app.command()
def denoiser(
    seed: SeedOption = 0,
    steps: StepsOption = 5000,
    batch: BatchOption = 32,
    pool: PoolOption = 40_000,
    work: WorkOption = WORK,
) -> None:
    """Train the UNet to see through Gaussian noise in one step."""
    torch.manual_seed(seed)
    images, _, _ = training_pool(work, count=pool, seed=seed)
    model = models.new_denoiser().to(memory_format=torch.channels_last)
    schedule = Schedule(models.new_scheduler().alphas_cumprod.double().numpy())

    def error(network: nn.Module, pixels: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        """Squared error of v, [B], at pixel-space σ [B] (the model's own space is [-1,1], noise 2σ)."""
        t = torch.tensor([schedule.timestep(float(s)) for s in sigma])
        keep = (1 / (1 + 4 * sigma**2)).view(-1, 1, 1, 1)
        clean = 2 * pixels - 1
        noisy = keep.sqrt() * clean + (1 - keep).sqrt() * noise
        target = keep.sqrt() * noise - (1 - keep).sqrt() * clean
        with torch.autocast("cpu", torch.bfloat16):
            predicted = network(noisy.contiguous(memory_format=torch.channels_last), t).sample
        return (predicted.float() - target).square().mean(dim=(1, 2, 3))

    def loss(step: int) -> Tensor:
        draw = drawing(seed, step)
        chosen = torch.randint(len(images), (batch,), generator=draw)
        pixels = _recolour(images[chosen].float() / 255, draw)
        low, high = (math.log(s) for s in NOISE_RANGE)
        sigma = torch.exp(low + (high - low) * torch.rand(batch, generator=draw))
        return error(model, pixels, sigma, torch.randn(pixels.shape, generator=draw)).mean()

    checkpoint = work / f"denoiser-{seed}-{steps}-{batch}-{pool}.pt"
    average = _optimise(model, loss, steps=steps, peak=1e-3, work=checkpoint)
    held_out = _tensor(compositions(256, seed=seed, split="held-out"))[0].float() / 255
    noise = torch.randn(held_out.shape, generator=drawing(seed, -1))
    with torch.no_grad():
        errors = {
            str(s): float(error(average, held_out, torch.full((len(held_out),), s), noise).mean())
            for s in (0.12, 0.25, 0.5, 1.0)
        }
    record = {
        "command": _command("denoiser", seed, steps, batch, pool),
        "held_out_v_error_by_sigma": errors,
        "torch": torch.__version__,
    }
    models.save_denoiser(average, record=record)
    print(record)


@app.command()
def student(
    seed: SeedOption = 0,
    steps: StepsOption = 18_000,
    batch: BatchOption = 64,
    pool: PoolOption = 40_000,
    mixed_precision: MixedOption = ARITHMETIC,
    work: WorkOption = WORK,
) -> None:
    """Train the student that stands for the denoiser, for the clean image alone."""
    images, _, _ = training_pool(work, count=pool, seed=seed)
    trained, losses = train_student(
        models.STUDENT_SHAPE,
        images,
        Settings(rate=2e-3, batch=batch, seed=seed, steps=steps, mixed_precision=mixed_precision),
        size=(SIZE, SIZE),
        output_size=(SIZE, SIZE),
        work=work / "student",
        console=Console(),
    )
    held_out = _tensor(compositions(256, seed=seed, split="held-out"))[0].float() / 255
    noise = torch.randn(held_out.shape, generator=drawing(seed, -1))
    errors = {}
    for level in (0.12, 0.25, 0.5, 1.0):
        guess = _denoised(trained, held_out + level * noise, torch.full((len(held_out),), level))
        errors[str(level)] = float((guess - held_out).square().mean())
    record = {
        "command": f"{_command('student', seed, steps, batch, pool)} --mixed-precision {mixed_precision}",
        "held_out_squared_error_by_sigma": errors,
        "loss": float(np.mean(losses[-100:])),
        "torch": torch.__version__,
    }
    models.save_weights(trained, models.STUDENT, record=record)
    print(record)


@app.command()
def tuned(
    seed: SeedOption = 0,
    steps: StepsOption = 3000,
    batch: BatchOption = 32,
    pool: PoolOption = 40_000,
    mixed_precision: MixedOption = ARITHMETIC,
    work: WorkOption = WORK,
) -> None:
    """Tune the classifier on what the student makes of noisy copies."""
    images, _, _ = training_pool(work, count=pool, seed=seed)
    original = ExplainedClassifier(models.load_classifier())
    trained = ExplainedClassifier(models.load_classifier())
    shape = models.STUDENT_SHAPE
    losses = train_classifier(
        trained,
        original,
        images,
        Settings(rate=6e-4, batch=batch, seed=seed, steps=steps, mixed_precision=mixed_precision),
        denoise=partial(_denoised, models.load_student()),
        sigmas=(shape.lowest, shape.highest),
        work=work / "tuned",
        console=Console(),
        origin={
            file.stem: sha256(file.read_bytes()).hexdigest() for file in (models.CLASSIFIER, models.STUDENT)
        },
    )
    record = {
        "command": f"{_command('tuned', seed, steps, batch, pool)} --mixed-precision {mixed_precision}",
        "held_out_clean_accuracy": _accuracy(trained.model, compositions(1000, seed=seed, split="held-out")),
        "loss": float(np.mean(losses[-100:])),
        "torch": torch.__version__,
    }
    models.save_weights(trained.model, models.TUNED, record=record)
    print(record)


@app.command()
def samples(seed: SeedOption = 2024, count: Annotated[int, typer.Option(help="Images.")] = 12) -> None:
    """Write the held-out sample images: the first of each digit, then the next ones."""
    drawn = compositions(20 * count, seed=seed, split="held-out")
    firsts = [int(np.flatnonzero(drawn.labels == digit)[0]) for digit in range(len(LABELS))]
    others = [i for i in range(len(drawn.labels)) if i not in firsts]
    SAMPLES.mkdir(exist_ok=True)
    for number, i in enumerate((firsts + others)[:count]):
        Image.fromarray(drawn.images[i]).save(SAMPLES / f"{number:02d}-digit-{drawn.labels[i]}.png")


class TokenLabelled(nn.Module):
    """The ViT with a second head, in training only, that names the digit under each patch token (or
    says that there is none): token labelling (Jiang et al. 2021). With one label an image and plain
    patches, a ViT of this size was still at chance after 600 steps; with both changes it had left
    chance after 200."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.vit = vit
        self.head = nn.Linear(self.vit.embed_dim, len(LABELS) + 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.vit.forward_features(pixels)
        return self.vit.forward_head(features), self.head(features[:, self.vit.num_prefix_tokens :])


def _optimise(model: nn.Module, loss: Callable[[int], Tensor], *, steps: int, peak: float, work: Path) -> Any:
    """AdamW on a warm-up and cosine schedule; returns the exponential average of the weights."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.05, betas=(0.9, 0.99))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.998))
    start = 0
    if work.exists():
        kept = torch.load(work, weights_only=True)
        model.load_state_dict(kept["model"])
        optimiser.load_state_dict(kept["optimiser"])
        average.load_state_dict(kept["average"])
        start = kept["step"]
    columns = (
        TextColumn(work.stem), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
    )  # fmt: skip
    with Progress(*columns, speed_estimate_period=300) as progress:
        task = progress.add_task("", total=steps, completed=start, loss=math.nan)
        smoothed = math.nan
        for step in range(start, steps):
            model.train()
            warm = min(1.0, (step + 1) / 200)
            rate = peak * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
            for group in optimiser.param_groups:
                group["lr"] = rate
            value = loss(step)
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            average.update_parameters(model)
            now = float(value.detach())
            smoothed = now if math.isnan(smoothed) else 0.98 * smoothed + 0.02 * now
            progress.update(task, advance=1, loss=smoothed)
            if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
                state = {
                    "model": model.state_dict(), "optimiser": optimiser.state_dict(),
                    "average": average.state_dict(), "step": step + 1,
                }  # fmt: skip
                part = work.with_suffix(".part")
                torch.save(state, part)
                part.replace(work)
                progress.console.log(f"{work.stem} step {step + 1}: loss {smoothed:.4f}")
    return average.module.eval()


@torch.no_grad()
def _denoised(student: Student, noisy: Tensor, sigma: Tensor) -> Tensor:
    timestep = torch.from_numpy(student.shape.schedule.timestep(sigma.numpy())).float()
    return student(noisy, sigma, timestep)


def _command(what: str, seed: int, steps: int, batch: int, pool: int) -> str:
    return f"python -m fvit.demo.train {what} --seed {seed} --steps {steps} --batch {batch} --pool {pool}"


def training_pool(work: Path, *, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The training pool, [count,3,64,64] uint8, labels and masks, drawn once and kept in the work folder."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / f"pool-{seed}-{count}.npz"
    if not file.exists():
        drawn = compositions(count, seed=seed, split="train")
        part = file.with_suffix(".part.npz")
        np.savez(part, images=drawn.images, labels=drawn.labels, masks=drawn.masks)
        part.replace(file)
    return _tensor(Compositions(**np.load(file)))


def _tensor(data: Compositions) -> tuple[Tensor, Tensor, Tensor]:
    pixels = torch.from_numpy(data.images.transpose(0, 3, 1, 2).copy())
    return pixels, torch.from_numpy(data.labels), torch.from_numpy(data.masks)


def _recolour(pixels: Tensor, draw: torch.Generator) -> Tensor:
    """Permute the colour channels and invert half of the images: digits keep their shape."""
    order = torch.argsort(torch.rand(len(pixels), 3, generator=draw), dim=1)
    pixels = pixels[torch.arange(len(pixels))[:, None], order]
    invert = (torch.rand(len(pixels), 1, 1, 1, generator=draw) < 0.5).float()
    return invert + (1 - 2 * invert) * pixels


def _shift(pixels: Tensor, draw: torch.Generator) -> Tensor:
    """Shift each image by up to 4 pixels, its border repeated."""
    size = pixels.shape[-1]
    padded = F.pad(pixels, (4, 4, 4, 4), mode="replicate")
    rows = torch.randint(9, (len(pixels),), generator=draw)[:, None] + torch.arange(size)
    columns = torch.randint(9, (len(pixels),), generator=draw)[:, None] + torch.arange(size)
    each = torch.arange(len(pixels))[:, None, None]
    return padded.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _accuracy(model: nn.Module, data: Compositions) -> float:
    images, labels, _ = _tensor(data)
    with torch.no_grad():
        logits = torch.cat([model((part.float() / 255 - 0.5) / 0.5) for part in images.split(100)])
    return float((logits.argmax(dim=1) == labels).float().mean())


if __name__ == "__main__":
    app()
