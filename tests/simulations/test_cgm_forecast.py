"""The forecasts' protocol on made-up sensors, and on the real ones where they are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fedtwin_shared.errors import FedtwinError
from fedtwin_simulations.cgm_forecast import (
    LAGS,
    Readings,
    forecast_twin,
    measure_deleted,
    measure_skill,
    read_readings,
)

DATA = os.environ.get("FEDTWIN_DATA")


def made_up(periods: int = 6, count: int = 80) -> Readings:
    """Slow waves of different height; every second patient is fitted."""
    minute = np.tile(15 * np.arange(count), periods)
    period = np.repeat(np.arange(periods), count)
    noise = np.random.default_rng(0).normal(0, 1.0, len(minute))
    return Readings(
        period=period,
        minute=minute,
        glucose=140 + (20 + 5 * period) * np.sin(minute / 70 + period) + noise,
        meal=np.zeros(len(minute)),
        insulin=np.zeros(len(minute)),
        fitted=period % 2 == 0,
    )


def test_a_forecast_knows_nothing_of_what_comes_after() -> None:
    readings = made_up()
    whole = forecast_twin(readings)
    early = readings.minute <= 600
    cut = forecast_twin(Readings(**{name: getattr(readings, name)[early] for name in Readings.__slots__}))
    assert np.array_equal(whole.mean[60][early], cut.mean[60])
    assert np.array_equal(whole.variance[30][early], cut.variance[30])


def test_every_method_is_measured_on_the_same_forecasts_of_other_patients() -> None:
    readings = made_up()
    skills = measure_skill(readings)
    for minutes, steps in ((30, 2), (60, 4)):
        mine = [skill for skill in skills if skill.minutes == minutes]
        assert len(mine) == 5
        assert {skill.forecasts for skill in mine} == {3 * (80 - LAGS + 1 - steps)}
        rmse = {skill.method: skill.rmse for skill in mine}
        assert rmse["twin"] < rmse["persistence"]
    (half, _) = measure_deleted(readings, share=0.5)
    assert half.rmse > 0
    assert half.forecasts < 3 * 80 * 0.7


def test_a_folder_without_the_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FedtwinError, match="CGM readings"):
        read_readings(tmp_path)


@pytest.mark.skipif(DATA is None, reason="FEDTWIN_DATA: no real data here")
def test_the_real_set_is_read_whole() -> None:
    readings = read_readings(Path(str(DATA)) / "cgm_shanghai")
    assert len(readings.glucose) == 15_695 + 112_462
    assert readings.period.max() + 1 == 16 + 109
    assert 0.4 < readings.fitted.mean() < 0.6
    assert (readings.insulin > 0).sum() > 1_000
    assert (readings.meal > 0).sum() > 4_000
    assert np.all((readings.meal >= 0) & (readings.meal <= 90))
