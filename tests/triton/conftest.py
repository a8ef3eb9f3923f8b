from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import here
from tests.triton.clients import Stream
from tests.triton.server import Triton, missing

PLAIN = "plain"
"""The model whose requests have one response each."""


@pytest.fixture(scope="session")
def repository(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes, twice: as it is, and for clients that take one response."""
    if (reason := missing()) is not None and not os.environ.get("CI"):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("triton") / "models"
    for name in ("fvit", PLAIN):
        ended = here("export", "triton", demo_bundle, folder, "--name", name)
        assert ended.status == 0, ended.stderr
        config = folder / name / "config.pbtxt"
        text = re.sub('(key: "drain" value { string_value: )"20"', r'\1"1"', config.read_text())
        config.write_text(text.replace("decoupled: true", f"decoupled: {str(name != PLAIN).lower()}"))
    return folder


@pytest.fixture(scope="session")
def triton(repository: Path) -> Iterator[Triton]:
    """A server of both, which most tests share."""
    server = Triton(repository)
    yield server
    server.stop()  # whether it ends well, and soon, is asked in test_life


@pytest.fixture
def stream(triton: Triton) -> Iterator[Stream]:
    with Stream(triton) as opened:
        yield opened
