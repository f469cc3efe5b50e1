"""The filter's budget converts back to its ε; the order comes from the programme; the odometer is not loose."""

from __future__ import annotations

import math
from decimal import Decimal

import dp_accounting
import pytest
from dp_accounting import rdp
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger.filter import choose_order, compute_budget, read_odometer
from fedtwin_shared.ledger.mechanism import DiscreteLaplace, Gaussian, NotPrivate, PoissonGaussian, Use
from fedtwin_shared.ledger.plan_price import price_plan
from fedtwin_shared.ledger.renyi import ORDERS, convert_to_epsilon, price_of, price_uses

DELTA = Decimal("0.000001")
KEPT = 1e-6 - 1e-9  # what is left of it beside the slack of real noise


def steps(rate: str, noise: str, count: int) -> Use:
    mechanism = PoissonGaussian(sampling_rate=Decimal(rate), noise_multiplier=Decimal(noise))
    return Use(mechanism=mechanism, count=count)


@settings(max_examples=50, deadline=None)
@given(epsilon=st.decimals("0.1", "50", places=3), order=st.sampled_from(ORDERS))
def test_the_budget_converts_to_the_epsilon_and_one_nano_more_does_not(epsilon: Decimal, order: int) -> None:
    budget = compute_budget(epsilon, DELTA, order=order)
    if budget > 0:
        assert convert_to_epsilon(budget, order=order, delta=DELTA) <= epsilon
        assert convert_to_epsilon(budget + 2, order=order, delta=DELTA) > epsilon


def test_the_conversion_is_the_published_one() -> None:
    """Against dp-accounting at a single order: 2 billion nano-RDP at order 5."""
    accountant = rdp.RdpAccountant(orders=[5])
    accountant.compose(dp_accounting.GaussianDpEvent(math.sqrt(5 / 4)))
    expected = accountant.get_epsilon(KEPT)
    assert math.isclose(convert_to_epsilon(2_000_000_000, order=5, delta=DELTA), expected, rel_tol=1e-9)


@pytest.mark.parametrize(
    ("rate", "noise", "epsilon", "allowed"),
    # Steps that a filter admits; the best order of a fixed plan by Rényi and by privacy-loss distributions gives 522 /
    # 649, 3742 / 4267, 271 / 307 and 37 / 41: no filter may allow more than the latter.
    [("0.02", "1.1", "3", (510, 649)), ("0.02", "1.1", "8", (3700, 4267)), ("1", "10", "3", (36, 41))],
)
def test_an_order_from_the_programme_loses_little(
    rate: str, noise: str, epsilon: str, allowed: tuple[int, int]
) -> None:
    order = choose_order(Decimal(epsilon), DELTA, [steps(rate, noise, 100)])
    curve = price_of(steps(rate, noise, 1).mechanism)
    assert curve is not None
    admitted = compute_budget(Decimal(epsilon), DELTA, order=order) // curve[ORDERS.index(order)]
    assert allowed[0] <= admitted <= allowed[1]
    assert price_plan([steps(rate, noise, admitted)], delta=DELTA) <= float(epsilon)


def test_an_order_needs_a_programme_with_noise_and_an_epsilon_in_reach() -> None:
    for programme in ([], [Use(mechanism=NotPrivate())], [steps("0.1", "1", 1), Use(mechanism=NotPrivate())]):
        with pytest.raises(VerificationError):
            choose_order(Decimal(8), DELTA, programme)
    with pytest.raises(VerificationError):
        choose_order(Decimal("0.01"), DELTA, [steps("0.1", "1", 1)])


def test_the_odometer_lies_between_the_best_fixed_order_and_a_little_more() -> None:
    programme = [steps("0.05", "1", 200), steps("0.02", "0.8", 300)]
    order = choose_order(Decimal(8), DELTA, programme)
    curve = price_uses(programme)
    assert curve is not None
    best = min(convert_to_epsilon(nano, order=at, delta=DELTA) for at, nano in zip(ORDERS, curve, strict=True))
    shown = read_odometer(curve, order=order, delta=DELTA)
    assert best < shown < best * Decimal("1.2")
    assert price_plan(programme, delta=DELTA) < shown


def test_the_odometer_never_goes_back_and_starts_at_nothing() -> None:
    shown = [
        read_odometer(price_uses([steps("0.05", "1", count)]) or (), order=4, delta=DELTA)
        for count in (1, 50, 100, 200)
    ]
    assert shown == sorted(shown)
    assert read_odometer((0,) * len(ORDERS), order=4, delta=DELTA) == 0


@pytest.mark.parametrize("own", [10, 2])
def test_the_odometer_by_hand(own: int) -> None:
    """One Gaussian of noise 2; the best order is the filter's own, or one of the many that share the other half."""
    curve = price_of(Gaussian(noise_multiplier=Decimal(2)))
    assert curve is not None
    by_hand = min(
        order / 8 - math.log((0.5 if order == own else 0.5 / (len(ORDERS) - 1)) * KEPT) / (order - 1)
        for order in ORDERS
    )
    assert math.isclose(read_odometer(curve, order=own, delta=DELTA), by_hand, abs_tol=2e-9)


@pytest.mark.parametrize("delta", ["0.000000001", "0.0000000001", "1"])
def test_a_delta_that_the_slack_uses_up_is_no_claim(delta: str) -> None:
    for convert in (
        lambda: compute_budget(Decimal(8), Decimal(delta), order=4),
        lambda: convert_to_epsilon(1, order=4, delta=Decimal(delta)),
        lambda: read_odometer((1,) * len(ORDERS), order=4, delta=Decimal(delta)),
    ):
        with pytest.raises(VerificationError, match="delta"):
            convert()


def test_a_plan_is_priced_by_its_privacy_loss() -> None:
    assert price_plan([], delta=DELTA) == 0
    assert price_plan([Use(mechanism=NotPrivate())], delta=DELTA) == math.inf
    # Pure ε of discrete Laplace at a δ of almost nothing: sensitivity / scale.
    laplace = Use(mechanism=DiscreteLaplace(scale=Decimal(10), sensitivity=2), count=3)
    assert math.isclose(price_plan([laplace], delta=Decimal("0.000000000001")), 0.6, abs_tol=1e-3)
    # Balle, Wang (ICML 2018), Theorem 8: the exact ε of one Gaussian.
    gaussian = Use(mechanism=Gaussian(noise_multiplier=Decimal(4), hospitals=2))
    assert math.isclose(
        price_plan([gaussian], delta=DELTA), dp_accounting.get_epsilon_gaussian(2.0, 1e-6), abs_tol=1e-3
    )
