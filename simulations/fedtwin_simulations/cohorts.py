"""Everybody's examples in memory, dealt into training and test parts again and again without reading a file twice.

Design note: a fold reads nothing: each hospital's files went through its reader once, each set of features through
`form_cohort` once, with nobody held out; a part is then a choice of rows. That a row does not depend on other patients
is `form_cohort`'s own guarantee, and what makes this the same as reading every fold from files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedtwin_client.cohort import Cohort, Examples, form_cohort
from fedtwin_client.reader import HospitalRecords, read_hospital
from fedtwin_shared.signing import canonical_json, digest
from fedtwin_shared.study import Split, Study, is_held_out

Parts = Mapping[str, str]  # patient -> "train" or "test"; who is not named is left out


class Gathered:
    """The records of some hospitals, and the examples made of them so far."""

    def __init__(self, records: Mapping[str, HospitalRecords]) -> None:
        self._records = dict(records)
        self._examples: dict[str, Examples] = {}

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the hospitals."""
        return tuple(self._records)

    def records(self, site: str) -> HospitalRecords:
        """Return what the reader accepted at `site`."""
        return self._records[site]

    def examples(self, study: Study, site: str) -> Examples:
        """Return everybody at `site` who fits the study, in neither part yet."""
        whole = study.model_copy(update={"split": Split(rule="hash", test_fraction=0.0)})
        shape = {
            "site": site,
            "outcome": study.outcome,
            "cohort": study.cohort.model_dump(mode="json"),
            "features": study.features.model_dump(mode="json"),
            "subgroups": list(study.evaluation.subgroups),
            "sites": [part.site for part in study.participants],
        }
        key = digest(canonical_json(shape))
        if key not in self._examples:
            self._examples[key] = form_cohort(self._records[site], whole, site).train
        return self._examples[key]

    def cohort(self, study: Study, site: str, parts: Parts) -> Cohort:
        """Return the study's patients at `site`, dealt by `parts`."""
        return deal(self.examples(study, site), parts)

    def parts(self, study: Study) -> dict[str, str]:
        """Return the parts that the study's own rule gives: by the patient's id, or by the column of the files."""
        dealt: dict[str, str] = {}
        for site in self.sites:
            patients = self._records[site].patients
            if study.split.rule == "column":
                dealt |= zip(patients.ids, patients.part or [""] * len(patients.ids), strict=True)
            else:
                dealt |= {one: "test" if is_held_out(study.split, one) else "train" for one in patients.ids}
        return dealt


def read_hospitals(folders: Mapping[str, Path]) -> Gathered:
    """Return the records of hospitals by the folders of their files. Raises `DataError`."""
    return Gathered({site: read_hospital(folder) for site, folder in folders.items()})


def deal(everybody: Examples, parts: Parts) -> Cohort:
    """Return the examples in their two parts, in the same order."""
    named = np.array([parts.get(patient, "") for patient in everybody.patients])
    return Cohort(train=take(everybody, named == "train"), test=take(everybody, named == "test"))


def take(examples: Examples, chosen: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Examples:
    """Return the examples of the chosen patients."""
    return Examples(
        x=examples.x[chosen],
        mask=examples.mask[chosen],
        y=examples.y[chosen],
        groups=examples.groups[chosen],
        patients=tuple(examples.patients[row] for row in np.flatnonzero(chosen)),
    )


def pool_cohorts(cohorts: Sequence[Cohort]) -> Cohort:
    """Return all patients of several hospitals as if one held them."""
    return Cohort(
        train=_concatenate([cohort.train for cohort in cohorts]),
        test=_concatenate([cohort.test for cohort in cohorts]),
    )


def _concatenate(parts: Sequence[Examples]) -> Examples:
    return Examples(
        x=np.concatenate([part.x for part in parts]),
        mask=np.concatenate([part.mask for part in parts]),
        y=np.concatenate([part.y for part in parts]),
        groups=np.concatenate([part.groups for part in parts]),
        patients=tuple(patient for part in parts for patient in part.patients),
    )
