"""A hospital that is killed at every step of real rounds: never more touched than charged, and the run still ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.kill_campaign import POINTS, Tally, run_campaign
from tests.soak import only_in_soak

RANDOM = "random instant"


def check(tally: Tally, *, kills: int) -> None:
    assert tally.kills >= kills
    assert sum(tally.deaths.values()) == tally.kills
    assert 0 < tally.released <= tally.touched <= tally.tasks
    # Every run of three rounds and two evaluations ended.
    assert tally.released >= 5 * tally.episodes
    assert tally.resumed >= tally.kills


@pytest.mark.slow
def test_a_hospital_that_is_killed_again_and_again_never_touches_more_than_it_charged(tmp_path: Path) -> None:
    tally = run_campaign(tmp_path, kills=30)
    check(tally, kills=30)
    assert len(tally.deaths) > len(POINTS) / 2


@pytest.mark.slow
@only_in_soak("1,000 kills")
def test_a_thousand_kills(tmp_path: Path) -> None:
    tally = run_campaign(tmp_path, kills=1000, seed=1)
    check(tally, kills=1000)
    assert len(tally.deaths) == len(POINTS) + 1
    assert tally.deaths[RANDOM] >= 300
    print(tally)
