"""The two networks of the embedded FViT, and where their weights lie.

The original classifier is a timm VisionTransformer, the teacher a diffusers UNet2DModel with its
DDPMScheduler. Unless these are asked for, a student stands for the teacher and a tuned classifier for the
original. All are stored as float16 safetensors beside this file.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem, HybridEmbed
from torch import nn

from fvit.demo.data import LABELS, SIZE
from fvit.errors import FvitError
from fvit.export.denoisers import Diffusion, load_diffusers
from fvit.export.students import Distilled, Shape, Student

WEIGHTS = Path(__file__).parent / "weights"
CLASSIFIER = WEIGHTS / "classifier.safetensors"
TUNED = WEIGHTS / "tuned.safetensors"
DENOISER = WEIGHTS / "denoiser"
STUDENT = WEIGHTS / "student.safetensors"
STUDENT_SHAPE = Shape(width=48, fold=4, lowest=0.12, highest=1.0)

DENOISERS = {"student": "fvit-demo-student", "teacher": "fvit-demo-unet"}
CLASSIFIERS = {"tuned": "fvit-demo-vit-tuned", "original": "fvit-demo-vit"}
"""Which of them -> what a manifest calls it, which neither timm nor the hub knows."""


def new_classifier() -> VisionTransformer:
    """64x64 pixels, 8x8 patches (64 tokens), width 128, 6 blocks of 4 heads: 1.3 M parameters.

    The patches are embedded by three strided convolutions (Xiao et al. 2021), with which a vision
    transformer learns from little data.
    """
    stem = ConvStem(
        depth=4, channels=(24, 48, 96, 128), kernel_size=(3, 3, 3, 1), stride=(2, 2, 2, 1),
        padding=(1, 1, 1, 0), act_layer=nn.GELU,
    )  # fmt: skip
    model = VisionTransformer(
        img_size=SIZE,
        patch_size=1,
        embed_layer=partial(HybridEmbed, backbone=stem, proj=False),
        embed_dim=128,
        depth=6,
        num_heads=4,
        num_classes=len(LABELS),
    )
    half = (0.5, 0.5, 0.5)
    model.pretrained_cfg = {"input_size": (3, SIZE, SIZE), "mean": half, "std": half}
    return model


def new_denoiser() -> UNet2DModel:
    """Four levels of 16 to 128 channels, attention at 8x8 only: 2.7 M parameters."""
    return UNet2DModel(
        sample_size=SIZE,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=32,
        down_block_types=("DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
    )


def new_scheduler() -> DDPMScheduler:
    """1,000 linear steps; the network predicts v, which is well scaled at every noise level."""
    return DDPMScheduler(num_train_timesteps=1000, prediction_type="v_prediction")


def save_weights(model: nn.Module, file: Path, *, record: dict[str, Any]) -> None:
    """Write the weights as float16, and `record` (how they were made) as JSON beside them."""
    file.parent.mkdir(exist_ok=True)
    save_file({name: _half(value) for name, value in model.state_dict().items()}, file)
    write_record(file.stem, record)


def save_denoiser(model: UNet2DModel, *, record: dict[str, Any]) -> None:
    """Write a diffusers pipeline folder in float16, and `record` as JSON beside it."""
    pipeline = DDPMPipeline(unet=model, scheduler=new_scheduler())
    pipeline.to(dtype=torch.float16).save_pretrained(DENOISER)
    model.float()
    write_record("denoiser", record)


def write_record(name: str, record: dict[str, Any]) -> None:
    (WEIGHTS / f"{name}.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def weights_of(classifier: str) -> Path:
    """The file of an embedded classifier, by its name in a manifest. Raises FvitError for any other."""
    files = {CLASSIFIERS["tuned"]: TUNED, CLASSIFIERS["original"]: CLASSIFIER}
    if classifier not in files:
        raise FvitError(f"{classifier} is none of the embedded classifiers ({', '.join(files)})")
    return files[classifier]


def load_classifier(file: Path = CLASSIFIER) -> VisionTransformer:
    """The embedded classifier, or the tuned one, in float32, in evaluation mode."""
    model = new_classifier()
    model.load_state_dict(load_file(file))  # copies into the float32 parameters
    return model.eval()


def load_student() -> Student:
    """The embedded student in float32, in evaluation mode."""
    student = Student(STUDENT_SHAPE)
    student.load_state_dict(load_file(STUDENT))
    return student.eval()


def load_denoiser(name: str) -> Diffusion | Distilled:
    """An embedded denoiser to export, by its name in a manifest. Raises FvitError for any other."""
    if name == DENOISERS["student"]:
        return Distilled(load_student(), SIZE)
    if name == DENOISERS["teacher"]:
        return load_diffusers(DENOISER)
    raise FvitError(f"{name} is none of the embedded denoisers ({', '.join(DENOISERS.values())})")


def _half(value: torch.Tensor) -> torch.Tensor:
    return (value.half() if value.is_floating_point() else value).contiguous()
