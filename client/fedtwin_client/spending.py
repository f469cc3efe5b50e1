"""What every study has spent of its plan, from journal or ledger alone: also while the node runs, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from fedtwin_client.config import HospitalDirectory
from fedtwin_client.gate import open_gate
from fedtwin_client.hospital_ledger import read_totals
from fedtwin_client.journal import Spend
from fedtwin_client.studies import ApprovedStudy, open_studies
from fedtwin_shared.errors import FedtwinError


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySpending:
    """One study's spending. What depends on the study's text is None once the study is withdrawn or damaged.

    epsilon: nominal, of the patient who spent most so far. price: ε of the whole plan.
    """

    digest: str
    state: str  # approved, not attested, withdrawn, damaged
    steps: int
    releases: int
    name: str | None = None
    version: int | None = None
    planned_steps: int | None = None
    planned_releases: int | None = None
    epsilon: float | None = None
    price: float | None = None
    delta: float | None = None


def describe_spending(directory: HospitalDirectory) -> tuple[StudySpending, ...]:
    """Return the spending of every study that is approved or was ever charged, by digest.

    Raises `ConfigurationError`, `JournalError`.

    - a withdrawn study's spending stays visible
    """
    spent = read_totals(directory)
    studies = open_studies(directory, open_gate(directory))
    rows = []
    for digest in sorted({*studies.digests(), *spent}):
        spend = spent.get(digest, Spend())
        try:
            approved = studies.find(digest)
        except FedtwinError:
            rows.append(StudySpending(digest=digest, state="damaged", steps=spend.steps, releases=spend.releases))
            continue
        rows.append(_describe(digest, spend, approved))
    return tuple(rows)


def _describe(digest: str, spend: Spend, approved: ApprovedStudy | None) -> StudySpending:
    if approved is None:
        return StudySpending(digest=digest, state="withdrawn", steps=spend.steps, releases=spend.releases)
    study = approved.study
    return StudySpending(
        digest=digest,
        state="approved" if approved.attested else "not attested",
        steps=spend.steps,
        releases=spend.releases,
        name=study.name,
        version=study.version,
        planned_steps=study.planned_steps,
        planned_releases=study.planned_evaluations,
        epsilon=study.spent(steps=spend.steps, releases=spend.releases),
        price=study.price(),
        delta=study.privacy.delta,
    )
