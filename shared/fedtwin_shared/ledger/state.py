"""What a ledger's entries add up to: the same rules for the hospital before it writes and for the auditor afterwards.

Design note: RESERVE → START → SEAL → RELEASE, or RESERVE → ABORT. The charge is at RESERVE; a crash leaves it there.
Only ABORT gives it back, only before START, and only while the blocks are the ones that were charged: after a split or
a merge nobody can say whose charge it was. Order, δ and rule belong to the ledger and so to every block for life; a
changed ε is a signed entry, and every ε that was ever claimed stays in the report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger import blocks as block_rules
from fedtwin_shared.ledger.account import (
    PLACES,
    BudgetExceededError,
    LedgerState,
    Phase,
    StudyAccount,
    Task,
    TransitionError,
    budget_of,
)
from fedtwin_shared.ledger.blocks import Block
from fedtwin_shared.ledger.encoding import claim_statement, parse_entry
from fedtwin_shared.ledger.entry import (
    MOST_BLOCKS,
    Abort,
    Claim,
    Closure,
    CohortDigest,
    Conformance,
    Enrolment,
    Entry,
    Epoch,
    Policy,
    Refusal,
    Reserve,
    TaskEntry,
    TaskKey,
)
from fedtwin_shared.ledger.mechanism import Mechanism, Use
from fedtwin_shared.ledger.renyi import ORDERS, Curve, price_uses
from fedtwin_shared.signing import verify_envelope

CLAIM_TYPE: Final = "application/vnd.fedtwin.claim+json"


_BEFORE: Final = {
    Phase.STARTED: Phase.RESERVED,
    Phase.SEALED: Phase.STARTED,
    Phase.RELEASED: Phase.SEALED,
    Phase.ABORTED: Phase.RESERVED,
}


def apply(state: LedgerState, entry: Entry) -> LedgerState:
    """Return the state after one more entry; `state` itself stays as it is. Raises `TransitionError`."""
    history = History(state)
    history.add(entry)
    return history.state


def verify_history(entries: Iterable[bytes]) -> LedgerState:
    """Return the state after a whole ledger. Raises `VerificationError`, `TransitionError` with the entry's place."""
    history = History()
    for position, data in enumerate(entries):
        try:
            history.add(parse_entry(data))
        except (VerificationError, TransitionError) as err:
            where = f"entry {position}: {err.field}"
            raise type(err)(field=where, expected=err.expected, found=err.found) from err
    return history.state


class History:
    """A ledger's state that entries are added to, one by one, in constant time each.

    - an entry that is not allowed raises and changes nothing
    """

    def __init__(self, state: LedgerState | None = None) -> None:
        start = state or LedgerState()
        # Private copies: what is changed in place below is seen by nobody else.
        self._blocks, self._studies = dict(start.blocks), dict(start.studies)
        self._tasks, self._rounds = dict(start.tasks), dict(start.rounds)
        self._sizes: Counter[tuple[int, str]] | None = None  # blocks in each part, until they change
        self._now = start
        self._time, self._entries = start.time, start.entries

    @property
    def state(self) -> LedgerState:
        """The state now."""
        return replace(
            self._now,
            blocks=dict(self._blocks),
            studies=dict(self._studies),
            tasks=dict(self._tasks),
            rounds=dict(self._rounds),
            time=self._time,
            entries=self._entries,
        )

    @property
    def now(self) -> LedgerState:
        """The state until the next entry, without a copy: for whoever only looks."""
        return replace(
            self._now,
            blocks=MappingProxyType(self._blocks),
            studies=MappingProxyType(self._studies),
            tasks=MappingProxyType(self._tasks),
            rounds=MappingProxyType(self._rounds),
            time=self._time,
            entries=self._entries,
        )

    def add(self, entry: Entry) -> None:
        """Add one entry. Raises `TransitionError`."""
        _require(entry.time >= self._time, entry, "a time that does not go back", "an earlier one")
        if not isinstance(entry, Policy):
            _require(self._now.policy is not None, entry, "a policy as the first entry", "none")
        match entry:
            case Reserve():
                self._reserve(entry)
            case Policy():
                self._policy(entry)
            case Claim():
                self._claim(entry)
            case Epoch():
                self._epoch(entry)
            case Enrolment():
                self._enrol(entry)
            case Closure():
                self._close(entry)
            case CohortDigest():
                self._cohort(entry)
            case Refusal() | Conformance():
                self._now = replace(self._now, others=self._now.others + 1)
            case _:
                self._step(entry)
        self._time = entry.time
        self._entries += 1

    def _policy(self, entry: Policy) -> None:
        opening = self._now.opening
        if opening is None:
            _require(self._entries == 0, entry, "to be the first entry", "a later place")
            _require(entry.order in ORDERS, entry, "an order that prices are known at", f"{entry.order}")
            budget = budget_of(entry.epsilon, entry.delta, entry.order)
            _require(budget > 0, entry, "an ε that this order and δ can reach", f"{entry.epsilon}")
            self._now = replace(self._now, policy=entry, opening=entry, claims=(entry.epsilon,))
            return
        own = replace(entry, time=opening.time, salt=opening.salt, site_policy=opening.site_policy)
        _require(own == opening, entry, "the claim, order, δ, rule and signer of the first policy", "another")
        self._now = replace(self._now, policy=entry)

    def _claim(self, entry: Claim) -> None:
        opening, claims = self._now.opening, self._now.claims
        assert opening is not None
        _require(entry.number == len(claims), entry, f"claim {len(claims)}", f"{entry.number}")
        envelope = entry.envelope.encode()
        try:
            verified = verify_envelope(envelope, payload_type=CLAIM_TYPE, trusted={opening.signer: "signer"})
        except VerificationError as err:
            raise TransitionError(field="claim", expected="a signature of the policy's signer", found="none") from err
        statement = claim_statement(opening, number=entry.number, epsilon=entry.epsilon)
        _require(verified.payload == statement, entry, "the signed ε of this ledger and number", "another")
        budget = budget_of(entry.epsilon, opening.delta, opening.order)
        most = max((block.spent[PLACES[opening.order]] for block in self._blocks.values()), default=0)
        _require(budget > 0 and most <= budget, entry, "an ε that no block has passed already", f"{entry.epsilon}")
        self._now = replace(self._now, claims=(*claims, entry.epsilon))

    def _epoch(self, entry: Epoch) -> None:
        _require(entry.number == self._now.epochs, entry, f"epoch {self._now.epochs}", f"{entry.number}")
        studies = {account.number: account.parts for account in self._studies.values() if not account.closed}
        self._restructure(entry, block_rules.open_epoch(self._blocks.values(), entry.number, studies))
        self._now = replace(self._now, epochs=self._now.epochs + 1)

    def _enrol(self, entry: Enrolment) -> None:
        _require(entry.study not in self._studies, entry, "a study that is not enrolled", "one that is")
        _require(bool(self._blocks), entry, "an admission epoch", "none")
        number = len(self._studies) + 1
        for part in entry.parts:
            price = _price(part.programme, entry)
            if not min(map(self._spent, self._blocks)) + price[self._at] <= self._budget:
                raise BudgetExceededError(field=f"enrolment: {part.name}", expected="at most the budget", found="more")
        names = tuple(part.name for part in entry.parts)
        self._restructure(entry, block_rules.split_blocks(self._blocks.values(), number, names))
        self._studies[entry.study] = StudyAccount(enrolment=entry, number=number)

    def _close(self, entry: Closure) -> None:
        account = self._open_study(entry.study, entry)
        self._restructure(entry, block_rules.merge_blocks(self._blocks.values(), account.number))
        self._studies[entry.study] = replace(account, closed=True)

    def _restructure(self, entry: Entry, blocks: Iterable[Block]) -> None:
        named = {block.name: block for block in blocks}
        _require(len(named) <= MOST_BLOCKS, entry, f"at most {MOST_BLOCKS} blocks: close a study", f"{len(named)}")
        self._blocks, self._sizes = named, None
        self._now = replace(self._now, structure=self._now.structure + 1)

    def _cohort(self, entry: CohortDigest) -> None:
        self._open_study(entry.round.partition("/")[0], entry)
        _require(entry.round not in self._rounds, entry, "a round without a cohort", "one that has it")
        self._rounds[entry.round] = entry.cohort

    def _reserve(self, entry: Reserve) -> None:
        key = TaskKey.parse(entry.task)
        account = self._open_study(key.study, entry)
        _require(entry.task not in self._tasks, entry, "a key that was never used", "one that was")
        _require(key.round_key in self._rounds, entry, "the round's cohort before it", "none")
        price = _price(entry.uses, entry)
        _require(entry.price == price[self._at], entry, f"the price {price[self._at]}", f"{entry.price}")
        parts = set[str]()
        for name in entry.blocks:
            block = self._blocks.get(name)
            part = block.part_of(account.number) if block is not None else None
            _require(part is not None, entry, "blocks of this study", "another block")
            parts.add(part or "")
            if not self._spent(name) + entry.price <= self._budget:
                raise BudgetExceededError(field=f"reserve: block {name}", expected="at most the budget", found="more")
        used = _count(account, entry.uses, parts, sign=1)
        _require(_within(account, used), entry, "at most the study's own programme", "more")
        for name in entry.blocks:
            self._blocks[name] = block_rules.charge(self._blocks[name], price)
        self._studies[key.study] = replace(account, used=used)
        whole = len(entry.blocks) == sum(self._size(account.number, part) for part in parts)
        structure = self._now.structure
        self._tasks[entry.task] = Task(reserve=entry, phase=Phase.RESERVED, structure=structure, whole=whole)

    def _step(self, entry: TaskEntry) -> None:
        phase = Phase(entry.TYPE)
        task = self._tasks.get(entry.task)
        found = task.phase.value if task is not None else "none"
        _require(task is not None and task.phase is _BEFORE[phase], entry, _BEFORE[phase].value, found)
        assert task is not None
        if isinstance(entry, Abort) and task.structure == self._now.structure:
            self._refund(task)
        self._tasks[entry.task] = replace(task, phase=phase)

    def _refund(self, task: Task) -> None:
        reserve, study = task.reserve, TaskKey.parse(task.reserve.task).study
        account = self._studies[study]
        price = _price(reserve.uses, reserve)
        parts = {self._blocks[name].part_of(account.number) or "" for name in reserve.blocks}
        for name in reserve.blocks:
            self._blocks[name] = block_rules.refund(self._blocks[name], price)
        self._studies[study] = replace(account, used=_count(account, reserve.uses, parts, sign=-1))

    def _open_study(self, study: str, entry: Entry) -> StudyAccount:
        account = self._studies.get(study)
        _require(account is not None and not account.closed, entry, "an enrolled, open study", "none")
        assert account is not None
        return account

    def _size(self, number: int, part: str) -> int:
        if self._sizes is None:
            self._sizes = Counter(member for block in self._blocks.values() for member in block.membership)
        return self._sizes[number, part]

    def _spent(self, block: str) -> int:
        return self._blocks[block].spent[self._at]

    @property
    def _at(self) -> int:
        return PLACES[self._now.in_force.order]

    @property
    def _budget(self) -> int:
        return self._now.budget


def _count(
    account: StudyAccount, uses: tuple[Use, ...], parts: set[str], *, sign: int
) -> Mapping[tuple[str, Mechanism], int]:
    used = dict(account.used)
    for use in uses:
        for part in parts:
            used[part, use.mechanism] = used.get((part, use.mechanism), 0) + sign * use.count
    return used


def _within(account: StudyAccount, used: Mapping[tuple[str, Mechanism], int]) -> bool:
    planned = {(part.name, use.mechanism): use.count for part in account.enrolment.parts for use in part.programme}
    return all(count <= planned.get(key, 0) for key, count in used.items())


def _price(uses: tuple[Use, ...], entry: Entry) -> Curve:
    price = _curve(uses)
    if price is None:
        raise BudgetExceededError(field=entry.TYPE, expected="noise", found="a mechanism without: ε is ∞")
    return price


@lru_cache(maxsize=4096)
def _curve(uses: tuple[Use, ...]) -> Curve | None:
    return price_uses(uses)


def _require(condition: bool, entry: Entry, expected: str, found: str) -> None:
    if not condition:
        raise TransitionError(field=entry.TYPE, expected=expected, found=found)
