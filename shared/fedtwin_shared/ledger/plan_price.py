"""The ε of ONE fixed, signed plan, by composition of privacy-loss distributions, and of nothing else.

Design note: such a composition is exact for a plan whose every mechanism was fixed before the first answer. It is no
filter: for whatever was chosen later, in one study or across studies, only `filter` gives a true number. A plan that
declares how often it may be attempted passes that many uses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal

import dp_accounting
from dp_accounting import dp_event, pld

from fedtwin_shared.ledger.mechanism import DiscreteLaplace, Gaussian, Mechanism, NotPrivate, PoissonGaussian, Use
from fedtwin_shared.privacy import PLD_INTERVAL


def price_plan(plan: Sequence[Use], *, delta: Decimal) -> float:
    """Return the ε of a whole plan at `delta`, all its declared attempts included; ∞ for anything without noise.

    Source: Koskela, Jälkö, Honkela (AISTATS 2020); Doroshenko et al. (PoPETs 2022 (4)); library dp-accounting 0.6.

    - nothing planned: 0
    """
    if not plan:
        return 0.0
    accountant = pld.PLDAccountant(value_discretization_interval=PLD_INTERVAL)
    for use in plan:
        event = _event(use.mechanism)
        if event is None:
            return math.inf
        accountant.compose(event, use.count)
    return float(accountant.get_epsilon(float(delta)))


def _event(mechanism: Mechanism) -> dp_accounting.DpEvent | None:
    match mechanism:
        case NotPrivate():
            return None
        case Gaussian(noise_multiplier=noise, hospitals=hospitals):
            return dp_accounting.GaussianDpEvent(float(noise / hospitals))
        case PoissonGaussian(sampling_rate=rate, noise_multiplier=noise, hospitals=hospitals):
            gaussian = dp_accounting.GaussianDpEvent(float(noise / hospitals))
            return dp_accounting.PoissonSampledDpEvent(float(rate), gaussian)
        case DiscreteLaplace(scale=scale, sensitivity=sensitivity):
            return dp_event.DiscreteLaplaceDpEvent(noise_parameter=1 / float(scale), sensitivity=sensitivity)
