"""Where sites' patients come from: read or drawn when a site's turn comes, and let go of after it.

Design note: a simulation of a thousand hospitals holds the patients of the few that are trained at this moment, so its
memory does not grow with the number of hospitals. Every kind of source can be sent to another process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from fedtwin_client.cohort import Cohort, Examples
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.study import Study

BYTES_PER_NUMBER = 5  # a float32 and its mask


class SiteData(Protocol):
    """The patients of every site of a simulation.

    - the same site of the same study gives the same bits at every reading, in every process
    """

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites."""
        ...

    def read(self, study: Study, site: str) -> Cohort:
        """Return a site's patients in their two parts."""
        ...

    def patients_held(self, study: Study, together: int) -> int:
        """Return how many patients are in memory when `together` sites have their turn."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldData:
    """Cohorts that are in memory anyway."""

    cohorts: Mapping[str, Cohort] = field(repr=False)

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites."""
        return tuple(self.cohorts)

    def read(self, study: Study, site: str) -> Cohort:
        """See `SiteData.read`."""
        return self.cohorts[site]

    def patients_held(self, study: Study, together: int) -> int:
        """Everybody."""
        return sum(len(cohort.train) + len(cohort.test) for cohort in self.cohorts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class SpooledData:
    """Cohorts as files of one folder, written once by `spool` and read site by site."""

    folder: Path
    sites: tuple[str, ...]
    largest: int  # patients of the largest site

    def read(self, study: Study, site: str) -> Cohort:
        """See `SiteData.read`. Raises `ConfigurationError` where the folder has no such site."""
        path = self.folder / f"{site}.npz"
        try:
            with np.load(path, allow_pickle=False) as parts:
                return Cohort(train=_unpack(parts, "train"), test=_unpack(parts, "test"))
        except (OSError, KeyError, ValueError) as err:
            raise ConfigurationError(file=path, expected="a spooled cohort", found=type(err).__name__) from err

    def patients_held(self, study: Study, together: int) -> int:
        """Those of as many of the largest sites."""
        return together * self.largest


def spool(cohorts: Mapping[str, Cohort], folder: Path) -> SpooledData:
    """Write the cohorts and return where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    largest = 0
    for site, cohort in cohorts.items():
        largest = max(largest, len(cohort.train) + len(cohort.test))
        np.savez(folder / f"{site}.npz", **_pack(cohort.train, "train"), **_pack(cohort.test, "test"))  # type: ignore[arg-type]  # names are ours
    return SpooledData(folder=folder, sites=tuple(cohorts), largest=largest)


def _pack(examples: Examples, part: str) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    arrays = {name: getattr(examples, name) for name in ("x", "mask", "y", "groups")}
    arrays["patients"] = np.array(examples.patients, dtype=np.str_)
    return {f"{part}.{name}": array for name, array in arrays.items()}


def _unpack(parts: Mapping[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]], part: str) -> Examples:
    return Examples(
        x=parts[f"{part}.x"].astype(np.float32, copy=False),
        mask=parts[f"{part}.mask"].astype(bool, copy=False),
        y=parts[f"{part}.y"].astype(np.float32, copy=False),
        groups=parts[f"{part}.groups"].astype(bool, copy=False),
        patients=tuple(str(one) for one in parts[f"{part}.patients"]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnData:
    """Nobody's patients, drawn from the site's name when its turn comes: to measure the engine, not to learn from.

    Features are standard normal and correlated over time; the outcome follows from a mean over features that is the
    same at every site.
    """

    sites: tuple[str, ...]
    seed: int
    train: int
    test: int

    def read(self, study: Study, site: str) -> Cohort:
        """See `SiteData.read`."""
        named = hashlib.sha256(f"{self.seed} {site}".encode()).digest()[:8]
        generator = np.random.Generator(np.random.SFC64(int.from_bytes(named, "big")))
        return Cohort(train=_draw(study, self.train, generator), test=_draw(study, self.test, generator))

    def patients_held(self, study: Study, together: int) -> int:
        """Those of the sites that have their turn."""
        return together * (self.train + self.test)


def _draw(study: Study, patients: int, generator: np.random.Generator) -> Examples:
    features = study.features
    shape = (patients, features.windows, features.steps, len(study.feature_names()))
    level = generator.standard_normal((*shape[:2], 1, shape[3]), dtype=np.float32)
    x = level + generator.standard_normal(shape, dtype=np.float32)
    logit = 2 * x.mean(axis=(1, 2)).mean(axis=1) * np.sqrt(shape[3]) - 1
    return Examples(
        x=x,
        mask=np.ones(shape, bool),
        y=(generator.random(patients) < 1 / (1 + np.exp(-logit))).astype(np.float32),
        groups=np.ones((patients, 1), bool),
        patients=tuple(f"nobody-{row}" for row in range(patients)),
    )
