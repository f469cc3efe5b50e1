"""A real hospital, put together from its directory: its own keys, files, journal and randomness from the system."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass

from fedtwin_client.admission import ConsentingPatients
from fedtwin_client.cohort import Cohort, form_cohort
from fedtwin_client.config import HospitalDirectory
from fedtwin_client.consent_store import ConsentStore
from fedtwin_client.evaluation import release_histogram
from fedtwin_client.file_journal import FileJournal
from fedtwin_client.gate import open_gate
from fedtwin_client.hospital import Hospital
from fedtwin_client.hospital_ledger import CohortCommitments, open_journal, programme_of
from fedtwin_client.journal import Journal
from fedtwin_client.ledger_journal import LedgerJournal
from fedtwin_client.policy_signature import open_policy
from fedtwin_client.randomness import SystemRandomness
from fedtwin_client.reader import read_hospital
from fedtwin_client.spending_limits import LimitedJournal, SpendingLimits
from fedtwin_client.studies import StudyFolder, open_studies
from fedtwin_client.training import train
from fedtwin_shared.study import Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """The one hospital of a process, and the parts of it that outlive a task."""

    directory: HospitalDirectory
    hospital: Hospital
    journal: FileJournal | LedgerJournal
    studies: StudyFolder


def open_installation(directory: HospitalDirectory) -> Installation:
    """Open the hospital of `directory` in this process.

    Raises `ConfigurationError`; `JournalError` when another process has it open.
    """
    gate = open_gate(directory)
    studies = open_studies(directory, gate)
    journal, commitments = open_journal(directory, studies)
    hospital = Hospital(
        gate=gate,
        coordinator=directory.config.coordinator.public_key,
        find_study=studies.find,
        policy=open_policy(directory, gate),
        journal=_within_limits(directory, studies, journal),
        randomness=SystemRandomness(),
        load_cohort=functools.partial(load_cohort, directory, commitments=commitments),
        train=train,
        release_histogram=release_histogram,
        admission=ConsentingPatients(
            ConsentStore(directory.consent),
            rule=directory.config.policy.consent,
            clock=time.time,
            remember=_ignore if commitments is None else commitments.remember,
        ),
    )
    return Installation(directory=directory, hospital=hospital, journal=journal, studies=studies)


def _ignore(study: str, cohort: Cohort) -> None:
    """A file journal tells nothing of a cohort."""


def _within_limits(directory: HospitalDirectory, studies: StudyFolder, journal: FileJournal | LedgerJournal) -> Journal:
    """Put a ledger behind what the policy lets all studies together cost; a file journal knows no block of patients."""
    if not isinstance(journal, LedgerJournal):
        return journal
    return LimitedJournal(
        journal,
        limits=SpendingLimits.of(directory.config.policy),
        read_state=lambda: journal.state,
        find_programme=functools.partial(programme_of, directory, studies),
        clock=time.time,
    )


def load_cohort(
    directory: HospitalDirectory, study: Study, site: str, *, commitments: CohortCommitments | None = None
) -> Cohort:
    """Read the hospital's files and form the study's cohort; what is not accepted goes to the quarantine file."""
    cohort = form_cohort(read_hospital(directory.data, quarantine=directory.quarantine), study, site)
    if commitments is not None:
        commitments.remember(study.digest, cohort)
    return cohort
