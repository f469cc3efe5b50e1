"""All patients' twins at one hospital: the thin stateful shell around the filter.

Design note: two copies are kept. `settled` has seen everything older than the window, which nothing can be inserted
into any more; `live` has seen everything. What lies between waits in one table, in the one order of entries. An
observation that arrives in order is applied to `live` alone; one that arrives late within the window takes the patient
back to `settled` and through the table again. So the state depends on what was observed, not on how it arrived.
A crash here loses nothing: the store has the observations, and reading them again gives the same bits.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.observation_batch import ObservationBatch, Quality
from fedtwin_client.twins.block import Rows
from fedtwin_client.twins.channels import BLOCKS, GIVEN_CARBOHYDRATE, GIVEN_INSULIN, OXYGEN, PLACES, make_events
from fedtwin_client.twins.entries import (
    AHEAD,
    ENTRY,
    WINDOW,
    Flags,
    Outcome,
    Outcomes,
    Runs,
    Table,
    find_late,
    find_repeats,
    find_stuck,
    number_device,
    sort_entries,
)
from fedtwin_client.twins.filter import GATED, NEVER, Bank, Predicted, make_bank
from fedtwin_client.twins.patient_twin import VERSION, PatientTwin
from fedtwin_shared.errors import FedtwinError

try:
    from fedtwin_client.twins.kernel import apply_events
except ImportError:  # no numba: the plain filter gives the same bits
    from fedtwin_client.twins.filter import apply_events

KINDS: Final = len(SIGNAL_KEYS)
GROWTH: Final = 64
SETTLE: Final = 256  # entries of one patient in the table that are worth settling
_READ = np.isin(np.arange(KINDS), [*PLACES, OXYGEN])


class TwinError(FedtwinError):
    """A saved state is not one of these equations, or not whole; the twins are made again from the store."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Observed:
    """What became of each observation of a batch, in its order.

    outcome: an `Outcome`. surprise: innovation in standard deviations of what was expected; NaN where none was made.
    """

    outcome: Outcomes
    surprise: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class _Side:
    """One copy of everybody."""

    banks: tuple[Bank, ...]
    runs: Runs


@dataclass(frozen=True, slots=True, kw_only=True)
class Dose:
    """What a patient was given. kind: carbohydrate in g, or insulin in units under the skin. time: ms UTC."""

    kind: str
    amount: float
    time: int


class Twins:
    """Every patient of a hospital. Not for several threads at once.

    - the same observations give the same bits, however they are cut into batches
    - within the window any order of arrival gives the same bits, and a repetition changes nothing
    - whatever is later than the window, ahead of the clock, or marked invalid changes nothing
    """

    def __init__(self, *, window: int = WINDOW) -> None:
        """`window`: milliseconds within which a late observation still counts."""
        self._window = window
        self._rows: dict[str, int] = {}
        self._free: list[int] = []
        self._newest = np.full(0, NEVER, np.int64)
        self._counts = np.zeros((0, len(Outcome)), np.int64)
        self._settled, self._live = _make_side(0), _make_side(0)
        self._table: Table = np.zeros(0, ENTRY)
        self._devices: dict[str, int] = {}

    @property
    def patients(self) -> tuple[str, ...]:
        """Everybody who has a twin."""
        return tuple(self._rows)

    def receive(self, batch: ObservationBatch, *, now: int) -> Observed:
        """Take a batch, as it arrived at `now`, ms UTC."""
        entries = np.zeros(len(batch), ENTRY)
        row = np.array([self._row(patient) for patient in batch.patients], np.int64)
        device = np.array([self._device(name) for name in batch.devices], np.int64)
        if len(batch):
            entries["row"], entries["device"] = row[batch.patient], device[batch.device]
        entries["time"], entries["kind"] = batch.time, batch.signal
        entries["sequence"], entries["value"] = batch.sequence, batch.value
        outcome = np.full(len(batch), Outcome.USED, np.uint8)
        outcome[entries["time"] > now + AHEAD] = Outcome.FUTURE
        outcome[batch.quality == Quality.INVALID] = Outcome.INVALID
        outcome[~_READ[batch.signal]] = Outcome.NOT_READ
        return self._take(entries, outcome)

    def give(self, patient: str, doses: Sequence[Dose]) -> None:
        """Note what the patient was given. Raises `ValueError` for a kind that no equation has."""
        kinds = {"carbohydrate": GIVEN_CARBOHYDRATE, "insulin": GIVEN_INSULIN}
        entries = np.zeros(len(doses), ENTRY)
        for at, dose in enumerate(doses):
            if dose.kind not in kinds or not dose.amount > 0:
                raise ValueError(f"expected an amount above 0 of one of {', '.join(kinds)}, found {dose.kind}")
            entries[at] = (self._row(patient), dose.time, kinds[dose.kind], 0, 0, dose.amount)
        self._take(entries, np.full(len(doses), Outcome.USED, np.uint8))

    def forget(self, patient: str) -> bool:
        """Drop everything about a patient; whether there was anything."""
        row = self._rows.pop(patient, None)
        if row is None:
            return False
        rows = np.array([row])
        for side in (self._settled, self._live):
            _copy_rows(_make_side(1), np.zeros(1, np.int64), side, rows)
        self._table = self._table[self._table["row"] != row]
        self._newest[row], self._counts[row] = NEVER, 0
        self._free.append(row)
        return True

    def twin(self, patient: str) -> PatientTwin:
        """Return the patient's twin as a value. Raises `KeyError` where there is none."""
        row = self._rows[patient]
        used = self._live.runs.used[row]
        return PatientTwin(
            patient=patient,
            banks={
                block.name: Bank(
                    state=bank.state[[row]].copy(), clock=bank.clock[[row]].copy(), strikes=bank.strikes[[row]].copy()
                )
                for block, bank in zip(BLOCKS, self._live.banks, strict=True)
            },
            used={SIGNAL_KEYS[kind]: int(used[kind]) for kind in np.flatnonzero(used != NEVER)},
            counts={fate.name.lower(): int(self._counts[row, fate]) for fate in Outcome if self._counts[row, fate]},
        )

    def _take(self, entries: Table, outcome: Outcomes) -> Observed:
        """Put entries in their places, and bring every patient concerned up to date."""
        surprise = np.full(len(entries), np.nan, np.float32)
        arrived = np.flatnonzero(outcome == Outcome.USED)
        late = find_late(entries["row"][arrived], entries["time"][arrived], self._newest, self._window)
        outcome[arrived[late]] = Outcome.LATE
        arrived = arrived[~late]
        if len(arrived):
            self._insert(entries, arrived, outcome, surprise)
        np.add.at(self._counts, (entries["row"], outcome), 1)
        return Observed(outcome=outcome, surprise=surprise)

    def _insert(self, entries: Table, arrived: Rows, outcome: Outcomes, surprise: npt.NDArray[np.float32]) -> None:
        touched = np.unique(entries["row"][arrived])
        waiting = np.isin(self._table["row"], touched)
        old, new = self._table[waiting], entries[arrived]
        joined = np.concatenate([old, new])
        place = np.concatenate([np.full(len(old), -1, np.int64), arrived])
        order = sort_entries(joined)
        joined, place = joined[order], place[order]
        repeated, contradicted = find_repeats(joined)
        # Of two that are wholly the same, the sort is stable and the older one stays.
        outcome[place[repeated & (place >= 0)]] = Outcome.DUPLICATE
        joined, place, contradicted = joined[~repeated], place[~repeated], contradicted[~repeated]
        fresh = place >= 0
        back = _find_returning(joined, fresh, contradicted)
        again = np.isin(joined["row"], back)
        if len(back):
            _copy_rows(self._settled, back, self._live, back)
        todo = fresh | again
        fates, surprises = _run(self._live, joined[todo], contradicted[todo])
        reported = place[todo] >= 0
        outcome[place[todo][reported]] = fates[reported]
        surprise[place[todo][reported]] = surprises[reported]
        self._table = np.concatenate([self._table[~waiting], joined])
        self._settle(touched)

    def _settle(self, touched: Rows) -> None:
        """Move what nothing can come before any more into `settled`, for patients of whom much waits."""
        waiting = np.bincount(self._table["row"], minlength=len(self._newest))
        full = touched[waiting[touched] > SETTLE]
        if not len(full):
            return
        ripe = np.isin(self._table["row"], full)
        ripe &= self._table["time"] < self._newest[self._table["row"]] - self._window
        table = self._table[ripe]
        table = table[sort_entries(table)]
        _, contradicted = find_repeats(table)
        _run(self._settled, table, contradicted)
        self._table = self._table[~ripe]

    def _row(self, patient: str) -> int:
        row = self._rows.get(patient)
        if row is None:
            if not self._free:
                self._grow()
            row = self._rows[patient] = self._free.pop()
        return row

    def _grow(self) -> None:
        """Make room for more patients: as many again."""
        before = len(self._newest)
        count = max(GROWTH, 2 * before)
        for name in ("_settled", "_live"):
            bigger = _make_side(count)
            _copy_rows(getattr(self, name), np.arange(before), bigger, np.arange(before))
            setattr(self, name, bigger)
        self._newest = np.append(self._newest, np.full(count - before, NEVER, np.int64))
        self._counts = np.append(self._counts, np.zeros((count - before, len(Outcome)), np.int64), axis=0)
        self._free.extend(range(count - 1, before - 1, -1))

    def _device(self, name: str) -> int:
        if name not in self._devices:
            self._devices[name] = number_device(name)
        return self._devices[name]

    def save(self) -> bytes:
        """Return everything as bytes that `load` takes, with the version of the equations."""
        arrays: dict[str, Any] = {"newest": self._newest, "counts": self._counts, "table": self._table}
        for name, side in (("settled", self._settled), ("live", self._live)):
            arrays.update({f"{name}.{key}": array for key, array in _arrays_of(side).items()})
        header = {"version": VERSION, "window": self._window, "rows": self._rows, "free": self._free}
        arrays["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
        out = io.BytesIO()
        np.savez(out, **arrays)
        return out.getvalue()

    @classmethod
    def load(cls, saved: bytes | Path) -> Twins:
        """Return the twins that were saved. Raises `TwinError` for other equations or what is no saved state."""
        try:
            with np.load(io.BytesIO(saved) if isinstance(saved, bytes) else saved, allow_pickle=False) as arrays:
                header = json.loads(arrays["header"].tobytes())
                if header["version"] != VERSION:
                    raise TwinError(field="version", expected=VERSION, found=str(header["version"]))
                twins = cls(window=int(header["window"]))
                twins._rows, twins._free = dict(header["rows"]), list(header["free"])
                twins._newest, twins._counts = arrays["newest"], arrays["counts"]
                twins._table = arrays["table"]
                for name in ("settled", "live"):
                    side = _make_side(len(twins._newest))
                    for key, array in _arrays_of(side).items():
                        array[:] = arrays[f"{name}.{key}"]
                    setattr(twins, f"_{name}", side)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as err:
            raise TwinError(expected="a saved state of twins", found=type(err).__name__) from err
        return twins


def _make_side(count: int) -> _Side:
    shape = (count, KINDS)
    return _Side(
        banks=tuple(make_bank(block, count) for block in BLOCKS),
        runs=Runs(
            value=np.zeros(shape, np.float32),
            since=np.full(shape, NEVER, np.int64),
            count=np.zeros(shape, np.int64),
            used=np.full(shape, NEVER, np.int64),
        ),
    )


def _arrays_of(side: _Side) -> dict[str, npt.NDArray[Any]]:
    found = {name: getattr(side.runs, name) for name in Runs.__slots__}
    for number, bank in enumerate(side.banks):
        found.update({f"{number}.{name}": getattr(bank, name) for name in Bank.__slots__})
    return found


def _copy_rows(source: _Side, from_rows: Rows, to: _Side, to_rows: Rows) -> None:
    targets = _arrays_of(to)
    for name, array in _arrays_of(source).items():
        targets[name][to_rows] = array[from_rows]


def _find_returning(joined: Table, fresh: Flags, contradicted: Flags) -> Rows:
    """Return patients who must be computed again: something new comes before, or contradicts, something known."""
    known = ~fresh
    newest_known = np.full(int(joined["row"].max()) + 1, -1, np.int64)
    np.maximum.at(newest_known, joined["row"][known], np.flatnonzero(known))
    before = fresh & (np.arange(len(joined)) < newest_known[joined["row"]])
    group = np.zeros(len(newest_known), bool)
    group[joined["row"][before]] = True
    fresh_rows = np.zeros(len(newest_known), bool)
    fresh_rows[joined["row"][fresh & contradicted]] = True
    group |= fresh_rows
    return np.flatnonzero(group)


def _run(side: _Side, table: Table, contradicted: Flags) -> tuple[Outcomes, npt.NDArray[np.float32]]:
    """Apply sorted entries to one side; return what became of each, and the surprise in standard deviations."""
    fate = np.full(len(table), Outcome.USED, np.uint8)
    surprise = np.full(len(table), np.nan, np.float32)
    stuck = find_stuck(table, side.runs)
    fate[stuck], fate[contradicted] = Outcome.STUCK, Outcome.CONFLICT
    usable = np.flatnonzero(fate == Outcome.USED)
    for number, bank in enumerate(side.banks):
        part = table[usable]
        index, events = make_events(number, part["row"], part["time"], part["kind"], part["value"])
        if not len(index):
            continue
        predicted: Predicted = apply_events(BLOCKS[number], bank, events)
        at = usable[index]
        fate[at[predicted.fate == GATED]] = Outcome.ARTEFACT
        surprise[at] = (events.value - predicted.mean) / np.sqrt(predicted.variance)
    counted = (fate == Outcome.USED) & (table["kind"] >= 0)
    np.maximum.at(side.runs.used, (table["row"][counted], table["kind"][counted]), table["time"][counted])
    return fate, surprise
