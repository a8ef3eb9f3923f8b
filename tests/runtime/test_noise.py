import hashlib
from bisect import bisect_right

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from fvit.certificates.bounds import clopper_pearson
from fvit.certificates.terms import Terms
from fvit.errors import FvitError
from fvit.runtime.noise import LARGEST_SIGMA, draw, noisy_copies, philox_key, thresholds

LEVELS = (0.12, 0.25, 0.5, 1.0)
KEY = 0x0123456789ABCDEF_FEDCBA9876543210
WORD = 2**64 - 1

# Known-answer vectors of Philox4x64-10, published with Random123 (Salmon et al. 2011).
KNOWN_ANSWERS = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
    ),
    (
        (WORD,) * 4,
        (WORD,) * 2,
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
    (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
]


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox4x64-10 as its paper writes it, in Python's own integers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & WORD, (p0 >> 64) ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & WORD, (k1 + 0xBB67AE8584CAA73B) & WORD
    return c0, c1, c2, c3


def multiprecise(sigma: float) -> dict[int, int]:
    """⌊2⁶⁴ Φ((j+½)/(255σ))⌋ of every j where it is neither 0 nor 2⁶⁴ − 1, and of the next on both sides."""
    with mpmath.workprec(300):
        reach = 10 * int(255 * sigma + 1)
        found = {
            j: int(mpmath.floor(2**64 * mpmath.ncdf((j + mpmath.mpf(0.5)) / (255 * mpmath.mpf(sigma)))))
            for j in range(-reach, reach)
        }
    low, high = max(j for j in found if found[j] == 0), min(j for j in found if found[j] == WORD)
    return {j: found[j] for j in range(low, high + 1)}


@pytest.fixture(scope="module")
def exact() -> dict[float, dict[int, int]]:
    return {sigma: multiprecise(sigma) for sigma in LEVELS}


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_as_written_here_gives_the_published_words(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert philox(counter, key) == expected


@pytest.mark.parametrize("sigma", LEVELS)
def test_thresholds_are_the_multiprecise_normal_distribution_rounded_down(
    sigma: float, exact: dict[float, dict[int, int]]
) -> None:
    law = thresholds(sigma)
    assert law.first == min(exact[sigma])
    assert law.table.tolist() == list(exact[sigma].values())


@pytest.mark.parametrize("sigma", [0.001, *LEVELS, LARGEST_SIGMA])
def test_the_slack_of_a_certificate_covers_every_threshold(sigma: float) -> None:
    terms = Terms(
        sigma=sigma, n=1000, alpha=1e-3, k=(10,), beta=0.8, aggregate="vote", seed=0, size=(64, 48)
    )  # fmt: skip
    assert terms.slack >= len(thresholds(sigma).table) * 2.0**-64 * 1000 * 3 * 64 * 48


@pytest.mark.parametrize("sigma", LEVELS)
def test_integers_are_those_of_python_and_multiprecision(
    sigma: float, exact: dict[float, dict[int, int]]
) -> None:
    """Both sources of a drawn integer, the word and the threshold, written out independently."""
    copies, size = [0, 3, 2**40 + 1], 403
    drawn = draw(np.array(copies), size=size, key=KEY, sigma=sigma)
    key = (KEY & WORD, KEY >> 64)
    ends = list(exact[sigma].items())
    for row, copy in zip(drawn, copies, strict=True):
        words = [w for block in range(-(-size // 4)) for w in philox((block + 1, 0, copy, 0), key)][:size]
        for found, word in zip(row.tolist(), words, strict=True):
            assert word < exact[sigma][found] or found == ends[-1][0]
            assert exact[sigma][found - 1] <= word


@pytest.mark.parametrize("sigma", LEVELS)
def test_words_at_every_threshold_fall_on_the_right_side(
    sigma: float, exact: dict[float, dict[int, int]]
) -> None:
    """The ends of the table among them: word 0 is the lowest t there is, word 2⁶⁴ − 1 the highest."""
    integers, edges = list(exact[sigma]), list(exact[sigma].values())
    words = sorted({word for edge in edges for word in (max(edge - 1, 0), edge)})
    expected = [integers[min(bisect_right(edges, word), len(edges) - 1)] for word in words]
    assert (words[0], words[-1]) == (0, WORD)
    assert (expected[0], expected[-1]) == (integers[1], integers[-1])
    assert thresholds(sigma).integers(np.array(words, np.uint64)).tolist() == expected


def slow_words(copies: range, size: int) -> NDArray[np.uint64]:
    """Philox4x64-10 with products from halves, many blocks at once: [len(copies), size]."""
    half, low = np.uint64(32), np.uint64(2**32 - 1)

    def product(constant: int, x: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        a1, a0 = np.uint64(constant >> 32), np.uint64(constant & 0xFFFFFFFF)
        x1, x0 = x >> half, x & low
        middle = a1 * x0 + (a0 * x0 >> half)
        other = a0 * x1 + (middle & low)
        return a1 * x1 + (middle >> half) + (other >> half), np.uint64(constant) * x

    blocks = np.arange(1, size // 4 + 1, dtype=np.uint64)
    c0, c2 = (a.ravel() for a in np.meshgrid(blocks, np.array(copies, np.uint64)))
    c1, c3 = np.zeros_like(c0), np.zeros_like(c0)
    k0, k1 = KEY & WORD, KEY >> 64
    for _ in range(10):
        (high0, low0), (high1, low1) = product(0xD2E7470EE14C6C93, c0), product(0xCA5A826395121157, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ np.uint64(k0), low1, high0 ^ c3 ^ np.uint64(k1), low0
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & WORD, (k1 + 0xBB67AE8584CAA73B) & WORD
    return np.stack([c0, c1, c2, c3], axis=1).reshape(len(copies), size)


def test_ten_million_integers_are_those_of_a_slow_route(exact: dict[float, dict[int, int]]) -> None:
    compared = 0
    size = 12288
    for first in range(0, 208, 26):
        copies = range(first, first + 26)
        words = slow_words(copies, size).ravel()
        order = np.argsort(words)
        for sigma in LEVELS:
            found = draw(np.array(copies), size=size, key=KEY, sigma=sigma).ravel()
            # Sorted words change their t where a threshold lies, and nowhere else.
            (lowest, *js) = exact[sigma]
            edges = np.array([exact[sigma][j] for j in js[:-1]], np.uint64)
            counts = np.diff(np.searchsorted(words, edges, sorter=order), prepend=0, append=len(words))
            assert np.array_equal(found[order], np.repeat(np.arange(lowest + 1, js[-1] + 1), counts))
            compared += len(found)
    assert compared >= 10**7


def test_a_copy_is_the_same_noise_in_any_company_and_order() -> None:
    together = draw(np.arange(20), size=100, key=KEY, sigma=0.25)
    shuffled = draw(np.array([13, 2, 19, 2]), size=100, key=KEY, sigma=0.25)
    assert together.dtype == np.int16
    assert np.array_equal(shuffled, together[[13, 2, 19, 2]])


def test_a_size_that_is_no_multiple_of_four_is_cut_not_shifted() -> None:
    seven, eight = (draw(np.arange(5), size=size, key=KEY, sigma=0.25) for size in (7, 8))
    assert np.array_equal(seven, eight[:, :7])


def test_a_copy_is_pixels_plus_noise_divided_once_in_single_precision() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 6), np.uint8)
    noisy = noisy_copies(pixels, range(4, 9), sigma=1.0, key=KEY)
    t = draw(np.arange(4, 9), size=90, key=KEY, sigma=1.0).astype(int).reshape(5, 3, 5, 6)
    assert noisy.dtype == np.float32
    assert noisy.min() < 0 and noisy.max() > 1
    assert np.array_equal(noisy, ((pixels.astype(int) + t) / 255).astype(np.float32))


def test_pixels_and_noise_do_not_overflow_at_the_largest_sigma() -> None:
    law = thresholds(LARGEST_SIGMA)
    assert np.iinfo(np.int16).min < law.first
    assert law.first + len(law.table) - 1 + 255 <= np.iinfo(np.int16).max


@pytest.mark.parametrize("sigma", [0.0, -0.25, float("nan"), float("inf"), 14.1])
def test_a_sigma_without_a_table_names_the_largest(sigma: float) -> None:
    with pytest.raises(FvitError, match="at most 14"):
        draw(np.arange(1), size=4, key=KEY, sigma=sigma)


def test_the_key_is_made_of_seed_size_and_pixels_as_documented() -> None:
    pixels = hashlib.sha256(b"pixels")
    seed, size = 2**64 - 2, (224, 192)
    message = (2**64 - 2).to_bytes(8, "little") + bytes([224, 0, 0, 0, 192, 0, 0, 0]) + pixels.digest()
    expected = int.from_bytes(hashlib.sha256(message).digest()[:16], "little")
    assert philox_key(pixels.hexdigest(), size=size, seed=seed) == expected
    assert philox_key(pixels.digest(), size=size, seed=seed) == expected
    others = {
        philox_key(pixels.digest(), size=size, seed=seed - 1),
        philox_key(pixels.digest(), size=size[::-1], seed=seed),
        philox_key(hashlib.sha256(b"pixel").digest(), size=size, seed=seed),
    }
    assert len(others | {expected}) == 4


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_beyond_64_bits_is_refused(seed: int) -> None:
    with pytest.raises(FvitError, match="seed"):
        philox_key(bytes(32), size=(64, 64), seed=seed)


@pytest.mark.parametrize("sigma", [0.12, 0.25, 1.0])
def test_the_law_is_that_of_a_rounded_normal_to_six_sigma(sigma: float) -> None:
    t = draw(np.arange(400), size=12288, key=KEY, sigma=sigma).ravel()
    m, scale = len(t), 255 * sigma
    values = np.arange(t.min() - 1, t.max() + 2)
    expected = m * np.diff(stats.norm.cdf((np.append(values, values[-1] + 1) - 0.5) / scale))
    seen = np.bincount(t - values[0], minlength=len(values))
    # Chi-square, the tails of fewer than ten expected values in one class each.
    middle = expected >= 10
    low, high = values < 0, values > 0
    groups = [(~middle & low), (~middle & high)]
    statistic = ((seen - expected)[middle] ** 2 / expected[middle]).sum()
    for group in groups:
        tail = m - expected[~group].sum()
        statistic += (seen[group].sum() - tail) ** 2 / tail
    assert 1e-4 < stats.chi2.sf(statistic, middle.sum() + len(groups) - 1) < 1 - 1e-4
    for level in (3.0, 4.0, 4.5, 5.0):
        edge = np.ceil(level * scale)
        mean = 2 * m * stats.norm.sf((edge - 0.5) / scale)
        beyond = (np.abs(t) >= edge).sum()
        assert min(stats.poisson.cdf(beyond, mean), stats.poisson.sf(beyond - 1, mean)) > 1e-4


def test_the_tails_reach_beyond_six_sigma() -> None:
    """Words that are as rare: 2⁻³⁰ of all lie beyond 6.1σ, and nothing is cut off before 9σ."""
    law = thresholds(0.25)
    rare = np.random.default_rng(0).integers(0, 2**34, 100_000, np.uint64)
    expected = stats.norm.ppf((rare.astype(float) + 0.5) / 2**64) * 63.75
    assert np.abs(law.integers(rare) - expected).max() <= 0.5 + 1e-6
    assert np.abs(law.integers(~rare) + expected).max() <= 0.5 + 1e-6
    assert law.first < -9 * 63.75


def correlations(a: NDArray[np.int16], b: NDArray[np.int16]) -> tuple[float, float]:
    """Correlation of the values and of their squares, in standard errors."""
    x, y = a.ravel().astype(float), b.ravel().astype(float)
    plain, squares = np.corrcoef(x, y)[0, 1], np.corrcoef(x**2, y**2)[0, 1]
    return abs(plain) * np.sqrt(x.size), abs(squares) * np.sqrt(x.size)


def test_elements_and_copies_are_independent() -> None:
    t = draw(np.arange(400), size=2048, key=KEY, sigma=0.25)
    for lag in range(1, 9):
        assert max(correlations(t[:, lag:], t[:, :-lag])) < 4.5
    for lag in (1, 2, 128):
        assert max(correlations(t[lag:], t[:-lag])) < 4.5
    # Pairs of neighbours by quadrant and size: all sixteen cells alike.
    quartile = np.digitize(t, np.quantile(t, [0.25, 0.5, 0.75]))
    shares = np.bincount(quartile.ravel(), minlength=4) / t.size
    pairs = np.bincount((4 * quartile[:, 1:] + quartile[:, :-1]).ravel(), minlength=16)
    expected = np.outer(shares, shares).ravel() * pairs.sum()
    assert stats.chi2.sf(((pairs - expected) ** 2 / expected).sum(), 9) > 1e-4


def test_images_and_seeds_have_independent_noise() -> None:
    """Keys that differ in one bit of a picture, in the seed, or in the size."""
    one, other = hashlib.sha256(bytes(12288)), hashlib.sha256(bytes(12287) + b"\1")
    keys = [
        philox_key(one.digest(), size=(64, 64), seed=0),
        philox_key(other.digest(), size=(64, 64), seed=0),
        philox_key(one.digest(), size=(64, 64), seed=1),
        philox_key(one.digest(), size=(32, 128), seed=0),
    ]
    drawn = [draw(np.arange(50), size=12288, key=key, sigma=0.25) for key in keys]
    for i, first in enumerate(drawn):
        for second in drawn[:i]:
            assert max(correlations(first, second)) < 4.5
            assert max(correlations(first[1:], second[:-1])) < 4.5


# The attack of Voráček & Hein (ICLR 2023) on noise that is added in floating point: x is black, x' is one
# grey level everywhere, 0.43 away. Close to zero, x' + σz has only the digits of x', and x + σz its own.

ATTACKED = 0.25
DISTANCE = np.sqrt(12288) / 255


def float_copies(pixels: NDArray[np.uint8], n: int) -> NDArray[np.float32]:
    """x + σz with z by Box-Muller, everything in float32."""
    u = np.random.default_rng(0).random((2, n, pixels.size), np.float32)
    z = np.sqrt(-2 * np.log(1 - u[0])) * np.cos(np.float32(2 * np.pi) * u[1])
    noisy: NDArray[np.float32] = pixels.ravel() / np.float32(255) + np.float32(ATTACKED) * z
    return noisy


def betrayed(noisy: NDArray[np.float32]) -> NDArray[np.bool_]:
    """A classifier: does a copy hold an element below 2⁻⁹ with digits that are finer than 2⁻³²?"""
    finer = noisy.astype(np.float64) * 2**32 % 1 != 0
    found: NDArray[np.bool_] = ((np.abs(noisy) < 2**-9) & finer).reshape(len(noisy), -1).any(axis=1)
    return found


def test_floating_point_noise_certifies_a_class_that_a_nearer_image_does_not_have() -> None:
    black, grey = np.zeros((3, 64, 64), np.uint8), np.ones((3, 64, 64), np.uint8)
    n = 400
    count = int(betrayed(float_copies(black, n)).sum())
    lower, _ = clopper_pearson(count, n, alpha=1e-3)
    assert ATTACKED * stats.norm.ppf(lower) > DISTANCE  # Cohen et al.: this class up to here
    assert not betrayed(float_copies(grey, n)).any()  # and never here


def test_noise_on_the_grid_gives_that_classifier_nothing() -> None:
    black, grey = np.zeros((3, 64, 64), np.uint8), np.ones((3, 64, 64), np.uint8)
    for pixels in (black, grey):
        assert not betrayed(noisy_copies(pixels, range(100), sigma=ATTACKED, key=KEY)).any()


def test_no_test_of_grid_noise_whatever_tells_more_than_a_gaussian_shift() -> None:
    """The law of a copy's element at x₈ is one law moved by x₈, over the same values; of all tests of one
    element the most powerful (Neyman & Pearson) gain Φ⁻¹(p') − Φ⁻¹(p) = ‖x' − x‖/σ, as true Gaussians have
    it. Out to 7σ, where thresholds that are rounded to 2⁻⁶⁴ begin to show."""
    moved = 40
    law = thresholds(ATTACKED)
    with mpmath.workprec(120):
        halves = [mpmath.mpf(int(edge)) / 2**63 - 1 for edge in law.table[1:-1]]
        quantiles = [float(mpmath.sqrt(2) * mpmath.erfinv(half)) for half in halves]
    gains = [
        above - below
        for above, below in zip(quantiles[moved:], quantiles[:-moved], strict=True)
        if max(abs(above), abs(below)) < 7
    ]
    assert len(gains) > 800
    assert gains == pytest.approx([moved / 255 / ATTACKED] * len(gains), rel=1e-6)
