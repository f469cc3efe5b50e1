"""What was spent: a budget, the mechanisms that ran, and ε computed from them.

Design note: unit = one patient with everything the hospital holds about them; neighbouring = add or remove one
patient. A `PrivacyEvent` says what ran, fully enough for any accountant; it never holds the ε that somebody believed.
Events have a fixed set of kinds (a name in data never chooses code). No noise is ε = ∞, never 0. dp-accounting brings
scipy, half of what any of our programs takes to start: it is imported where something is priced.
ε here is *nominal*: of one run, of the mechanisms as written down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

# Integer orders only: dp-accounting's Rényi bound at fractional orders is loose (up to 2.6 times at q = 0.25).
RENYI_ORDERS = (*range(2, 129), 160, 192, 256, 384, 512, 768, 1024)
PLD_INTERVAL = 1e-4  # width of the discretised privacy-loss grid, dp-accounting's own default

# Every statement of ε carries these words: it is of the mechanisms as written down, and of one run.
CAVEAT = "nominal ε, this run only; integer-grid noise, cryptographic randomness"

# Of every δ, kept back for what separates the noise that is drawn from the ideal one, (1 + e^ε) times the distance of
# the two (up to 2^28 numbers of noise, 25,000 parameters and 10,000 steps, at ε = 3):
# - the sampler's arithmetic: 64-bit floats change the probability of a grid point by 2^-48 of itself, root mean square
#   (derived: 2^-51 in z, times 1 + z²); n numbers, by Pinsker's inequality: 2^-48 · √(n / 2) = 4e-11, in all 9e-10;
# - AES-CTR instead of a random function: n²/2^129 for n blocks (Bellare, Rogaway 2006, the switching lemma): 1e-21;
# - Gaussians end at 13.3 standard deviations (53-bit uniforms would end at 8.57 and cost 2.8e-9): 1e-30.
# Rounding to the grid costs nothing: it is done after the noise, in effect, and its half unit is in the sensitivity.
DELTA_SLACK = 1e-9


class Mechanism(StrEnum):
    """The mechanisms a site can run. Kinds are only ever added; their meaning never changes."""

    POISSON_GAUSSIAN = "poisson-gaussian"
    GAUSSIAN = "gaussian"
    NOT_PRIVATE = "not-private"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyBudget:
    """The most one patient may spend (add-or-remove-one)."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not self.epsilon > 0:
            raise ValueError(f"expected epsilon > 0, found {self.epsilon}")
        if not 0 < self.delta < 1:
            raise ValueError(f"expected 0 < delta < 1, found {self.delta}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacyEvent:
    """One mechanism that ran `count` times.

    noise_multiplier: standard deviation of the noise ÷ L2 sensitivity to one patient.
    sampling_rate: probability with which each patient took part in each run of it (1 = everybody).
    """

    mechanism: Mechanism
    noise_multiplier: float
    sampling_rate: float = 1.0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"expected 0 < sampling_rate <= 1, found {self.sampling_rate}")
        if self.mechanism is Mechanism.GAUSSIAN and self.sampling_rate != 1:
            raise ValueError(f"expected sampling_rate 1 for an unsampled mechanism, found {self.sampling_rate}")
        if not self.count >= 0:
            raise ValueError(f"expected count >= 0, found {self.count}")
        if self.mechanism is Mechanism.NOT_PRIVATE:
            return
        if not 0 < self.noise_multiplier < math.inf:
            raise ValueError(f"expected 0 < noise_multiplier < ∞, found {self.noise_multiplier}")


def compute_epsilon(events: Sequence[PrivacyEvent], *, delta: float) -> float:
    """Return the ε of all `events` together at `delta`, by composition of privacy-loss distributions.

    Source: Koskela, Jälkö, Honkela (AISTATS 2020); Doroshenko et al. (PoPETs 2022 (4)); library dp-accounting 0.6.

    - nothing ran: 0
    - anything without noise: ∞
    - more of the same event never costs less
    """
    import dp_accounting
    from dp_accounting import pld

    ran = _collapse(events)
    if ran is not None and [event.sampling_rate for event in ran] == [1]:
        # Balle, Wang (ICML 2018) Theorem 8: the exact ε of one Gaussian.
        return float(dp_accounting.get_epsilon_gaussian(ran[0].noise_multiplier, _check_delta(delta)))
    return _epsilon(pld.PLDAccountant(value_discretization_interval=PLD_INTERVAL), ran, delta)


def compute_epsilon_renyi(events: Sequence[PrivacyEvent], *, delta: float) -> float:
    """Return a second opinion on ε by Rényi accounting at integer orders; never below the true ε.

    Source: Mironov, Talwar, Zhang (arXiv 1908.10530) §3.3; conversion of Canonne, Kamath, Steinke (NeurIPS 2020).
    """
    from dp_accounting import rdp

    return _epsilon(rdp.RdpAccountant(orders=RENYI_ORDERS), _collapse(events), delta)


def accounted_delta(delta: float) -> float:
    """Return the δ at which a plan is priced, so that the plan holds at `delta` with what is drawn in fact.

    Raises `ValueError` when nothing would be left.
    """
    if not DELTA_SLACK < delta < 1:
        raise ValueError(f"expected {DELTA_SLACK:g} < delta < 1, found {delta}")
    return delta - DELTA_SLACK


def _epsilon(accountant: Any, ran: Sequence[PrivacyEvent] | None, delta: float) -> float:
    import dp_accounting

    _check_delta(delta)
    if ran is None:
        return math.inf
    for event in ran:
        gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
        one = dp_accounting.PoissonSampledDpEvent(event.sampling_rate, gaussian)
        accountant.compose(one if event.sampling_rate < 1 else gaussian, event.count)
    return float(accountant.get_epsilon(delta)) if ran else 0.0


def _check_delta(delta: float) -> float:
    if not 0 < delta < 1:
        raise ValueError(f"expected 0 < delta < 1, found {delta}")
    return delta


def _collapse(events: Sequence[PrivacyEvent]) -> list[PrivacyEvent] | None:
    """Merge all unsampled Gaussians into the one that is exactly their composition; None: something had no noise."""
    ran = [event for event in events if event.count > 0]
    if any(event.mechanism is Mechanism.NOT_PRIVATE for event in ran):
        return None
    plain = [event for event in ran if event.sampling_rate == 1]
    rest = [event for event in ran if event.sampling_rate < 1]
    if not plain:
        return rest
    # Dong, Roth, Su (JRSS B 2022) Corollary 3.3: μ-Gaussian privacy composes as μ² = Σ μᵢ², with μ = 1/noise.
    noise = sum(event.count / event.noise_multiplier**2 for event in plain) ** -0.5
    return [*rest, PrivacyEvent(mechanism=Mechanism.GAUSSIAN, noise_multiplier=noise)]


def calibrate_noise(event: PrivacyEvent, budget: PrivacyBudget, *, tolerance: float = 1e-3) -> float:
    """Return the smallest noise multiplier, to `tolerance`, with which `event` costs at most `budget`.

    The event's own noise multiplier is ignored.

    - the result satisfies the budget
    - Raises `ValueError` when 10,000 times the sensitivity is not enough.
    """
    low, high = 0.0, 0.5
    while not _fits(event, high, budget):
        low, high = high, high * 2
        if high > 1e4:
            raise ValueError(f"no noise up to 10,000 meets epsilon {budget.epsilon}")
    while high - low > tolerance * high:
        middle = (low + high) / 2
        low, high = (low, middle) if _fits(event, middle, budget) else (middle, high)
    return high


def _fits(event: PrivacyEvent, noise: float, budget: PrivacyBudget) -> bool:
    delta = accounted_delta(budget.delta)
    return compute_epsilon([replace(event, noise_multiplier=noise)], delta=delta) <= budget.epsilon
