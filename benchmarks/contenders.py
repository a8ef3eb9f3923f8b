"""The models that speed is measured on, and how they run in torch."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.clocks import Clock, Run, WallClock, in_a_row
from fvit.demo import models
from fvit.errors import OutOfMemory
from fvit.export import adm
from fvit.export.bundles import export_bundle
from fvit.export.classifiers import ExplainedClassifier
from fvit.export.denoisers import Diffusion, OneShotDenoiser, load_diffusers
from fvit.export.preconditioning import VariancePreserving

SIGMA = 0.25
MODELS = {
    "demo": "the embedded teacher and original classifier",
    "vit-b": "ViT-B/16 at 224 pixels (random weights) behind the embedded 64-pixel teacher",
    "vit-b-adm": "ViT-B/16 behind the papers' 256x256 ADM denoiser, both at 224 pixels, random weights",
}


def classifier(model: str) -> Any:
    if model == "demo":
        return models.load_classifier()
    torch.manual_seed(0)
    return timm.create_model("vit_base_patch16_224").eval()


def published_adm() -> Diffusion:
    """The denoiser of the papers, 552,814,086 parameters, with random weights."""
    torch.manual_seed(0)
    chosen, _ = adm.parse_flags(adm.PUBLISHED_FLAGS)
    unet = adm.build_unet(adm.PUBLISHED, chosen)
    preconditioning = VariancePreserving(adm.schedule("linear", steps=1000), "epsilon")
    return Diffusion(unet, preconditioning, image_size=256)


def diffusion(model: str) -> Diffusion:
    return published_adm() if model == "vit-b-adm" else load_diffusers(models.DENOISER)


def image_size(model: str) -> int:
    return 224 if model == "vit-b-adm" else 64


def export(model: str, folder: Path, *, precision: str) -> None:
    """The model as a bundle in `folder`."""
    made = classifier(model)
    export_bundle(
        folder, classifier=made, classifier_name=model, labels=tuple(map(str, range(made.num_classes))),
        denoiser=diffusion(model), denoiser_name="denoiser", image_size=image_size(model),
        precision=precision,
    )  # fmt: skip


class TorchModel:
    """The modules that are exported, as torch runs them on a device."""

    def __init__(self, model: str, *, device: str, half: bool = False, compiled: bool = False) -> None:
        side, loaded = image_size(model), diffusion(model)
        explained = ExplainedClassifier(classifier(model))
        denoiser = OneShotDenoiser(loaded, image_size=(side, side), output_size=explained.size)
        for module in (denoiser, explained):
            module.to(device)
            if half:
                module.halve()
        self.device, self.image_shape, self.size = device, (3, side, side), explained.size
        self.level = torch.tensor(SIGMA, device=device)
        self.timestep = torch.tensor(loaded.schedule.timestep(SIGMA), dtype=torch.float32, device=device)
        self.denoiser: Callable[..., Tensor] = _compiled(denoiser) if compiled else denoiser
        self.classifier: Callable[..., Any] = _compiled(explained) if compiled else explained

    def denoise(self, noisy: Tensor) -> Tensor:
        return self.denoiser(noisy, self.level.expand(len(noisy)), self.timestep.expand(len(noisy)))

    def smooth(self, pixels: Tensor, *, batch: int, times: int, k: int, mark: Callable[[], None]) -> None:
        """Noise, denoiser, classifier and counting of `times` batches, each marked at its end; the counts
        come to the host."""
        counts, votes = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for _ in range(times):
            noisy = pixels + SIGMA * torch.randn(batch, *self.image_shape, device=self.device)
            logits, attribution = self.classifier(self.denoise(noisy))
            counts = counts + torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1]).sum(0)
            chosen = attribution.topk(k, dim=1).indices
            votes = votes + torch.zeros_like(attribution).scatter(1, chosen, 1.0).sum(0)
            mark()
        counts.tolist(), votes.tolist()

    def stages(self, *, batch: int, k: int) -> dict[str, Run]:
        noisy = torch.rand(batch, *self.image_shape, device=self.device)
        images = torch.rand(batch, 3, *self.size, device=self.device)

        def pipeline(times: int, mark: Callable[[], None]) -> None:
            with torch.no_grad():
                self.smooth(noisy[0], batch=batch, times=times, k=k, mark=mark)

        def alone(work: Callable[[], object]) -> Run:
            return in_a_row(torch.no_grad()(work), wait=lambda: finish(self.device))

        return {
            "denoiser": explained(alone(lambda: self.denoise(noisy))),
            "classifier": explained(alone(lambda: self.classifier(images))),
            "pipeline": explained(pipeline),
        }

    def clock(self) -> Clock:
        return WallClock() if self.device == "cpu" else TorchClock(self.device)

    def megabytes(self) -> float | None:
        """The most device memory that torch has held since it was last asked; None on a CPU."""
        if self.device == "cpu":
            return None
        held = torch.cuda.max_memory_allocated(self.device) / 1e6
        torch.cuda.reset_peak_memory_stats(self.device)
        return held


def _compiled(module: torch.nn.Module) -> Callable[..., Any]:
    """For each batch anew: code that serves every batch may be slower at each."""
    return torch.compile(module, dynamic=False)


def explained(run: Run) -> Run:
    """A run that says by our own error that a GPU's memory does not do."""

    def either(times: int, mark: Callable[[], None]) -> None:
        try:
            run(times, mark)
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(str(error).splitlines()[0]) from error

    return either


def release() -> None:
    """Give the GPU back the memory that torch keeps for itself and nothing uses."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class TorchClock:
    """CUDA events on torch's stream. Its work must be waited for before the times are read."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._events: list[Any] = []

    def mark(self) -> None:
        self._events.append(torch.cuda.Event(enable_timing=True))
        self._events[-1].record(torch.cuda.current_stream(self._device))

    def milliseconds(self) -> NDArray[np.float64]:
        return np.array([first.elapsed_time(then) for first, then in itertools.pairwise(self._events)])


def flops(model: str) -> int:
    """Floating-point operations of one copy in both networks; a multiply and an add are two."""
    run = TorchModel(model, device="cpu")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run.classifier(run.denoise(torch.zeros(1, *run.image_shape)))
    return int(counter.get_total_flops())


def peak(device: str, *, half: bool) -> float:
    """Floating-point operations a second of a large matrix product: the most this device was seen to do."""
    on_cpu = device == "cpu"
    side = 2048 if on_cpu else 8192
    torch.backends.cuda.matmul.allow_tf32 = False
    matrix = torch.randn(side, side, device=device, dtype=torch.float16 if half else torch.float32)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        matrix @ matrix
        finish(device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def finish(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)
