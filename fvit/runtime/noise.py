"""Counter-based noise (DESIGN section 5): copy i of a seed is the same noise wherever it is drawn,
to the rounding of float32 where another machine computes logarithm, sine and cosine differently.

Philox4x32-10 (Salmon et al., SC 2011), keyed by the seed. The counter of element e of copy i is
(e // 4, 0, i mod 2³², i div 2³²); its four words become four normals by Box-Muller in float32.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
WORD = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)

# Lanes that are worked on at once: six arrays of this length stay in a core's L2 cache.
LANES = 16384


def philox(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Philox4x32-10: counter [4, M], 32-bit words held as uint64 -> [4, M] random words likewise.

    `counter` is overwritten. key: two 32-bit words.
    """
    c0, c1, c2, c3 = counter
    p0, p1 = np.empty_like(c0), np.empty_like(c0)
    k0, k1 = key
    for _ in range(ROUNDS):
        np.multiply(c0, MULTIPLIERS[0], out=p0)
        np.multiply(c2, MULTIPLIERS[1], out=p1)
        # (c0, c1, c2, c3) <- (hi(p1)^c1^k0, lo(p1), hi(p0)^c3^k1, lo(p0)), without temporaries.
        np.right_shift(p1, HALF, out=c0)
        np.bitwise_xor(c0, c1, out=c0)
        np.bitwise_xor(c0, np.uint64(k0), out=c0)
        np.bitwise_and(p1, WORD, out=c1)
        np.right_shift(p0, HALF, out=c2)
        np.bitwise_xor(c2, c3, out=c2)
        np.bitwise_xor(c2, np.uint64(k1), out=c2)
        np.bitwise_and(p0, WORD, out=c3)
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return counter


def draw(copies: NDArray[np.int64], *, size: int, seed: int) -> NDArray[np.float32]:
    """Standard normal noise [len(copies), size] of the copies with these indices.

    copies: [B] indices ≥ 0; any order, repeats allowed. seed: in [0, 2⁶⁴).
    """
    blocks = -(-size // 4)
    noise = np.empty((len(copies), 4 * blocks), np.float32)
    key = (seed & 0xFFFFFFFF, seed >> 32)
    step = max(1, LANES // blocks)
    for first in range(0, len(copies), step):
        rows = np.asarray(copies[first : first + step]).astype(np.uint64)
        counter = np.empty((4, len(rows), blocks), np.uint64)
        counter[0] = np.arange(blocks, dtype=np.uint64)
        counter[1] = 0
        counter[2] = (rows & WORD)[:, None]
        counter[3] = (rows >> HALF)[:, None]
        words = philox(counter.reshape(4, -1), key)
        _box_muller(words, noise[first : first + step].reshape(-1, 4))
    return noise[:, :size]


def _box_muller(words: NDArray[np.uint64], normals: NDArray[np.float32]) -> None:
    """words [4, M] -> normals [M, 4]; each pair of words gives a radius and an angle.

    The radius keeps all 32 bits, so that tails reach 6.7; the angle takes 24, which float32 holds
    exactly, so that every device turns the same word into the same angle.
    """
    radius = words[0::2].astype(np.float32)
    radius *= np.float32(2.0**-32)
    radius += np.float32(2.0**-33)
    np.log(radius, out=radius)
    radius *= np.float32(-2.0)
    np.sqrt(radius, out=radius)
    angle = (words[1::2] >> np.uint64(8)).astype(np.float32)
    angle *= np.float32(2.0**-24)
    angle *= np.float32(2.0 * np.pi)
    np.multiply(radius, np.cos(angle), out=normals[:, 0::2].T)
    np.multiply(radius, np.sin(angle), out=normals[:, 1::2].T)
