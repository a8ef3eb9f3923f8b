"""Small diffusion models as diffusers saves them, with weights that all matter."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, UNet2DModel


def small_unet(**options: Any) -> Any:
    """The same UNet2DModel each time, [B,3,16,16] and of one level unless told."""
    torch.manual_seed(0)
    architecture = {
        "sample_size": 16, "block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "add_attention": False,
    }  # fmt: skip
    unet = UNet2DModel(**{**architecture, **options}).eval()
    for parameter in unet.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return unet


def saved(folder: Path, unet: Any, scheduler: Any) -> Path:
    DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(folder)
    return folder
