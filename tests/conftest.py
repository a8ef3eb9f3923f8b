from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fvit

SAMPLES = Path(fvit.__file__).parent / "demo" / "samples"


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model, exported by the real path."""
    from fvit.export.bundles import export_demo

    folder = tmp_path_factory.mktemp("bundle") / "demo"
    export_demo(folder)
    return folder


@pytest.fixture(scope="session")
def vit(demo_bundle: Path) -> fvit.FaithfulViT:
    return fvit.load(demo_bundle)


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
