"""A second computation of every price by other people's code, which must agree with ours before anybody believes it.

dp-accounting 0.6 at integer orders for Gaussians; for discrete Laplace the sum over the integers with the privacy loss
of dp-accounting. Floating point: it confirms a price and never replaces one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import dp_accounting
import numpy as np
from dp_accounting import rdp
from dp_accounting.pld.privacy_loss_mechanism import DiscreteLaplacePrivacyLoss

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger.account import LedgerState
from fedtwin_shared.ledger.mechanism import DiscreteLaplace, Gaussian, Mechanism, NotPrivate, PoissonGaussian
from fedtwin_shared.ledger.renyi import NANO, ORDERS, price_of
from fedtwin_shared.ledger.state import verify_history

RELATIVE_TOLERANCE: Final = 1e-6  # largest difference seen over q = 1e-6 … 0.9, σ = 0.3 … 100: below 1e-7
# Double precision leaves about 1e-16 of a moment near 1; ours is rounded up by at most 1 nano.
NANO_TOLERANCE: Final = 3


def compute_second_opinion(mechanism: Mechanism) -> tuple[float, ...] | None:
    """Return the Rényi divergence of one run at each of `renyi.ORDERS`, in nats; None is ∞."""
    match mechanism:
        case NotPrivate():
            return None
        case DiscreteLaplace(scale=scale, sensitivity=sensitivity):
            return _sum_discrete_laplace(1 / float(scale), sensitivity)
        case Gaussian(noise_multiplier=noise, hospitals=hospitals):
            event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(float(noise / hospitals))
        case PoissonGaussian(sampling_rate=rate, noise_multiplier=noise, hospitals=hospitals):
            gaussian = dp_accounting.GaussianDpEvent(float(noise / hospitals))
            event = dp_accounting.PoissonSampledDpEvent(float(rate), gaussian)
    accountant = rdp.RdpAccountant(orders=ORDERS)
    accountant.compose(event)
    return tuple(map(float, accountant._rdp))  # 0.6 shows the curve in no other way; the version is pinned


def verify_price(mechanism: Mechanism) -> None:
    """Raise `VerificationError` unless both computations of a mechanism's price agree at every order."""
    ours, theirs = price_of(mechanism), compute_second_opinion(mechanism)
    if ours is None or theirs is None:
        if ours is not theirs:
            raise VerificationError(field="price", expected="∞ in both computations", found="a number in one")
        return
    for order, nano, nats in zip(ORDERS, ours, theirs, strict=True):
        if not abs(nano - nats * NANO) <= NANO_TOLERANCE + RELATIVE_TOLERANCE * nano:
            raise VerificationError(
                field=f"price at order {order}", expected="two computations that agree", found="two that differ"
            )


def verify_prices(state: LedgerState) -> None:
    """Raise `VerificationError` unless both computations agree on every mechanism of a ledger's studies.

    Whatever a ledger reserved is in the programme of its study, so nothing was charged that is not looked at here.
    """
    programmes = [part.programme for account in state.studies.values() for part in account.enrolment.parts]
    for mechanism in {use.mechanism for programme in programmes for use in programme}:
        verify_price(mechanism)


def recompute_history(entries: Iterable[bytes]) -> LedgerState:
    """Return the state after a whole ledger, all of whose prices two computations agree on; what an auditor calls.

    Raises `VerificationError`, `TransitionError`.
    """
    state = verify_history(entries)
    verify_prices(state)
    return state


def _sum_discrete_laplace(parameter: float, sensitivity: int) -> tuple[float, ...]:
    """Sum P(x) exp((α - 1) loss(x)) over all integers: a tail on which the loss is one number is one term.

    The noise lies around -Δ. Its loss is the same at all x <= -Δ, which have probability 1 / (1 + p), and at all
    x >= 0, which have p^Δ / (1 + p), p = exp(-parameter): a bundle's largest noise costs its reader 1001 terms.
    """
    loss = DiscreteLaplacePrivacyLoss(parameter, sensitivity=sensitivity)
    points = np.arange(-sensitivity, 1)
    losses = np.array([loss.privacy_loss(int(point)) for point in points])
    log_probability = np.log(np.tanh(parameter / 2)) - parameter * np.abs(points + sensitivity)
    log_probability[0] = -np.log1p(np.exp(-parameter))
    log_probability[-1] = -parameter * sensitivity - np.log1p(np.exp(-parameter))
    curve = []
    for order in ORDERS:
        exponent = log_probability + (order - 1) * losses
        peak = exponent.max()
        curve.append(float(peak + np.log(np.exp(exponent - peak).sum())) / (order - 1))
    return tuple(curve)
