"""The page in a real browser: it shows a certificate growing, and lets it be kept."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from fvit.certificates.verify import verify
from fvit.runtime.verifying import lines_of
from fvit.service.keys import new_key
from tests.service.conftest import LIMIT, Serving

SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")

CHROMIUM = shutil.which("chromium")

if CHROMIUM is None and os.environ.get("CI") != "true":
    pytest.skip("no chromium: apt-get install chromium", allow_module_level=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM is not None, "no chromium: apt-get install chromium"
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


def is_fault(message: ConsoleMessage) -> bool:
    """Whether the page's own; the browser has a line for every answer above 399."""
    return message.type == "error" and not message.text.startswith("Failed to load resource")


@pytest.fixture
def page(browser: Browser, service: Serving) -> Iterator[Page]:
    """The page, on which nothing may go wrong unseen."""
    context = browser.new_context(viewport={"width": 1180, "height": 900})
    context.set_default_timeout(LIMIT * 1000)
    expect.set_options(timeout=LIMIT * 1000)
    opened = context.new_page()
    wrong: list[str] = []
    opened.on("pageerror", lambda error: wrong.append(str(error)))
    opened.on("console", lambda message: wrong.append(message.text) if is_fault(message) else None)
    opened.goto(service.address)
    yield opened
    assert wrong == []
    context.close()


def copies(page: Page) -> int:
    text = page.locator("#copies").inner_text()
    return 0 if text == "–" else int(text.replace(",", ""))


def grown(page: Page, beyond: int) -> int:
    """How many copies there are, once there are more than so many."""
    while (now := copies(page)) <= beyond:
        expect(page.locator("#copies")).not_to_have_text("–" if now == 0 else f"{now:,}")
    return now


def test_a_sample_grows_and_its_record_passes_verification(page: Page, tmp_path: Path) -> None:
    page.get_by_role("button", name="Sample 03-digit-3").click()
    first = grown(page, 0)
    later = grown(page, first)
    assert later > first
    expect(page.locator("#class")).to_have_text("3")
    grown(page, 40)
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_role("status")).to_contain_text("Stopped. Class 3 stays within")
    with page.expect_download() as started:
        page.get_by_role("button", name="Save the record").click()
    file = tmp_path / started.value.suggested_filename
    started.value.save_as(file)
    ((_, record),) = lines_of(file)
    assert verify(record) == []
    assert record["copies"] == copies(page)
    label = page.locator("#canvas").get_attribute("aria-label")
    assert label is not None
    assert "10 tokens outlined" in label


def test_the_page_is_used_by_keyboard_alone(page: Page) -> None:
    page.get_by_role("button", name="Sample 00-digit-0").wait_for()
    seen = []
    for _ in range(30):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.title"))
        if seen[-1] == "00-digit-0":
            page.keyboard.press("Enter")
            grown(page, 0)
        if seen[-1] == "sigma":
            page.keyboard.press("ArrowRight")
            expect(page.locator("#sigma-shown")).to_have_text("0.30")
        if seen[-1] == "radius":
            break
    assert [each for each in seen if each in ("file", "00-digit-0", "sigma", "k", "beta", "radius")] == [
        "file", "00-digit-0", "sigma", "k", "beta", "radius",
    ]  # fmt: skip
    page.get_by_role("button", name="Stop").click()


def test_a_file_of_ones_own_and_the_radius_in_question(page: Page, samples: list[Path]) -> None:
    page.locator("#file").set_input_files(samples[7])
    grown(page, 30)
    page.locator("#radius").fill("0.01")
    expect(page.locator("#class-answer")).to_have_text("at r = 0.01: certified")
    page.locator("#radius").fill("0.5")
    expect(page.locator("#class-answer")).to_have_text("at r = 0.50: not certified by these copies")
    page.get_by_role("button", name="Stop").click()


def test_what_is_no_image_is_told(page: Page, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    page.locator("#file").set_input_files(tmp_path / "broken.png")
    expect(page.get_by_role("alert")).to_contain_text("the image is not of a known format")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_phone_shows_all_of_it_in_light_and_dark(
    browser: Browser, service: Serving, scheme: Literal["light", "dark"]
) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page = context.new_page()
    page.goto(service.address)
    page.get_by_role("button", name="Sample 03-digit-3").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert ground == {"light": "rgb(246, 247, 250)", "dark": "rgb(16, 19, 26)"}[scheme]
    context.close()


def test_a_service_with_keys_asks_for_one(
    browser: Browser, serve: Callable[..., Serving], tmp_path: Path
) -> None:
    key = new_key(tmp_path / "keys", name="anna")
    context = browser.new_context()
    page = context.new_page()
    page.goto(serve("--keys", str(tmp_path / "keys")).address)
    page.get_by_label("This service wants a key").fill(key)
    page.get_by_role("button", name="Use it").click()
    page.get_by_role("button", name="Sample 01-digit-1").click()
    grown(page, 0)
    expect(page.get_by_role("alert")).to_have_text("")
    context.close()
