"""The hospitals of one case under one seed: simulated, written as files, read as a hospital reads them, and dealt.

Design note: simulating patients is most of a trial's time and the same for many cases, so a world is kept as files
beside the results, under a name that says everything it depends on.
"""

from __future__ import annotations

import shutil
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedtwin_client.cohort import Cohort, Examples, form_cohort
from fedtwin_client.reader import read_hospital
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.signing import canonical_json, digest
from fedtwin_shared.study import Study
from fedtwin_simulations.campaign.specification import Hospitals
from fedtwin_simulations.cohorts import pool_cohorts, take
from fedtwin_simulations.engine.site_data import SpooledData, spool
from fedtwin_simulations.plant.scenario import NAMES
from fedtwin_simulations.virtual_hospitals import CaseMix, list_case_mixes, write_hospital

FEWEST_TRAINING = 8  # of a hospital after patients were dealt; a draw with fewer is drawn again
MOST_DRAWS = 1000


def name_sites(hospitals: Hospitals) -> tuple[str, ...]:
    """Return the hospitals' names."""
    return tuple(case.site for case in list_case_mixes(hospitals.count))


def make_world(hospitals: Hospitals, study: Study, folder: Path, *, seed: int) -> dict[str, Cohort]:
    """Return each hospital's patients as the study sees them, from `folder` where they were made before.

    - the same hospitals, study features and seed give the same bits
    """
    shape = {
        "hospitals": hospitals.model_dump(mode="json"),
        "seed": seed,
        "features": study.features.model_dump(mode="json"),
        "cohort": study.cohort.model_dump(mode="json"),
        "split": study.split.model_dump(mode="json"),
        "subgroups": list(study.evaluation.subgroups),
    }
    kept = folder / digest(canonical_json(shape))[:16]
    if not kept.is_dir():
        cohorts = {case.site: _simulate(case, study, seed=seed) for case in _case_mixes(hospitals, seed)}
        if hospitals.label_skew is not None:
            cohorts = deal_by_label(cohorts, hospitals.label_skew, seed=seed)
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix="making-", dir=folder))
        spool(cohorts, scratch)
        try:
            scratch.rename(kept)  # whole or not at all; another process may have been faster
        except OSError:
            shutil.rmtree(scratch)
    data = SpooledData(folder=kept, sites=name_sites(hospitals), largest=0)
    return {site: data.read(study, site) for site in data.sites}


def _case_mixes(hospitals: Hospitals, seed: int) -> list[CaseMix]:
    usual = [replace(case, patients=hospitals.patients) for case in list_case_mixes(hospitals.count)]
    if hospitals.case_mix is None:
        return usual
    generator = np.random.default_rng([seed, zlib.crc32(b"case mix")])
    mixes = generator.dirichlet([hospitals.case_mix] * len(NAMES), size=len(usual))
    return [
        replace(case, population=replace(case.population, scenarios=dict(zip(NAMES, map(float, mix), strict=True))))
        for case, mix in zip(usual, mixes, strict=True)
    ]


def _simulate(case: CaseMix, study: Study, *, seed: int) -> Cohort:
    with tempfile.TemporaryDirectory(prefix="fedtwin-") as folder:
        write_hospital(Path(folder), case, seed=seed)
        return form_cohort(read_hospital(Path(folder)), study, case.site)


def deal_by_label(cohorts: Mapping[str, Cohort], alpha: float, *, seed: int) -> dict[str, Cohort]:
    """Return the same patients dealt to the same sites: those of each outcome by shares from Dirichlet(α).

    Source: Hsu, Qi, Brown 2019 (arXiv:1909.06335). A patient stays in the training or in the test part.

    - every patient is at exactly one site
    """
    everybody, sites = pool_cohorts(list(cohorts.values())), list(cohorts)
    generator = np.random.default_rng([seed, zlib.crc32(b"labels")])
    for _ in range(MOST_DRAWS):
        shares = generator.dirichlet([alpha] * len(sites), size=2)  # [outcome, site]
        train = [len(rows) for rows in _split(everybody.train, shares, np.random.default_rng([seed, 1]))]
        if min(train) >= FEWEST_TRAINING:
            break
    else:
        raise ConfigurationError(
            field="hospitals.label_skew",
            expected=f"a skew that leaves every hospital {FEWEST_TRAINING} training patients",
            found=f"{alpha:g} over {len(everybody.train)} patients of {len(sites)} hospitals",
        )
    parts = {
        "train": _split(everybody.train, shares, np.random.default_rng([seed, 1])),
        "test": _split(everybody.test, shares, np.random.default_rng([seed, 2])),
    }
    return {
        site: Cohort(
            train=_take(everybody.train, parts["train"][place]), test=_take(everybody.test, parts["test"][place])
        )
        for place, site in enumerate(sites)
    }


def _split(
    examples: Examples, shares: np.ndarray[tuple[int, ...], np.dtype[np.float64]], generator: np.random.Generator
) -> list[np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Return the rows of each site."""
    rows: list[list[int]] = [[] for _ in range(shares.shape[1])]
    for outcome in (0, 1):
        own = generator.permutation(np.flatnonzero(examples.y == outcome))
        edges = np.rint(np.cumsum(shares[outcome])[:-1] * len(own)).astype(int)
        for place, part in enumerate(np.split(own, edges)):
            rows[place] += part.tolist()
    return [np.array(sorted(part), dtype=np.int64) for part in rows]


def _take(examples: Examples, rows: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Examples:
    chosen = np.zeros(len(examples), bool)
    chosen[rows] = True
    return take(examples, chosen)
