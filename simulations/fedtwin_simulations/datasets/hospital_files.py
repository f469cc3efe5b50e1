"""One hospital's directory of files, as its reader expects them.

patients.csv          patient, admitted, [part], one column per fact and per outcome; empty = unknown
observations.parquet  patient, time, signal, value, unit
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from fedtwin_shared.errors import FedtwinError
from fedtwin_shared.signal import SIGNALS

PATIENTS_FILE = "patients.csv"
OBSERVATIONS_FILE = "observations.parquet"

# The same column types in every site's file, also where a site has no row.
_SIGNAL_KEYS = pd.CategoricalDtype(list(SIGNALS))
_UNITS = pd.CategoricalDtype(sorted({row.unit for row in SIGNALS.values()}))


class DatasetError(FedtwinError):
    """The folder does not hold the public data set in the layout it is published in."""


def find(source: Path, name: str) -> Path:
    """Return the path of one file of a public set; raises DatasetError when it is not there."""
    path = source / name
    if not path.is_file():
        raise DatasetError(file=source, field=name, expected="a file of the public data set", found="none")
    return path


def write_sites(
    target: Path,
    patients: pd.DataFrame,
    observations: pd.DataFrame,
    *,
    sites: Sequence[str],
    parts: Mapping[str, str] | None,
) -> tuple[str, ...]:
    """Write one directory per site under `target` and return the sites' names.

    patients: one row per patient with `site`, `patient`, `admitted` (UTC), then facts and outcomes.
    observations: `patient`, `minute` (since admission), `signal`, `value` in the signal's own unit.
    parts: patient -> "train" | "test"; a patient it does not name is left out. None writes no such column.

    Guarantees:
      - no file of one site names a patient of another
    """
    if parts is not None:
        patients = patients[patients["patient"].isin(list(parts))]
    admitted = patients.set_index("patient")["admitted"]
    site_of = patients.set_index("patient")["site"]
    observations = observations[observations["patient"].isin(site_of.index)]
    table = pd.DataFrame(
        {
            "patient": observations["patient"].astype("string"),
            "time": observations["patient"].map(admitted) + pd.to_timedelta(observations["minute"], unit="min"),
            "signal": observations["signal"].astype(_SIGNAL_KEYS),
            "value": observations["value"].astype("float64"),
            "unit": observations["signal"].map({key: row.unit for key, row in SIGNALS.items()}).astype(_UNITS),
        }
    )
    owner = observations["patient"].map(site_of)
    for site in sites:
        directory = target / site
        directory.mkdir(parents=True, exist_ok=True)
        own = patients[patients["site"] == site].drop(columns="site").copy()
        own["admitted"] = own["admitted"].dt.strftime("%Y-%m-%dT%H:%M:%SZ")
        if parts is not None:
            own.insert(2, "part", own["patient"].map(dict(parts)))
        own.to_csv(directory / PATIENTS_FILE, index=False)
        table[owner == site].reset_index(drop=True).to_parquet(directory / OBSERVATIONS_FILE, index=False)
    return tuple(sites)


def no_observations() -> pd.DataFrame:
    """Return an empty table of observations, for a set that has facts only."""
    columns = {"patient": "string", "minute": "float64", "signal": "string", "value": "float64"}
    return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in columns.items()})


def folds_as_parts(folds: Mapping[str, int], test_fold: int) -> dict[str, str]:
    """Return patient -> "test" for the patients of one fold and "train" for all others."""
    if test_fold not in folds.values():
        raise ValueError(f"expected a fold of {sorted(set(folds.values()))}, found {test_fold}")
    return {patient: "test" if fold == test_fold else "train" for patient, fold in folds.items()}
