"""A hospital's decision about a study: what is checked by a machine, and what is put before a person.

Design note: the machine refuses what no person may approve (signature, roster, policy, too few patients); the person is
told in words which columns are read, what may leave, and what it may cost a patient. The number of patients is compared
with the minimum and then forgotten: neither a message nor the attestation holds it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from fedtwin_client.cohort import Cohort, form_cohort, missing_columns
from fedtwin_client.config import HospitalDirectory
from fedtwin_client.gate import Approver, Gate, open_gate
from fedtwin_client.hospital_ledger import digest_code, note_refusal
from fedtwin_client.ledger_mark import read_own_ledger
from fedtwin_client.policy import SitePolicy
from fedtwin_client.policy_signature import open_policy
from fedtwin_client.quarantine import Tally
from fedtwin_client.reader import read_hospital
from fedtwin_client.review import StudyCosts, describe_collusion, describe_costs, describe_signers
from fedtwin_client.spending import StudySpending, describe_spending
from fedtwin_client.spending_limits import SpendingLimits, cost_blocks
from fedtwin_client.studies import open_studies, read_study
from fedtwin_shared.documents import SignedStudy
from fedtwin_shared.errors import FedtwinError
from fedtwin_shared.ledger.study_programme import plan_programme
from fedtwin_shared.privacy import CAVEAT, accounted_delta, compute_epsilon
from fedtwin_shared.round import RefusalCode, Task, declared_arrays
from fedtwin_shared.signing import digest
from fedtwin_shared.study import Study, columns_read

NO_LEDGER: Final = (
    ("what is left", "unknown: this hospital has no ledger, so nothing adds up what a patient pays in all studies"),
)


class ApprovalError(FedtwinError):
    """This hospital must not approve this study."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A study that this hospital may approve: what it asks, in words, and what the hospital's own files lack for it."""

    signed: SignedStudy
    words: tuple[tuple[str, str], ...]
    missing: tuple[str, ...]
    tallies: tuple[Tally, ...]


def examine_study(
    directory: HospitalDirectory, file: Path, *, now: float | None = None, despite_refusal: bool = False
) -> Request:
    """Return what the signed study in `file` asks of this hospital.

    Raises `ConfigurationError`, `VerificationError`, `DataError` or `ApprovalError` unless
      (1) the pinned coordinator signed it;
      (2) this hospital takes part, under its own key;
      (3) the hospital's policy is in force and permits it;
      (4) some patients could pay for all of it within the policy's year and lifetime, by the ledger;
      (5) the hospital did not refuse it before, or thinks again;
      (6) its data can be read, and enough patients belong to the cohort.
    """
    # (1)
    signed = read_study(file, coordinator=directory.config.coordinator.public_key)
    # (2)
    gate = open_gate(directory)
    check_part(signed, gate, file=file)
    # (3)
    policy = open_policy(directory, gate).verify()
    check_policy(signed.study, policy, file=file)
    # (4)
    costs = price_study(directory, signed, now=time.time() if now is None else now)
    check_costs(costs, SpendingLimits.of(policy), file=file)
    # (5)
    if not despite_refusal:
        check_not_refused(directory, signed, file=file)
    # (6)
    records = read_hospital(directory.data, quarantine=directory.quarantine)
    cohort = form_cohort(records, signed.study, directory.config.name)
    check_cohort(cohort, signed.study, policy, file=file)
    others = describe_others(describe_spending(directory), signed.study.digest)
    return Request(
        signed=signed,
        words=(
            *describe_request(signed.study),
            *describe_collusion(signed.study),
            *(NO_LEDGER if costs is None else describe_costs(costs, SpendingLimits.of(policy))),
            *others,
            *describe_signers(signed, policy, site=gate.site),
            ("code", "this hospital's own program; none of the coordinator's runs here"),
            ("code digest", digest_code()),
        ),
        missing=missing_columns(records, signed.study),
        tallies=records.tallies,
    )


def price_study(directory: HospitalDirectory, signed: SignedStudy, *, now: float) -> StudyCosts | None:
    """Return what the whole plan would cost every block of patients; None: the hospital has no ledger.

    Raises `JournalError`.
    """
    state = read_own_ledger(directory)
    if state is None:
        return None
    programme = plan_programme(signed.study, plan=digest(signed.envelope))
    parts = {part.name: part.programme for part in programme.parts}
    before = cost_blocks(state, signed.study.digest, dict.fromkeys(parts, ()), now=now)
    return StudyCosts(before=before or (), after=cost_blocks(state, signed.study.digest, parts, now=now))


def check_costs(costs: StudyCosts | None, limits: SpendingLimits, *, file: Path) -> None:
    """Raise `ApprovalError` where no block of some part of the study could pay for all of it."""
    if costs is None:
        return
    for part in sorted({cost.part for cost in costs.before}):
        of_part = [cost for cost in costs.after or () if cost.part == part]
        if not any(cost.within(limits) for cost in of_part):
            least = f"{min(cost.year for cost in of_part):.3f}" if of_part else "∞"
            raise ApprovalError(
                file=file,
                field="policy.maximum_epsilon_year, maximum_epsilon_lifetime",
                expected=f"at most {limits.year:f} and {limits.lifetime:f} for {part} patients",
                found=f"{least} at least, by the ledger",
            )


def check_not_refused(directory: HospitalDirectory, signed: SignedStudy, *, file: Path) -> None:
    """Raise `ApprovalError` for a study that this hospital refused."""
    if open_studies(directory, open_gate(directory)).is_refused(signed.study.digest):
        raise ApprovalError(
            file=file,
            field="study",
            expected="one that this hospital did not refuse, or --despite-refusal",
            found="a refused one",
        )


def refuse_study(directory: HospitalDirectory, file: Path) -> Path:
    """Refuse a study for good: sign the refusal, remember it, withdraw an approval; the file of the refusal.

    Raises `ConfigurationError`, `VerificationError`, `JournalError`.

    - a hospital may refuse what it could not approve: only the coordinator's signature is checked
    """
    signed = read_study(file, coordinator=directory.config.coordinator.public_key)
    refusal = open_studies(directory, open_gate(directory)).refuse(signed)
    note_refusal(directory, signed.envelope, RefusalCode.STUDY_REFUSED)
    return refusal


def approve_study(directory: HospitalDirectory, request: Request, *, by: Approver = "command") -> None:
    """Keep the study as approved, with this hospital's attestation of its cohort."""
    gate = open_gate(directory)
    open_studies(directory, gate).add(request.signed, by=by)


def check_part(signed: SignedStudy, gate: Gate, *, file: Path) -> None:
    """Raise `ApprovalError` unless this hospital takes part under its own key."""
    if signed.study.participant(gate.site) is None:
        raise ApprovalError(file=file, field="participants", expected=f"{gate.site} among them", found="it is not")
    if signed.roster.keys().get(gate.public_key) != gate.site:
        raise ApprovalError(
            file=file, field=f"roster.{gate.site}.public_key", expected=gate.public_key, found="another key"
        )


def check_policy(study: Study, policy: SitePolicy, *, file: Path) -> None:
    """Raise `ApprovalError` unless the hospital's policy permits the study."""
    objections = policy.objections(study)
    if objections:
        raise ApprovalError(file=file, field="policy", expected="what this hospital permits", found=objections[0])


def check_cohort(cohort: Cohort, study: Study, policy: SitePolicy, *, file: Path) -> None:
    """Raise `ApprovalError` unless the cohort has the patients that study and policy ask for. Tells no number."""
    needed = max(study.cohort.minimum_patients, policy.minimum_patients)
    if not len(cohort.train) + len(cohort.test) >= needed:
        raise ApprovalError(
            file=file, field="cohort", expected=f"at least {needed} patients of this hospital", found="fewer"
        )


def describe_request(study: Study) -> tuple[tuple[str, str], ...]:
    """Return what the study asks of a hospital, as (subject, words)."""
    features, privacy, training = study.features, study.privacy, study.training
    series = [part.signal for part in features.series]
    columns = [name for name in columns_read(study) if name not in series]
    parameters = declared_arrays(study, Task.TRAIN)
    numbers = sum(int(np.prod(shape)) for shape in parameters.values())
    histogram = " × ".join(str(size) for size in next(iter(declared_arrays(study, Task.EVALUATE).values())))
    steps, releases = study.planned_steps, study.planned_evaluations
    delta = accounted_delta(privacy.delta)
    trained = compute_epsilon([study.training_event(steps)], delta=delta)
    tested = compute_epsilon([study.evaluation_event(releases)], delta=delta)
    return (
        ("study", f"{study.name}, version {study.version}"),
        ("study digest", study.digest),
        ("question", study.question),
        ("patients", _describe_patients(study)),
        ("columns read", ", ".join(columns)),
        ("series read", ", ".join(series) if series else "none"),
        ("time read", f"{features.windows} window(s) of {features.window_hours:g} h from admission"),
        (
            "model",
            f"{study.model.name}, {numbers} numbers, at most {training.rounds} rounds of {training.local_steps} steps",
        ),
        ("what leaves", f"after each round the {numbers} numbers of the model, with noise of this hospital's own"),
        ("", f"at most {releases} score histograms ({histogram} noised counts)"),
        ("", "signed answers and refusals with fixed codes; no row, count of patients or loss"),
        ("", "the coordinator sees when an answer arrives"),
        (
            "price",
            f"a patient spends at most ε = {max(trained, tested):.3f} of {privacy.epsilon:g} at δ = {privacy.delta:g}",
        ),
        (
            "",
            f"training {trained:.3f} (σ {privacy.noise_multiplier:g}, clip {privacy.clip:g}, "
            f"q {privacy.sampling_rate:g}, {steps} steps)",
        ),
        ("", f"evaluation {tested:.3f} (σ {study.evaluation.noise_multiplier:g}, {releases} releases)"),
        ("", "of this study alone: a patient in several studies pays for each"),
        ("", CAVEAT),
    )


def describe_others(spending: Sequence[StudySpending], digest: str) -> tuple[tuple[str, str], ...]:
    """Return what else a patient of this hospital may pay for, as (subject, words): every other study ever approved.

    - a study that was withdrawn is named as long as it has spent something
    """
    words = []
    for row in spending:
        if row.digest == digest or (row.state == "withdrawn" and not (row.steps or row.releases)):
            continue
        name = f"{row.name} version {row.version}" if row.name else f"study {row.digest[:12]}"
        price = f"ε = {row.price:.3f} at δ = {row.delta:g}" if row.price is not None else "price unknown"
        words.append(f"{name} ({row.state}): {price}")
    return tuple(("approved here" if n == 0 else "", line) for n, line in enumerate(words))


def _describe_patients(study: Study) -> str:
    known = " and ".join((study.outcome, *study.cohort.requires))
    held_out = f"{study.split.test_fraction:.0%} of them, by a digest of their id, for evaluation only"
    return f"everyone whose {known} is known; {held_out}"
