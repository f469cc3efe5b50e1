from __future__ import annotations

import os
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtwin_shared.secagg.groups import assign_groups, clean_share, commit_nonce, group_terms
from fedtwin_shared.secagg.message import ProtocolError
from fedtwin_shared.secagg.terms import honest_sites, share_noise
from tests.shared.secagg.assembly import make_terms, site_names

CONTEXT = "0" * 64


def draw(count: int, seed: int = 0) -> tuple[dict[str, bytes], dict[str, bytes]]:
    nonces = {name: bytes([seed % 256, place]) * 16 for place, name in enumerate(site_names(count))}
    return {name: commit_nonce(nonce, context=CONTEXT, site=name) for name, nonce in nonces.items()}, nonces


@settings(max_examples=40)
@given(count=st.integers(3, 60), size=st.integers(3, 12), seed=st.integers(0, 255))
def test_every_site_is_in_one_group_and_no_group_is_too_small(count: int, size: int, seed: int) -> None:
    if count < size:
        return
    commitments, nonces = draw(count, seed)
    groups = assign_groups(commitments, nonces, context=CONTEXT, size=size)
    assert sorted(name for group in groups for name in group) == site_names(count)
    assert all(size <= len(group) <= 2 * size for group in groups)
    shuffled = {name: nonces[name] for name in reversed(nonces)}
    assert assign_groups(commitments, shuffled, context=CONTEXT, size=size) == groups


def test_any_ones_number_changes_the_groups_and_places_are_even() -> None:
    commitments, nonces = draw(12)
    together = Counter[tuple[str, ...]]()
    partners = Counter[str]()
    for _ in range(200):
        own = os.urandom(32)
        changed = {**nonces, "site-005": own}
        committed = {**commitments, "site-005": commit_nonce(own, context=CONTEXT, site="site-005")}
        groups = assign_groups(committed, changed, context=CONTEXT, size=4)
        together[groups[0]] += 1
        partners.update(next(group for group in groups if "site-000" in group))
    assert len(together) > 100
    # Each of 11 others shares a group with the first site 3 times in 11: six standard deviations of a binomial.
    for name in site_names(12)[1:]:
        assert abs(partners[name] - 200 * 3 / 11) < 6 * (200 * (3 / 11) * (8 / 11)) ** 0.5


def test_a_number_that_is_not_shown_or_is_another_names_its_site() -> None:
    commitments, nonces = draw(6)
    silent = {name: nonce for name, nonce in nonces.items() if name != "site-002"}
    with pytest.raises(ProtocolError, match="site-002: expected the number that was committed to, found none"):
        assign_groups(commitments, silent, context=CONTEXT, size=3)
    with pytest.raises(ProtocolError, match="site-003: expected the number that was committed to, found another"):
        assign_groups(commitments, {**nonces, "site-003": bytes(32)}, context=CONTEXT, size=3)
    other = {name: commit_nonce(nonce, context="1" * 64, site=name) for name, nonce in nonces.items()}
    with pytest.raises(ProtocolError, match="site-000"):
        assign_groups(other, nonces, context=CONTEXT, size=3)
    with pytest.raises(ValueError, match="at least 7 sites"):
        assign_groups(commitments, nonces, context=CONTEXT, size=7)
    with pytest.raises(ValueError, match="32 bytes"):
        commit_nonce(b"", context=CONTEXT, site="a")


def test_a_groups_terms_hold_with_every_dropout_and_colluder_in_it() -> None:
    terms = make_terms(12)
    found = group_terms(terms, site_names(7), dropouts=1, colluders=2, smallest=5)
    assert found.names == tuple(site_names(7))
    assert (found.threshold, found.dropouts, found.colluders) == (5, 1, 2)
    assert honest_sites(found) == 4
    assert share_noise(1.0, found) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least 6 sites"):
        group_terms(terms, site_names(5), dropouts=1, colluders=2, smallest=3)
    with pytest.raises(ValueError, match="at least 8 sites"):
        group_terms(terms, site_names(7), dropouts=1, colluders=2, smallest=8)


def test_few_groups_are_clean() -> None:
    # The design review's figure: 24 % at 20 % hostile of 50, groups of 6.
    assert clean_share(50, hostile=10, size=6) == pytest.approx(0.2416, abs=1e-4)
    assert clean_share(50, hostile=0, size=6) == 1
