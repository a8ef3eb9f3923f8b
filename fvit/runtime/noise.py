"""Noise on the 8-bit grid (docs/method.md, section 3): integers with the law of round(255σZ), Z standard
normal. Drawing them evaluates no transcendental function, so that they are the same on every machine.

Element e of copy i is word e of `numpy.random.Philox(key=key, counter=[0, 0, i, 0])` (Philox4x64-10, Salmon
et al., SC 2011), a 64-bit uniform U, turned into t, the smallest j with U < Θ_j = ⌊2⁶⁴ Φ((j+½)/(255σ))⌋.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock, local

import numpy as np
from numpy.typing import NDArray

from fvit.errors import FvitError

LARGEST_SIGMA = 14.0
"""Up to here pixels plus noise fit 16-bit integers."""

BITS = 200
"""Precision of Φ: the chance that an error beyond 2⁻¹²⁰ moves one of 2¹⁶ thresholds is nil."""

GUIDED = np.uint64(47)
"""Lower bits of a word that the guide does not see: of its upper 17, it has a table of 256 KB."""

SEARCH = np.int16(-(2**15))
"""What the guide holds where a word's upper bits do not tell its t."""

_computing = Lock()  # mpmath keeps constants for the whole process, and not safely for threads


@dataclass(frozen=True, eq=False)
class Thresholds:
    """The law of t at one σ.

    first: the t of words below table[0], which is 0: the smallest t is first + 1. table: uint64 [M], Θ_j of
    j = first, first + 1, …; its last entry stands for 2⁶⁴, which uint64 does not hold, and is never compared
    with. guide: int16 [2¹⁷], the t of all words with these upper bits, or SEARCH.
    """

    first: int
    table: NDArray[np.uint64]
    guide: NDArray[np.int16]

    def integers(self, words: NDArray[np.uint64]) -> NDArray[np.int16]:
        """The t of each word, in the shape of `words`."""
        found = self.guide.take((words >> GUIDED).view(np.int64))
        rest = np.flatnonzero(found == SEARCH)
        found.put(rest, _search(self.first, self.table, words.take(rest)))
        return found


@lru_cache(maxsize=32)
def thresholds(sigma: float) -> Thresholds:
    """The thresholds of a noise level, from multiprecision; kept, so that a σ costs its 50 ms (at 0.25; 0.4 s
    at 2) once a process.

    Raises FvitError where σ is not in (0, LARGEST_SIGMA].
    """
    if not 0 < sigma <= LARGEST_SIGMA:
        raise FvitError(
            f"σ = {sigma:g}: noise on the 8-bit grid needs σ above 0 and at most {LARGEST_SIGMA:g}"
        )
    lower = np.array(_tail(sigma), np.uint64)
    # Φ(−z) = 1 − Φ(z), and none of these 2⁶⁴ Φ is an integer.
    table = np.concatenate([lower[::-1], ~lower])
    first = -len(lower)
    starts = np.arange(2**17, dtype=np.uint64) << GUIDED
    low, high = (_search(first, table, words) for words in (starts, starts + np.uint64(2**47 - 1)))
    guide = np.where(low == high, low, SEARCH)
    for array in (table, guide):
        array.setflags(write=False)
    return Thresholds(first, table, guide)


def philox_key(pixels_sha256: str | bytes, *, size: tuple[int, int], seed: int) -> int:
    """The 128-bit Philox key of one picture's noise: the first half of SHA-256(seed as 8 bytes ‖ rows ‖
    columns as 4 bytes each, little-endian ‖ SHA-256 of its 8-bit pixels, H×W×3), read as little-endian.

    pixels_sha256: 32 bytes, or their 64 hexadecimal digits; size: (rows, columns).
    Raises FvitError where the seed is not in [0, 2⁶⁴).
    """
    if not 0 <= seed < 2**64:
        raise FvitError(f"seed = {seed}: give a whole number from 0 to 2⁶⁴ − 1")
    digest = bytes.fromhex(pixels_sha256) if isinstance(pixels_sha256, str) else pixels_sha256
    parts = (int(seed).to_bytes(8, "little"), *(int(side).to_bytes(4, "little") for side in size), digest)
    return int.from_bytes(hashlib.sha256(b"".join(parts)).digest()[:16], "little")


def draw(copies: NDArray[np.int64], *, size: int, key: int, sigma: float) -> NDArray[np.int16]:
    """t of the copies with these indices, int16 [len(copies), size]; element e is index e of the C-contiguous
    [3,H,W] pixels.

    copies: [B] indices ≥ 0; any order, repeats allowed. key: in [0, 2¹²⁸). Raises FvitError as thresholds.
    """
    law = thresholds(float(sigma))
    noise = np.empty((len(copies), size), np.int16)
    start = _words.start
    start["state"]["key"][:] = key & (2**64 - 1), key >> 64
    for row, copy in zip(noise, copies, strict=True):
        start["state"]["counter"][2] = copy
        _words.philox.state = start
        row[:] = law.integers(_words.philox.random_raw(size))
    return noise


def noisy_copies(pixels: NDArray[np.uint8], copies: range, *, sigma: float, key: int) -> NDArray[np.float32]:
    """(x₈ + t)/255 of each copy, divided in float32 and not clipped: [len(copies),3,H,W].

    pixels: [3,H,W]. Raises FvitError as thresholds.
    """
    indices = np.arange(copies.start, copies.stop, copies.step)
    drawn = draw(indices, size=pixels.size, key=key, sigma=sigma)
    drawn += pixels.reshape(-1)
    return np.divide(drawn, np.float32(255)).reshape(len(copies), *pixels.shape)


class _Words(local):
    """A thread's generator, and the state that it is set to: that takes a twentieth of the time of making
    another, which would ask the system for entropy that no key needs."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(key=0)
        self.start = self.philox.state


_words = _Words()


def _tail(sigma: float) -> list[int]:
    """⌊2⁶⁴ Φ(−(j+½)/(255σ))⌋ of j = 0, 1, … up to the first that is 0."""
    import mpmath

    found: list[int] = []
    with _computing:
        real = mpmath.MPContext()  # the process's own may be at any precision
        real.prec = BITS
        scale = 255 * real.mpf(sigma) * real.sqrt(2)
        while not found or found[-1]:
            z = (len(found) + real.mpf(0.5)) / scale
            found.append(int(real.floor(real.ldexp(real.erfc(z), 63))))
    return found


def _search(first: int, table: NDArray[np.uint64], words: NDArray[np.uint64]) -> NDArray[np.int16]:
    return (first + np.searchsorted(table[:-1], words, side="right")).astype(np.int16)
