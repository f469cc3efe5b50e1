"""Where an experiment's patients come from: the hospitals' files, and how patients are dealt into parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.roster import Roster
from fedtwin_simulations import virtual_hospitals
from fedtwin_simulations.cohorts import Gathered, Parts
from fedtwin_simulations.datasets import eicu, heart, physionet2012
from fedtwin_simulations.datasets.hospital_files import folds_as_parts
from fedtwin_simulations.specification import Dataset, Experiment, Partition, draft_study

LARGE = 10.5  # 20,000 training patients in all

Write = Callable[[Path, Path], tuple[str, ...]]  # public set, target -> sites
Folds = Callable[[Path, int, int], Mapping[str, int]]  # public set, number of folds, seed -> patient -> fold


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One data set: how it becomes hospitals' files, and how its patients can be dealt."""

    write: Write
    split: Callable[[Path, int], Mapping[str, str]] | None = None  # public set, seed -> patient -> part
    published_seed: int = 0
    folds: Folds | None = None


def _write_virtual(data: Path, target: Path) -> tuple[str, ...]:
    return virtual_hospitals.write_hospitals(target)


def _write_large(data: Path, target: Path) -> tuple[str, ...]:
    """The usual virtual hospitals with LARGE times as many patients, of whom three quarters train."""
    for case in virtual_hospitals.CASE_MIXES:
        many = replace(case, patients=round(LARGE * case.patients))
        virtual_hospitals.write_hospital(target / case.site, many, seed=0)
    return tuple(case.site for case in virtual_hospitals.CASE_MIXES)


SOURCES: Mapping[Dataset, Source] = {
    "virtual": Source(write=_write_virtual),
    "virtual-large": Source(write=_write_large),
    "heart": Source(
        write=heart.write_hospitals,
        split=lambda data, seed: heart.split(data, seed=seed),
        published_seed=heart.FLAMBY_SEED,
    ),
    "eicu": Source(
        write=eicu.write_hospitals, folds=lambda data, count, seed: eicu.folds(data, count=count, seed=seed)
    ),
    "physionet2012": Source(
        write=physionet2012.write_hospitals,
        folds=lambda data, count, seed: physionet2012.folds(data, count=count, seed=seed),
    ),
}


def write_hospitals(dataset: Dataset, data: Path | None, target: Path) -> tuple[str, ...]:
    """Write the data set as hospitals' directories under `target` and return their names.

    Raises `ConfigurationError` when the set is a public one and no folder is given, `DatasetError` when the folder does
    not hold it.
    """
    if not dataset.startswith("virtual") and data is None:
        raise ConfigurationError(field="--data", expected=f"the folder of the public set {dataset}", found="nothing")
    return SOURCES[dataset].write(data or Path(), target)


def deal_patients(
    experiment: Experiment, partition: Partition, seed: int, *, data: Path | None, gathered: Gathered, roster: Roster
) -> Sequence[Parts]:
    """Return one dealing of patients into parts for each fold.

    - every patient is in the test part of at most one fold of a seed
    """
    source, folder = SOURCES[experiment.dataset], data or Path()
    if partition.rule == "hash":
        return [gathered.parts(draft_study(experiment, experiment.methods[0], roster))]
    if partition.rule == "folds" and source.folds is not None:
        dealt = source.folds(folder, partition.folds, seed)
        return [folds_as_parts(dealt, fold) for fold in range(partition.folds)]
    if partition.rule in ("published", "resplit") and source.split is not None:
        return [source.split(folder, source.published_seed if partition.rule == "published" else seed)]
    raise ConfigurationError(
        file=f"experiment {experiment.name}",
        field="partitions.rule",
        expected=f"a rule of the set {experiment.dataset}",
        found=partition.rule,
    )
