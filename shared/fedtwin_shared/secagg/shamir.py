"""Shamir's secret sharing (CACM 1979) of 256-bit secrets, many at once, in shares of constant size.

A secret is nine limbs of 29 bits, each shared by itself over the prime field of 2^31 - 1: fewer than t shares of a limb
say nothing about it, whatever the limb. Small limbs make a share an array of 32-bit numbers and Horner's rule one
multiplication of arrays, where integers of 256 bits would cost 100 times as much in Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from fedtwin_shared.secagg.terms import Draw

PRIME: Final = 2**31 - 1
LIMBS: Final = 9
LIMB_BITS: Final = 29
SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 4 * LIMBS

Elements = npt.NDArray[np.uint64]
Shares = npt.NDArray[np.uint32]


def share_secrets(secrets: Sequence[bytes], *, threshold: int, holders: int, draw: Draw) -> Shares:
    """Return u32[holders, secrets, 9]: row h is what holder h gets, the polynomial's values at h + 1.

    - any `threshold` rows recover the secrets, and fewer are independent of them
    """
    lowest = np.array([_split(secret) for secret in secrets], dtype=np.uint64)
    others = _draw_elements((threshold - 1) * lowest.size, draw).reshape(threshold - 1, *lowest.shape)
    points = np.arange(1, holders + 1, dtype=np.uint64)[:, None, None]
    values = np.zeros((holders, *lowest.shape), dtype=np.uint64)
    for coefficient in (*others, lowest):
        values *= points  # below 2^31 · 2^8, and Horner's rule keeps it there
        values += coefficient
        values = _fold(values)
    values[values >= PRIME] -= PRIME
    return values.astype("<u4")


def recover_secrets(shares: Sequence[Shares], holders: Sequence[int]) -> list[bytes | None]:
    """Return the secrets of which `shares` (each u32[secrets, 9]) are the rows of these holders.

    None stands for shares of which no secret could have been made: they lie on no polynomial of the right kind.
    """
    total = np.zeros(shares[0].shape, dtype=np.uint64)
    for share, weight in zip(shares, _weights(holders), strict=True):
        total += _fold(share.astype(np.uint64) * np.uint64(weight))
        total = _fold(total)
    total[total >= PRIME] -= PRIME
    return [_join([int(limb) for limb in row]) for row in total]


def read_share(data: bytes | memoryview) -> Shares:
    """Return u32[secrets, 9] of a share's bytes. Raises `ValueError` for numbers outside the field."""
    share = np.frombuffer(data, dtype="<u4").reshape(-1, LIMBS)
    if not (share < PRIME).all():
        raise ValueError("expected numbers below 2^31 - 1, found others")
    return share


def is_share(data: bytes) -> bool:
    """Return whether these are the bytes of one share: nine numbers of the field."""
    return len(data) == SHARE_BYTES and bool((np.frombuffer(data, dtype="<u4") < PRIME).all())


def _weights(holders: Sequence[int]) -> list[int]:
    """Lagrange's weights at 0, of the points h + 1."""
    points = [holder + 1 for holder in holders]
    found = []
    for point in points:
        above = below = 1
        for other in points:
            if other != point:
                above, below = above * other % PRIME, below * (other - point) % PRIME
        found.append(above * pow(below, -1, PRIME) % PRIME)
    return found


def _fold(values: Elements) -> Elements:
    """Values below 2^62 modulo 2^31 - 1, up to one multiple of it: 2^31 = 1 there."""
    once = (values & np.uint64(PRIME)) + (values >> np.uint64(31))
    return (once & np.uint64(PRIME)) + (once >> np.uint64(31))


def _draw_elements(count: int, draw: Draw) -> Elements:
    """Uniform elements of the field: 31 bits, drawn again where they are 2^31 - 1."""
    found = np.frombuffer(draw(4 * count), dtype="<u4") & np.uint32(PRIME)
    while (again := found == PRIME).any():
        found[again] = np.frombuffer(draw(4 * int(again.sum())), dtype="<u4") & np.uint32(PRIME)
    return found.astype(np.uint64)


def _split(secret: bytes) -> list[int]:
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"expected {SECRET_BYTES} bytes, found {len(secret)}")
    number = int.from_bytes(secret, "little")
    return [number >> LIMB_BITS * limb & (1 << LIMB_BITS) - 1 for limb in range(LIMBS)]


def _join(limbs: Sequence[int]) -> bytes | None:
    number = sum(limb << LIMB_BITS * place for place, limb in enumerate(limbs))
    if max(limbs) >> LIMB_BITS or number >> 8 * SECRET_BYTES:
        return None
    return number.to_bytes(SECRET_BYTES, "little")
