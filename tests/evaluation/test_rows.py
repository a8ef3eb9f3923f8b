"""What an image adds to every figure, by hand."""

import pytest

from fvit.evaluation.measures import Cut, Judged, Removal
from fvit.evaluation.rows import row_of
from tests.evaluation.cases import certificate, curve, masked, measures

PLAIN = Judged(index=1, share=0.9)
MAP = (0.3, 0.1, 0.0, -0.2)
RADII = (0.0, 0.15, 0.25)


def test_accuracy_and_what_is_certified() -> None:
    row = row_of(0, certificate(map_radii=MAP, index=0), measures(plain=PLAIN), radii=RADII)
    assert row["accuracy", "plain"] == (False, 1) and row["accuracy", "smoothed"] == (True, 1)
    assert row["abstained", "class"] == row["abstained", "attention"] == (False, 1)
    # The class holds up to 0.3, the explanation up to 0.2.
    for radius, (of_class, attention) in zip(RADII, ((True, True), (True, True), (True, False)), strict=True):
        both = of_class and attention
        for what in ("certified", "certified accuracy"):
            found = [row[what, claim, radius] for claim in ("class", "attention", "both")]
            assert found == [(of_class, 1), (attention, 1), (both, 1)]


def test_a_wrong_class_is_certified_and_not_accurate() -> None:
    row = row_of(2, certificate(map_radii=MAP, index=0), measures(plain=PLAIN), radii=RADII)
    assert row["accuracy", "smoothed"] == (False, 1)
    assert row["certified", "class", 0.15] == (True, 1)
    assert {row["certified accuracy", claim, 0.15] for claim in ("class", "attention", "both")} == {
        (False, 1)
    }


def test_what_abstains_is_certified_nowhere_and_wrong() -> None:
    abstaining = certificate(map_radii=MAP, index=0, radius=0.0, attention=0.0)
    row = row_of(0, abstaining, measures(plain=PLAIN), radii=RADII)
    assert row["abstained", "class"] == row["abstained", "attention"] == (True, 1)
    assert row["accuracy", "smoothed"] == (False, 1)
    assert row["certified", "class", 0.0] == row["certified", "both", 0.0] == (False, 1)


def test_an_image_without_label_adds_nothing_to_accuracy() -> None:
    row = row_of(None, certificate(map_radii=MAP), measures(plain=PLAIN), radii=RADII)
    assert row["accuracy", "plain"] == row["certified accuracy", "class", 0.0] == (0, 0)
    assert row["certified", "class", 0.0] == (True, 1)


def test_shares_of_the_map() -> None:
    row = row_of(None, certificate(map_radii=MAP), measures(plain=PLAIN), radii=RADII)
    assert [row["map", "in", radius] for radius in RADII] == [(0.5, 1), (0.25, 1), (0.25, 1)]
    assert [row["map", "out", radius] for radius in RADII] == [(0.25, 1), (0.25, 1), (0.0, 1)]


def test_a_curve_and_its_area() -> None:
    """Nine tenths removed, one after the other: class 1 first, which the model says of the image as it is."""
    indices = (1, 1, 1, 0, 0, 1, 2, 2, 2)
    shares = (0.8, 0.8, 0.6, 0.4, 0.3, 0.5, 0.2, 0.1, 0.0)
    said = measures(plain=PLAIN, curves=(curve(indices, shares),))
    row = row_of(0, certificate(map_radii=MAP), said, radii=RADII)
    of = ("plain", "positive", "mean", "plain")
    kept = [row[("curve", "kept", *of, tenth)][0] for tenth in range(10)]
    assert kept == [True, True, True, True, False, False, True, False, False, False]
    assert row[("area", "kept", *of)] == pytest.approx((0.1 * (0.5 + 1 + 1 + 1 + 1), 1))
    right = [row[("curve", "accuracy", *of, tenth)][0] for tenth in range(10)]
    assert right == [False] * 4 + [True, True] + [False] * 4
    assert row[("area", "accuracy", *of)] == pytest.approx((0.2, 1))
    assert row[("curve", "share", *of, 0)] == (0.9, 1) and row[("curve", "share", *of, 5)] == (0.3, 1)
    assert row[("area", "share", *of)] == pytest.approx((0.1 * (0.45 + sum(shares)), 1))
    unlabelled = row_of(None, certificate(map_radii=MAP), said, radii=RADII)
    assert unlabelled[("area", "accuracy", *of)] == (0, 0)


def test_sets_of_tokens_that_are_removed() -> None:
    removal = Removal(tokens="in", count=1, fill="mean", model="plain", judged=Judged(index=2, share=0.25))
    said = measures(plain=PLAIN, curves=(curve((1,) * 9, (0.9,) * 9),), removals=(removal,))
    row = row_of(1, certificate(map_radii=MAP), said, radii=RADII)
    assert row["removed", "in"] == (1, 1)
    assert row["removal", "accuracy", "in", "none", "plain"] == (True, 1)
    assert row["removal", "accuracy", "in", "mean", "plain"] == (False, 1)
    assert row["removal", "kept", "in", "mean", "plain"] == (False, 1)
    assert row["removal", "share", "in", "mean", "plain"] == (0.25, 1)
    # An image that has no such set adds nothing, not even what the model says of it as it is.
    assert row["removed", "out"] == row["removal", "share", "out", "none", "plain"] == (0, 0)
    assert row["removal", "kept", "in", "blur", "plain"] == (0, 0)


def test_segmentation_in_pixels() -> None:
    """Of 16 pixels 15 count, 6 are the object's; 5 are taken for it, 4 of them rightly."""
    mask = masked(labelled=15, object=6, tokens=(0, 3), cut=Cut(predicted=5, hit=4))
    row = row_of(None, certificate(map_radii=MAP), measures(plain=PLAIN, mask=mask), radii=RADII)
    for at in ("mean", 0.0, 0.95):
        assert row["IoU of the object", "plain", at] == (4, 7)  # 5 + 6 − 4
        assert row["IoU of the background", "plain", at] == (8, 11)  # 15 − 7 of 15 − 4
        assert row["pixel accuracy", "plain", at] == (12, 15)  # 4 + 8
    assert row["average precision", "smoothed"] == (0.75, 1)
    without = row_of(None, certificate(map_radii=MAP), measures(plain=PLAIN), radii=RADII)
    assert without["IoU of the object", "plain", "mean"] == without["average precision", "plain"] == (0, 0)


def test_certified_tokens_on_the_object() -> None:
    """In are tokens 0 and 1, at 0.15 token 0 alone; the object touches 0 and 3; plainly 3 and 2 come
    first."""
    mask = masked(labelled=16, object=6, tokens=(0, 3), cut=Cut(predicted=5, hit=4))
    row = row_of(None, certificate(map_radii=MAP), measures(plain=PLAIN, mask=mask), radii=(0.0, 0.15, 0.5))
    assert row["on the object", "certified in", 0.0] == (1, 2)
    assert row["on the object", "plain", 0.0] == (1, 2)
    assert row["on the object", "any", 0.0] == (1, 2)
    assert row["on the object", "certified in", 0.15] == (1, 1)
    assert row["on the object", "any", 0.15] == (0.5, 1)
    assert row["on the object", "certified in", 0.5] == row["on the object", "plain", 0.5] == (0, 0)


def test_every_image_has_the_same_figures() -> None:
    """Whatever is known of it, so that a column is a figure."""
    mask = masked(labelled=15, object=6, tokens=(0, 3), cut=Cut(predicted=5, hit=4))
    curves = (curve((1,) * 9, (0.9,) * 9),)
    removal = Removal(tokens="in", count=1, fill="mean", model="plain", judged=PLAIN)
    full = row_of(
        1, certificate(map_radii=MAP), measures(plain=PLAIN, curves=curves, removals=(removal,), mask=mask),
        radii=RADII,
    )  # fmt: skip
    bare = row_of(
        None, certificate(map_radii=(0.0,) * 4, radius=0.0), measures(plain=PLAIN, curves=curves), radii=RADII
    )
    assert list(full) == list(bare)
