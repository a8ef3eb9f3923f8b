"""The browser that pages are tried in."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from fvit.certificates.claims import AttentionClaim

CHROMIUM = shutil.which("chromium")
MISSING = "no chromium: apt-get install chromium"


def skip_without() -> None:
    """Leave out a module where there is none, but not in CI."""
    if CHROMIUM is None and os.environ.get("CI") != "true":
        pytest.skip(MISSING, allow_module_level=True)


@contextmanager
def launched() -> Iterator[Browser]:
    assert CHROMIUM is not None, MISSING
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def tokens_are_read_by_keyboard(page: Page, claim: AttentionClaim) -> None:
    """From where no token is, down twice, to the right and up: each is said. Of a claim of 14×14 tokens, its
    top 30 and 300 copies."""
    assert claim.map_radii is not None
    page.locator("#canvas").focus()
    for key, token in (("ArrowDown", 0), ("ArrowDown", 14), ("ArrowRight", 15), ("ArrowUp", 1)):
        page.keyboard.press(key)
        radius = claim.map_radii[token]
        side = f"in within {radius:g}" if radius > 0 else f"out within {-radius:g}" if radius else "open"
        row, column = divmod(token, 14)
        expect(page.locator("#token")).to_have_text(
            re.compile(rf"Row {row + 1}, column {column + 1}: top 30 in {claim.votes[token]} of 300 .*{side}")
        )
