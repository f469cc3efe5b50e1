"""What shared noise costs a patient who is at more than one hospital of the same sum.

With one sum over all hospitals, the records that a patient has at k of them are k contributions to one mechanism: where
j of them are sampled, the sum moves by up to j times the clip. That costs more than k releases with a whole noise each:
with q = 0.05, σ = 1.6, 300 steps, δ = 1e-6 it is ε 3.0 at one hospital and 6.6 at two. So a plan prints both.
"""

from __future__ import annotations

import math
from typing import Final

from dp_accounting.pld import privacy_loss_distribution

from fedtwin_shared.privacy import Mechanism, PrivacyEvent

PLD_INTERVAL: Final = (
    1e-3  # of the privacy loss: ε is at most 0.0002 above that of a tenth of it, in a tenth of the time
)


def price_at_hospitals(event: PrivacyEvent, *, hospitals: int, delta: float) -> float:
    """Return the ε of steps with shared noise to a patient with records at this many hospitals of the sum.

    Each hospital samples by itself, with the plan's rate, so that the number of records sampled is binomial.
    Source: the mixture-of-Gaussians mechanism of Choquette-Choo, Ganesh, Steinke, Thakurta, "Privacy amplification for
    matrix mechanisms" (ICLR 2024), composed as privacy-loss distributions by dp-accounting.

    - at one hospital it is what `compute_epsilon` gives, to the third digit
    - an upper bound: losses are rounded up
    """
    if event.mechanism is Mechanism.NOT_PRIVATE and event.count > 0:
        return math.inf
    if event.count == 0:
        return 0.0
    if not hospitals >= 1:
        raise ValueError(f"expected hospitals >= 1, found {hospitals}")
    rate, sampled = event.sampling_rate, range(hospitals + 1)
    probabilities = [math.comb(hospitals, j) * rate**j * (1 - rate) ** (hospitals - j) for j in sampled]
    kept = [(j, chance) for j, chance in zip(sampled, probabilities, strict=True) if chance > 0]
    one = privacy_loss_distribution.from_mixture_gaussian_mechanism(
        event.noise_multiplier,
        [j for j, _ in kept],
        [chance for _, chance in kept],
        value_discretization_interval=PLD_INTERVAL,
    )
    return float(one.self_compose(event.count).get_epsilon_for_delta(delta))
