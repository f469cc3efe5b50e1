from __future__ import annotations

import math
from dataclasses import replace

import pytest

from fedtwin_shared.privacy import Mechanism, PrivacyEvent, compute_epsilon
from fedtwin_shared.secagg.price import price_at_hospitals
from tests.soak import SOAK, only_in_soak

DELTA = 1e-6
STEPS = PrivacyEvent(mechanism=Mechanism.POISSON_GAUSSIAN, noise_multiplier=1.6, sampling_rate=0.05, count=300)


def test_two_hospitals_cost_more_than_twice_what_one_does() -> None:
    # The figures of the design review: 2.995 and 6.567.
    assert price_at_hospitals(STEPS, hospitals=2, delta=DELTA) == pytest.approx(6.567, abs=0.01)
    assert compute_epsilon([STEPS], delta=DELTA) == pytest.approx(2.995, abs=0.01)


@pytest.mark.parametrize("rate", [0.02, 0.5] if SOAK else [0.02])
def test_one_hospital_costs_what_a_step_costs(rate: float) -> None:
    event = replace(STEPS, sampling_rate=rate, noise_multiplier=6.0, count=10)
    found = price_at_hospitals(event, hospitals=1, delta=DELTA)
    assert found == pytest.approx(compute_epsilon([event], delta=DELTA), abs=2e-3)


@only_in_soak("seconds of convolutions")
def test_without_sampling_it_is_the_gaussian_with_that_many_times_the_shift() -> None:
    # Exact: Balle, Wang (ICML 2018), theorem 8, of noise σ/k, by dp-accounting's own function.
    event = PrivacyEvent(mechanism=Mechanism.POISSON_GAUSSIAN, noise_multiplier=8.0, count=1)
    half = PrivacyEvent(mechanism=Mechanism.GAUSSIAN, noise_multiplier=4.0)
    found = price_at_hospitals(event, hospitals=2, delta=DELTA)
    assert found == pytest.approx(compute_epsilon([half], delta=DELTA), abs=2e-3)


def test_nothing_costs_nothing_and_no_noise_everything() -> None:
    nothing = PrivacyEvent(mechanism=Mechanism.POISSON_GAUSSIAN, noise_multiplier=1.0, count=0)
    assert price_at_hospitals(nothing, hospitals=2, delta=DELTA) == 0
    plain = PrivacyEvent(mechanism=Mechanism.NOT_PRIVATE, noise_multiplier=0.0)
    assert price_at_hospitals(plain, hospitals=1, delta=DELTA) == math.inf
    with pytest.raises(ValueError, match="hospitals"):
        price_at_hospitals(STEPS, hospitals=0, delta=DELTA)
