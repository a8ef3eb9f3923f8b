import numpy as np
import pytest

from fvit.certificates.bounds import BETS
from fvit.certificates.tally import TOTAL, UNIT, Tally
from fvit.errors import FvitError

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(50, 7)).astype(np.float32)
ATTRIBUTION = RNG.dirichlet(np.ones(12), 50).astype(np.float32)


def counted(rows: list[slice], *, betting: bool = True) -> Tally:
    tally = Tally(7, 12, (3, 5), betting)
    for part in rows:
        tally.add(LOGITS[part], ATTRIBUTION[part])
    return tally


def same(one: Tally, other: Tally) -> bool:
    return one.copies == other.copies and all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("counts", "votes", "sums", "wealth")
    )


def test_batches_orders_and_devices_change_nothing_to_the_bit() -> None:
    whole = counted([slice(0, 50)])
    assert same(whole, counted([slice(30, 50), slice(0, 30)]))
    assert same(whole, counted([slice(i, i + 1) for i in range(50)][::-1]))
    merged = counted([slice(20, 50)])
    merged.merge(counted([slice(0, 20)]))
    assert same(whole, merged)


def test_what_is_counted() -> None:
    tally = counted([slice(0, 50)])
    assert tally.counts.tolist() == np.bincount(LOGITS.argmax(axis=1), minlength=7).tolist()
    ranks = np.argsort(np.argsort(-ATTRIBUTION, axis=1, kind="stable"), axis=1)
    assert tally.votes.tolist() == [(ranks < 3).sum(axis=0).tolist(), (ranks < 5).sum(axis=0).tolist()]
    assert tally.mean == pytest.approx(ATTRIBUTION.astype(float).mean(axis=0), abs=1 / UNIT)
    exact = np.log1p(BETS[:, None, None] * ATTRIBUTION.astype(float)).sum(axis=1)
    assert (tally.wealth / UNIT <= exact).all()  # wealth is never overstated
    assert (tally.wealth / UNIT >= exact - 51 / UNIT).all()
    assert all(array.dtype == np.int64 for array in (tally.counts, tally.votes, tally.sums, tally.wealth))


def test_ties_go_to_the_lower_index() -> None:
    tally = Tally(3, 4, (2,))
    tally.add(np.zeros((1, 3), np.float32), np.full((1, 4), 0.25, np.float32))
    assert tally.counts.tolist() == [1, 0, 0]
    assert tally.votes.tolist() == [[1, 1, 0, 0]]


def test_wealth_is_kept_only_where_means_are_bounded() -> None:
    assert counted([slice(0, 50)], betting=False).wealth.shape == (0, 12)
    assert counted([slice(0, 50)]).empty().wealth.shape == (len(BETS), 12)
    assert counted([slice(0, 50)]).empty().copies == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_refused(value: float) -> None:
    logits, attribution = LOGITS[:2].copy(), ATTRIBUTION[:2].copy()
    logits[1, 3] = value
    with pytest.raises(FvitError, match="not finite"):
        counted([]).add(logits, attribution)
    attribution[0, 0] = value
    with pytest.raises(FvitError, match="not finite"):
        counted([]).add(LOGITS[:2], attribution)


@pytest.mark.parametrize(
    "attribution", [[[-0.1, 0.6, 0.5]], [[0.0, 0.0, 0.0]], [[1e30, 0.0, 0.0]], [[0.6, 0.6, 0.6]]]
)
def test_what_is_no_distribution_is_refused(attribution: list[list[float]]) -> None:
    tally = Tally(7, 3, (1,), betting=True)
    with pytest.raises(FvitError, match="no distribution"):
        tally.add(LOGITS[:1], np.array(attribution, np.float32))
    tally.add(LOGITS[:1], np.array([[TOTAL / 2, 0.5, 0.0]], np.float32))  # rounding is let pass
