"""What an experiment, a demo or a benchmark reports: frozen records, one JSON form, the same everywhere.

Design note: JSON has no NaN and no infinity, so "no value" is null: the ε of a method without privacy, a metric of a
site whose test patients are all of one class. Everything a person reads (`tables`, `report`) is made of these records.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

Method = Literal["pooled", "local", "federated", "private"]
Noise = Literal["none", "local", "distributed"]

PACKAGES = ("fedtwin", "torch", "flwr", "opacus", "dp-accounting", "numpy", "pandas", "scikit-learn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One metric of one method at one price.

    epsilon, delta: of one patient, for one released model and its evaluation; None without privacy.
    primary: the one row per method and ε that a summary shows.
    overall: of all sites' test scores pooled; site_mean: mean of `per_site`; per_seed: seed -> the shown figure.
    """

    method: Method
    algorithm: str
    model: str
    noise: Noise
    epsilon: float | None
    delta: float | None
    metric: str
    primary: bool
    overall: float | None
    site_mean: float | None
    per_site: Mapping[str, float | None]
    per_seed: Mapping[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A figure to compare with that no method of ours made: published, or a baseline such as the majority class."""

    name: str
    metric: str
    value: float
    source: str
    interval: tuple[float, float] | None = None  # 95 %, of the value


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """A whole experiment. `policy`: what ε counts here, and what it does not, in words."""

    study: str
    versions: Mapping[str, str]
    seeds: tuple[int, ...]
    results: tuple[Row, ...]
    seconds: float
    references: tuple[Reference, ...] = ()
    policy: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One measured case beside its baseline; `holds`: `ours` meets `goal`, in words in `goal`."""

    case: str
    ours: float
    baseline: float | None
    baseline_name: str
    unit: str
    goal: str
    holds: bool

    @property
    def ratio(self) -> float | None:
        """`ours` ÷ `baseline`."""
        return self.ours / self.baseline if self.baseline else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A whole benchmark."""

    bench: str
    rows: tuple[BenchRow, ...]
    machine: Mapping[str, str | int] = field(default_factory=lambda: describe_machine())
    versions: Mapping[str, str] = field(default_factory=lambda: list_versions())


def write_json(report: Results | Bench) -> str:
    """Return the report's one JSON form.

    - the result is JSON that any parser reads: no NaN, no infinity
    """
    document = asdict(report)
    if isinstance(report, Bench):
        document = {
            "bench": report.bench,
            "machine": document["machine"],
            "versions": document["versions"],
            "rows": [{**asdict(row), "ratio": row.ratio} for row in report.rows],
        }
    return json.dumps(_drop_infinite(document), indent=2, allow_nan=False) + "\n"


def list_versions() -> dict[str, str]:
    """Return the versions of what computed the figures; a package that is not installed is left out."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def describe_machine() -> dict[str, str | int]:
    """Return the kind of machine that measured; nothing that names it."""
    return {"system": platform.system(), "architecture": platform.machine(), "cores": os.cpu_count() or 1}


def _drop_infinite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _drop_infinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_drop_infinite(item) for item in value]
    return value
