import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fvit
from fvit.demo import BUNDLE, SAMPLES

os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks a model hub


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the embedded bundle; tests/demo/test_bundle.py compares it with a new export."""
    folder = tmp_path_factory.mktemp("bundle") / "demo"
    shutil.copytree(BUNDLE, folder)
    return folder


@pytest.fixture(scope="session")
def teacher_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded teacher and the original classifier, exported."""
    from fvit.export.bundles import export_demo

    folder = tmp_path_factory.mktemp("bundle") / "teacher"
    export_demo(folder, denoiser="teacher", classifier="original")
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
