"""Whatever is asked for as a device, a batch or cores: a model, or one line."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvit.errors import FvitError
from fvit.runtime.bundle import Bundle, open_bundle
from fvit.runtime.loading import load
from tests.fuzz.trying import NONSENSE, promptly, tried

KINDS = st.sampled_from(["cuda", "tensorrt", "ort-tensorrt", "cpu", "openvino", "auto", "gpu", ""])
INDICES = st.sampled_from(["0", "0,0", "0,1", "-1", "01", "0,", "x", "", "9" * 5000, "\u0663", "0\n"])
DEVICES = (
    st.sampled_from(["cpu"]) | st.text(max_size=8) | st.builds("{}:{}".format, KINDS, INDICES) | NONSENSE
)


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path) -> Bundle:
    return open_bundle(demo_bundle)


@tried(20)
@given(device=DEVICES, batch=st.none() | st.just("auto ") | NONSENSE, cores=st.none() | NONSENSE)
def test_a_device_is_used_or_refused_in_one_line(device: Any, batch: Any, cores: Any, bundle: Bundle) -> None:
    try:
        with promptly():
            load(bundle, device=device, batch=batch, cores=cores).close()
    except FvitError as error:
        assert len(str(error).splitlines()) == 1 and str(error).isprintable()
        return
    assert device == "cpu" or str(device).startswith(("cuda:", "tensorrt:", "ort-tensorrt:"))
    assert batch is None or batch >= 1
    assert cores is None or cores >= 1
