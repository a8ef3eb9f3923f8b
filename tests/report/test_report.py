"""fvit-report, and its page in a real browser."""

import base64
import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Download, Page, expect

import fvit
from benchmarks.report import write_folder
from fvit.certificates.radii import in_digits
from fvit.certificates.record import Certificate
from fvit.demo.data import LABELS
from fvit.evaluation import cli as evaluation
from fvit.evaluation import figures
from fvit.evaluation.adversarial import BROKEN
from fvit.report.build import NAME, write_report
from fvit.report.gallery import badness
from fvit.report.left import Left
from fvit.runtime import journal
from fvit.runtime.drawing import draw_map
from fvit.runtime.thumbnails import FOLDER, SIDE
from fvit.runtime.truth import write_truth
from fvit.service.overlay import GLOW
from tests.chromium import launched, skip_without, tokens_are_read_by_keyboard
from tests.commands import here
from tests.evaluation.cases import certificate
from tests.report.conftest import numbered, write_records

SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
LIMIT = 60.0
IMAGES = 40

skip_without()

Opens = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture
def opens(browser: Browser) -> Iterator[Opens]:
    """Opens a report, on which nothing may go wrong unseen, and which may load nothing."""
    wrong: list[str] = []
    contexts = []

    def open_(file: Path, *, width: int = 1180, scheme: Literal["light", "dark"] = "light") -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        context.set_default_timeout(LIMIT * 1000)
        expect.set_options(timeout=LIMIT * 1000)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.on(
            "request",
            lambda asked: (
                None if asked.url.startswith(("file:", "blob:", "data:")) else wrong.append(asked.url)
            ),
        )
        page.goto(file.as_uri())
        page.wait_for_selector("body[data-ready]")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of IMAGES records of 196 tokens, with labels and thumbnails, and its report."""
    folder = tmp_path_factory.mktemp("left") / "many"
    write_folder(folder, images=IMAGES, kinds=IMAGES)
    write_report(folder)
    return folder


def worst_first(folder: Path) -> list[Certificate]:
    left = Left.of(folder)
    found = list(left.certificates())
    return sorted(found, key=lambda each: badness(each, right=_right(left, each), broken=False))


def _right(left: Left, each: Certificate) -> bool | None:
    label = left.label(each)
    return None if label is None else label[0] == each.class_.index


def base(each: Certificate) -> str:
    return Path(each.image).name


def read(download: Download) -> list[list[str]]:
    text = Path(download.path()).read_text(encoding="utf-8-sig")
    return list(csv.reader(io.StringIO(text, newline="")))


def painted(page: Page, canvas: str) -> NDArray[np.int64]:
    """A canvas: [height, width, 3]."""
    url = page.locator(canvas).evaluate("canvas => canvas.toDataURL('image/png')")
    return np.asarray(
        Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"), np.int64
    )


def test_the_worst_come_first_and_pages_are_turned(opens: Opens, many: Path) -> None:
    page, certificates = opens(many / NAME), worst_first(many)
    expect(page.locator("#cards button")).to_have_text([base(each) for each in certificates[:12]])
    expect(page.locator("#place")).to_have_text(f"1–12 of {IMAGES}")
    first = page.locator("#cards li").first
    expect(first).to_contain_text(f"says {certificates[0].class_.label}, is ")
    expect(first).to_contain_text(f"Class within {in_digits(certificates[0].class_.radius_l2, digits=3)}")
    assert first.locator("canvas").count() == 6
    for _ in range(3):
        page.get_by_role("button", name="Next").first.click()
    expect(page.locator("#place")).to_have_text(f"37–40 of {IMAGES}")
    expect(page.locator("#cards button")).to_have_text([base(each) for each in certificates[36:]])
    expect(page.get_by_role("button", name="Next").first).to_be_disabled()


def test_a_certificate_that_an_attack_broke_comes_first_and_says_so(
    opens: Opens, many: Path, tmp_path: Path
) -> None:
    shutil.copytree(many, tmp_path / "broken")
    best = worst_first(many)[-1]
    (tmp_path / "broken" / BROKEN).mkdir()
    (tmp_path / "broken" / BROKEN / f"{best.pixels_sha256}.npy").write_bytes(b"")
    write_report(tmp_path / "broken")
    page = opens(tmp_path / "broken" / NAME)
    expect(page.locator("#headline")).to_contain_text("broken by an attack")
    expect(page.locator("#gallery-words")).to_contain_text("Certificates that an attack broke come first")
    first = page.locator("#cards li").first
    expect(first.locator("button")).to_have_text(base(best))
    expect(first.locator(".wrong")).to_contain_text("an attack broke its certificate")
    expect(page.locator("#group")).to_contain_text("broken by an attack (1)")


def test_images_are_chosen_and_sorted(opens: Opens, many: Path) -> None:
    page, certificates = opens(many / NAME), worst_first(many)
    left = Left.of(many)
    wrong = [each for each in certificates if _right(left, each) is False]
    page.locator("#group").select_option("wrong class")
    expect(page.locator("#place")).to_have_text(f"1–{min(12, len(wrong))} of {len(wrong)}")
    expect(page.locator("#cards button")).to_have_text([base(each) for each in wrong[:12]])
    page.locator("#group").select_option("")
    page.locator("#order").select_option("largest explanation radius first")
    by_radius = sorted(certificates, key=lambda each: -each.attention.radius_l2)
    expect(page.locator("#cards button").first).to_have_text(base(by_radius[0]))
    expect(page.locator("#cards button")).to_have_text([base(each) for each in by_radius[:12]])
    page.locator("#search").fill("00017")
    expect(page.locator("#place")).to_have_text("1–1 of 1")
    expect(page.locator("#cards button")).to_have_text(["00017.png"])
    page.locator("#search").fill("nowhere")
    expect(page.locator("#place")).to_have_text("no image is so")
    expect(page.locator("#cards button")).to_have_text([])


def test_the_map_of_196_tokens_follows_the_slider_by_keyboard_alone(opens: Opens, many: Path) -> None:
    page, each = opens(many / NAME), worst_first(many)[0]
    page.locator("#cards button").first.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    slider, claim = page.locator("#large-radius"), each.attention
    slider.focus()
    seen = set()
    for key, presses in (("Home", 1), ("ArrowRight", 7), ("PageUp", 2), ("End", 1), ("ArrowLeft", 9)):
        for _ in range(presses):
            page.keyboard.press(key)
        radius = float(slider.input_value())
        sides = claim.map(radius)
        counts = {name: int((sides == side).sum()) for name, side in (("in", 1), ("open", 0), ("out", -1))}
        for name, count in counts.items():
            expect(page.locator(f"#{name}")).to_have_text(str(count))
        expect(page.locator("#canvas")).to_have_attribute(
            "aria-label",
            f"{base(each)}: certified map at radius {radius:.2f}: {counts['in']} tokens in, "
            f"{counts['open']} open, {counts['out']} out",
        )
        assert (page.locator("#radius").input_value(), page.locator("#radius-shown").inner_text()) == (
            slider.input_value(), f"{radius:.2f}",
        )  # fmt: skip
        seen.add(tuple(counts.values()))
    assert len(seen) >= 4


def test_the_map_is_the_one_that_python_draws(opens: Opens, folder: Path) -> None:
    """Without a thumbnail: on the ground of the page, which is white in light."""
    made = certificate(map_radii=(0.3, 0.2, 0.0, -0.1))
    write_records(folder, [made])
    page = opens(write_report(folder))
    page.locator("#cards button").first.click()
    for radius in (0.0, 0.15, 0.25):
        page.locator("#large-radius").fill(str(radius))
        drawn = draw_map(np.full((3, 4, 4), 255, np.uint8), made.attention.map(radius), size=(640, 640))
        assert np.abs(painted(page, "#canvas") - np.asarray(drawn, np.int64)).max() <= 1
    panels = page.locator("#cards figcaption").all_inner_texts()
    assert panels == ["smoothed attention", "map: in 1, open 3, out 0"]


def test_a_token_is_read_by_keyboard_and_escape_leaves(opens: Opens, many: Path) -> None:
    page, each = opens(many / NAME), worst_first(many)[1]
    claim, said = each.attention, page.locator("#token")
    page.locator("#cards button").first.focus()
    page.keyboard.press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Next").press("Enter")
    expect(page.locator("#large-title")).to_have_text(base(each))
    tokens_are_read_by_keyboard(page, claim)
    page.keyboard.press("Escape")
    expect(said).to_have_text("Arrow keys, or the pointer, read a token.")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


def test_panels_show_the_image_its_copies_and_its_explanations(opens: Opens, many: Path) -> None:
    page, each = opens(many / NAME), worst_first(many)[0]
    strip = Image.open(many / FOLDER / f"{each.pixels_sha256}.webp").convert("RGB")
    for place, label in enumerate(("image", "one noisy copy", "the copy, denoised")):
        panel = strip.crop((place * SIDE, 0, (place + 1) * SIDE, SIDE)).resize((160, 160))
        seen = painted(page, f"#cards li:first-child canvas[aria-label='{label}']")
        assert np.abs(seen - np.asarray(panel, np.int64)).mean() < 4
    grey = painted(page, "#cards li:first-child canvas[aria-label='image']") @ [0.3, 0.59, 0.11]
    plain = np.asarray(Image.open(many / FOLDER / f"{each.pixels_sha256}.png"), float).ravel()
    edges = np.rint(np.arange(15) * 160 / 14).astype(int)
    for label, values in (("plain attention", plain), ("smoothed attention", each.attention.smoothed)):
        seen = painted(page, f"#cards li:first-child canvas[aria-label='{label}']")
        places = np.linspace(0, 1, len(GLOW))
        for token, share in enumerate(values / values.max()):
            row, column = divmod(token, 14)
            middle = [slice(edges[at] + 4, edges[at + 1] - 4) for at in (row, column)]  # within an outline
            light = [np.interp(share, places, channel) for channel in GLOW.T]
            expected = 0.62 * np.array(light) + 0.38 * grey[middle[0], middle[1], None]
            assert np.abs(seen[middle[0], middle[1]] - expected).mean() < 4


def test_every_figures_numbers_are_downloaded(opens: Opens, many: Path) -> None:
    page, certificates = opens(many / NAME), worst_first(many)
    with page.expect_download() as started_:
        page.get_by_role("button", name="Save Certified accuracy as CSV").click()
    assert started_.value.suggested_filename == "certified-accuracy.csv"
    head, *rows = read(started_.value)
    assert head == ["line", "ℓ₂ radius", "share of images", "from", "to"]
    left = Left.of(many)
    for line, of in (("class", "class_"), ("explanation", "attention")):
        for name, radius, share, low, high in rows:
            if name == line:
                holds = [
                    not getattr(each, of).abstained
                    and getattr(each, of).radius_l2 >= float(radius)
                    and _right(left, each) is True
                    for each in certificates
                ]
                assert float(share) == pytest.approx(np.mean(holds), abs=1e-6)
                assert float(low) <= float(share) <= float(high)
    with page.expect_download() as started_:
        page.get_by_role("button", name="Save Certified radius of the class as CSV").click()
    _, *bins = read(started_.value)
    assert sum(int(count) for _, _, count in bins) == sum(not each.class_.abstained for each in certificates)
    with page.expect_download() as started_:
        page.get_by_role("button", name="Save all as CSV").click()
    head, *rows = read(started_.value)
    assert [row[head.index("image")] for row in rows] == [each.image for each in certificates]
    assert [float(row[head.index("class_radius")]) for row in rows] == [
        each.class_.radius_l2 for each in certificates
    ]
    page.locator("figure", has_text="Certified accuracy").get_by_text("Numbers").click()
    expect(page.get_by_role("region", name="Numbers of Certified accuracy")).to_contain_text("explanation")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_phone_shows_all_of_it_in_light_and_dark(
    opens: Opens, many: Path, scheme: Literal["light", "dark"]
) -> None:
    page = opens(many / NAME, width=360, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    ground = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert ground == {"light": "rgb(246, 247, 250)", "dark": "rgb(16, 19, 26)"}[scheme]
    page.locator("#cards button").first.click()
    assert page.evaluate("document.getElementById('large').scrollWidth") <= 360


def test_what_records_say_is_shown_and_never_run(opens: Opens, folder: Path) -> None:
    bad = "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">\u2028"
    made = numbered(certificate(map_radii=(0.3, 0.2, 0.0, -0.1)), 0)
    of_class = made.class_.model_copy(update={"label": bad})
    write_records(folder, [made.model_copy(update={"image": f"=1+1{bad}", "class_": of_class})])
    write_truth(folder, [(made.pixels_sha256, 0)], names=[bad])
    page = opens(write_report(folder))
    assert page.title() == "certified: report of FViT"
    expect(page.locator("#cards button")).to_have_attribute("title", f"=1+1{bad}")
    expect(page.locator("#cards li p")).to_contain_text("says </script><script>document.title='run'")
    with page.expect_download() as started_:
        page.get_by_role("button", name="Save all as CSV").click()
    assert read(started_.value)[1][0] == f"'=1+1{bad}"  # no formula in a spreadsheet


def test_an_evaluation_is_shown_with_its_curves_and_tables(
    opens: Opens, vit: fvit.FaithfulViT, samples: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "load", lambda *_, **__: nullcontext(vit))
    data, out = tmp_path / "data", tmp_path / "evaluated"
    for kind, digit in (("images", 3), ("images", 7), ("masks", 3), ("masks", 7)):
        (data / kind / str(digit)).mkdir(parents=True)
        image = Image.open(samples[digit])
        half = Image.new("L", image.size)
        half.paste(255, (0, 0, 32, 64))
        (image if kind == "images" else half).save(data / kind / str(digit) / "a.png")
    asked = ("--n", "24", "--alpha", "0.1", "--perturbed-n", "0", "--quiet")
    assert here("evaluate", vit.bundle.folder, data, "--out", out, *asked).status == 0
    done = here("report", out)
    assert (done.status, done.stdout, done.stderr) == (0, f"the report is {out / NAME}\n", "")
    page = opens(out / NAME)
    tables = json.loads((out / "evaluation.json").read_text())
    for title in ("Deletion and insertion", "Explanations against masks", "How far certificates reach"):
        expect(page.get_by_role("heading", name=title)).to_be_visible()
    assert page.locator("#cards li").count() == 2
    assert page.locator("#cards canvas").count() == 12
    page.get_by_label("Deletion and insertion: what is asked").select_option(
        "share of the explained class; filled with blur"
    )
    with page.expect_download() as started_:
        page.get_by_role("button", name="Save Insertion as CSV").click()
    _, *rows = read(started_.value)
    (curve,) = (
        each for each in tables["curves"]
        if (each["explanation"], each["order"], each["fill"]) == ("smoothed", "negative", "blur")
    )  # fmt: skip
    seen = [float(row[2]) for row in rows if row[0].startswith("smoothed")]
    assert seen == [point["value"] for point in curve["share"]["curve"]]
    assert "plain model is right" in page.locator("#headline").inner_text()
    assert set(tables["labels"]) == set(LABELS)


def test_thousands_of_records_are_one_file_of_seven_kilobytes_each(
    opens: Opens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "RESAMPLES", 2 * figures.AT_ONCE)  # intervals change no size
    folder = tmp_path / "left"
    write_folder(folder, images=2_000, kinds=20)
    file = write_report(folder)
    assert file.stat().st_size < 2_000 * 7_000
    page = opens(file)
    expect(page.locator("#place")).to_have_text("1–12 of 2,000")
    assert page.locator("#cards canvas").count() == 6 * 12
    page.locator("#order").select_option("by name")
    expect(page.locator("#cards button").first).to_have_text("00000.png")
    page.locator("#search").fill("0199")
    expect(page.locator("#place")).to_have_text("1–11 of 11")
    expect(page.locator("#cards button").first).to_have_text("00199.png")


def test_bad_folders_are_one_line_and_a_report_is_whole_or_not_there(folder: Path, tmp_path: Path) -> None:
    assert "is no folder" in here("report", tmp_path / "absent").refusal
    assert f"holds no {journal.NAME}" in here("report", folder).refusal
    write_records(folder, [certificate(map_radii=(0.3, 0.2, 0.0, -0.1))])
    (folder / NAME).mkdir()
    assert "report.html is no regular file" in here("report", folder).refusal
    (folder / NAME).rmdir()
    (folder / NAME).write_text("before")
    (folder / "evaluation.json").write_text("{}")
    assert "evaluation.json holds no tables" in here("report", folder).refusal
    assert (folder / NAME).read_text() == "before"
    assert {file.name for file in folder.iterdir()} == {NAME, journal.NAME, "evaluation.json"}
