"""The page in a real browser: it shows a certificate growing, and lets it be kept."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from fvit.certificates.claims import AttentionClaim
from fvit.certificates.radii import in_digits
from fvit.certificates.record import Certificate
from fvit.certificates.tally import Tally
from fvit.certificates.terms import Terms
from fvit.certificates.verify import verify
from fvit.runtime.drawing import draw_map
from fvit.runtime.verifying import lines_of
from fvit.service.keys import new_key
from tests.chromium import launched, skip_without, tokens_are_read_by_keyboard
from tests.service.conftest import LIMIT, Serving

SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")

skip_without()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


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
        if seen[-1] == "beta":
            break
    ways = ["canvas", "radius", "file", "00-digit-0", "sigma", "k", "beta"]
    assert [each for each in seen if each in ways] == ways
    page.get_by_role("button", name="Stop").click()


def test_a_file_of_ones_own_and_the_radius_in_question(page: Page, samples: list[Path]) -> None:
    page.locator("#file").set_input_files(samples[7])
    grown(page, 30)
    page.locator("#radius").fill("0.01")
    expect(page.locator("#class-answer")).to_have_text("at r = 0.01: certified")
    page.locator("#radius").fill("0.5")
    expect(page.locator("#class-answer")).to_have_text("at r = 0.50: not certified by these copies")
    page.get_by_role("button", name="Stop").click()


def certificate_of_196_tokens(image: Path) -> Certificate:
    """Of made-up copies: attention around one place, for two explanation sizes."""
    terms = Terms.of(
        sigma=0.25, n=300, alpha=1e-3, k=(30, 12), beta=0.8, aggregate="vote", seed=1, size=(64, 64)
    )
    rng, tally = np.random.default_rng(0), Tally(10, 196, terms.k)
    row, column = np.divmod(np.arange(196), 14)
    near = np.exp(-((row - 5) ** 2 + (column - 8) ** 2) / 14)
    attribution = rng.gamma(1 + 14 * near, size=(terms.n, 196))
    attribution /= attribution.sum(axis=1, keepdims=True)
    logits = rng.normal(size=(terms.n, 10)) + 4 * np.eye(10)[3]
    tally.add(logits.astype(np.float32), attribution.astype(np.float32))
    digest = hashlib.sha256(image.read_bytes()).hexdigest()
    return Certificate.of(
        tally, terms, image=image.name, sha256=digest, pixels_sha256="1" * 64, labels=list("0123456789"),
        grid=(14, 14), engine={"name": "onnxruntime", "device": "cpu", "precision": "fp32"}, bundle="2" * 64,
        seconds=1.5,
    )  # fmt: skip


@pytest.fixture
def opened(page: Page, samples: list[Path], tmp_path: Path) -> tuple[Page, Certificate]:
    """The page with that record and its image, and the map in sight; by keyboard from there on."""
    certificate = certificate_of_196_tokens(samples[3])
    file = tmp_path / "certificates.jsonl"
    file.write_text(json.dumps(certificate.to_dict()) + "\n")
    page.locator("#file").set_input_files([file, samples[3]])
    expect(page.locator("#status")).to_contain_text("Opened: all of it follows from its counts.")
    page.get_by_role("radio", name="Explanation").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("radio", name="Certified map")).to_be_checked()
    return page, certificate


def painted(page: Page) -> NDArray[np.uint8]:
    """The canvas: [height, width, 3]."""
    url = page.evaluate("document.getElementById('canvas').toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))


def seen_sides(canvas: NDArray[np.uint8], claim: AttentionClaim) -> NDArray[np.int64]:
    """What the tones of the canvas say of each token, by the middle of its grey."""
    rows, columns = claim.grid
    grey = canvas @ np.array([0.299, 0.587, 0.114])
    sides = np.zeros(claim.grid, np.int64)
    for row in range(rows):
        for column in range(columns):
            down, across = 640 / rows, 640 / columns
            tile = grey[
                int((row + 0.2) * down) : int((row + 0.8) * down),
                int((column + 0.2) * across) : int((column + 0.8) * across),
            ]
            sides[row, column] = 1 if tile.min() > 150 else -1 if tile.max() < 60 else 0
    return sides


def test_the_map_of_a_record_follows_the_slider_by_keyboard_alone(opened: tuple[Page, Certificate]) -> None:
    page, certificate = opened
    claim, slider = certificate.attention, page.locator("#radius")
    slider.focus()
    differ = set()
    for key, presses in (("Home", 1), ("ArrowRight", 9), ("ArrowRight", 12), ("PageUp", 4), ("End", 1)):
        for _ in range(presses):
            page.keyboard.press(key)
        sides = claim.map(float(slider.input_value()))
        counts = {side: int((sides == side).sum()) for side in (1, 0, -1)}
        for side, name in ((1, "in"), (0, "open"), (-1, "out")):
            expect(page.locator(f"#{name}")).to_have_text(str(counts[side]))
        label = f"{counts[1]} tokens in, {counts[0]} open, {counts[-1]} out"
        expect(page.locator("#canvas")).to_have_attribute("aria-label", re.compile(label))
        assert seen_sides(painted(page), claim).tolist() == sides.tolist()
        differ.add(tuple(counts.values()))
    assert len(differ) >= 4


def test_the_page_draws_the_map_that_python_draws(page: Page, samples: list[Path], tmp_path: Path) -> None:
    certificate = certificate_of_196_tokens(samples[3])
    (tmp_path / "one.json").write_text(json.dumps(certificate.to_dict()))
    page.locator("#file").set_input_files(tmp_path / "one.json")  # without its image: on white
    page.get_by_role("radio", name="Certified map").check()
    expect(page.locator("#legend")).to_be_visible()
    sides = certificate.attention.map(float(page.locator("#radius").input_value()))
    white = np.full((3, 64, 64), 255, np.uint8)
    drawn = np.asarray(draw_map(white, sides, size=(640, 640)), np.int64)
    assert np.abs(painted(page) - drawn).max() <= 1


def test_a_token_is_read_by_keyboard(opened: tuple[Page, Certificate]) -> None:
    page, certificate = opened
    claim, said = certificate.attention, page.locator("#token")
    tokens_are_read_by_keyboard(page, claim)
    token = claim.tokens[0]
    for _ in range(token // 14):
        page.keyboard.press("ArrowDown")
    for _ in range(abs(token % 14 - 1)):
        page.keyboard.press("ArrowRight" if token % 14 > 1 else "ArrowLeft")
    expect(said).to_contain_text(f"its place is certified within {in_digits(claim.token_radii[0], digits=4)}")
    page.keyboard.press("Escape")
    expect(said).to_have_text("Arrow keys, or the pointer, read a token.")


def test_each_explanation_size_of_a_record_has_its_map(opened: tuple[Page, Certificate]) -> None:
    page, certificate = opened
    page.locator("#size").select_option(label="12")
    sides = certificate.attentions[1].map(float(page.locator("#radius").input_value()))
    expect(page.locator("#in")).to_have_text(str(int((sides == 1).sum())))
    assert seen_sides(painted(page), certificate.attentions[1]).tolist() == sides.tolist()
    expect(page.locator("#kept")).to_have_text("10 of the 12")


def test_records_of_a_file_are_chosen_from_and_those_that_do_not_follow_are_not_drawn(
    page: Page, samples: list[Path], tmp_path: Path
) -> None:
    honest = certificate_of_196_tokens(samples[3]).to_dict()
    edited: dict[str, Any] = json.loads(json.dumps(honest)) | {"image": "edited.png"}
    edited["explanations"][1]["map_radii"][7] = 0.3
    file = tmp_path / "certificates.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in (honest, edited, {"no": "record"})))
    page.locator("#file").set_input_files(file)
    expect(page.locator("#status")).to_contain_text("Opened")
    page.locator("#record").select_option(label="2: edited.png")
    expect(page.get_by_role("alert")).to_contain_text("explanations.1.map_radii.7 is 0.3, but")
    expect(page.locator("#class")).to_have_text("–")
    page.locator("#record").select_option(label="3: no record")
    expect(page.get_by_role("alert")).to_contain_text("This record is not drawn.")
    page.locator("#record").select_option(index=0)
    expect(page.locator("#class")).to_have_text("3")


def test_the_map_grows_with_a_refinement(page: Page) -> None:
    page.get_by_role("radio", name="Certified map").check()
    page.locator("#radius").fill("0")
    page.get_by_role("button", name="Sample 03-digit-3").click()
    grown(page, 40)
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#status")).to_contain_text("Stopped")
    expect(page.locator("#size")).to_be_hidden()  # there is one
    known = [int(page.locator(f"#{name}").inner_text()) for name in ("in", "open", "out")]
    assert sum(known) == 64
    assert known[2] > 30


def test_what_is_no_image_is_told(page: Page, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    page.locator("#file").set_input_files(tmp_path / "broken.png")
    expect(page.get_by_role("alert")).to_contain_text("the image is not an image of a known format")


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
