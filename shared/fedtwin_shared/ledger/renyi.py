"""Rényi differential privacy at integer orders from the published formulas, as integers that are never too small.

Design note: a price is an integer number of nano-RDP (1e-9 of Rényi divergence, in nats), rounded up for one run of the
mechanism and then multiplied, so that prices add up exactly however a plan is cut into rounds. The arithmetic is
decimal with 60 digits, whose `exp` and `ln` are correctly rounded by specification (General Decimal Arithmetic 1.70):
an auditor on any machine gets the same integers, bit for bit. Integer orders only, where the formulas are exact.

`ORDERS` and the rounding are part of the format of the ledger: neither ever changes within a version of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from decimal import ROUND_CEILING, Context, Decimal, DivisionByZero, InvalidOperation, Overflow, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Final

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger.mechanism import DiscreteLaplace, Gaussian, Mechanism, NotPrivate, PoissonGaussian, Use
from fedtwin_shared.privacy import DELTA_SLACK

ORDERS: Final[tuple[int, ...]] = (*range(2, 65), 72, 80, 96, 112, 128, 160, 192, 256)
NANO: Final = 10**9
ARITHMETIC: Final = Context(
    prec=60, Emax=400_000_000, Emin=-400_000_000, traps=[InvalidOperation, DivisionByZero, Overflow]
)
# Far above the error of 60 digits after 100,000 operations on numbers up to 1e9, far below a nano.
SLACK: Final = Decimal("1e-30")

DELTA_KEPT: Final = Decimal(repr(DELTA_SLACK))

Curve = tuple[int, ...]  # nano-RDP at each of `ORDERS`


@lru_cache(maxsize=4096)
def price_of(mechanism: Mechanism) -> Curve | None:
    """Return the nano-RDP of one run at each of `ORDERS`, rounded up; None is ∞.

    - never below the true divergence
    - the same integers on every machine
    """
    with localcontext(ARITHMETIC):
        match mechanism:
            case Gaussian(noise_multiplier=noise, hospitals=hospitals):
                return _price_gaussian(noise, hospitals)
            case PoissonGaussian(sampling_rate=rate, noise_multiplier=noise, hospitals=hospitals):
                if rate == 1:
                    return _price_gaussian(noise, hospitals)
                return tuple(_divergence(*term) for term in _moments_poisson_gaussian(rate, noise / hospitals))
            case DiscreteLaplace(scale=scale, sensitivity=sensitivity):
                return tuple(_divergence(*term) for term in _moments_discrete_laplace(scale, sensitivity))
            case NotPrivate():
                return None


def price_uses(uses: Sequence[Use]) -> Curve | None:
    """Return the nano-RDP of all `uses` together: Rényi divergences add up (Mironov, CSF 2017, Proposition 1)."""
    total = (0,) * len(ORDERS)
    for use in uses:
        curve = price_of(use.mechanism)
        if curve is None:
            return None
        total = tuple(sum_ + use.count * one for sum_, one in zip(total, curve, strict=True))
    return total


def convert_to_epsilon(nano: int, *, order: int, delta: Decimal) -> Decimal:
    """Return the ε at `delta` of `nano` nano-RDP at `order`, rounded up to a billionth.

    Source: Canonne, Kamath, Steinke (NeurIPS 2020), Proposition 12.

    - nothing spent: 0
    """
    if nano == 0:
        return Decimal(0)
    with localcontext(ARITHMETIC):
        epsilon = Decimal(nano) / NANO - conversion_gain(order, delta)
        return max(Decimal(0), round_up(epsilon))


def conversion_gain(order: int, delta: Decimal) -> Decimal:
    """Return RDP minus ε at this order and δ: (ln δ + ln α) / (α - 1) - ln(1 - 1/α); negative at small δ.

    - δ here is `delta` less the slack of real noise
    """
    with localcontext(ARITHMETIC):
        alpha = Decimal(order)
        return (keep_slack(delta).ln() + alpha.ln()) / (alpha - 1) - (1 - 1 / alpha).ln()


def keep_slack(delta: Decimal) -> Decimal:
    """Return the δ at which a ledger converts, so that its claim holds at `delta` with the noise that is drawn in fact.

    See `privacy.DELTA_SLACK`. Raises `VerificationError` when nothing would be left.
    """
    if not DELTA_KEPT < delta < 1:
        raise VerificationError(field="delta", expected=f"above {DELTA_KEPT} and below 1", found=f"{delta}")
    return delta - DELTA_KEPT


def round_up(value: Decimal) -> Decimal:
    """Return the next multiple of a billionth at or above `value`."""
    return (value + SLACK).quantize(Decimal("1e-9"), rounding=ROUND_CEILING)


def _price_gaussian(noise: Decimal, hospitals: int) -> Curve:
    # Mironov (CSF 2017), Proposition 7: α / (2σ²), in exact fractions.
    variance = Fraction(noise) ** 2 / hospitals**2
    return tuple(math.ceil(NANO * order / (2 * variance)) for order in ORDERS)


def _moments_poisson_gaussian(rate: Decimal, noise: Decimal) -> Iterator[tuple[int, Decimal]]:
    """Yield order and moment A_α = Σ_k C(α, k) (1 - q)^(α - k) q^k exp((k² - k) / (2σ²)).

    Source: Mironov, Talwar, Zhang (arXiv 1908.10530): Theorem 5 (the worse direction), §3.3 (integer orders).
    """
    growth, odds = (1 / noise**2).exp(), rate / (1 - rate)
    weights, power = [Decimal(1)], Decimal(1)  # odds^k exp((k² - k) / (2σ²)), and exp(k / σ²)
    for _ in range(ORDERS[-1]):
        weights.append(weights[-1] * odds * power)
        power *= growth
    for order in ORDERS:
        terms = (math.comb(order, count) * weights[count] for count in range(order + 1))
        yield order, sum(terms, Decimal(0)) * (1 - rate) ** order


def _moments_discrete_laplace(scale: Decimal, sensitivity: int) -> Iterator[tuple[int, Decimal]]:
    """Yield order and moment Σ_x P(x)^α P(x - Δ)^(1 - α) of P(x) = (1 - p) / (1 + p) p^|x| with p = exp(-1 / scale).

    Three geometric series: x <= 0 and x >= Δ with ratio p, and between them r = p^(2α - 1). The logarithm is convex in
    Δ and 0 at 0, so a change spread over several integers costs no more than the same change of one.
    The distribution: Canonne, Kamath, Steinke (NeurIPS 2020), Definition 23; for fine grids the moment tends to that
    of the Laplace distribution (Mironov, CSF 2017, Proposition 6).
    """
    ratio = (-1 / scale).exp()
    for order in ORDERS:
        between = (-(2 * order - 1) / scale).exp()
        up, down = ((order - 1) * sensitivity / scale).exp(), (-order * sensitivity / scale).exp()
        outer, inner = 1 / (1 - ratio), 1 / (1 - between)
        yield order, (1 - ratio) / (1 + ratio) * ((outer + between * inner) * up + (outer - inner) * down)


def _divergence(order: int, moment: Decimal) -> int:
    """Return ln(moment) / (α - 1) in nano, rounded up."""
    return math.ceil(max(Decimal(0), moment.ln()) / (order - 1) * NANO + SLACK)
