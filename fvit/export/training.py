"""Training that can be killed at any step: seeded by step, checkpointed whole, resumed to the same curve."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from torch import Tensor, nn

from fvit.engines import processor
from fvit.errors import FvitError
from fvit.runtime.images import read_image, reason_of
from fvit.runtime.inputs import find_images
from fvit.runtime.lock import Lock
from fvit.runtime.pictures import written_whole

PLAN, STATE = "plan.json", "state.pt"

FILES = "files"
"""In a plan, names_of the images."""

MEASURED = 10
"""Steps that tell how many fit into the time given."""

AT_ONCE = 256
"""Images that are checked in one go."""

SHOWN = 5
"""Images that cannot be read, named in an error."""

WARM_UP = 100
"""Steps until the learning rate is at its peak, at most a tenth of all."""


class Images(Protocol):
    """Training images: how many, and some of them as uint8 [M,3,H,W]."""

    def __len__(self) -> int: ...

    def __getitem__(self, chosen: Tensor, /) -> Tensor: ...


class Files:
    """Image files, read when they are asked for and brought to `size` as the runtime brings them."""

    def __init__(self, files: list[str], *, size: tuple[int, int]) -> None:
        self.files, self.size = files, size
        self._readers = ThreadPoolExecutor(8, thread_name_prefix="fvit-images")

    def __len__(self) -> int:
        return len(self.files)

    def check(self, *, work: Path, console: Console) -> None:
        """Read every image once, in the first process, unless a training has begun in `work`. Raises
        FvitError that names those that cannot be read: in the midst of a training, which knows its images by
        their number, none can be taken away."""
        if not is_first() or (work / PLAN).exists():
            return

        def reason(index: int) -> str | None:
            try:
                self._read(index)
            except FvitError as error:
                return str(error)
            return None

        damaged: list[str] = []
        for first in track(range(0, len(self), AT_ONCE), "reading images", console=console):
            told = self._readers.map(reason, range(first, min(first + AT_ONCE, len(self))))
            damaged += [each for each in told if each is not None]
        if damaged:
            raise FvitError(
                f"{len(damaged)} of {len(self)} images cannot be read; remove them: "
                f"{'; '.join(damaged[:SHOWN])}{'; …' if len(damaged) > SHOWN else ''}"
            )

    def __getitem__(self, chosen: Tensor) -> Tensor:
        return torch.from_numpy(np.stack(list(self._readers.map(self._read, chosen.tolist()))))

    def _read(self, index: int) -> Any:
        return read_image(self.files[index], size=self.size).pixels


def split(folder: Path, *, held_out: int, least: int, seed: int) -> tuple[list[str], list[str]]:
    """The images of a folder and of the folders in it: those to train on, and those held out, drawn by seed.

    Raises FvitError where the folder cannot be read or fewer than `least` are left to train on.
    """
    files = find_images([folder], recursive=True)
    if len(files) < held_out + least:
        raise FvitError(
            f"{folder} holds {len(files)} images: training needs {least} at least, and {held_out} are held "
            "out to measure on"
        )
    order = np.random.default_rng(seed).permutation(len(files))
    return [files[i] for i in order[held_out:]], [files[i] for i in order[:held_out]]


def names_of(files: Sequence[str], folder: Path) -> str:
    """A digest of the files' names in the folder and of their sizes, in this order: a training knows its
    images by their number."""
    told = (f"{os.path.relpath(file, folder)} {Path(file).stat().st_size}\n" for file in files)
    return sha256("".join(told).encode(errors="surrogateescape")).hexdigest()


def fastest_arithmetic() -> str:
    """bf16 where the device multiplies it, else fp16 on a GPU and fp32 ("no") on a processor, which otherwise
    imitates what it lacks."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if processor.has("bf16") else "no"


@dataclass(frozen=True)
class Settings:
    """How to train: AdamW with this peak rate, warmed up and let down to zero along a cosine; `batch`
    images a step; until `steps`, or as many as fit into `hours`. mixed_precision: as accelerate names it.
    checkpoint: seconds between two. Raises FvitError for a rate or hours that are no number above 0."""

    rate: float
    batch: int
    seed: int = 0
    steps: int | None = None
    hours: float = 1.0
    mixed_precision: str = field(default_factory=fastest_arithmetic)
    checkpoint: float = 60.0

    def __post_init__(self) -> None:
        for name in ("rate", "hours"):
            if not 0 < (value := getattr(self, name)) < math.inf:
                raise FvitError(f"{name} = {value:g}: give a number above 0")


@contextmanager
def work_of(out: Path) -> Iterator[Path]:
    """The folder beside `out` that keeps a training's checkpoints, for one run at a time. It stays.

    Raises FvitError where it cannot be made or is in use.
    """
    work = out.with_name(f"{out.name}.training")
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = Lock(work / "lock") if is_first() else None
    except OSError as error:
        raise FvitError(f"{work} cannot be used to keep checkpoints: {reason_of(error)}") from error
    try:
        yield work
    finally:
        if lock is not None:
            lock.close()


def is_first() -> bool:
    """Whether this process is the one, of those that train together, that writes."""
    return PartialState().is_main_process


def described(losses: Sequence[float]) -> str:
    """One line: the loss in the beginning and in the end, over a tenth of all steps each."""
    part = max(1, len(losses) // 10)
    return f"{len(losses):,} steps, loss {np.mean(losses[:part]):.4g} → {np.mean(losses[-part:]):.4g}"


def drawing(seed: int, step: int) -> torch.Generator:
    """All randomness of a step."""
    mixed = np.random.SeedSequence([seed, step + 1]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed) % 2**63)


def train(
    model: nn.Module,
    loss: Callable[[nn.Module, Tensor, torch.Generator], Tensor],
    images: Images,
    settings: Settings,
    *,
    work: Path,
    plan: dict[str, Any],
    console: Console,
) -> list[float]:
    """Train in place, and return the loss of every step, also of those before a resumption.

    loss: (model, pixels uint8 [M,3,H,W], what to draw from) -> a number; plan: what makes this training what
    it is, kept in `work` with the settings. A folder that holds the same plan is gone on with from its last
    checkpoint; what is drawn at a step follows from seed and step alone, so the curve is the same as without
    the break. Raises FvitError where `work` holds another plan or cannot be written, or the loss is no
    number.
    """
    accelerator = _accelerator(settings.mixed_precision)
    plan = {
        "batch": settings.batch,
        "seed": settings.seed,
        "rate": settings.rate,
        "length": "--steps" if settings.steps is not None else f"--hours {settings.hours:g}",
        "images": len(images),
        "mixed precision": settings.mixed_precision,
        "processes": accelerator.num_processes,
    } | plan
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.rate, weight_decay=0.01, betas=(0.9, 0.99))
    model, optimiser = accelerator.prepare(model, optimiser)
    rows = slice(accelerator.process_index, None, accelerator.num_processes)

    def step_of(number: int, *, of: int) -> float:
        draw = drawing(settings.seed, number)
        chosen = torch.randint(len(images), (settings.batch,), generator=draw)
        draw = drawing(settings.seed + 1 + accelerator.process_index, number)
        pixels = images[chosen[rows]].to(accelerator.device)
        warm = min(1.0, (number + 1) / max(1, min(WARM_UP, of // 10)))
        for group in optimiser.param_groups:
            group["lr"] = settings.rate * warm * 0.5 * (1 + math.cos(math.pi * number / of))
        value = loss(model, pixels, draw)
        optimiser.zero_grad(set_to_none=True)
        accelerator.backward(value)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        return float(accelerator.reduce(value.detach(), "mean"))

    # Of several processes the first decides.
    first = accelerator.is_main_process
    (steps,) = broadcast_object_list([_kept_steps(work, plan, asked=settings.steps) if first else None])
    if steps is None:
        steps = settings.steps or _steps_that_fit(
            step_of, model, optimiser, accelerator.scaler, seconds=3600 * settings.hours
        )
        (steps,) = broadcast_object_list([steps])
        if first:
            write(work / PLAN, json.dumps(plan | {"steps": steps}, indent=1).encode())
    losses: list[float] = []
    if (work / STATE).exists():
        kept = _read_state(work / STATE)
        accelerator.unwrap_model(model).load_state_dict(kept["model"])
        optimiser.load_state_dict(kept["optimiser"])
        losses = kept["losses"]
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(kept["scaler"])
    columns = (
        TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4g}"),
    )  # fmt: skip
    saved = time.monotonic()
    with Progress(*columns, console=console, disable=not first) as progress:
        task = progress.add_task("", total=steps, completed=len(losses), loss=math.nan)
        for number in range(len(losses), steps):
            losses.append(step_of(number, of=steps))
            if not math.isfinite(losses[-1]):
                raise FvitError(f"the loss is {losses[-1]} at step {number}: train with a lower --rate")
            progress.update(task, advance=1, loss=float(np.mean(losses[-50:])))
            done = number + 1 == steps
            if first and (done or time.monotonic() - saved > settings.checkpoint):
                state = {
                    "model": accelerator.unwrap_model(model).state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "losses": losses,
                    "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
                }
                whole = io.BytesIO()
                torch.save(state, whole)
                write(work / STATE, whole.getvalue())
                saved = time.monotonic()
    accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # its own forward again
    return losses


def _accelerator(mixed_precision: str) -> Any:
    """Raises FvitError where this machine has no such arithmetic."""
    AcceleratorState._reset_state()  # accelerate keeps one precision for the whole process
    try:
        return Accelerator(mixed_precision=mixed_precision)
    except ValueError as error:
        raise FvitError(f"mixed precision '{mixed_precision}' cannot be used: {error}") from error


def _steps_that_fit(
    step_of: Callable[..., float], model: nn.Module, optimiser: Any, scaler: Any, *, seconds: float
) -> int:
    """Measured on steps that are then undone. scaler: of the gradients, where there is one."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scale = None if scaler is None else scaler.state_dict()
    step_of(0, of=MEASURED)
    began = time.monotonic()
    for number in range(MEASURED):
        step_of(number, of=MEASURED)
    each = (time.monotonic() - began) / MEASURED
    model.load_state_dict(before)
    optimiser.state.clear()
    if scale is not None:
        scaler.load_state_dict(scale)
    return max(1, int(seconds / each))


def _kept_steps(work: Path, plan: dict[str, Any], *, asked: int | None) -> int | None:
    """The number of steps of the same plan in the folder; None where there is none. asked: how many it has to
    have, where that is told."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        kept = json.loads((work / PLAN).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise FvitError(f"{work} cannot be used to keep checkpoints: {error}") from error
    for name, value in (plan if asked is None else plan | {"steps": asked}).items():
        if kept.get(name) != value:
            differs = f"with {name} {kept.get(name)}, not {value}"
            if name == FILES:
                differs = "on images of other names or sizes"
            raise FvitError(f"{work} holds a training {differs}: remove it, or ask for the same")
    return int(kept["steps"])


def _read_state(file: Path) -> dict[str, Any]:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise FvitError(f"the checkpoint {file} is damaged: remove {file.parent} and begin again") from error


def write(file: Path, data: bytes) -> None:
    """Write a file whole or not at all. Raises FvitError where it cannot be written."""
    try:
        with written_whole(file) as part:
            part.write_bytes(data)
    except OSError as error:
        raise FvitError(f"cannot write {file}: {reason_of(error)}") from error
