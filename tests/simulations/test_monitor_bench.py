from __future__ import annotations

import numpy as np
import pytest

from fedtwin_client.monitoring.rules import RULES
from fedtwin_simulations.bench import BENCHES
from fedtwin_simulations.monitor_bench import (
    DAY,
    REPORTED_SEED,
    SEEDS,
    THRESHOLDS,
    Notified,
    Stream,
    alarm_raw,
    alarm_watched,
    find_episodes,
    make_stream,
    time_news2,
    weigh,
)


def stream(pressure: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> Stream:
    """One patient for a day, with everything but the pressure as usual."""
    usual = {"heart_rate": 75.0, "pulse_oximetry": 97.0, "respiratory_rate": 16.0}
    values = {"mean_pressure": pressure, **{key: np.full((1, DAY), value) for key, value in usual.items()}}
    return Stream(truth=values, readings=values)


def test_episodes_last_and_those_close_together_are_one() -> None:
    pressure = np.full((1, DAY), 85.0)
    pressure[0, 100:109] = 60  # too short
    pressure[0, 200:215] = 60
    pressure[0, 300:315] = 60
    pressure[0, 900:1000] = 60
    assert find_episodes(stream(pressure)) == [[(200, 314), (900, 999)]]
    assert alarm_raw(stream(pressure)).at == ([100, 200, 300, 900],)


def test_what_is_weighed() -> None:
    episodes = [[[(200, 300), (900, 1000)]]]
    standing = np.zeros((1, DAY), bool)
    found = weigh([Notified(at=([150, 210, 600],), standing=standing)], episodes)
    assert found.predictive_value == pytest.approx(2 / 3)
    assert (found.per_patient_day, found.sensitivity) == (3, 0.5)
    assert (found.delay, found.episodes) == (0, 2)
    standing[0, 905:] = True
    assert weigh([Notified(at=([210],), standing=standing)], episodes).sensitivity == 1.0
    assert weigh([Notified(at=([210],), standing=standing)], episodes).delay == 7.5


def test_a_day_in_little() -> None:
    assert "monitor" in BENCHES
    assert min(SEEDS) >= REPORTED_SEED
    few = make_stream(7, patients=2)
    assert np.mean([len(own) for own in alarm_raw(few).at]) > 10
    assert time_news2(patients=2000) > 0


def test_a_fall_of_pressure_is_one_notification() -> None:
    pressure = np.full((1, DAY), 85.0) + np.random.default_rng(0).normal(0, 3, (1, DAY))
    pressure[0, 60:180] -= 22
    whole = stream(pressure)
    rules = [rule for rule in RULES if rule.name in THRESHOLDS]
    found = alarm_watched(whole, rules=rules)
    assert len(found.at[0]) == 1
    assert 60 <= found.at[0][0] <= 75
    assert len(alarm_raw(whole).at[0]) > 5
