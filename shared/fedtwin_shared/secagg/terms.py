"""What everybody agrees on before a secure aggregation: who, how many may be lost or lie, for what, and when.

Design note: all of it is public and fixed by the signed study and plan; nothing here depends on a patient.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

from fedtwin_shared.signing import canonical_json, digest

MAXIMUM_MEMBERS: Final = 200  # the complete graph costs n² messages in a set-up
MAXIMUM_INSTANCES: Final = 1000

Sign = Callable[[bytes], bytes]  # payload -> its DSSE envelope, of type `message.MESSAGE_TYPE`, by the site's own key
Draw = Callable[[int], bytes]  # cryptographic randomness: that many bytes


def smallest_threshold(members: int, *, colluders: int) -> int:
    """Return the least t with 2t > n + c.

    >>> smallest_threshold(50, colluders=17)
    34
    """
    return (members + colluders) // 2 + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The fixed numbers of a secure aggregation.

    members: name and pinned public key of each site, sorted by name.
    threshold: t, the shares that recover a secret, and the sites that must agree.
    dropouts: d, how many sites may be lost in a step; with fewer than n - d survivors nothing is unmasked.
    colluders: c, how many sites may work with the coordinator against the others.
    instances: R, the steps that one set-up serves.
    largest: the largest absolute value of a coordinate that an honest site sends.

    `ValueError` unless all of this holds:
      - 3 <= n <= 200, every name and every key once, in order
      - c >= 1, d >= 0, 2t > n + c and t <= n - d: two survivor sets can never both be agreed, one always can
      - n · largest < 2^63: no sum overflows
    """

    members: tuple[tuple[str, str], ...]
    threshold: int
    dropouts: int
    colluders: int
    instances: int
    largest: int

    def __post_init__(self) -> None:
        n, t, d, c = len(self.members), self.threshold, self.dropouts, self.colluders
        names, keys = [name for name, _ in self.members], {key for _, key in self.members}
        _require(3 <= n <= MAXIMUM_MEMBERS, f"3 to {MAXIMUM_MEMBERS} sites", f"{n}")
        _require(names == sorted(set(names)) and len(keys) == n, "each site once, sorted by name", f"{names}")
        _require(c >= 1, "colluders >= 1, since a site can subtract its own noise", f"{c}")
        _require(d >= 0, "dropouts >= 0", f"{d}")
        _require(2 * t > n + c, f"2 * threshold > {n} sites + {c} colluders", f"threshold {t}")
        _require(t <= n - d, f"threshold <= {n} sites - {d} dropouts", f"{t}")
        _require(1 <= self.instances <= MAXIMUM_INSTANCES, f"1 to {MAXIMUM_INSTANCES} instances", f"{self.instances}")
        _require(self.largest >= 1, "largest >= 1", f"{self.largest}")
        _require(n * self.largest < 2**63, f"{n} sites * largest < 2^63", f"largest {self.largest}")

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names, sorted."""
        return tuple(name for name, _ in self.members)

    @property
    def minimum(self) -> int:
        """The fewest sites whose sum is ever revealed, n - d."""
        return len(self.members) - self.dropouts

    @property
    def keys(self) -> dict[str, str]:
        """Each member's public key and its name."""
        return {key: name for name, key in self.members}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """One set-up of one run: the context of rounds 0 and 1.

    study, run: as in a `RoundPlan`. number: of the set-up within the run, from 1; none is ever used twice.
    """

    terms: Terms
    study: str
    run: str
    number: int

    @property
    def digest(self) -> str:
        """SHA-256 of everything here."""
        return _digest_setup(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One aggregation: the context of rounds 2 to 4 beside the set-up's roll.

    instance: from 0. plan, model: digests of the signed plan and of the parameters that every site computes with.
    length: of the vector.
    """

    instance: int
    round: int
    attempt: int
    plan: str
    model: str
    length: int

    def bind(self, roll: str) -> str:
        """Return the binding of this step under a set-up's roll: every message and every mask depends on it."""
        return digest(canonical_json({"roll": roll, "step": asdict(self)}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A site's place in a set-up: its name, its signature and its randomness."""

    setup: Setup
    name: str
    sign: Sign
    draw: Draw

    @property
    def terms(self) -> Terms:
        """The set-up's terms."""
        return self.setup.terms


def honest_sites(terms: Terms) -> int:
    """Return n_h = n - d - c, the fewest honest sites in a sum that is revealed; at least 1 by `Terms`."""
    return terms.minimum - terms.colluders


def share_noise(noise_multiplier: float, terms: Terms) -> float:
    """Return what each site adds, σ / √n_h, so that the honest sites of any revealed sum add at least σ together.

    Source: n_h independent Gaussians of variance σ²/n_h sum to variance σ² (Kairouz et al., ICML 2021, section 1).

    - n_h times the square of the result is never below σ²
    """
    return math.nextafter(noise_multiplier / math.sqrt(honest_sites(terms)) * (1 + 2**-50), math.inf)


@functools.lru_cache(maxsize=64)  # it stands in every message; of 200 members it takes a third of a millisecond
def _digest_setup(setup: Setup) -> str:
    terms = {**asdict(setup.terms), "largest": f"{setup.terms.largest}"}  # may be beyond 2^53
    return digest(canonical_json({**asdict(setup), "terms": terms}))


def _require(holds: bool, expected: str, found: str) -> None:
    if not holds:
        raise ValueError(f"expected {expected}, found {found}")
