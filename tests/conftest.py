import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
from filelock import FileLock
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


class Once(Protocol):
    def __call__(self, name: str, make: Callable[[Path], Any]) -> Path: ...


@pytest.fixture(scope="session")
def once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Once:
    """What takes long to make and no test changes, made by the first of pytest's processes that needs it."""
    root = tmp_path_factory.getbasetemp()
    shared = root.parent if hasattr(request.config, "workerinput") else root

    def made(name: str, make: Callable[[Path], Any]) -> Path:
        with FileLock(shared / f"{name}.lock"):
            if not (shared / name).exists():
                make(shared / name)
        return shared / name

    return made


@pytest.fixture(scope="session")
def teacher_bundle(once: Once) -> Path:
    """The embedded teacher and the original classifier, exported."""
    from fvit.export.bundles import export_demo

    return once("teacher", partial(export_demo, denoiser="teacher", classifier="original"))


@pytest.fixture(scope="session")
def int8_bundle(once: Once) -> Path:
    """The embedded pair in int8."""
    from fvit.export.bundles import export_demo

    return once("int8", partial(export_demo, precision="int8"))


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


LONGEST = "test_two_minutes_on_the_embedded_data_make_a_student_that_denoises"
"""It begins first, so that no process of pytest's waits for it in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.originalname != LONGEST if isinstance(item, pytest.Function) else True)
