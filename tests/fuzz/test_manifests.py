"""Whatever a manifest says: a bundle that export could have written, or one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvit.errors import FvitError
from fvit.runtime.bundle import Manifest, open_bundle
from tests.fuzz.trying import promptly, spoiled, tried
from tests.runtime.test_bundle import write


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose manifest is written anew by every example."""
    return write(tmp_path_factory.mktemp("bundles") / "b")


@pytest.fixture(scope="module")
def fields(bundle: Path) -> Any:
    return json.loads((bundle / "fvit.json").read_text())


@tried(50)
@given(data=st.data())
def test_a_manifest_is_opened_or_refused_in_one_line(data: st.DataObject, bundle: Path, fields: Any) -> None:
    text = data.draw(spoiled(fields))
    (bundle / "fvit.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        with promptly():
            manifest = open_bundle(bundle).manifest
    except FvitError as error:
        assert len(str(error).splitlines()) == 1 and str(error).isprintable()
        assert str(error).startswith(str(bundle)) and len(str(error)) < 2000
        return
    assert manifest == Manifest(**manifest.model_dump())
    assert set(manifest.files) == {"denoiser.onnx", "classifier.onnx"}
    assert manifest.image_size > (0, 0) and manifest.tokens > 0
    assert np.isfinite(manifest.schedule.sigmas).all()
