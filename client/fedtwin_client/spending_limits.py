"""What the policy lets all studies together cost a patient, in a year and ever: asked of the ledger before each charge.

Design note: both are the odometer's ε, over all reservations and over those of the last 365 days, so that they hold
however later studies were chosen. The claim of the ledger is enforced by its writer, with a filter at one order that is
blind to budgets far below the claim; these limits are the hospital's own, and may be far below it. What blocks have
spent in a time follows from the reservations alone. Where a study was closed since then, its patients may have been in
any of its parts, and are taken for those of the part that spent most; after a later admission epoch, patients of
unknown identity for having taken part in everything before. Both are at least what any patient truly spent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache, partial, reduce
from operator import add
from typing import Final

from fedtwin_client.journal import Journal, SealedAnswer, Spend, TaskKey
from fedtwin_client.policy import SitePolicy
from fedtwin_shared.ledger.account import LedgerState, Phase
from fedtwin_shared.ledger.blocks import NOTHING, READMITTED, Block, maximum
from fedtwin_shared.ledger.filter import read_odometer
from fedtwin_shared.ledger.mechanism import Use, exact_decimal
from fedtwin_shared.ledger.renyi import Curve, price_uses
from fedtwin_shared.ledger.study_programme import TEST, TRAIN, StudyProgramme
from fedtwin_shared.round import RefusalCode

YEAR: Final = 365 * 24 * 3600  # seconds

Parts = Mapping[str, tuple[Use, ...]]  # what would run on the patients of each part


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendingLimits:
    """The most that all studies together may cost any patient, in 365 days and ever."""

    year: Decimal
    lifetime: Decimal

    @classmethod
    def of(cls, policy: SitePolicy) -> SpendingLimits:
        """Return the limits of a hospital's policy."""
        return cls(
            year=exact_decimal(policy.maximum_epsilon_year), lifetime=exact_decimal(policy.maximum_epsilon_lifetime)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockCost:
    """What a block's patients in a part of a study would have paid: ε of the last 365 days, and of their lifetime."""

    block: str
    part: str
    year: Decimal
    lifetime: Decimal

    def within(self, limits: SpendingLimits) -> bool:
        """Return whether neither is above its limit."""
        return self.year <= limits.year and self.lifetime <= limits.lifetime


def cost_blocks(state: LedgerState, study: str, parts: Parts, *, now: float) -> tuple[BlockCost, ...] | None:
    """Return what every block that may hold patients of `study` would have paid, were `parts` run now; None: ∞.

    - of a study that is not enrolled, every block may hold patients
    """
    claim, account = state.in_force, state.studies.get(study)
    recent = spent_since(state, now - YEAR)
    costs = []
    for part, uses in parts.items():
        price = price_uses(uses)
        if price is None:
            return None
        for name, block in sorted(state.blocks.items()):
            if account is not None and block.part_of(account.number) != part:
                continue
            lifetime, year = _total(block.spent, price), _total(recent[name], price)
            read = partial(read_odometer, order=claim.order, delta=claim.delta)
            costs.append(BlockCost(block=name, part=part, year=read(year), lifetime=read(lifetime)))
    return tuple(costs)


def spent_since(state: LedgerState, since: float) -> Mapping[str, Curve]:
    """Return nano-RDP of the reservations after `since` (Unix seconds), by block: at least what its patients spent.

    - with `since` before the ledger's first entry, at least what every block has spent
    - a reservation that was aborted counts only once the blocks have changed since it
    """
    # study -> family -> part -> nano-RDP
    found: dict[str, dict[str, dict[str, Curve]]] = {name: {} for name in state.studies}
    for (study, blocks, uses), count in _recent(state, since).items():
        price = _price(uses)
        for family, part in _places(blocks, state.studies[study].number):
            parts = found[study].setdefault(family, {})
            parts[part] = tuple(old + count * one for old, one in zip(parts.get(part, NOTHING), price, strict=True))
    return {
        name: _add_up(_spent(block, state, found[study], study) for study in found)
        for name, block in state.blocks.items()
    }


def _spent(block: Block, state: LedgerState, families: Mapping[str, Mapping[str, Curve]], study: str) -> Curve:
    """Return the most that a patient of `block` spent in one study."""
    own, account = families.get(block.family, {}), state.studies[study]
    if block.family == READMITTED and state.epochs > 1:
        # Whoever was taken for unknown at an epoch was in one block of another family before it.
        before = (curve for family, parts in families.items() if family != READMITTED for curve in parts.values())
        return _total(maximum(before), maximum(own.values()))
    if account.closed:
        return maximum(own.values())
    return own.get(block.part_of(account.number) or "", NOTHING)


class LimitedJournal:
    """A hospital's ledger behind the limits of its policy.

    - a charge that would bring any block above a limit is refused as `budget-spent`, and nothing is written
    """

    def __init__(
        self,
        journal: Journal,
        *,
        limits: SpendingLimits,
        read_state: Callable[[], LedgerState],
        find_programme: Callable[[str], StudyProgramme | None],
        clock: Callable[[], float],
    ) -> None:
        self._journal, self._limits, self._clock = journal, limits, clock
        self._read_state, self._find_programme = read_state, find_programme

    def charge(self, key: TaskKey, spend: Spend, *, limit: Spend) -> RefusalCode | None:
        """See `Journal.charge`."""
        programme = self._find_programme(key.study)
        if programme is not None:
            costs = cost_blocks(self._read_state(), key.study, parts_of(programme, spend), now=self._clock())
            if costs is None or not all(cost.within(self._limits) for cost in costs):
                return RefusalCode.BUDGET_SPENT
        return self._journal.charge(key, spend, limit=limit)

    def admit(self, study: str) -> RefusalCode | None:
        """See `Journal.admit`."""
        return self._journal.admit(study)

    def seal(self, key: TaskKey, answer: SealedAnswer) -> None:
        """See `Journal.seal`."""
        self._journal.seal(key, answer)

    def sealed(self, key: TaskKey) -> SealedAnswer | None:
        """See `Journal.sealed`."""
        return self._journal.sealed(key)

    def release(self, key: TaskKey) -> bytes:
        """See `Journal.release`."""
        return self._journal.release(key)

    def refuse(self, plan: str, code: RefusalCode) -> None:
        """See `Journal.refuse`."""
        self._journal.refuse(plan, code)

    def charged(self, study: str) -> Spend:
        """See `Journal.charged`."""
        return self._journal.charged(study)


def parts_of(programme: StudyProgramme, spend: Spend) -> Parts:
    """Return what a spend of a study is to the patients of each part."""
    parts = {}
    if spend.steps:
        parts[TRAIN] = (Use(mechanism=programme.training, count=spend.steps),)
    if spend.releases:
        parts[TEST] = (Use(mechanism=programme.evaluation, count=spend.releases),)
    return parts


def _recent(state: LedgerState, since: float) -> Counter[tuple[str, tuple[str, ...], tuple[Use, ...]]]:
    """Count the charges after `since` by study, blocks and uses: there are few kinds and may be many charges."""
    kinds = Counter[tuple[str, tuple[str, ...], tuple[Use, ...]]]()
    for key, task in state.tasks.items():
        # An abort gives back only while the blocks are the same; whether it did is not kept beyond their next change.
        refunded = task.phase is Phase.ABORTED and task.structure == state.structure
        if task.reserve.time > since and not refunded:
            kinds[key.partition("/")[0], task.reserve.blocks, task.reserve.uses] += 1
    return kinds


@lru_cache(maxsize=4096)
def _places(blocks: tuple[str, ...], number: int) -> frozenset[tuple[str, str]]:
    """Return family and part of study `number` of each block, from the blocks' names (`Block.name`)."""
    places = set()
    for name in blocks:
        family, *members = name.split("/")
        parts = dict(member.split(".", 1) for member in members)
        places.add((family, parts[str(number)]))
    return frozenset(places)


@lru_cache(maxsize=4096)
def _price(uses: tuple[Use, ...]) -> Curve:
    price = price_uses(uses)
    assert price is not None  # a ledger reserves nothing without noise
    return price


def _total(one: Curve, other: Curve) -> Curve:
    return tuple(map(add, one, other))


def _add_up(curves: Iterable[Curve]) -> Curve:
    return reduce(_total, curves, NOTHING)
