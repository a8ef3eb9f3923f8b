"""Attacks, by adversaries that are a few lines of NumPy: what is kept of them, and what stops a run."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fvit.evaluation import adversarial
from fvit.evaluation.adversarial import (
    BROKEN,
    Adversary,
    BrokenCertificate,
    Floats,
    fresh,
    in_units,
    rounded,
)
from fvit.evaluation.evaluate import NAME as TABLES
from fvit.evaluation.keeping import NAME as MEASURES
from fvit.evaluation.measures import Norm
from fvit.evaluation.tables import in_short
from fvit.report.charts import sections_of
from fvit.report.left import Left
from fvit.report.summary import summary_of
from fvit.runtime.faithful import FaithfulViT
from fvit.runtime.journal import Journal
from tests.evaluation.model import LABELS, Colours, image_of, of_colours
from tests.evaluation.test_evaluate import TERMS, begun, evaluate, lines, plain_class, write_data


class Fading:
    """Takes light from everything, as far as it may; a smoothed model's in part at random. Ends in the middle
    of a call where it is told to."""

    def __init__(self, *, ends: int | None = None) -> None:
        self.left = ends
        self.asked: list[tuple[int | None, str, float, float | None]] = []

    def attack(
        self,
        pixels: Floats,
        *,
        index: int | None,
        tokens: Sequence[int],
        norm: Norm,
        radius: float,
        sigma: float | None,
        draw: np.random.Generator,
        stopped: Callable[[], bool],
    ) -> Floats:
        self.asked.append((index, norm, radius, sigma))
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise CancelledError
        way = np.ones(pixels.shape) if sigma is None else draw.uniform(0.5, 1, pixels.shape)
        if norm == "l2":
            way /= np.linalg.norm(way)
        return np.clip(pixels - radius * way, 0, 1).astype(np.float32)


def attacks_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line)["adversarial"] for line in (out / MEASURES).read_bytes().splitlines()[1:]]


def row(found: dict[str, Any], **wanted: object) -> dict[str, Any]:
    (one,) = [each for each in found["adversarial"]["attacks"] if wanted.items() <= each.items()]
    return dict(one)


def test_an_image_inside_an_linf_budget_is_8_bit_whatever_is_proposed() -> None:
    draw = np.random.default_rng(0)
    clean = draw.integers(0, 256, (3, 16, 16), np.uint8)
    clean[0] = 255
    for budget in (2, 4, 8):
        for proposed in (draw.uniform(0, 1, clean.shape), np.ones(clean.shape), np.zeros(clean.shape)):
            pixels = rounded(proposed.astype(np.float32), clean, budget=budget)
            assert pixels.dtype == np.uint8
            assert np.abs(pixels.astype(int) - clean).max() == budget
    near = rounded(np.float32(1) * in_units(clean).astype(np.float32), clean, budget=2)
    assert (near == clean).all()


def test_tables_say_what_the_model_says_of_attacked_images(colours: FaithfulViT, tmp_path: Path) -> None:
    written = []
    for number, (shown, _, label) in enumerate(write_data(tmp_path / "data", images=8)):
        written.append((np.minimum(shown, 240 + number % 3), label))  # nearer to what is too dim
        file = tmp_path / "data" / "images" / LABELS[label] / f"{number:03}.png"
        Image.fromarray(written[-1][0]).save(file)
    fading = Fading()
    found = evaluate(colours, tmp_path / "data", tmp_path / "out", seed=3, adversary=fading)
    assert found["asked"]["attack_steps"] == 10
    for budget in (2, 4, 8):
        right, kept = [], []
        for shown, label in written:
            attacked = np.maximum(shown.astype(int) - budget, 0).astype(np.uint8)
            right.append(plain_class(shown) == label == plain_class(attacked))
            kept.append(plain_class(shown) == plain_class(attacked))
        one = row(found, model="plain", target="class", norm="linf", budget=budget)
        assert one["attacked"]["accuracy"]["value"] == pytest.approx(np.mean(right), abs=1e-6)
        assert one["attacked"]["kept"]["value"] == pytest.approx(np.mean(kept), abs=1e-6)
        assert one["none"]["accuracy"]["value"] == one["none"]["overlap"]["value"] == 1
        assert 0 < one["distance"]["value"] <= budget / 255 * np.sqrt(3 * 16 * 16)
    # The more light is taken, the fewer colours are seen.
    few, many = (
        row(found, model="plain", target="class", norm="linf", budget=budget)["attacked"]["kept"]["value"]
        for budget in (2, 8)
    )
    assert many < few
    # The smoothed model's explanation differs between copies and copies; that is what stands beside it.
    one = row(found, model="smoothed", target="attention", norm="l2", budget=0.5)
    assert one["attacked"]["overlap"]["images"] == one["none"]["overlap"]["images"] <= 8
    targets = {index is None for index, *_ in fading.asked}
    assert targets == {True, False} and {sigma for *_, sigma in fading.asked} == {None, 0.25}


def test_l2_budgets_are_shares_of_the_certified_radius(colours: FaithfulViT, tmp_path: Path) -> None:
    write_data(tmp_path / "data", images=4)
    evaluate(colours, tmp_path / "data", tmp_path / "out", seed=3, adversary=Fading())
    with Journal(tmp_path / "out") as journal:
        records = {record.pixels_sha256: record for record in journal}
    measured = [json.loads(line) for line in (tmp_path / "out" / MEASURES).read_bytes().splitlines()[1:]]
    seen = 0
    for line in measured:
        record = records[line["pixels_sha256"]]
        for attack in line["adversarial"]["attacks"]:
            claim = record.class_ if attack["target"] == "class" else record.attention
            if attack["norm"] == "l2":
                assert 0 < attack["distance"] < attack["budget"] * claim.radius_l2
                seen += 1
    assert seen >= 4 * 4


def test_copies_between_8_bit_images_have_the_law_of_those_on_them(colours: FaithfulViT) -> None:
    """Both ways of counting, of the same image: the shares of each class and each token's votes are near."""
    shown, _ = image_of("red", seed=3)
    shown[shown == 255] = 170  # so that copies differ
    picture = colours.read(shown)
    certificate = colours.certify(picture, **TERMS, seed=1)  # type: ignore[arg-type]
    copies = 4000
    on, between = (
        fresh(colours, pixels, certificate, copies=copies, seed=2)
        for pixels in (picture.pixels, in_units(picture.pixels).astype(np.float32))
    )
    assert on.copies == between.copies == copies
    assert 0.1 * copies < on.counts[0] < 0.95 * copies
    spread = 5 * np.sqrt(2 * 0.25 * copies)
    assert np.abs(on.counts - between.counts).max() < spread
    assert np.abs(on.votes - between.votes).max() < spread


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_a_certificate_that_is_broken_inside_its_radius_stops_the_run(
    colours: FaithfulViT, tmp_path: Path, norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record whose radius nobody certified: the image turns dark nearer than it says."""
    monkeypatch.setattr(adversarial, "BUDGETS", ((norm, {"l2": 0.5, "linf": 250}[norm]),))
    ((shown, _, _),) = write_data(tmp_path / "data", images=1)
    true = colours.certify(shown, **TERMS, seed=99)  # type: ignore[arg-type]
    doctored = true.model_copy(update={"class_": true.class_.model_copy(update={"radius_l2": 50.0})})
    with Journal(tmp_path / "out") as journal:
        journal.append(doctored.to_dict())
    said = r"certificate of .*000\.png is broken: it holds to ℓ2 radii of 50.*refute it \(class.*a bug"
    for _ in range(2):  # and again, where it is gone on with
        with of_colours() as vit, pytest.raises(BrokenCertificate, match=said):
            evaluate(vit, tmp_path / "data", tmp_path / "out", adversary=Fading())
    (file,) = (tmp_path / "out" / BROKEN).iterdir()
    pixels = np.load(file)
    assert pixels.shape == (3, 16, 16) and pixels.dtype == np.float32
    assert np.linalg.norm(pixels - in_units(colours.read(shown).pixels)) < 50
    assert LABELS[int(Colours().classify(pixels[None])[0].argmax())] == "dark"
    assert len((tmp_path / "out" / MEASURES).read_bytes().splitlines()) == 1


def test_a_broken_certificate_is_in_the_tables_and_first_in_the_report(
    colours: FaithfulViT, tmp_path: Path
) -> None:
    write_data(tmp_path / "data", images=4)
    evaluate(colours, tmp_path / "data", tmp_path / "out", seed=3, adversary=Fading())
    with Journal(tmp_path / "out") as journal:
        broken = list(journal)[2].pixels_sha256
    (tmp_path / "out" / BROKEN).mkdir()
    np.save(tmp_path / "out" / BROKEN / f"{broken}.npy", np.zeros((3, 16, 16), np.float32))
    found = evaluate(colours, tmp_path / "data", tmp_path / "out", seed=3, adversary=Fading())
    assert found["broken"] == [broken]
    assert in_short(found, sigma=0.25).title == "4 images, 95 % intervals; 1 broken certificate: see broken/"
    (section,) = [each for each in sections_of(found) if each.id == "attacked"]
    assert "would have stopped the evaluation" in section.words  # it was gone on with: these are all images
    stopped = found | {"data": found["data"] | {"chosen": 5}}
    (section,) = [each for each in sections_of(stopped) if each.id == "attacked"]
    assert "at a certificate that one broke the evaluation stopped" in section.words
    left = Left.of(tmp_path / "out")
    assert left.broken == {broken}
    first = next(left.certificates())
    headline = summary_of(first, found, images=4, broken=len(left.broken)).headline
    assert headline[:2] == [("1", "broken by an attack: a bug, unless it is chance"), ("4", "images")]


def test_a_stopped_run_comes_to_the_same_to_the_bit(tmp_path: Path) -> None:
    write_data(tmp_path / "data", images=6)  # of 20 attacks each, three at a time

    def run(out: Path, adversary: Adversary) -> None:
        with of_colours() as vit:
            evaluate(vit, tmp_path / "data", out, adversary=adversary)

    whole = begun(tmp_path / "whole", attack_steps=10)
    run(whole, Fading())
    stopped = begun(tmp_path / "stopped", attack_steps=10)
    breaks = 0
    while True:
        try:
            run(stopped, Fading(ends=75))
        except CancelledError:
            breaks += 1
            assert breaks < 10
        else:
            break
    assert breaks >= 1
    assert (stopped / TABLES).read_bytes() == (whole / TABLES).read_bytes()
    assert lines(stopped / MEASURES) == lines(whole / MEASURES)
    assert len(attacks_of(whole)) == 6
