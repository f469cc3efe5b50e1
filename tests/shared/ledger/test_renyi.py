"""Prices agree with other people's code, with sums done by hand and with closed forms, and are never too small."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from dp_accounting.pld.privacy_loss_mechanism import DiscreteLaplacePrivacyLoss
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants.analysis import rdp as opacus_rdp

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger import second_opinion
from fedtwin_shared.ledger.mechanism import DiscreteLaplace, Gaussian, Mechanism, NotPrivate, PoissonGaussian, Use
from fedtwin_shared.ledger.renyi import NANO, ORDERS, convert_to_epsilon, price_of, price_uses


def sampled(rate: str, noise: str, hospitals: int = 1) -> PoissonGaussian:
    return PoissonGaussian(sampling_rate=Decimal(rate), noise_multiplier=Decimal(noise), hospitals=hospitals)


def curve_of(mechanism: Mechanism) -> tuple[int, ...]:
    curve = price_of(mechanism)
    assert curve is not None
    return curve


@pytest.mark.parametrize(
    "mechanism",
    [
        *[sampled(rate, noise) for rate in ("0.000001", "0.01", "0.05", "0.3", "0.9", "1") for noise in ("0.3", "1")],
        *[sampled("0.02", noise) for noise in ("0.8", "2.5", "100")],
        sampled("0.05", "1.6", 2),
        Gaussian(noise_multiplier=Decimal("0.7")),
        Gaussian(noise_multiplier=Decimal(30), hospitals=3),
        *[
            DiscreteLaplace(scale=Decimal(scale), sensitivity=size)
            for scale, size in ((1, 1), (20, 1), (50, 7), (1000, 1000))
        ],
        NotPrivate(),
    ],
)
def test_two_independent_computations_agree(mechanism: Mechanism) -> None:
    second_opinion.verify_price(mechanism)


@pytest.mark.parametrize(("scale", "size"), [(1_000_000, 1), (100_000_000, 1000)])
def test_the_largest_noise_costs_its_reader_few_terms(monkeypatch: pytest.MonkeyPatch, scale: int, size: int) -> None:
    lost, asked = DiscreteLaplacePrivacyLoss.privacy_loss, 0

    def count(self: DiscreteLaplacePrivacyLoss, point: float) -> float:
        nonlocal asked
        asked += 1
        assert asked <= 1001
        return float(lost(self, point))

    monkeypatch.setattr(DiscreteLaplacePrivacyLoss, "privacy_loss", count)
    second_opinion.verify_price(DiscreteLaplace(scale=Decimal(scale), sensitivity=size))
    assert asked == size + 1


def test_a_disagreement_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    mechanism = sampled("0.05", "1")
    wrong = tuple(nano + nano // 100_000 + 10 for nano in curve_of(mechanism))
    monkeypatch.setattr(second_opinion, "price_of", lambda _: wrong)
    with pytest.raises(VerificationError):
        second_opinion.verify_price(mechanism)


@pytest.mark.parametrize(("rate", "noise"), [("0.05", "1"), ("0.02", "0.8"), ("0.3", "5"), ("1", "3")])
def test_opacus_agrees(rate: str, noise: str) -> None:
    theirs = opacus_rdp.compute_rdp(q=float(rate), noise_multiplier=float(noise), steps=1, orders=list(ORDERS))
    for nano, nats in zip(curve_of(sampled(rate, noise)), theirs, strict=True):
        assert math.isclose(nano, nats * NANO, rel_tol=1e-6, abs_tol=3)


def test_known_values_never_change() -> None:
    """Part of the ledger's format: an entry's price is recomputed for as long as the entry is kept."""
    known: dict[Mechanism, tuple[int, ...]] = {
        sampled("0.05", "1"): (4_286_505, 7_261_244, 11_416_269, 18_589_236),
        Gaussian(noise_multiplier=Decimal(10)): (10_000_000, 15_000_000, 20_000_000, 25_000_000),
        DiscreteLaplace(scale=Decimal(20)): (2_497_400, 3_739_886, 4_974_170, 6_197_325),
    }
    assert {mechanism: curve_of(mechanism)[:4] for mechanism in known} == known


def test_one_order_by_hand() -> None:
    """At order 2 the sampled Gaussian's moment is 1 + q² (exp(1/σ²) - 1)."""
    exact = math.log1p(0.05**2 * math.expm1(1.0)) * NANO
    assert curve_of(sampled("0.05", "1"))[0] == math.ceil(exact)


def test_an_unsampled_gaussian_is_exact() -> None:
    for order, nano in zip(ORDERS, curve_of(Gaussian(noise_multiplier=Decimal("0.7"))), strict=True):
        exact = Fraction(order) * NANO / (2 * Fraction(7, 10) ** 2)
        assert 0 <= nano - exact < 1


def test_prices_are_rounded_up_and_at_most_by_one() -> None:
    """A Gaussian computed the long way, through the sampled formula at a rate of almost 1, lies just below."""
    almost = curve_of(sampled("0.999999999", "2"))
    for below, exact in zip(almost, curve_of(Gaussian(noise_multiplier=Decimal(2))), strict=True):
        assert 0 <= exact - below <= 40


def test_discrete_laplace_on_a_fine_grid_is_laplace() -> None:
    """Mironov (CSF 2017), Proposition 6, at order 3 and scale 2."""
    fine = curve_of(DiscreteLaplace(scale=Decimal(2000), sensitivity=1000))[1]
    exact = math.log(3 / 5 * math.exp(2 / 2) + 2 / 5 * math.exp(-3 / 2)) / 2
    assert math.isclose(fine / NANO, exact, rel_tol=1e-6)


def test_a_patient_at_two_hospitals_is_a_shift_of_twice_the_norm() -> None:
    assert price_of(sampled("0.05", "1.6", 2)) == price_of(sampled("0.05", "0.8"))
    # 300 steps, δ = 1e-5: two sites cost more than the sum of two single sites.
    delta = Decimal("0.00001")
    one, two = (price_uses([Use(mechanism=sampled("0.05", "1.6", sites), count=300)]) for sites in (1, 2))
    assert one is not None
    assert two is not None
    single, both = (
        min(convert_to_epsilon(nano, order=order, delta=delta) for order, nano in zip(ORDERS, curve, strict=True))
        for curve in (one, two)
    )
    assert both > 2 * single


@settings(max_examples=25, deadline=None)
@given(
    rate=st.decimals("0.0001", "0.99", places=4),
    noise=st.decimals("0.5", "20", places=2),
    steps=st.integers(1, 10_000),
)
def test_more_noise_less_sampling_and_fewer_runs_never_cost_more(rate: Decimal, noise: Decimal, steps: int) -> None:
    curve = curve_of(PoissonGaussian(sampling_rate=rate, noise_multiplier=noise))
    quieter = curve_of(PoissonGaussian(sampling_rate=rate, noise_multiplier=noise + 1))
    rarer = curve_of(PoissonGaussian(sampling_rate=rate / 2, noise_multiplier=noise))
    assert all(one >= other for one, other in zip(curve, quieter, strict=True))
    assert all(one >= other for one, other in zip(curve, rarer, strict=True))
    assert list(curve) == sorted(curve)  # Rényi divergence grows with the order
    use = Use(mechanism=PoissonGaussian(sampling_rate=rate, noise_multiplier=noise), count=steps)
    assert price_uses([use]) == tuple(steps * nano for nano in curve)


def test_no_noise_is_infinite() -> None:
    assert price_of(NotPrivate()) is None
    assert price_uses([Use(mechanism=sampled("0.05", "1")), Use(mechanism=NotPrivate())]) is None


def test_nothing_spent_is_nothing() -> None:
    assert convert_to_epsilon(0, order=4, delta=Decimal("0.000001")) == 0
    assert price_uses([]) == (0,) * len(ORDERS)
