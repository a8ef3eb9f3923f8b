"""Pictures: whatever a bundle's labels hold, a certificate is drawn."""

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import fvit
from fvit.runtime.bundle import open_bundle
from fvit.runtime.panels import Panels
from fvit.runtime.pictures import in_words, write_picture


@pytest.mark.parametrize("label", ["two\nlines", "$\\frac{", "字 [bold]", "a" * 500, "\ud800\x1b[31m"])
def test_a_label_may_hold_anything(
    label: str, demo_bundle: Path, samples: list[Path], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    bundle = open_bundle(demo_bundle)
    labels = tuple(f"{label}{digit}" for digit in range(10))
    manifest = bundle.manifest.model_copy(update={"labels": labels})
    with fvit.load(replace(bundle, manifest=manifest)) as vit, warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = vit.read(samples[0])
        certificate = vit.certify(picture, n=60, alpha=0.1, seed=0)
        write_picture(Panels.of(vit, picture, certificate), certificate, file=tmp_path / "drawn.png")
    assert Image.open(tmp_path / "drawn.png").width > 1000
    (first, _), _ = in_words(certificate)
    assert first.isprintable() and len(first) < 150
