from collections.abc import Iterator

import pytest

from fvit.runtime.faithful import FaithfulViT
from tests.evaluation.model import of_colours


@pytest.fixture
def colours() -> Iterator[FaithfulViT]:
    with of_colours() as vit:
        yield vit
