"""What is kept of a ledger while it is read: tasks, studies, blocks and the claim, as frozen records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from typing import Final

from fedtwin_shared.errors import FedtwinError
from fedtwin_shared.ledger.blocks import Block
from fedtwin_shared.ledger.entry import Enrolment, Policy, Reserve
from fedtwin_shared.ledger.filter import compute_budget
from fedtwin_shared.ledger.mechanism import Mechanism
from fedtwin_shared.ledger.renyi import ORDERS

PLACES: Final = {order: place for place, order in enumerate(ORDERS)}  # where an order stands in a curve


class TransitionError(FedtwinError):
    """A well-formed entry that must not follow those before it."""


class BudgetExceededError(TransitionError):
    """A reservation or a study that some block cannot pay, or a mechanism without noise."""


class Phase(StrEnum):
    """Where a task stands."""

    RESERVED = "reserve"
    STARTED = "start"
    SEALED = "seal"
    RELEASED = "release"
    ABORTED = "abort"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A reservation and what became of it. structure: see `LedgerState`. whole: it charged every block of its parts."""

    reserve: Reserve
    phase: Phase
    structure: int
    whole: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyAccount:
    """An enrolled study. number: its place in this ledger. used: runs of each mechanism that were charged, by part."""

    enrolment: Enrolment
    number: int
    used: Mapping[tuple[str, Mechanism], int] = field(default_factory=dict)
    closed: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts."""
        return tuple(part.name for part in self.enrolment.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerState:
    """Everything that follows from the entries so far. Nobody changes its mappings.

    policy: the first, with the latest site policy; None: an empty ledger. claims: every ε that was ever claimed.
    structure: how often the blocks themselves changed. rounds: those with a cohort. others: refusals and conformance.
    """

    policy: Policy | None = None
    opening: Policy | None = None
    claims: tuple[Decimal, ...] = ()
    blocks: Mapping[str, Block] = field(default_factory=dict)
    studies: Mapping[str, StudyAccount] = field(default_factory=dict)
    tasks: Mapping[str, Task] = field(default_factory=dict)
    rounds: Mapping[str, str] = field(default_factory=dict)
    others: int = 0
    epochs: int = 0
    structure: int = 0
    time: int = 0
    entries: int = 0

    @property
    def ledger(self) -> LedgerState:
        """This state: what every replay of a ledger has, whatever else it tells."""
        return self

    @property
    def in_force(self) -> Policy:
        """The policy. Raises `TransitionError` for an empty ledger."""
        if self.policy is None:
            raise TransitionError(field="policy", expected="a policy as the first entry", found="none")
        return self.policy

    @property
    def budget(self) -> int:
        """Nano-RDP that one patient may spend at the filter's order, at the ε that is claimed now."""
        return budget_of(self.claims[-1], self.in_force.delta, self.in_force.order)

    def spent(self, block: str) -> int:
        """Return the nano-RDP that a block has spent at the filter's order."""
        return self.blocks[block].spent[PLACES[self.in_force.order]]

    def members(self, study: str) -> tuple[str, ...]:
        """Return the names of the blocks whose patients are in any part of a study."""
        number = self.studies[study].number
        return tuple(sorted(name for name, block in self.blocks.items() if block.part_of(number) is not None))


@lru_cache(maxsize=256)
def budget_of(epsilon: Decimal, delta: Decimal, order: int) -> int:
    """Return `filter.compute_budget`, remembered: it is asked for at every reservation."""
    return compute_budget(epsilon, delta, order=order)
