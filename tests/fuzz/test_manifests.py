"""Whatever a manifest says: a bundle that export could have written, or one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fvit.errors import FvitError
from fvit.runtime.bundle import Manifest, check_graphs, open_bundle
from tests.fuzz.trying import promptly, spoiled, tried
from tests.runtime.test_bundle import MANIFEST, engines, write


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
            opened = open_bundle(bundle)
    except FvitError as error:
        assert len(str(error).splitlines()) == 1 and str(error).isprintable()
        assert str(error).startswith(str(bundle)) and len(str(error)) < 2000
        return
    manifest = opened.manifest
    assert manifest == Manifest(**manifest.model_dump())
    assert set(manifest.files) == {"denoiser.onnx", "classifier.onnx"}
    assert manifest.image_size > (0, 0) and manifest.tokens > 0
    assert np.isfinite(manifest.schedule.sigmas).all()
    if shapes_of(manifest) == shapes_of(MANIFEST):
        check_graphs(opened, **engines({}))
    else:
        with pytest.raises(FvitError, match=r"\.onnx: ") as caught:
            check_graphs(opened, **engines({}))
        assert len(str(caught.value).splitlines()) == 1


def shapes_of(manifest: Manifest) -> Any:
    """What graphs have to agree with."""
    return manifest.image_size, manifest.classifier_size, len(manifest.labels), manifest.tokens
