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
