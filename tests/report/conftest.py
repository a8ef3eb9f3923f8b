import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from fvit.certificates.record import Certificate
from fvit.runtime.journal import NAME


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "certified"
    made.mkdir()
    return made


def write_records(folder: Path, certificates: Iterable[Certificate]) -> None:
    lines = (json.dumps(certificate.to_dict()) + "\n" for certificate in certificates)
    (folder / NAME).write_text("".join(lines))


def numbered(certificate: Certificate, number: int) -> Certificate:
    """The same of another image."""
    return certificate.model_copy(update={"image": f"{number}.png", "pixels_sha256": f"{number:064x}"})
