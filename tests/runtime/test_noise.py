import numpy as np
import pytest
from scipy import stats

from fvit.runtime import noise

# Known-answer vectors of Philox4x32-10, published with Random123 (Salmon et al. 2011).
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    words = noise.philox(np.array(counter, np.uint64)[:, None], key)
    assert tuple(int(word) for word in words[:, 0]) == expected


def test_a_copy_is_the_same_noise_in_any_company_and_order() -> None:
    together = noise.draw(np.arange(20), size=100, seed=7)
    shuffled = noise.draw(np.array([13, 2, 19]), size=100, seed=7)
    assert np.array_equal(shuffled, together[[13, 2, 19]])


def test_copies_and_seeds_differ() -> None:
    first = noise.draw(np.arange(3), size=64, seed=1)
    assert len(np.unique(first, axis=0)) == 3
    assert not np.array_equal(first, noise.draw(np.arange(3), size=64, seed=2))
    assert not np.array_equal(first, noise.draw(np.arange(3), size=64, seed=1 + 2**32))
    assert not np.array_equal(first, noise.draw(np.arange(3) + 2**32, size=64, seed=1))


def test_a_size_that_is_no_multiple_of_four_is_cut_not_shifted() -> None:
    assert np.array_equal(
        noise.draw(np.arange(5), size=7, seed=3), noise.draw(np.arange(5), size=8, seed=3)[:, :7]
    )


def test_noise_is_standard_normal_to_its_tails() -> None:
    z = noise.draw(np.arange(200), size=12288, seed=11).ravel().astype(np.float64)
    m = len(z)
    assert abs(z.mean()) < 4 / np.sqrt(m)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / m)
    assert abs(stats.skew(z)) < 4 * np.sqrt(6 / m)
    assert abs(stats.kurtosis(z)) < 4 * np.sqrt(24 / m)
    assert stats.kstest(z[:100_000], "norm").pvalue > 1e-3
    for threshold in (3.0, 4.0, 4.5):
        expected = m * 2 * stats.norm.sf(threshold)
        assert abs((np.abs(z) > threshold).sum() - expected) < 5 * np.sqrt(expected)


def test_neighbouring_elements_and_copies_are_uncorrelated() -> None:
    z = noise.draw(np.arange(400), size=1024, seed=5).astype(np.float64)
    limit = 4.5 / np.sqrt(z.size)
    for lag in range(1, 9):
        assert abs((z[:, lag:] * z[:, :-lag]).mean()) < limit
    assert abs((z[1:] * z[:-1]).mean()) < limit
    assert abs((z[1:] ** 2 * z[:-1] ** 2).mean() - 1) < 3 * limit * 2
