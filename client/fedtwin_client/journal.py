"""What this hospital has spent, for ever: charged before a patient takes part, sealed before an answer leaves.

Design note: a crash before a charge is durable means that nothing was trained; a crash after it means that the attempt
is spent; a crash after the seal means that the same bytes can be sent again. There is no refund. Nothing here tells how
many patients there are: a charge is a number of planned steps. A hospital's journal is a `file_journal.FileJournal`.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field, replace
from typing import Protocol

from fedtwin_shared.errors import FedtwinError
from fedtwin_shared.round import Arrays, RefusalCode, RoundPlan, Task


class JournalError(FedtwinError):
    """The journal cannot be opened, read or written: nothing may be trained until it can."""


class WitnessesAwayError(FedtwinError):
    """Too few witnesses have seen the ledger: a sealed answer waits until they have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskKey:
    """Names one thing that a coordinator may ask for once."""

    study: str
    run: str
    round: int
    attempt: int
    task: Task

    @classmethod
    def of(cls, plan: RoundPlan) -> TaskKey:
        """Return the key of a plan."""
        return cls(study=plan.study, run=plan.run, round=plan.round, attempt=plan.attempt, task=plan.task)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """Private training steps and released histograms."""

    steps: int = 0
    releases: int = 0

    def __add__(self, other: Spend) -> Spend:
        return Spend(steps=self.steps + other.steps, releases=self.releases + other.releases)

    def within(self, limit: Spend) -> bool:
        """Return whether neither figure is above its limit."""
        return self.steps <= limit.steps and self.releases <= limit.releases


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedAnswer:
    """An answer exactly as it left, or would have left, and the digest of the plan's envelope that it answers."""

    plan: str
    envelope: bytes
    arrays: Arrays


class Journal(Protocol):
    """The lifetime counter of one hospital. One process, one thread at a time.

    - a key is charged at most once, and sealed at most once, after its charge
    - what is charged for a study is never more than the limit
    - an answer leaves only after `release` has returned for it
    """

    def admit(self, study: str) -> RefusalCode | None:
        """Return why nothing of an approved study can ever run, before its data is read; None: some of it may.

        Raises `JournalError`.
        """

    def charge(self, key: TaskKey, spend: Spend, *, limit: Spend) -> RefusalCode | None:
        """Charge, durably on return of None; otherwise the reason why nothing was charged. Raises `JournalError`."""

    def seal(self, key: TaskKey, answer: SealedAnswer) -> None:
        """Keep the answer, durably on return. Raises `JournalError`; `RuntimeError` for a key that is not open."""

    def sealed(self, key: TaskKey) -> SealedAnswer | None:
        """Return the answer that was sealed, bit for bit, or None.

        The last one of a study's run and task is always kept; earlier ones may be forgotten, which costs an attempt.
        """

    def release(self, key: TaskKey) -> bytes:
        """Let the sealed answer leave and return what proves its charge (`ledger.evidence`); empty without a ledger.

        Raises `WitnessesAwayError`: it must not leave yet, and may be asked for again; `JournalError`; `RuntimeError`
        for a key that is not sealed.
        """

    def refuse(self, plan: str, code: RefusalCode) -> None:
        """Keep that the plan of this digest was refused, where there is a ledger. Raises `JournalError`."""

    def charged(self, study: str) -> Spend:
        """Return everything that was ever charged for the study of this digest."""


@dataclass(slots=True)
class Account:
    """What the entries so far add up to; the rule that every journal follows."""

    spends: dict[TaskKey, Spend] = field(default_factory=dict)
    totals: dict[str, Spend] = field(default_factory=dict)

    def decide(self, key: TaskKey, spend: Spend, limit: Spend) -> RefusalCode | None:
        """Return why `spend` must not be charged, or None."""
        if key in self.spends:
            return RefusalCode.ATTEMPT_SPENT
        if not (self.total(key.study) + spend).within(limit):
            return RefusalCode.BUDGET_SPENT
        return None

    def add(self, key: TaskKey, spend: Spend) -> None:
        """Count a charge."""
        self.spends[key] = spend
        self.totals[key.study] = self.total(key.study) + spend

    def total(self, study: str) -> Spend:
        """Return what was charged for one study."""
        return self.totals.get(study, Spend())


class WithoutLedger:
    """What a journal that is no ledger does of all this: it admits, releases at once, and proves nothing."""

    def admit(self, study: str) -> RefusalCode | None:
        """See `Journal.admit`."""
        return None

    def release(self, key: TaskKey) -> bytes:
        """See `Journal.release`."""
        return b""

    def refuse(self, plan: str, code: RefusalCode) -> None:
        """See `Journal.refuse`."""


class MemoryJournal(WithoutLedger):
    """A journal for simulations, which have no patient to protect from a crash."""

    def __init__(self) -> None:
        self._account = Account()
        self._sealed: set[TaskKey] = set()
        self._latest: dict[tuple[str, str, Task], tuple[TaskKey, SealedAnswer]] = {}

    def charge(self, key: TaskKey, spend: Spend, *, limit: Spend) -> RefusalCode | None:
        """See `Journal.charge`."""
        refusal = self._account.decide(key, spend, limit)
        if refusal is None:
            self._account.add(key, spend)
        return refusal

    def seal(self, key: TaskKey, answer: SealedAnswer) -> None:
        """See `Journal.seal`."""
        check_open(key, self._account, self._sealed)
        arrays = {name: array.copy() for name, array in answer.arrays.items()}
        self._sealed.add(key)
        self._latest[key.study, key.run, key.task] = key, replace(answer, arrays=arrays)

    def sealed(self, key: TaskKey) -> SealedAnswer | None:
        """See `Journal.sealed`."""
        latest, answer = self._latest.get((key.study, key.run, key.task), (None, None))
        return answer if latest == key else None

    def charged(self, study: str) -> Spend:
        """See `Journal.charged`."""
        return self._account.total(study)


def check_open(key: TaskKey, account: Account, sealed: Container[TaskKey]) -> None:
    """Raise `RuntimeError` unless `key` is charged and not sealed."""
    if key not in account.spends or key in sealed:
        raise RuntimeError("expected a key that is charged and not sealed")
