import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fvit

SAMPLES = Path(fvit.__file__).parent / "demo" / "samples"


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, exported by the real path; where torch is not installed, a copy of the bundle that
    FVIT_DEMO_BUNDLE names."""
    folder = tmp_path_factory.mktemp("bundle") / "demo"
    if exported := os.environ.get("FVIT_DEMO_BUNDLE"):
        shutil.copytree(exported, folder)
        return folder
    from fvit.export.bundles import export_demo

    export_demo(folder)
    return folder


@pytest.fixture(scope="session")
def vit(demo_bundle: Path) -> Iterator[fvit.FaithfulViT]:
    with fvit.load(demo_bundle) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def samples() -> list[Path]:
    return sorted(SAMPLES.glob("*.png"))


@pytest.fixture
def photo(tmp_path: Path) -> Iterator[Path]:
    """A small image file of the bundle's size that a test may spoil."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    file = tmp_path / "photo.png"
    Image.fromarray(pixels).save(file)
    yield file
