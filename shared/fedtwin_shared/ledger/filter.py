"""When to say no, and what to show: a Rényi filter at one integer order, and an odometer that is valid at all times.

Design note: the filter admits whatever a later study asks for, however that was chosen after seeing earlier answers, as
long as the divergence at ONE order that was fixed in advance stays below a budget. Filters on privacy-loss
distributions have no such guarantee. The order is chosen from the declared programme, which is public.

Sources: Feldman, Zrnic (NeurIPS 2021), Rényi privacy filters; Lécuyer (arXiv 2103.01379), filter and odometer;
Canonne, Kamath, Steinke (NeurIPS 2020), Proposition 12, the conversion.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_FLOOR, Decimal, localcontext
from fractions import Fraction

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger.mechanism import Use
from fedtwin_shared.ledger.renyi import (
    ARITHMETIC,
    NANO,
    ORDERS,
    SLACK,
    Curve,
    conversion_gain,
    keep_slack,
    price_uses,
    round_up,
)


def compute_budget(epsilon: Decimal, delta: Decimal, *, order: int) -> int:
    """Return B = ε - ln(1 - 1/α) + (ln δ + ln α) / (α - 1) in nano-RDP, rounded down; below 0: nothing is possible.

    - nano-RDP up to B at this order convert to at most ε
    - δ in it is `delta` less the slack of real noise
    """
    with localcontext(ARITHMETIC):
        budget = (epsilon + conversion_gain(order, delta)) * NANO - SLACK
        return int(budget.to_integral_value(rounding=ROUND_FLOOR))


def choose_order(epsilon: Decimal, delta: Decimal, programme: Sequence[Use]) -> int:
    """Return the order at which the largest part of the budget is left by a programme: argmax B(α) / price(α).

    programme: everything one patient may take part in, as far as is known. Raises `VerificationError` for a programme
    without noise or without mechanisms, and for an (ε, δ) that no order of `ORDERS` can reach.
    """
    price = price_uses(programme)
    if not programme or price is None:
        raise VerificationError(field="programme", expected="mechanisms with noise", found="none, or one without")
    costs = dict(zip(ORDERS, price, strict=True))
    order = max(ORDERS, key=lambda order: Fraction(compute_budget(epsilon, delta, order=order), costs[order]))
    if not compute_budget(epsilon, delta, order=order) > 0:
        raise VerificationError(field="epsilon", expected="one that some order can reach", found=f"{epsilon}")
    return order


def read_odometer(spent: Curve, *, order: int, delta: Decimal) -> Decimal:
    """Return an ε that holds now and held at every earlier time, however later mechanisms were chosen; rounded up.

    min over α of spent(α) - ln(w_α δ) / (α - 1), with weight w = 1/2 at the filter's order and the rest spread evenly:
    exp((α - 1)(loss - spent(α))) is a supermartingale, so is its mixture over α, and Ville's inequality bounds it
    at all times at once (Ville 1939; Lécuyer, arXiv 2103.01379, §4 for the Rényi odometer).

    - nothing spent: 0
    - δ in it is `delta` less the slack of real noise
    """
    if not any(spent):
        return Decimal(0)
    with localcontext(ARITHMETIC):
        other, kept = Decimal(1) / (2 * (len(ORDERS) - 1)), keep_slack(delta)
        bounds = (
            Decimal(nano) / NANO - ((Decimal("0.5") if alpha == order else other) * kept).ln() / (alpha - 1)
            for alpha, nano in zip(ORDERS, spent, strict=True)
        )
        return round_up(min(bounds))
