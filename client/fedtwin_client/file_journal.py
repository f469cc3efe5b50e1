"""The journal of a real hospital: append-only files, fsynced, locked against a second process.

Design note: two files. `journal.log` holds one line for each entry, with its checksum; `answers.bin` holds the sealed
answers, which a line points to. A line that was torn by a crash (the last one, without its end) was never acknowledged,
so it is dropped. Any other line that does not match its checksum closes the journal: to guess would be to forget what
was spent. After a failed write nobody knows what the disk holds, so the object refuses to go on; a new one reads it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self, cast

import numpy as np

from fedtwin_client.journal import Account, JournalError, SealedAnswer, Spend, TaskKey, WithoutLedger, check_open
from fedtwin_shared.durable import lock_descriptor, sync_folder
from fedtwin_shared.round import RefusalCode, Task
from fedtwin_shared.signing import Json, canonical_json, digest

LINES: Final = "journal.log"
ANSWERS: Final = "answers.bin"
CHECKSUM_LENGTH: Final = 16  # hexadecimal digits of SHA-256: against accidents, not against an adversary with this disk


class Disk(Protocol):
    """The two calls to the operating system that a crash or a full disk can break."""

    def append(self, descriptor: int, data: bytes) -> None:
        """Write all of `data` at the end of the file."""

    def sync(self, descriptor: int) -> None:
        """Return once everything that was written to the file is on the disk."""


class LocalDisk:
    """The operating system's own calls."""

    def append(self, descriptor: int, data: bytes) -> None:
        """See `Disk.append`."""
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    def sync(self, descriptor: int) -> None:
        """See `Disk.sync`."""
        os.fsync(descriptor)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where in `answers.bin` a sealed answer lies."""

    offset: int
    length: int
    sha256: str


class FileJournal(WithoutLedger):
    """The journal of a real hospital, in a folder of its own.

    - a second process that opens the same folder gets a `JournalError`
    - a torn last line is dropped, any other damage is a `JournalError`
    - after a failed write `broken` is true and every charge and seal raises, until the folder is opened again
    """

    def __init__(self, folder: Path, *, disk: Disk | None = None) -> None:
        self.broken = False
        self._folder, self._disk = folder, disk or LocalDisk()
        self._account, self._places = Account(), dict[TaskKey, _Place]()
        with contextlib.ExitStack() as stack, self._report_failure():
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lines = _open_for_append(folder / LINES, stack)
            self._lock()
            self._answers = _open_for_append(folder / ANSWERS, stack)
            self._recover()
            sync_folder(folder)
            self._files = stack.pop_all()

    def charge(self, key: TaskKey, spend: Spend, *, limit: Spend) -> RefusalCode | None:
        """See `Journal.charge`."""
        refusal = self._account.decide(key, spend, limit)
        if refusal is None:
            # A crash before this returns means that nothing was trained; after it, that the attempt is spent.
            self._write(_charge_line(key, spend))
            self._account.add(key, spend)
        return refusal

    def seal(self, key: TaskKey, answer: SealedAnswer) -> None:
        """See `Journal.seal`."""
        check_open(key, self._account, self._places)
        data = encode_answer(answer)
        with self._report_failure():
            place = _Place(offset=os.fstat(self._answers).st_size, length=len(data), sha256=digest(data))
            self._disk.append(self._answers, data)
            self._disk.sync(self._answers)
        # A crash here leaves bytes that no line points to: the attempt is spent, nothing has left.
        self._write(_seal_line(key, place))
        self._places[key] = place

    def sealed(self, key: TaskKey) -> SealedAnswer | None:
        """See `Journal.sealed`. An answer whose bytes were damaged counts as not sealed."""
        place = self._places.get(key)
        if place is None:
            return None
        with self._report_failure():
            data = os.pread(self._answers, place.length, place.offset)
        return decode_answer(data) if digest(data) == place.sha256 else None

    def charged(self, study: str) -> Spend:
        """See `Journal.charged`."""
        return self._account.total(study)

    def close(self) -> None:
        """Give the folder free for another process."""
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        if not lock_descriptor(self._lines):
            raise JournalError(file=self._folder, expected="no other process with this journal", found="one that runs")

    def _recover(self) -> None:
        path = self._folder / LINES
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        self._account, self._places = _fold(_parse_lines(content[:whole], path), path)
        if whole < len(content):
            os.ftruncate(self._lines, whole)
            self._disk.sync(self._lines)

    def _write(self, line: bytes) -> None:
        with self._report_failure():
            self._disk.append(self._lines, line)
            self._disk.sync(self._lines)

    @contextlib.contextmanager
    def _report_failure(self) -> Iterator[None]:
        if self.broken:
            raise JournalError(file=self._folder, expected="to be opened again", found="an earlier failed write")
        try:
            yield
        except OSError as err:
            self.broken = True
            raise JournalError(
                file=self._folder, expected="a disk that reads and writes", found=err.strerror or type(err).__name__
            ) from err


def read_spending(folder: Path) -> Mapping[str, Spend]:
    """Return what was charged, by study digest, without the lock: also while the hospital runs.

    Raises `JournalError`.
    """
    path = folder / LINES
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as err:
        raise JournalError(file=path, expected="a readable file", found=err.strerror or "none") from err
    account, _ = _fold(_parse_lines(content[: content.rfind(b"\n") + 1], path), path)
    return account.totals


def _open_for_append(path: Path, stack: contextlib.ExitStack) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    stack.callback(os.close, descriptor)
    return descriptor


def _charge_line(key: TaskKey, spend: Spend) -> bytes:
    return _line({"entry": "charge", **asdict(key), **asdict(spend)})


def _seal_line(key: TaskKey, place: _Place) -> bytes:
    return _line({"entry": "seal", **asdict(key), **asdict(place)})


def _line(entry: dict[str, Json]) -> bytes:
    body = canonical_json(entry)
    return digest(body)[:CHECKSUM_LENGTH].encode() + b" " + body + b"\n"


def _parse_lines(content: bytes, path: Path) -> Iterator[dict[str, Json]]:
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        checksum, _, body = line.partition(b" ")
        if digest(body)[:CHECKSUM_LENGTH].encode() != checksum:
            raise JournalError(
                file=path, field=f"line {number}", expected="a line that matches its checksum", found="damage"
            )
        yield cast("dict[str, Json]", json.loads(body))


def _fold(entries: Iterable[dict[str, Json]], path: Path) -> tuple[Account, dict[TaskKey, _Place]]:
    account, places = Account(), dict[TaskKey, _Place]()
    for number, entry in enumerate(entries, start=1):
        try:
            key = TaskKey(
                study=str(entry["study"]),
                run=str(entry["run"]),
                round=_integer(entry["round"]),
                attempt=_integer(entry["attempt"]),
                task=Task(str(entry["task"])),
            )
            if entry["entry"] == "charge" and key not in account.spends:
                account.add(key, Spend(steps=_integer(entry["steps"]), releases=_integer(entry["releases"])))
            elif entry["entry"] == "seal" and key in account.spends and key not in places:
                length, offset = _integer(entry["length"]), _integer(entry["offset"])
                places[key] = _Place(offset=offset, length=length, sha256=str(entry["sha256"]))
            else:
                raise ValueError
        except (KeyError, ValueError) as err:
            raise JournalError(
                file=path, field=f"line {number}", expected="a charge, or its seal", found="another entry"
            ) from err
    return account, places


def _integer(value: Json) -> int:
    if not isinstance(value, int):
        raise ValueError
    return value


def encode_answer(answer: SealedAnswer) -> bytes:
    """Return an answer as bytes from which `decode_answer` makes it again, bit for bit."""
    buffer = io.BytesIO()
    arrays = {f"array:{name}": np.asarray(array) for name, array in answer.arrays.items()}
    plan, envelope = (np.frombuffer(data, dtype=np.uint8) for data in (answer.plan.encode(), answer.envelope))
    np.savez(buffer, allow_pickle=False, plan=plan, envelope=envelope, **arrays)
    return buffer.getvalue()


def decode_answer(data: bytes) -> SealedAnswer:
    """Return the answer that `encode_answer` wrote; for bytes whose digest was checked."""
    with np.load(io.BytesIO(data), allow_pickle=False) as stored:
        return SealedAnswer(
            plan=stored["plan"].tobytes().decode(),
            envelope=stored["envelope"].tobytes(),
            arrays={name.removeprefix("array:"): stored[name] for name in stored.files if name.startswith("array:")},
        )
