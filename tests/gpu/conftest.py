from typing import Any

import numpy as np
import pytest

BATCH = 24
"""Of the plans: another than the default."""


def _missing() -> str | None:
    """Why nothing here can run on this machine; None where it can."""
    try:
        import pycuda.driver as driver
    except ImportError as error:
        return f"needs pycuda ({error})"
    try:
        driver.init()
        if driver.Device.count() == 0:
            return "needs a GPU"
    except driver.Error as error:
        return f"needs a GPU ({error})"
    return None


@pytest.fixture(scope="session", autouse=True)
def gpu() -> None:
    if (reason := _missing()) is not None:
        pytest.skip(reason)


def moved_copies(one: dict[str, Any], other: dict[str, Any]) -> tuple[int, int]:
    """Of two records of one image: by how many copies the count of a class differs at most, and the votes of
    a token."""
    counts = [each["class"]["counts"] for each in (one, other)]
    classes = {index for each in counts for index in each}
    votes = [np.array(each["attention"]["votes"]) for each in (one, other)]
    moved = max(abs(counts[0].get(index, 0) - counts[1].get(index, 0)) for index in classes)
    return moved, int(np.abs(votes[0] - votes[1]).max())
