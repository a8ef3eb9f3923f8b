"""Devices that share the copies of an image: the same claims as one."""

from pathlib import Path

import numpy as np
import pytest

import fvit
from fvit.certificates.tally import Tally
from fvit.errors import FvitError
from fvit.runtime.host import CopyCounter, Section, Smoother
from fvit.runtime.several import SharedSmoother

BATCH = 8


def _shared(vit: fvit.FaithfulViT, *, workers: int) -> fvit.FaithfulViT:
    return fvit.FaithfulViT(
        vit.bundle, vit.pipeline, device="cpu", batch=BATCH,
        smoother=lambda batch: SharedSmoother([Smoother(vit.pipeline, batch=batch)] * workers),
    )  # fmt: skip


@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("radius", [None, 0.1])
def test_a_certificate_of_several_equals_that_of_one(
    vit: fvit.FaithfulViT, samples: list[Path], workers: int, radius: float | None
) -> None:
    one = fvit.load(vit.bundle.folder, batch=BATCH)
    records = [
        each.certify(samples[0], n0=12, n=131, alpha=0.05, seed=5, radius=radius).to_dict()
        for each in (one, _shared(vit, workers=workers))
    ]
    plugged_in = [record["attention"].pop("published_renyi_radius") for record in records]
    for record in records:
        del record["seconds"]
    assert records[0] == records[1]
    # Sums of attributions are added up in another order.
    assert plugged_in[0] == pytest.approx(plugged_in[1], rel=1e-9)


@pytest.mark.parametrize("copies", [range(0, 1), range(3, 11), range(5, 64), range(7, 100)])
def test_every_copy_is_counted_once(vit: fvit.FaithfulViT, samples: list[Path], copies: range) -> None:
    pixels = vit.read(samples[0]).pixels
    tallies = [Tally(10, 64, (5, 10)) for _ in range(2)]
    counters: list[CopyCounter] = [
        Smoother(vit.pipeline, batch=BATCH),
        SharedSmoother([Smoother(vit.pipeline, batch=BATCH)] * 3),
    ]
    seen: list[int] = []
    for counter, tally in zip(counters, tallies, strict=True):
        section = Section(pixels, copies, tally)
        assert list(counter.run([section], sigma=0.25, seed=1, on_copies=seen.append)) == [section]
    assert sum(seen) == 2 * len(copies)
    assert tallies[0].copies == tallies[1].copies == len(copies)
    one, other = tallies
    assert np.array_equal(one.counts, other.counts)
    assert np.array_equal(one.votes, other.votes)
    assert np.allclose(one.sums, other.sums, rtol=1e-12, atol=0)
    assert np.allclose(one.squares, other.squares, rtol=1e-12, atol=0)
    assert one.wealth.copies == other.wealth.copies
    assert np.allclose(one.wealth.logarithms, other.wealth.logarithms, rtol=1e-9)


def test_where_one_device_fails_the_others_stop_and_nothing_is_claimed(
    vit: fvit.FaithfulViT, samples: list[Path]
) -> None:
    class Broken(Smoother):
        def _next(self, *_: object, **__: object) -> None:
            raise FvitError("this device fell off the bus")

    seen: list[int] = []
    tally = Tally(10, 64, (10,))
    section = Section(vit.read(samples[0]).pixels, range(4000), tally)
    shared = SharedSmoother([Broken(vit.pipeline, batch=BATCH), Smoother(vit.pipeline, batch=BATCH)])
    with pytest.raises(FvitError, match="fell off the bus"):
        list(shared.run([section], sigma=0.25, seed=0, on_copies=seen.append))
    assert sum(seen) < 1000
    assert tally.copies == 0
