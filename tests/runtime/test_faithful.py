"""fvit.load, predict, certify and refine: what a service imports."""

import asyncio
import gc
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import fvit
from fvit.certificates.radii import Aggregate
from fvit.certificates.verify import verify
from fvit.runtime.faithful import terms_of
from fvit.runtime.images import read_image
from fvit.runtime.schedule import Schedule

AGGREGATES: tuple[Aggregate, ...] = ("vote", "mean")


def without_seconds(certificate: fvit.Certificate) -> dict[str, Any]:
    record = certificate.to_dict()
    del record["seconds"]
    return record


def test_predict_names_the_digit_and_shows_where_it_looked(
    vit: fvit.FaithfulViT, samples: list[Path]
) -> None:
    right = 0
    for sample in samples:
        prediction = vit.predict(sample, sigma=0.25, n=16, seed=0)
        assert prediction.counts.sum() == 16
        assert prediction.attention.shape == (8, 8)
        assert prediction.attention.sum() == pytest.approx(1, abs=1e-5)
        right += prediction.label == sample.stem[-1]
    assert right >= len(samples) - 2


def test_predict_abstains_where_copies_disagree(vit: fvit.FaithfulViT) -> None:
    """Noise alone is no digit: at a strong σ its copies do not agree."""
    noise = np.random.default_rng(0).random((3, 64, 64))
    predictions = [vit.predict(noise, sigma=1.0, n=16, alpha=1e-4, seed=seed) for seed in range(3)]
    assert any(prediction.index is None and prediction.label is None for prediction in predictions)


def test_predict_refuses_what_means_nothing_or_never_decides(
    vit: fvit.FaithfulViT, samples: list[Path]
) -> None:
    nonsense: list[dict[str, Any]] = [{"n": 0}, {"alpha": 0.0}, {"alpha": 1.0}, {"sigma": 1e6}, {"n": "many"}]
    for arguments in nonsense:
        with pytest.raises(fvit.FvitError):
            vit.predict(samples[0], **arguments)
    with pytest.raises(fvit.FvitError, match="n = 10 copies never decide at alpha = 0.001.* n = 11 or more"):
        vit.predict(samples[0], n=10)
    assert vit.predict(samples[0], n=11).counts.sum() == 11


def test_certify_takes_any_form_of_the_image_and_numpys_numbers(
    vit: fvit.FaithfulViT, samples: list[Path]
) -> None:
    image = Image.open(samples[0]).convert("RGB")
    eight_bit = np.asarray(image)
    forms = (
        samples[0],
        str(samples[0]),
        image,
        eight_bit,
        eight_bit.transpose(2, 0, 1).astype(np.float32) / 255,
    )
    numbers: dict[str, Any] = {"n": np.int64(40), "k": np.int64(10), "sigma": np.float32(0.25)}
    claims = [vit.certify(form, seed=1, **numbers) for form in forms]
    assert len({str(c.to_dict()["class"]) + str(c.attention.votes) for c in claims}) == 1


def test_seeds_come_from_entropy_unless_told(vit: fvit.FaithfulViT, samples: list[Path]) -> None:
    one, other = (vit.certify(samples[0], n=60) for _ in range(2))
    assert one.seed != other.seed
    assert one.attention.votes != other.attention.votes
    again = vit.certify(samples[0], n=60, seed=one.seed)
    assert without_seconds(again) == without_seconds(one)


def test_every_record_follows_from_its_own_counts(vit: fvit.FaithfulViT, samples: list[Path]) -> None:
    terms: list[dict[str, Any]] = [
        {"n": 60, "k": (5, 10), "alpha": 0.05},
        {"n": 150, "aggregate": "mean", "alpha": 0.05},
        {"n": 60, "radius": 0.02, "alpha": 0.05},
    ]
    for each in terms:
        assert verify(vit.certify(samples[1], **each).to_dict()) == []


def test_callers_in_threads_and_event_loops_get_what_they_get_alone(
    vit: fvit.FaithfulViT, samples: list[Path]
) -> None:
    """Fixed n, decisions and several σ at once, awaited and waited for."""
    asked: list[tuple[Path, dict[str, Any]]] = [
        (sample, {"n": 24 + i, "sigma": sigma, "seed": i, "radius": radius, "alpha": 0.1})
        for i, sample in enumerate(samples[:2])
        for sigma, radius in ((0.25, None), (0.5, None), (0.25, 0.01))
    ]
    alone = [without_seconds(vit.certify(sample, **terms)) for sample, terms in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda each: without_seconds(vit.certify(each[0], **each[1])), asked))
    assert together == alone

    async def awaited() -> list[dict[str, Any]]:
        found = await asyncio.gather(*(vit.certify_async(sample, **terms) for sample, terms in asked))
        return [without_seconds(certificate) for certificate in found]

    assert asyncio.run(awaited()) == alone


def test_an_awaited_prediction_that_is_cancelled_frees_its_copies(
    vit: fvit.FaithfulViT, samples: list[Path]
) -> None:
    async def given_up() -> None:
        task = asyncio.ensure_future(vit.predict_async(samples[0], n=100_000))
        while vit.queue.waiting == 0:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(given_up())
    assert vit.queue.waiting == 0


def test_both_aggregates_certify_and_carry_the_published_figure(
    vit: fvit.FaithfulViT, samples: list[Path]
) -> None:
    for aggregate in AGGREGATES:
        claim = vit.certify(samples[1], n=150, alpha=0.05, aggregate=aggregate, seed=0).attention
        assert len(claim.tokens) == 10
        assert claim.published_renyi_radius > 0
        assert aggregate == "mean" or claim.radius_l2 > 0


def test_a_decision_agrees_with_fixed_n(vit: fvit.FaithfulViT, samples: list[Path]) -> None:
    fixed = vit.certify(samples[1], n=200, seed=0)
    reach = min(fixed.class_.radius_l2, fixed.attention.radius_l2)
    assert reach > 0
    near = vit.certify(samples[1], n=400, radius=reach / 2, seed=0)
    assert near.decision is not None
    assert near.decision.answer == "certified"
    assert near.copies < 400
    assert near.attention.radius_l2 >= reach / 2


@pytest.mark.parametrize("batch", [1, 7, 32])
def test_a_decision_looks_where_it_looks_at_any_batch_and_in_any_company(
    vit: fvit.FaithfulViT, samples: list[Path], batch: int
) -> None:
    terms = vit.terms(n=60, radius=0.05, seed=4, alpha=0.05)
    alone = [
        without_seconds(vit.certify(sample, n=60, radius=0.05, seed=4, alpha=0.05)) for sample in samples[:2]
    ]
    with fvit.load(vit.bundle.folder, batch=batch) as other:
        together = other.certify_many(map(other.read, samples[:2]), terms)
        assert [without_seconds(certificate) for certificate in together] == alone


def sizes_of(certificate: fvit.Certificate) -> NDArray[np.float64]:
    """Of its class, its set and its map."""
    attention = certificate.attention
    return np.array(
        [certificate.class_.radius_l2, attention.radius_l2, np.abs(attention.map_radii or ()).sum()]
    )


def test_refining_shows_certificates_that_grow_and_all_follow(
    vit: fvit.FaithfulViT, samples: list[Path]
) -> None:
    shown = list(vit.refine(samples[0], n=120, seed=2))
    assert shown[-1].copies == 120
    copies = [certificate.copies for certificate in shown]
    assert copies == sorted(set(copies))
    best = np.full(3, -1.0)
    for certificate in shown[:-1]:
        sizes = sizes_of(certificate)
        assert (sizes > best).any()
        best = np.maximum(best, sizes)
    assert all(certificate.bound == "mixture" for certificate in shown)
    assert [verify(certificate.to_dict()) for certificate in shown] == [[]] * len(shown)


def test_refining_shows_a_map_that_grows_alone(vit: fvit.FaithfulViT) -> None:
    """Of a picture of noise, of which nothing else is certified at first."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    refined = vit.refine(noise, sigma=1.0, n=60, k=1, seed=0)
    first, second, third, *_ = (sizes_of(each) for each in refined)
    assert not any(sizes[:2].any() for sizes in (first, second, third))
    assert first[2] < second[2] < third[2]


def test_leaving_a_refinement_frees_its_copies(vit: fvit.FaithfulViT, samples: list[Path]) -> None:
    for certificate in vit.refine(samples[0], seed=2):
        assert certificate.copies < 100_000
        break
    assert vit.queue.waiting == 0


def test_an_awaited_refinement_shows_the_same_and_leaving_it_frees_its_copies(
    vit: fvit.FaithfulViT, samples: list[Path]
) -> None:
    async def awaited() -> list[dict[str, Any]]:
        shown = vit.refine_async(vit.read(samples[0]), n=60, seed=2)
        return [without_seconds(certificate) async for certificate in shown]

    async def left() -> None:
        task = asyncio.ensure_future(anext(vit.refine_async(samples[0], n=10_000)))
        while vit.queue.waiting == 0:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    alone = [without_seconds(certificate) for certificate in vit.refine(samples[0], n=60, seed=2)]
    assert asyncio.run(awaited()) == alone
    asyncio.run(left())
    assert vit.queue.waiting == 0


def test_a_look_may_be_watched_without_changing_the_answer(
    vit: fvit.FaithfulViT, samples: list[Path]
) -> None:
    seen: list[int] = []
    terms = vit.terms(n=200, radius=0.05, seed=0)
    picture = vit.read(samples[0])
    watched = vit.certifying(picture, terms, on_look=lambda certificate: seen.append(certificate.copies))
    assert without_seconds(watched.result()) == without_seconds(vit.certifying(picture, terms).result())
    assert seen == list(terms.looks[: len(seen)])
    assert seen[-1] == watched.result().copies


def test_a_picture_of_another_size_is_refused(vit: fvit.FaithfulViT, samples: list[Path]) -> None:
    small = read_image(samples[0], size=(8, 8))
    with pytest.raises(fvit.FvitError, match=r"\(8, 8\) pixels, this bundle takes \(64, 64\)"):
        vit.predict(small)


def test_a_refinement_may_end_with_time(vit: fvit.FaithfulViT, samples: list[Path]) -> None:
    (only,) = vit.refine(samples[0], seconds=1e-9, seed=2)
    assert only.copies == 24
    for wrong in (float("nan"), -1.0, "x"):
        with pytest.raises(fvit.FvitError, match=f"seconds = {wrong}: give the time"):
            vit.refine(samples[0], seconds=cast(float, wrong))


def test_a_closed_model_says_so_and_finishes_what_was_open(demo_bundle: Path, samples: list[Path]) -> None:
    with fvit.load(demo_bundle) as vit, ThreadPoolExecutor(1) as pool:
        running = pool.submit(vit.certify, samples[0], n=64, seed=0)
        while vit.queue.waiting == 0 and not running.done():
            pass
    assert running.result().copies == 64
    with pytest.raises(fvit.FvitError, match="closed: load the bundle again"):
        vit.predict(samples[0])


def test_giving_up_what_is_open_says_why(demo_bundle: Path, samples: list[Path]) -> None:
    vit = fvit.load(demo_bundle)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(vit.certify, samples[0], n=100_000)
        while vit.queue.waiting == 0 and not running.done():
            pass
        vit.close(cancel=True)
        with pytest.raises(fvit.FvitError, match="closed"):
            running.result()


def test_a_model_that_is_dropped_keeps_no_thread(demo_bundle: Path, samples: list[Path]) -> None:
    """Used, and without a collection of garbage."""
    before = set(threading.enumerate())
    gc.disable()
    try:
        vit = fvit.load(demo_bundle)
        vit.predict(samples[0], n=16)
        vit.certify(samples[0], n=30, alpha=0.1)
        threads = set(threading.enumerate()) - before
        del vit
        for thread in threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in threads)
    finally:
        gc.enable()


def test_a_level_that_the_noise_does_not_have_is_refused_before_it_meets_others(
    vit: fvit.FaithfulViT, samples: list[Path]
) -> None:
    wide = vit.bundle.manifest.model_copy(
        update={"alphas_cumprod": tuple(Schedule.between(0.1, 50).alphas_cumprod.tolist())}
    )
    with pytest.raises(fvit.FvitError, match="at most 14"):
        terms_of(wide, sigma=20.0)
    with pytest.raises(fvit.FvitError, match="σ = 1e\\+10 is outside"):
        vit.certify(samples[0], sigma=1e10)


def test_an_interpreter_ends_with_a_call_under_way(demo_bundle: Path, samples: list[Path]) -> None:
    """The main thread ends first; who still waits is answered, and nothing is printed."""
    code = (
        "import sys, threading, fvit\n"
        "vit = fvit.load(sys.argv[1])\n"
        "threading.Thread(target=lambda: print(vit.predict(sys.argv[2], n=24).counts.sum())).start()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, demo_bundle, samples[0]],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "24\n", "")


def test_a_model_cannot_be_pickled_and_says_what_workers_do(vit: fvit.FaithfulViT) -> None:
    with pytest.raises(fvit.FvitError, match=r"give a worker the bundle's folder, and call fvit\.load there"):
        pickle.dumps(vit)
