"""How a ledger came to what it says: when each block spent what, for which study, and everything that was refused.

Design note: the numbers are those of `state.History`, replayed; nothing is accounted a second time here. A block that
exists now has the past of the block that it was split from or, after a merge, of the one that had spent most at the
filter's order: exactly the one whose spending it carries, so that what it spent is always the sum over its studies.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from fedtwin_shared.ledger.account import PLACES, LedgerState
from fedtwin_shared.ledger.blocks import NOTHING, READMITTED, Block
from fedtwin_shared.ledger.encoding import parse_entry
from fedtwin_shared.ledger.entry import (
    Abort,
    Claim,
    Closure,
    Conformance,
    Enrolment,
    Entry,
    Epoch,
    Policy,
    Refusal,
    Reserve,
    Seal,
    TaskKey,
)
from fedtwin_shared.ledger.renyi import Curve
from fedtwin_shared.ledger.second_opinion import recompute_history
from fedtwin_shared.ledger.state import History

MOST_POINTS: Final = 128  # of one block between two changes of the blocks; beyond it every second one is forgotten


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What a block had spent after an entry. entry: its position. time: Unix seconds, by the hospital's clock."""

    entry: int
    time: int
    spent: Curve


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockHistory:
    """A block's past. by_study: nano-RDP at the filter's order, by digest of the study; its sum is what was spent."""

    points: tuple[Point, ...]
    by_study: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedEpsilon:
    """An ε that was claimed from an entry on."""

    entry: int
    time: int
    epsilon: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeUse:
    """How many answers one version of the program sealed, and when first and last, in Unix seconds."""

    answers: int
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpendingHistory:
    """A ledger's state and how it came to it.

    times: of every entry. kinds: entries of each type. site_policies: digest and when it came into force.
    refusals: by reason. codes: by digest of the program.
    """

    state: LedgerState
    times: Sequence[int]
    kinds: Mapping[str, int]
    blocks: Mapping[str, BlockHistory]
    claims: tuple[ClaimedEpsilon, ...]
    site_policies: tuple[tuple[str, int], ...]
    refusals: Mapping[str, int]
    conformance: tuple[Conformance, ...]
    codes: Mapping[str, CodeUse]

    @property
    def ledger(self) -> LedgerState:
        """See `LedgerState.ledger`."""
        return self.state


def trace_history(entries: Sequence[bytes]) -> SpendingHistory:
    """Return the history of a ledger, all of which `recompute_history` verified first; raises as that does."""
    state = recompute_history(entries)
    tracer = _Tracer()
    for data in entries:
        tracer.add(parse_entry(data))
    return tracer.found(state)


@dataclass(slots=True, kw_only=True)
class _Segment:
    """A block between two changes of the blocks; `before` is what it was until then."""

    before: _Segment | None = None
    spent: Curve = NOTHING
    points: list[Point] = field(default_factory=list)
    by_study: Counter[str] = field(default_factory=Counter)

    def note(self, point: Point) -> None:
        if point.spent == self.spent:
            return
        self.spent = point.spent
        self.points.append(point)
        if len(self.points) > MOST_POINTS:
            del self.points[-2::-2]

    def go_on(self) -> _Segment:
        before = self if self.points else self.before
        return _Segment(before=before, spent=self.spent, by_study=self.by_study.copy())


class _Tracer:
    """Replays entries that were verified already, and remembers."""

    def __init__(self) -> None:
        self._history = History()
        self._segments: dict[str, _Segment] = {}
        self._times = array("q")
        self._kinds, self._refusals = Counter[str](), Counter[str]()
        self._claims: list[ClaimedEpsilon] = []
        self._policies: list[tuple[str, int]] = []
        self._conformance: list[Conformance] = []
        self._codes: dict[str, CodeUse] = {}

    def add(self, entry: Entry) -> None:
        before = self._history.now
        old = dict(before.blocks) if isinstance(entry, Epoch | Enrolment | Closure) else {}
        self._history.add(entry)
        self._times.append(entry.time)
        self._kinds[entry.TYPE] += 1
        match entry:
            case Reserve():
                self._charge(entry, entry, sign=1)
            case Abort():
                self._charge(entry, self._history.now.tasks[entry.task].reserve, sign=-1)
            case Epoch() | Enrolment() | Closure():
                self._restructure(entry, old)
            case Policy():
                self._policies.append((entry.site_policy, entry.time))
                if not self._claims:  # a later policy keeps the claim
                    self._claim(entry)
            case Claim():
                self._claim(entry)
            case Refusal():
                self._refusals[entry.code] += 1
            case Conformance():
                self._conformance.append(entry)
            case Seal():
                known = self._codes.get(entry.code, CodeUse(answers=0, first=entry.time, last=entry.time))
                self._codes[entry.code] = CodeUse(answers=known.answers + 1, first=known.first, last=entry.time)
            case _:
                pass

    def found(self, state: LedgerState) -> SpendingHistory:
        return SpendingHistory(
            state=state,
            times=self._times,
            kinds=dict(self._kinds),
            blocks={
                name: BlockHistory(points=_points(segment), by_study={k: n for k, n in segment.by_study.items() if n})
                for name, segment in self._segments.items()
            },
            claims=tuple(self._claims),
            site_policies=tuple(self._policies),
            refusals=dict(self._refusals),
            conformance=tuple(self._conformance),
            codes=dict(self._codes),
        )

    def _claim(self, entry: Policy | Claim) -> None:
        claimed = ClaimedEpsilon(entry=len(self._times) - 1, time=entry.time, epsilon=entry.epsilon)
        self._claims.append(claimed)

    def _charge(self, entry: Reserve | Abort, reserve: Reserve, *, sign: int) -> None:
        blocks, study = self._history.now.blocks, TaskKey.parse(reserve.task).study
        for name in reserve.blocks:
            segment = self._segments.get(name)
            # An abort after the blocks changed gives nothing back, and the block may be gone.
            if segment is not None and blocks[name].spent != segment.spent:
                segment.by_study[study] += sign * reserve.price
                segment.note(self._point(entry, blocks[name]))

    def _restructure(self, entry: Epoch | Enrolment | Closure, old: Mapping[str, Block]) -> None:
        now = self._history.now
        number = None if isinstance(entry, Epoch) else now.studies[entry.study].number
        at = PLACES[now.in_force.order]

        def key(block: Block) -> str:
            if number is None:
                return READMITTED if block.family == READMITTED else block.name
            left = tuple(member for member in block.membership if member[0] != number)
            return Block(family=block.family, membership=left).name

        origins: dict[str, Block] = {}
        for block in old.values():
            for name in {key(block)} if number is not None else {key(block), READMITTED}:
                if name not in origins or block.spent[at] > origins[name].spent[at]:
                    origins[name] = block
        segments = {}
        for name, block in now.blocks.items():
            origin = origins.get(key(block))
            segments[name] = _Segment() if origin is None else self._segments[origin.name].go_on()
            segments[name].note(self._point(entry, block))
        self._segments = segments

    def _point(self, entry: Entry, block: Block) -> Point:
        return Point(entry=len(self._times) - 1, time=entry.time, spent=block.spent)


def _points(last: _Segment) -> tuple[Point, ...]:
    parts: list[list[Point]] = []
    segment: _Segment | None = last
    while segment is not None:
        parts.append(segment.points)
        segment = segment.before
    return tuple(point for part in reversed(parts) for point in part)
