"""The hospital's encrypted store beside plain SQLite rows: appending, reading, and training windows of a whole ward."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.observation_batch import ObservationBatch, make_batch
from fedtwin_client.store.block_store import open_store
from fedtwin_client.store.store import ObservationStore
from fedtwin_client.store.windows import WindowCache, WindowShape
from fedtwin_simulations.results import Bench, BenchRow

APPEND_GOAL = 3.0  # million observations a second
READ_GOAL = 10.0
WINDOWS_GOAL_SECONDS = 5.0
PATIENTS = 1000
SERIES = 6250  # observations of one patient's one signal: 31 hours, one each 18 seconds
TOGETHER = 20  # patients of one append
BASELINE_PATIENTS = 10
BEDS, MINUTES = 200, 60
REPEATS = 3

_START = 1_700_006_400_000
_STEP = 18_000
_SIGNALS = SIGNAL_KEYS[3:11]  # the vital signs

Say = Callable[[str], None]


def bench_store(say: Say) -> Bench:
    """Measure the store with 50 million observations, on one core."""
    count = PATIENTS * SERIES * len(_SIGNALS)
    with tempfile.TemporaryDirectory(prefix="fedtwin-") as folder:
        warm_up(Path(folder) / "small")
        say(f"plain SQLite rows, {BASELINE_PATIENTS} patients")
        rows_append, rows_read = time_rows(Path(folder) / "rows.db")
        with open_store(Path(folder) / "store") as store:
            say(f"{count:,} observations of {PATIENTS} patients: appending")
            append = time_append(store, PATIENTS)
            say("reading and decrypting")
            read = time_read(store)
            say("training windows")
            windows = time_windows(store)
            say(f"a ward of {BEDS} beds, minute by minute")
            calls = time_ward(store)
        size = sum(path.stat().st_size for path in (Path(folder) / "store").rglob("*") if path.is_file())
    rows = "SQLite rows, not encrypted, keyed by patient, signal and time"
    to_windows = f"{count / 1e6:g} M observations to windows [{PATIENTS}, 31, 60, {len(_SIGNALS)}]"
    alone = "the same, of the processor's time alone"
    return Bench(
        bench="store",
        rows=(
            _rate("encrypted append, durable", count / append.wall, rows_append, rows, APPEND_GOAL),
            _rate(alone, count / append.processor, rows_append, rows, APPEND_GOAL),
            _rate("read and decrypt everything", count / read.wall, rows_read, rows, READ_GOAL),
            _rate(alone, count / read.processor, rows_read, rows, READ_GOAL),
            _windows(f"{to_windows}, from the disk", windows.wall, count / 1e6 / rows_read),
            _windows(alone, windows.processor, count / 1e6 / rows_read),
            BenchRow(
                case=f"{BEDS} beds × {len(_SIGNALS)} signals, one observation of each in a durable append",
                ours=calls,
                baseline=None,
                baseline_name="",
                unit="appends/s",
                goal="at least 1 appends/s",
                holds=calls >= 1,
            ),
            BenchRow(
                case="disk, everything included",
                ours=size / (count + BEDS * MINUTES * len(_SIGNALS)),
                baseline=None,
                baseline_name="",
                unit="B/observation",
                goal="at most 16 B/observation",
                holds=size <= 16 * count,
            ),
        ),
    )


def make_stays(first: int, end: int, *, begin: int = 0, length: int) -> ObservationBatch:
    """Return observations `begin` to `begin + length` of every signal of the patients `first` to `end`."""
    patients, signals = end - first, len(_SIGNALS)
    chance = np.random.default_rng((first, begin))
    number = np.tile(np.arange(begin, begin + length), patients * signals)
    return make_batch(
        patients=[f"patient-{patient}" for patient in range(first, end)],
        devices=[f"monitor-{patient % 50}" for patient in range(first, first + min(50, patients))],
        patient=np.repeat(np.arange(patients), signals * length),
        signal=np.tile(np.repeat([SIGNAL_KEYS.index(key) for key in _SIGNALS], length), patients),
        time=_START + number * _STEP + chance.integers(-200, 200, len(number)),
        value=chance.normal(80, 10, len(number)).astype(np.float32),
        device=np.repeat(np.arange(patients) % min(50, patients), signals * length),
        sequence=number,
        quality=np.zeros(len(number), np.uint8),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Seconds, on the wall and of this process's processor time; other programs make the first one longer."""

    wall: float = 0.0
    processor: float = 0.0


def measure(work: Callable[[], object]) -> Spent:
    """Return what some work takes."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return Spent(wall=time.perf_counter() - wall, processor=time.process_time() - processor)


def best(work: Callable[[], object]) -> Spent:
    """Return the best of `REPEATS`, as other programs only ever slow it down."""
    spent = [measure(work) for _ in range(REPEATS)]
    return Spent(wall=min(one.wall for one in spent), processor=min(one.processor for one in spent))


def time_append(store: ObservationStore, patients: int) -> Spent:
    """Return what appending takes; making the observations up is not counted."""
    spent = []
    for first in range(0, patients, TOGETHER):
        batch = make_stays(first, first + TOGETHER, length=SERIES)
        spent.append(measure(partial(store.append, batch)))
    return Spent(wall=sum(one.wall for one in spent), processor=sum(one.processor for one in spent))


def time_read(store: ObservationStore) -> Spent:
    """Return what reading everything takes."""
    return best(lambda: sum(len(batch) for batch in store.scan()))


def time_windows(store: ObservationStore) -> Spent:
    """Return what it takes from the encrypted blocks to one tensor."""
    shape = WindowShape(windows=31, steps=60, step=60_000, signals=_SIGNALS)
    starts = dict.fromkeys(store.patients(), _START)
    return best(lambda: WindowCache(store, shape).build(starts))


def time_ward(store: ObservationStore) -> float:
    """Return appends a second."""
    minutes = [make_stays(0, BEDS, begin=SERIES + minute, length=1) for minute in range(MINUTES)]
    began = time.perf_counter()
    for batch in minutes:
        store.append(batch)
    return MINUTES / (time.perf_counter() - began)


def time_rows(path: Path) -> tuple[float, float]:
    """Return million observations a second that plain SQLite appends, and reads into columns."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL").fetchall()
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(
        "CREATE TABLE observation (patient INTEGER, signal INTEGER, time INTEGER, value REAL, device INTEGER,"
        " sequence INTEGER, quality INTEGER, PRIMARY KEY (patient, signal, time)) WITHOUT ROWID"
    )
    batch = make_stays(0, BASELINE_PATIENTS, length=SERIES)
    began = time.perf_counter()
    connection.execute("BEGIN")
    connection.executemany("INSERT OR IGNORE INTO observation VALUES (?, ?, ?, ?, ?, ?, ?)", _tuples(batch))
    connection.execute("COMMIT")
    middle = time.perf_counter()
    found = 0
    for patient in range(BASELINE_PATIENTS):
        rows = connection.execute("SELECT * FROM observation WHERE patient = ?", (patient,)).fetchall()
        found += np.array(rows, np.float64).shape[0]
    end = time.perf_counter()
    connection.close()
    return len(batch) / (middle - began) / 1e6, found / (end - middle) / 1e6


def warm_up(folder: Path) -> None:
    """Compile what is compiled at its first use."""
    with open_store(folder) as store:
        store.append(make_stays(0, 2, length=600))
        time_read(store)
        time_windows(store)


def _tuples(batch: ObservationBatch) -> Iterator[tuple[int | float, ...]]:
    columns = (batch.patient, batch.signal, batch.time, batch.value, batch.device, batch.sequence, batch.quality)
    return zip(*(column.tolist() for column in columns), strict=True)


def _windows(case: str, ours: float, baseline: float) -> BenchRow:
    return BenchRow(
        case=case,
        ours=ours,
        baseline=baseline,
        baseline_name="SQLite rows, reading alone, scaled",
        unit="s",
        goal=f"at most {WINDOWS_GOAL_SECONDS:g} s",
        holds=ours <= WINDOWS_GOAL_SECONDS,
    )


def _rate(case: str, ours: float, baseline: float, name: str, goal: float) -> BenchRow:
    return BenchRow(
        case=case,
        ours=ours / 1e6,
        baseline=baseline,
        baseline_name=name,
        unit="M observations/s",
        goal=f"at least {goal:g} M observations/s",
        holds=ours / 1e6 >= goal,
    )
