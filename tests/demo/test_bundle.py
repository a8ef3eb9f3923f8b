from pathlib import Path

import numpy as np
import pytest

import fvit
from fvit import demo
from fvit.errors import FvitError
from fvit.runtime.bundle import Bundle, Origin, open_bundle
from tests.commands import here
from tests.conftest import Once

RELATIVE = 1e-4
"""Of the largest value: what is folded into the graphs is computed by the processor at hand."""


@pytest.fixture(scope="module")
def exported(once: Once) -> Bundle:
    from fvit.export.bundles import export_demo

    return open_bundle(once("exported", export_demo))


def test_the_embedded_bundle_is_what_the_embedded_weights_export_to(exported: Bundle) -> None:
    embedded, again = open_bundle("demo"), exported
    assert embedded.manifest.model_copy(update={"files": {}}) == again.manifest.model_copy(
        update={"files": {}}
    )
    noisy = np.random.default_rng(0).random((8, 3, 64, 64), np.float32)
    sigma = np.geomspace(0.12, 1, 8).astype(np.float32)
    with fvit.load(embedded) as one, fvit.load(again) as other:
        denoised = [vit.pipeline.denoise(noisy, sigma=sigma) for vit in (one, other)]
        outputs = [vit.pipeline.classify(denoised[0]) for vit in (one, other)]
        for found, expected in [denoised, *zip(*outputs, strict=True)]:
            assert np.abs(found - expected).max() <= RELATIVE * np.abs(expected).max()


def test_the_same_weights_export_to_the_same_bytes(exported: Bundle, tmp_path: Path) -> None:
    from fvit.export.bundles import export_demo

    export_demo(tmp_path / "again")
    assert open_bundle(tmp_path / "again").digest == exported.digest


def test_the_embedded_bundle_names_its_networks_and_is_small_enough_to_travel() -> None:
    manifest = open_bundle("demo").manifest
    assert (manifest.denoiser, manifest.classifier) == ("fvit-demo-student", "fvit-demo-vit-tuned")
    assert (manifest.teacher, manifest.tuned_from) == (
        Origin(name="fvit-demo-unet"),
        Origin(name="fvit-demo-vit"),
    )
    assert sum(file.stat().st_size for file in demo.BUNDLE.iterdir()) < 8_000_000


def test_demo_is_a_name_where_it_is_a_text_and_a_folder_where_it_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").mkdir()
    assert open_bundle("demo").folder == demo.BUNDLE
    for folder in ("./demo", Path("demo")):
        with pytest.raises(FvitError, match="demo is no bundle"):
            open_bundle(folder)


def test_the_embedded_bundle_certifies_its_samples_unless_told_others() -> None:
    done = here("certify", "demo", "--n", "40", "--alpha", "0.1")
    assert (done.status, done.stderr) == (0, "")
    for sample in demo.SAMPLES.glob("*.png"):
        assert sample.stem in done.stdout
