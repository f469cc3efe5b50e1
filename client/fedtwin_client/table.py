"""One file of a hospital as columns, before anything in it is believed: CSV or Parquet in, text, numbers, instants out.

Design note: a cell that cannot be parsed is marked, never fatal; only a file that cannot be opened as a table is.
"""

from __future__ import annotations

import csv as standard_csv
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
# RFC 3339 with an offset or Z; seconds may be left out, a space may stand for the T.
INSTANT = r"^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d+)?)?([Zz]|[+-]\d\d:?\d\d)$"
NAIVE = r"^\d{4}-\d\d-\d\d([Tt ]\d\d:\d\d(:\d\d(\.\d+)?)?)?$"

_SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Table:
    """One file: its columns as they stand there.

    row: 1-based row of the file for each row of `columns`, the header not counted.
    malformed: rows that have not as many fields as the header, and their text.
    """

    name: str
    columns: pa.Table
    row: npt.NDArray[np.int64]
    malformed: tuple[tuple[int, str], ...] = ()

    def __len__(self) -> int:
        return len(self.row)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self.columns.column_names)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Instants:
    """time: microseconds since 1970 UTC, 0 where `unreadable` or `naive` (without a time zone)."""

    time: npt.NDArray[np.int64]
    unreadable: npt.NDArray[np.bool_]
    naive: npt.NDArray[np.bool_]


def read_table(folder: Path, stem: str) -> Table | None:
    """Return `stem`.csv or `stem`.parquet of `folder`; None when there is neither.

    Raises `DataError` when there are both, or when the file cannot be read as a table at all.
    """
    found = [folder / f"{stem}{suffix}" for suffix in _SUFFIXES if (folder / f"{stem}{suffix}").exists()]
    if len(found) > 1:
        raise DataError(file=folder, field=stem, expected=f"one of {stem}.csv, {stem}.parquet", found="both")
    if not found:
        return None
    path = found[0]
    try:
        return _read_csv(path) if path.suffix == ".csv" else _read_parquet(path)
    except (OSError, pa.ArrowException, UnicodeDecodeError, standard_csv.Error) as err:
        # The library's message may quote a row: it is not passed on.
        kind = "a readable UTF-8 CSV file" if path.suffix == ".csv" else "a readable Parquet file"
        raise DataError(file=path, expected=kind, found=f"{type(err).__name__} on reading it") from None


def _read_csv(path: Path) -> Table:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        header = next(standard_csv.reader(stream), [])
    _check_header(path, header)
    malformed: list[tuple[int, str]] = []

    def put_aside(row: csv.InvalidRow) -> str:
        malformed.append((row.number - 1, row.text))
        return "skip"

    columns = csv.read_csv(
        path,
        read_options=csv.ReadOptions(use_threads=False),  # only then rows are numbered
        parse_options=csv.ParseOptions(invalid_row_handler=put_aside),
        convert_options=csv.ConvertOptions(
            column_types={name: pa.string() for name in header}, null_values=[""], strings_can_be_null=True
        ),
    )
    rows = np.arange(1, len(columns) + len(malformed) + 1)
    kept = np.setdiff1d(rows, [number for number, _ in malformed], assume_unique=True)
    return Table(name=path.name, columns=columns, row=kept, malformed=tuple(malformed))


def _read_parquet(path: Path) -> Table:
    columns = parquet.read_table(path, use_threads=False)
    _check_header(path, columns.column_names)
    return Table(name=path.name, columns=columns, row=np.arange(1, len(columns) + 1))


def _check_header(path: Path, header: list[str]) -> None:
    if not header:
        raise DataError(file=path, expected="a header with column names", found="an empty file")
    if len(set(header)) != len(header):
        repeated = sorted({name for name in header if header.count(name) > 1})
        raise DataError(file=path, field=", ".join(repeated)[:80], expected="every column once", found="it again")


def as_text(column: pa.ChunkedArray) -> pa.Array:
    """Return the column as text; empty text is null."""
    text = pa.array(column.combine_chunks()) if not isinstance(column, pa.Array) else column
    if pa.types.is_dictionary(text.type):
        text = text.dictionary_decode()
    text = text.cast(pa.string(), safe=False)
    return pc.if_else(pc.equal(text, ""), None, text)


def as_codes(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Return for each row the index of its text in the second result; -1 where it is empty."""
    encoded = as_text(column).dictionary_encode()
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, tuple(encoded.dictionary.to_pylist())


def as_numbers(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return f64[rows], NaN where empty, and where something stands that is not a finite number."""
    kind = column.type
    if pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        if pa.types.is_boolean(kind):
            column = column.cast(pa.int8())
        present = column.is_valid().to_numpy()
        numbers = column.cast(pa.float64(), safe=False)
    else:
        text = as_text(column)
        present = text.is_valid().to_numpy(zero_copy_only=False)
        readable = pc.match_substring_regex(text, NUMBER)
        numbers = pc.if_else(readable, text, None).cast(pa.float64())
    values = pc.fill_null(numbers, float("nan")).to_numpy(zero_copy_only=False).astype(np.float64)
    wrong = present & ~np.isfinite(values)
    return np.where(wrong, np.nan, values), wrong


def as_instants(column: pa.ChunkedArray) -> Instants:
    """Return instants in UTC; a time without a zone is no instant, because nobody knows which one it is."""
    if pa.types.is_timestamp(column.type):
        present = column.is_valid().to_numpy()
        zoned = np.full(len(column), column.type.tz is not None)
        micro = pc.fill_null(column.cast(pa.timestamp("us", tz=column.type.tz), safe=False).cast(pa.int64()), 0)
        time = micro.to_numpy().astype(np.int64)
        return Instants(time=np.where(present & zoned, time, 0), unreadable=~present, naive=present & ~zoned)
    text = as_text(column)
    matching = pc.fill_null(pc.match_substring_regex(text, INSTANT), False)
    parsed = pd.to_datetime(
        pc.if_else(matching, text, None).to_pandas(), format="ISO8601", utc=True, errors="coerce"
    ).to_numpy(dtype="datetime64[us]")
    known = ~np.isnat(parsed)
    naive = pc.fill_null(pc.match_substring_regex(text, NAIVE), False).to_numpy(zero_copy_only=False)
    return Instants(time=np.where(known, parsed.astype(np.int64), 0), unreadable=~known & ~naive, naive=naive)
