"""What a conformance audit measured, signed by the site, and the verdict that anybody can work out again from it.

Design note: the record holds counts and moments only, of canaries that the audit itself made up; no patient and no
verdict is in it. The verdict is a function of the record (`judge`), so that an auditor needs neither torch nor trust in
the site's arithmetic. It compares with what the *claimed* mechanism allows: the attack's (false, true positive rate),
by exact confidence limits, must not lie above the claimed mechanism's trade-off curve. A lower bound of ε alone is no
verdict: with few canaries no bound can reach ε = 8 (10,000 canaries, all guessed right, prove 7.8).

It does not see: fixed batches that are accounted as Poisson sampling (the sampler has a test of its own), noise that
somebody knows, and whatever the site does outside this step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import dp_accounting
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from dp_accounting import pld
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import beta, norm

from fedtwin_shared.documents import check_document
from fedtwin_shared.errors import ConfigurationError, VerificationError
from fedtwin_shared.fields import Number, Positive, Rate
from fedtwin_shared.roster import Name
from fedtwin_shared.signing import canonical_json, parse_canonical, sign_envelope, verify_envelope

CONFORMANCE_TYPE = "application/vnd.fedtwin.conformance+json"

ERROR: Final = 1e-3  # a step that is as claimed fails one audit in a thousand, at most
EPSILONS: Final = np.concatenate([np.linspace(0, 2, 41), np.linspace(2, 30, 113)[1:]])  # tangents of the claimed curve
INTERVAL: Final = 1e-3  # of the accountant's grid: errs to the side of a higher curve

Natural = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Claim(_Record):
    """What is said of the step: `steps` Poisson-sampled Gaussians, at rate q, noise ÷ sensitivity σ, and a δ."""

    sampling_rate: Rate
    noise_multiplier: Positive
    steps: Annotated[int, Field(ge=2)]
    delta: Annotated[Number, Field(gt=0, lt=1)]


class Point(_Record):
    """One threshold of the attack: how many absent canaries were taken for present, and how many present ones were."""

    false_positives: Natural
    absent: Annotated[int, Field(ge=1)]
    true_positives: Natural
    present: Annotated[int, Field(ge=1)]


class Noise(_Record):
    """Of coordinates that no canary touched. variance: ÷ that claimed. lag: correlation with the step before."""

    numbers: Annotated[int, Field(ge=2)]
    variance: Annotated[Number, Field(ge=0)]
    lag: Annotated[Number, Field(ge=-1.001, le=1.001)]


class ConformanceResult(_Record):
    """What was measured, of which step (engine and versions), by whom and on which day (YYYY-MM-DD)."""

    format: Literal[1] = 1
    site: Name
    day: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    engine: Annotated[str, Field(pattern=r"^[ -~]{1,80}$")]
    versions: dict[str, str]
    claim: Claim
    points: Annotated[tuple[Point, ...], Field(min_length=1, max_length=16, strict=False)]
    noise: Noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether the measurement can be of the claimed step; why not; and what an attacker is proven to learn, as ε.

    epsilon: of the claim. lower_bound: holds with probability 1 - ERROR. gaussian_bound: the same for a mechanism that
    is exactly Gaussian, which a sampled one is not: an estimate.
    """

    failures: tuple[str, ...]
    epsilon: float
    lower_bound: float
    gaussian_bound: float

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against the claim."""
        return not self.failures


def judge(result: ConformanceResult) -> Verdict:
    """Return the verdict on a measurement: exact limits (Clopper, Pearson 1934), shared error (Bonferroni).

    - a step as claimed fails with probability `ERROR` at most (the two of noise by the normal approximation)
    """
    each = ERROR / (2 * len(result.points) + 3)
    limits = [_limits(point, error=each) for point in result.points]
    allowed = allow_rates(result.claim, [false for false, _ in limits])
    failures = [
        f"an attacker finds {true:.2%} of the patients at {false:.2%} false alarms; the claim allows {most:.2%}"
        for (false, true), most in zip(limits, allowed, strict=True)
        if not true <= most
    ]
    noise, z = result.noise, float(norm.isf(each))
    if not noise.variance >= 1 - z * math.sqrt(2 / noise.numbers):
        failures.append(f"the noise has {noise.variance:.4f} of the claimed variance")
    if not abs(noise.lag) <= z / math.sqrt(noise.numbers):
        failures.append(f"the noise of one step tells the next one's: correlation {noise.lag:.4f}")
    return Verdict(
        failures=tuple(failures),
        epsilon=_curve(result.claim).get_epsilon_for_delta(result.claim.delta),
        lower_bound=max(_bound(false, true, result.claim.delta) for false, true in limits),
        gaussian_bound=max(_gaussian_bound(false, true, result.claim.delta) for false, true in limits),
    )


def allow_rates(claim: Claim, false_rates: Sequence[float]) -> list[float]:
    """Return the largest true positive rate that the claimed mechanism allows at each false positive rate.

    Source: Kairouz, Oh, Viswanath (ICML 2015): true ≤ e^ε · false + δ(ε) for every ε.
    """
    deltas = _deltas(claim)
    return [min(1.0, float(np.min(np.exp(EPSILONS) * rate + deltas))) for rate in false_rates]


@functools.lru_cache(maxsize=8)
def _curve(claim: Claim) -> pld.privacy_loss_distribution.PrivacyLossDistribution:
    if claim.sampling_rate == 1:  # exactly one Gaussian: Dong, Roth, Su (JRSS B 2022) Corollary 3.3
        return pld.privacy_loss_distribution.from_gaussian_mechanism(
            claim.noise_multiplier / math.sqrt(claim.steps), value_discretization_interval=INTERVAL
        )
    return pld.privacy_loss_distribution.from_gaussian_mechanism(
        claim.noise_multiplier, sampling_prob=claim.sampling_rate, value_discretization_interval=INTERVAL
    ).self_compose(claim.steps)


@functools.lru_cache(maxsize=8)
def _deltas(claim: Claim) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    return np.array(_curve(claim).get_delta_for_epsilon(list(EPSILONS)))


def _limits(point: Point, *, error: float) -> tuple[float, float]:
    """Return an upper limit of the false and a lower limit of the true positive rate (Clopper, Pearson 1934)."""
    false, absent, true, present = point.false_positives, point.absent, point.true_positives, point.present
    upper = float(beta.isf(error, false + 1, absent - false)) if false < absent else 1.0
    lower = float(beta.ppf(error, true, present - true + 1)) if true > 0 else 0.0
    return upper, lower


def _bound(false: float, true: float, delta: float) -> float:
    return math.log((true - delta) / false) if true - delta > false else 0.0


def _gaussian_bound(false: float, true: float, delta: float) -> float:
    mu = float(norm.isf(false) - norm.isf(true))
    return float(dp_accounting.get_epsilon_gaussian(1 / mu, delta)) if mu > 1e-6 else 0.0


def sign_conformance(result: ConformanceResult, key: Ed25519PrivateKey) -> bytes:
    """Return the result's envelope, signed by the site."""
    return sign_envelope(_payload(result), payload_type=CONFORMANCE_TYPE, key=key)


def verify_conformance(envelope: bytes, *, key: str, file: Path | str = "") -> ConformanceResult:
    """Return the result in `envelope`.

    Raises `VerificationError` unless
      (1) the holder of the public key `key` signed it;
      (2) its payload is canonical and a valid result;
      (3) no point counts more than there were.
    """
    # (1)
    try:
        verified = verify_envelope(envelope, payload_type=CONFORMANCE_TYPE, trusted={key: "site"})
        document = parse_canonical(verified.payload)
    except VerificationError as err:
        raise VerificationError(file=file, field=err.field, expected=err.expected, found=err.found) from err
    # (2)
    try:
        result = check_document(document, ConformanceResult, file=file)
    except ConfigurationError as err:
        raise VerificationError(file=file, field=err.field, expected=err.expected, found=err.found) from err
    if _payload(result) != verified.payload:
        raise VerificationError(file=file, field="payload", expected="this version's own form", found="another form")
    # (3)
    for point in result.points:
        if point.false_positives > point.absent or point.true_positives > point.present:
            raise VerificationError(file=file, field="points", expected="counts up to their number", found="more")
    return result


def _payload(result: ConformanceResult) -> bytes:
    return canonical_json(result.model_dump(mode="json"))
