import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def collected_seldom() -> Iterator[None]:
    """torch's exporter makes millions of objects: a seventh of its time is spent looking for cycles."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 50)
    yield
    gc.set_threshold(*before)
