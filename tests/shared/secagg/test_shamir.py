from __future__ import annotations

import os
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtwin_shared.secagg.shamir import PRIME, SHARE_BYTES, is_share, read_share, recover_secrets, share_secrets

Secrets = st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=4)
EXTREMES = [bytes(32), b"\xff" * 32, b"\x01" + bytes(31), bytes(31) + b"\x80"]


@given(secrets=Secrets, holders=st.integers(3, 12), seed=st.integers(0, 2**32), threshold=st.integers(2, 12))
def test_any_threshold_of_holders_recovers_the_secrets(
    secrets: list[bytes], holders: int, seed: int, threshold: int
) -> None:
    threshold = min(threshold, holders)
    rows = share_secrets(secrets, threshold=threshold, holders=holders, draw=os.urandom)
    chosen = random.Random(seed).sample(range(holders), threshold)
    assert recover_secrets([rows[holder] for holder in chosen], chosen) == secrets


def test_two_hundred_holders_and_extreme_secrets() -> None:
    rows = share_secrets(EXTREMES, threshold=134, holders=200, draw=os.urandom)
    assert rows.shape == (200, 4, 9)
    assert (rows < PRIME).all()
    chosen = list(range(66, 200))
    assert recover_secrets([rows[holder] for holder in chosen], chosen) == EXTREMES


def test_the_arrays_give_what_polynomials_give() -> None:
    # Shamir's own formula, one limb at a time, in Python's integers; the stream of randomness is known here.
    stream = random.Random(3).randbytes(4 * 2 * 9)
    rows = share_secrets([EXTREMES[2]], threshold=3, holders=4, draw=lambda count: stream[:count])
    drawn = [int(number) & PRIME for number in np.frombuffer(stream, dtype="<u4")]
    limbs = [1, *[0] * 8]
    for holder in range(4):
        x = holder + 1
        for limb in range(9):
            highest, middle = drawn[limb], drawn[9 + limb]
            assert rows[holder, 0, limb] == (limbs[limb] + middle * x + highest * x * x) % PRIME


def test_one_share_too_few_is_consistent_with_every_secret() -> None:
    # Of degree 2 through (0, secret), (1, a), (2, b): its value at 3 is secret - 3a + 3b. So a third share exists for
    # whatever secret one likes, and two shares alone exclude none.
    rows = share_secrets([EXTREMES[0]], threshold=3, holders=3, draw=os.urandom).astype(object)
    for secret in EXTREMES:
        number = int.from_bytes(secret, "little")
        limbs = [number >> 29 * limb & 2**29 - 1 for limb in range(9)]
        third = [(one - 3 * a + 3 * b) % PRIME for one, a, b in zip(limbs, rows[0, 0], rows[1, 0], strict=True)]
        shares = [np.array([share], dtype=np.uint32) for share in (rows[0, 0], rows[1, 0], third)]
        assert recover_secrets(shares, [0, 1, 2]) == [secret]


def test_a_number_outside_the_field_is_drawn_again() -> None:
    answers = [b"\xff" * 36, b"\x05\x00\x00\x00" * 9]
    rows = share_secrets([bytes(32)], threshold=2, holders=2, draw=lambda count: answers.pop(0))
    assert (rows[0] == 5).all()
    assert (rows[1] == 10).all()
    assert answers == []


def test_shares_that_make_no_secret_are_none() -> None:
    rows = share_secrets([bytes(32)], threshold=2, holders=2, draw=os.urandom)
    wrong = rows[1].copy()
    wrong[0, 8] = (int(wrong[0, 8]) + 2**30) % PRIME
    assert recover_secrets([rows[0], wrong], [0, 1]) == [None]


def test_a_share_outside_the_field_is_refused() -> None:
    good, bad = bytes(SHARE_BYTES), PRIME.to_bytes(4, "little") + bytes(SHARE_BYTES - 4)
    assert is_share(good)
    assert not is_share(bad)
    assert not is_share(good + bytes(4))
    with pytest.raises(ValueError, match="below"):
        read_share(bad)


def test_a_secret_of_another_length_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        share_secrets([bytes(31)], threshold=2, holders=2, draw=os.urandom)
