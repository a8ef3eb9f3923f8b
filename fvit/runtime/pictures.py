"""One picture an image: what went in, what the smoothing saw, what it says, and how firmly."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fvit.certificates.claims import AttentionClaim
from fvit.certificates.radii import in_digits
from fvit.certificates.record import Certificate
from fvit.commands import one_line
from fvit.extras import require
from fvit.runtime.drawing import draw_map, map_radius
from fvit.runtime.panels import Panels

PLOTS = {"extra": "plots", "purpose": "drawing pictures"}
LONGEST_LABEL = 40
INK, ACCENT, PALE = "#1d2433", "#00a878", "#8a93a6"


def write_picture(panels: Panels, certificate: Certificate, *, file: Path) -> None:
    """Draw the certificate of one image to a PNG, whole or not at all.

    Five panels: the input; one noisy copy; its denoised version; the plain model's attention; the
    smoothed attention with the certified tokens outlined, the stronger the larger their radius. Then, for
    votes, the certified map at `map_radius`; with several explanation sizes the radius against β for each.
    Raises MissingExtra where matplotlib is not installed.
    """
    figure_module = require("matplotlib.figure", **PLOTS)
    require("matplotlib.backends.backend_agg", **PLOTS)
    has_map, several = certificate.attention.map_radii is not None, len(certificate.attentions) > 1
    count = 5 + has_map + several
    figure = figure_module.Figure(figsize=(2.64 * count, 3.75), dpi=150, facecolor="white")
    axes = figure.subplots(1, count)
    figure.subplots_adjust(left=0.012, right=0.988, top=0.86, bottom=0.22, wspace=0.06)
    _show(axes[0], panels.pixels, "input")
    _show(axes[1], panels.noisy, f"one copy, σ = {certificate.sigma:g}")
    _show(axes[2], panels.denoised, "the copy, denoised")
    _overlay(
        axes[3],
        panels.pixels,
        panels.plain.reshape(certificate.attention.grid),
        f"plain attention: {_shown(panels.plain_label)}",
    )
    smoothed = certificate.attention.smoothed.reshape(certificate.attention.grid)
    _overlay(axes[4], panels.pixels, smoothed, "smoothed attention")
    _outline(axes[4], panels.pixels.shape, certificate.attention)
    if has_map:
        _map(axes[5], panels.picture.pixels, certificate)
    if several:
        _curves(axes[-1], certificate)

    for line, (words, certified) in enumerate(in_words(certificate)):
        figure.text(
            0.5, 0.125 - 0.085 * line, words, ha="center", va="center", fontsize=13.5,
            color=INK if certified else PALE, parse_math=False,
        )  # fmt: skip
    with written_whole(file) as part, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a box stands for it
        figure.savefig(part, format="png")


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """A temporary name beside `file` to write to, which takes its name when the block ends well."""
    part = file.with_name(f".{file.name}.part")
    try:
        yield part
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def in_words(certificate: Certificate) -> list[tuple[str, bool]]:
    """The two claims as sentences, each with whether it certifies anything."""
    of_class, attention, terms = certificate.class_, certificate.attention, certificate.terms
    sure = f"{100 * (1 - terms.alpha):g} % confidence, {certificate.copies:,} copies"
    if of_class.abstained:
        first = f"class: no majority is certain ({sure})"
    else:
        within = in_digits(of_class.radius_l2, digits=2)
        first = f"class {_shown(of_class.label)}: stays within ℓ₂ radius {within} ({sure})"
    if attention.abstained:
        second = f"explanation: the top {attention.k} tokens are not certified"
    else:
        kept = int(np.ceil(attention.beta * attention.k - 1e-9))
        second = (
            f"explanation: at least {kept} of its top {attention.k} tokens stay "
            f"within ℓ₂ radius {in_digits(attention.radius_l2, digits=2)}"
        )
    return [(first, not of_class.abstained), (second, not attention.abstained)]


def _shown(label: str | None) -> str:
    """A label, which may hold anything, on one line that is not too long."""
    line = one_line(label or "")
    return line if len(line) <= LONGEST_LABEL else f"{line[: LONGEST_LABEL - 1]}…"


def _show(axes: Any, pixels: NDArray[np.floating], title: str) -> None:
    axes.imshow(np.clip(pixels.transpose(1, 2, 0), 0, 1), interpolation="nearest")
    axes.set_title(title, fontsize=13, color=INK, pad=7, parse_math=False)
    axes.set_axis_off()


def _overlay(axes: Any, pixels: NDArray[np.float32], values: NDArray[Any], title: str) -> None:
    """The attention as light on the darkened image: what the model looks at stays visible."""
    height, width = pixels.shape[1:]
    light = np.asarray(values, np.float64) / max(float(values.max()), 1e-12)
    colours = require("matplotlib", **PLOTS).colormaps["inferno"](light)[..., :3]
    tiles = np.asarray(
        Image.fromarray((colours * 255).astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
    ).transpose(2, 0, 1)
    grey = np.tensordot([0.299, 0.587, 0.114], pixels, axes=1)
    _show(axes, 0.62 * tiles / 255 + 0.38 * grey[None], title)


def _outline(axes: Any, shape: tuple[int, ...], attention: AttentionClaim) -> None:
    rows, columns = attention.grid
    height, width = shape[1] / rows, shape[2] / columns
    patches = require("matplotlib.patches", **PLOTS)
    strongest = max(*attention.token_radii, 1e-12)
    for token, radius in zip(attention.tokens, attention.token_radii, strict=True):
        row, column = divmod(token, columns)
        strength = radius / strongest
        axes.add_patch(
            patches.Rectangle(
                (column * width - 0.5 + 0.06 * width, row * height - 0.5 + 0.06 * height),
                0.88 * width, 0.88 * height, fill=False,
                edgecolor=PALE if attention.abstained else ACCENT,
                alpha=0.45 + 0.55 * strength, linewidth=1.0 + 2.2 * strength,
            )
        )  # fmt: skip


def _map(axes: Any, pixels: NDArray[np.uint8], certificate: Certificate) -> None:
    """The certified map, and what its tones mean."""
    radius = map_radius(certificate)
    sides = certificate.attention.map(radius)
    axes.imshow(np.asarray(draw_map(pixels, sides, size=(480, 480 * pixels.shape[1] // pixels.shape[2]))))
    axes.set_title(f"certified map, r = {in_digits(radius, digits=2)}", fontsize=13, color=INK, pad=7)
    axes.set_axis_off()
    said = ((1, "light in"), (0, "hatched open"), (-1, "dark out"))
    axes.text(
        0.5, -0.04, ", ".join(f"{words} {int((sides == side).sum())}" for side, words in said),
        transform=axes.transAxes, ha="center", va="top", fontsize=9.5, color=INK,
    )  # fmt: skip


def _curves(axes: Any, certificate: Certificate) -> None:
    """Certified radius against β, a step line for each explanation size."""
    for claim in certificate.attentions:
        betas, radii = zip(*sorted(claim.curve), strict=True)
        axes.step(betas, radii, where="pre", linewidth=2, label=f"k = {claim.k}")
    axes.axvline(certificate.terms.beta, color=PALE, linewidth=1, linestyle=":")
    axes.set_title("certified radius against β", fontsize=13, color=INK, pad=7)
    axes.set_box_aspect(1)
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=8, direction="in", pad=-14, colors=PALE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=10)
