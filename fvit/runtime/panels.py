"""What is shown of an image beside its certificate: what the smoothing saw, and the plain explanation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fvit.certificates.record import Certificate
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.host import Floats
from fvit.runtime.images import Picture
from fvit.runtime.noise import noisy_copies, philox_key
from fvit.runtime.plain import classify_plain


@dataclass(frozen=True, eq=False)
class Panels:
    """pixels [3,H,W] of the image in [0,1]; noisy [3,H,W], its first copy; denoised [3,h,w], that copy
    denoised; plain [N], the attribution of the image as it is, and its class there."""

    picture: Picture
    pixels: Floats
    noisy: Floats
    denoised: Floats
    plain: Floats
    plain_label: str

    @classmethod
    def of(cls, vit: FaithfulViT, picture: Picture, certificate: Certificate) -> Panels:
        """By the networks that made the certificate. Raises FvitError where an engine fails."""
        key = philox_key(picture.pixels_sha256, size=certificate.size, seed=certificate.seed)
        noisy = noisy_copies(picture.pixels, range(1), sigma=certificate.sigma, key=key)
        denoised = vit.pipeline.denoise(noisy, sigma=np.array([certificate.sigma], np.float32))
        logits, attribution = classify_plain(vit, picture.pixels[None])
        label = vit.bundle.manifest.labels[int(logits[0].argmax())]
        pixels = picture.pixels.astype(np.float32) / np.float32(255)
        return cls(picture, pixels, noisy[0], denoised[0], attribution[0], label)
