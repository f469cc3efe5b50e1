from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from fedtwin_shared.privacy import (
    DELTA_SLACK,
    Mechanism,
    PrivacyBudget,
    PrivacyEvent,
    accounted_delta,
    calibrate_noise,
    compute_epsilon,
    compute_epsilon_renyi,
)

NAN = float("nan")


def sampled(rate: float, noise: float, count: int) -> PrivacyEvent:
    return PrivacyEvent(mechanism=Mechanism.POISSON_GAUSSIAN, sampling_rate=rate, noise_multiplier=noise, count=count)


def gaussian(noise: float, count: int = 1) -> PrivacyEvent:
    return PrivacyEvent(mechanism=Mechanism.GAUSSIAN, noise_multiplier=noise, count=count)


@pytest.mark.parametrize(
    ("event", "expected"),
    [  # research figures measured with dp-accounting's PLD and Opacus' PRV, delta 1e-5
        (sampled(0.05, 1.0, 100), 3.502),
        (sampled(0.05, 1.0, 1000), 10.987),
        (sampled(0.05, 5.0, 1000), 1.226),
        (sampled(0.1, 0.3, 1000), 506.0),
    ],
)
def test_epsilon_of_subsampled_gaussians_matches_independent_figures(event: PrivacyEvent, expected: float) -> None:
    assert compute_epsilon([event], delta=1e-5) == pytest.approx(expected, rel=1e-3)


@given(st.floats(0.5, 50), st.integers(1, 100), st.sampled_from([1e-3, 1e-5, 1e-6]))
def test_epsilon_of_gaussians_is_the_analytic_one(noise: float, count: int, delta: float) -> None:
    mu = math.sqrt(count) / noise

    def excess(epsilon: float) -> float:  # Balle, Wang (ICML 2018) Theorem 8
        tail = norm.logcdf(-epsilon / mu - mu / 2) + epsilon
        return float(norm.cdf(-epsilon / mu + mu / 2) - np.exp(tail)) - delta

    expected = 0.0 if excess(0.0) <= 0 else brentq(excess, 0.0, mu * mu / 2 + 40 * mu + 1)
    assert compute_epsilon([gaussian(noise, count)], delta=delta) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_nothing_ran_costs_nothing() -> None:
    assert compute_epsilon([], delta=1e-5) == 0.0
    assert compute_epsilon([gaussian(1.0, 0)], delta=1e-5) == 0.0


def test_anything_without_noise_costs_everything() -> None:
    open_event = PrivacyEvent(mechanism=Mechanism.NOT_PRIVATE, noise_multiplier=0.0)
    assert compute_epsilon([gaussian(100.0), open_event], delta=1e-5) == math.inf
    assert compute_epsilon_renyi([open_event], delta=1e-5) == math.inf


@settings(max_examples=15, deadline=None)
@given(st.sampled_from([0.05, 0.25, 1.0]), st.floats(0.8, 8), st.integers(1, 60))
def test_more_of_the_same_event_never_costs_less(rate: float, noise: float, count: int) -> None:
    one = compute_epsilon([sampled(rate, noise, count)], delta=1e-5)
    assert compute_epsilon([sampled(rate, noise, count + 5)], delta=1e-5) >= one
    # the second opinion is an upper bound
    assert compute_epsilon_renyi([sampled(rate, noise, count)], delta=1e-5) >= one * (1 - 1e-6)


def test_sampling_makes_it_cheaper_and_mixing_adds_up() -> None:
    whole, part = (
        compute_epsilon([sampled(1.0, 2.0, 5)], delta=1e-5),
        compute_epsilon([sampled(0.2, 2.0, 5)], delta=1e-5),
    )
    assert part < whole
    both = compute_epsilon([sampled(1.0, 2.0, 5), sampled(0.2, 2.0, 5)], delta=1e-5)
    assert whole < both < whole + part + 1e-9


@settings(max_examples=8, deadline=None)
@given(st.sampled_from([0.25, 1.0]), st.integers(1, 80), st.sampled_from([0.5, 1.0, 3.0]))
def test_calibrated_noise_meets_the_budget_and_no_less_does(rate: float, steps: int, epsilon: float) -> None:
    budget = PrivacyBudget(epsilon=epsilon, delta=1e-5)
    noise = calibrate_noise(sampled(rate, 1.0, steps), budget)
    assert compute_epsilon([sampled(rate, noise, steps)], delta=1e-5) <= epsilon
    assert compute_epsilon([sampled(rate, noise * 0.99, steps)], delta=1e-5) > epsilon


@pytest.mark.parametrize(
    "arguments",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": NAN},
        {"noise_multiplier": math.inf},
        {"noise_multiplier": 1.0, "sampling_rate": 0.0},
        {"noise_multiplier": 1.0, "sampling_rate": NAN},
        {"noise_multiplier": 1.0, "sampling_rate": 1.1},
        {"noise_multiplier": 1.0, "count": -1},
    ],
)
def test_an_impossible_event_is_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        PrivacyEvent(mechanism=Mechanism.POISSON_GAUSSIAN, **arguments)  # type: ignore[arg-type]  # wrong on purpose


def test_an_unsampled_mechanism_claims_no_sampling() -> None:
    with pytest.raises(ValueError, match="sampling_rate 1"):
        PrivacyEvent(mechanism=Mechanism.GAUSSIAN, noise_multiplier=1.0, sampling_rate=0.1)


def test_a_plan_is_priced_below_its_delta() -> None:
    assert accounted_delta(1e-5) == 1e-5 - DELTA_SLACK
    for delta in (0.0, DELTA_SLACK, 1.0, NAN):
        with pytest.raises(ValueError, match="delta"):
            accounted_delta(delta)
    budget = PrivacyBudget(epsilon=1.0, delta=1.01 * DELTA_SLACK)
    noise = calibrate_noise(gaussian(1.0), budget)
    assert compute_epsilon([gaussian(noise)], delta=accounted_delta(budget.delta)) <= 1.0


@pytest.mark.parametrize(("epsilon", "delta"), [(0.0, 0.1), (NAN, 0.1), (1.0, 0.0), (1.0, 1.0), (1.0, NAN)])
def test_an_impossible_budget_is_refused(epsilon: float, delta: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        PrivacyBudget(epsilon=epsilon, delta=delta)


def test_an_impossible_delta_is_refused() -> None:
    with pytest.raises(ValueError, match="delta"):
        compute_epsilon([gaussian(1.0)], delta=NAN)
