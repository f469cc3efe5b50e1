"""One file of a hospital as columns, before anything in it is believed: CSV or Parquet in, text, numbers, instants out.

Design note: a row or a cell that cannot be parsed is put aside, never fatal; only a file that is no table at all is.
No message quotes a file's contents, not even its header: in a file without one, the first patient stands there.
"""

from __future__ import annotations

import csv as standard_csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, parquet

from fedtwin_client.errors import DataError

NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
# RFC 3339 with Z or an offset; seconds may be left out, a space may stand for the T.
INSTANT = r"^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d+)?)?([Zz]|[+-]\d\d:?\d\d)$"
NAIVE = r"^\d{4}-\d\d-\d\d([Tt ]\d\d:\d\d(:\d\d(\.\d+)?)?)?$"

_SUFFIXES = (".csv", ".parquet")
_QUOTE = b'"'
_RETURN = b"\r"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Malformed:
    """A row that has not as many fields as the header, a quote that nothing closes, or a carriage return inside."""

    row: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Table:
    """One file: its columns as they stand there.

    row: 1-based row of the file for each row of `columns`; the header and empty lines are not counted.
    """

    name: str
    columns: pa.Table
    row: npt.NDArray[np.int64]
    malformed: tuple[Malformed, ...] = ()

    def __len__(self) -> int:
        return len(self.row)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self.columns.column_names)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Instants:
    """time: microseconds since 1970 UTC, 0 where it is `unreadable` or `naive` (without a time zone)."""

    time: npt.NDArray[np.int64]
    unreadable: npt.NDArray[np.bool_]
    naive: npt.NDArray[np.bool_]


def read_table(folder: Path, stem: str) -> Table | None:
    """Return `stem`.csv or `stem`.parquet of `folder`; None when there is neither.

    Raises `DataError` when there are both, or when the file cannot be read as a table at all.
    """
    found = [path for path in (folder / f"{stem}{suffix}" for suffix in _SUFFIXES) if path.exists()]
    if len(found) > 1:
        raise DataError(file=folder, field=stem, expected=f"one of {stem}.csv, {stem}.parquet", found="both")
    if not found:
        return None
    path = found[0]
    try:
        table = _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)
    except (OSError, ValueError, pa.ArrowException, standard_csv.Error) as err:
        # The library's own message may quote a row: it is not passed on, and neither is the exception.
        kind = "a readable UTF-8 CSV file" if path.suffix == ".csv" else "a readable Parquet file of plain columns"
        raise DataError(file=path, expected=kind, found=f"{type(err).__name__} on reading it") from None
    if len(set(table.names)) != len(table.names):
        raise DataError(file=path, field="header", expected="every column once", found="a column twice")
    return table


def _read_csv(path: Path) -> Table:
    lines, rows, malformed = _split_lines(path.read_bytes())
    header = next(standard_csv.reader([lines[0].decode("utf-8-sig")]), [])
    if not header:
        raise ValueError("empty")
    aside = {one.row: one for one in malformed}

    def put_aside(row: csv.InvalidRow) -> str:
        number = int(rows[row.number - 2])  # arrow counts from 1 and counts the header
        aside[number] = Malformed(row=number, text=row.text)
        return "skip"

    columns = csv.read_csv(
        io.BytesIO(b"\n".join([*lines, b""])),
        read_options=csv.ReadOptions(use_threads=False),  # only then rows are numbered
        parse_options=csv.ParseOptions(invalid_row_handler=put_aside),
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.large_string()), null_values=[""], strings_can_be_null=True
        ),
    )
    kept = rows[~np.isin(rows, list(aside))]
    return Table(name=path.name, columns=columns, row=kept, malformed=tuple(aside[row] for row in sorted(aside)))


def _split_lines(data: bytes) -> tuple[list[bytes], npt.NDArray[np.int64], tuple[Malformed, ...]]:
    """Return the lines that are not empty, the row number of each but the header, and rows that would shift others.

    No field of ours holds a line break, so a quote that is open at the end of a line would swallow the rows after it.
    A carriage return inside a line would be a row more to arrow: one patient's stray byte must not stop a file.
    """
    lines = [line.removesuffix(b"\r") for line in data.split(b"\n") if line.strip()]
    if not lines or lines[0].count(_QUOTE) % 2 or _RETURN in lines[0]:
        raise ValueError("no header")
    if _QUOTE not in data and _RETURN not in data:
        return lines, np.arange(1, len(lines)), ()
    broken = [row for row, line in enumerate(lines) if line.count(_QUOTE) % 2 or _RETURN in line]
    malformed = tuple(Malformed(row=row, text=lines[row].decode()) for row in broken)
    kept = np.delete(np.arange(len(lines)), broken)
    return [lines[row] for row in kept], kept[1:], malformed


def _read_parquet(path: Path) -> Table:
    table = parquet.read_table(path, use_threads=False)
    columns = [_plain(column) for column in table.columns]
    return Table(
        name=path.name,
        columns=pa.Table.from_arrays(columns, names=table.column_names),
        row=np.arange(1, len(table) + 1),
    )


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return numbers and timestamps as they are, everything else as text; raises `ArrowException` for nested ones."""
    kind = column.type
    if pa.types.is_boolean(kind):
        return column.cast(pa.int8())
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_timestamp(kind):
        return column
    return column.cast(pa.large_string())


def as_text(column: pa.ChunkedArray) -> pa.Array:
    """Return the column as text; empty text is null."""
    text = column.cast(pa.large_string(), safe=False).combine_chunks()
    return pc.if_else(pc.equal(text, ""), None, text)


def as_codes(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Return for each row the index of its text in the second result; -1 where it is empty."""
    encoded = as_text(column).dictionary_encode()
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, tuple(encoded.dictionary.to_pylist())


def look_up(column: pa.ChunkedArray, known: Mapping[str, int]) -> npt.NDArray[np.int64]:
    """Return for each row what `known` holds for its text; -1 where nothing stands or it is not known."""
    codes, texts = as_codes(column)
    return np.array([*(known.get(text, -1) for text in texts), -1], dtype=np.int64)[codes]


def as_numbers(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return f64[rows], NaN where nothing readable stands, and where something stands that is no finite number."""
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        present = column.is_valid().to_numpy()
        numbers = column.cast(pa.float64(), safe=False)
    else:
        text = as_text(column)
        present = text.is_valid().to_numpy(zero_copy_only=False)
        numbers = pc.if_else(pc.match_substring_regex(text, NUMBER), text, None).cast(pa.float64())
    values = pc.fill_null(numbers, float("nan")).to_numpy(zero_copy_only=False).astype(np.float64)
    wrong = present & ~np.isfinite(values)
    return np.where(wrong, np.nan, values), wrong


def as_instants(column: pa.ChunkedArray) -> Instants:
    """Return instants in UTC; a time without a zone is no instant, because nobody knows which one it is."""
    if pa.types.is_timestamp(column.type):
        return _instants_of_timestamps(column)
    text = as_text(column)
    naive = pc.fill_null(pc.match_substring_regex(text, NAIVE), False).to_numpy(zero_copy_only=False)
    readable = pc.if_else(pc.match_substring_regex(text, INSTANT), text, None).to_pandas()
    parsed = pd.to_datetime(readable, format="ISO8601", utc=True, errors="coerce").to_numpy(dtype="datetime64[us]")
    known = ~np.isnat(parsed)
    return Instants(time=np.where(known, parsed.astype(np.int64), 0), unreadable=~known & ~naive, naive=naive)


def _instants_of_timestamps(column: pa.ChunkedArray) -> Instants:
    present = column.is_valid().to_numpy()
    zoned = np.full(len(column), column.type.tz is not None)
    microseconds = column.cast(pa.timestamp("us", tz=column.type.tz), safe=False).cast(pa.int64())
    time = pc.fill_null(microseconds, 0).to_numpy().astype(np.int64)
    return Instants(time=np.where(present & zoned, time, 0), unreadable=~present, naive=present & ~zoned)
