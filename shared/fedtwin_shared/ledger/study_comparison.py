"""Whether a ledger enrolled and charged what the signed study says, for each study whose document is there.

Design note: a ledger is sound on its own whatever it enrols, so a hospital could enrol less than it runs. Only the
signed study says what runs. Its envelope is verified with the key that it names, as for the report; the enrolment names
these very bytes by digest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from fedtwin_shared.documents import SignedStudy, verify_study
from fedtwin_shared.errors import FedtwinError
from fedtwin_shared.ledger.account import LedgerState, StudyAccount, Task
from fedtwin_shared.ledger.entry import TaskKey
from fedtwin_shared.ledger.mechanism import Use
from fedtwin_shared.ledger.named_documents import signer_of
from fedtwin_shared.ledger.study_programme import plan_programme, task_uses
from fedtwin_shared.round import Task as Kind


def compare_studies(state: LedgerState, documents: Mapping[str, bytes]) -> list[str]:
    """Return why a ledger is not of the signed studies among `documents`, by digest; nothing where it is.

    - a study whose document is not there is not compared: see `find_uncompared`
    - a document that an enrolment names is a signed study, and the enrolled one
    - the enrolled parts are everything that the signed study may ever run, and nothing else
    - every reservation is of exactly what its task runs, and charges every block of its part
    """
    tasks = defaultdict[str, list[tuple[TaskKey, Task]]](list)
    for text, task in state.tasks.items():
        key = TaskKey.parse(text)
        if state.studies[key.study].enrolment.plan in documents:
            tasks[key.study].append((key, task))
    reasons = []
    for study, account in state.studies.items():
        content = documents.get(account.enrolment.plan)
        if content is not None:
            try:
                reason = _compare(account, content, tasks[study])
            except FedtwinError as err:
                reason = str(err)
            except Exception as err:  # a stranger's document, and an accountant with limits of its own
                reason = f"expected a signed study, found {type(err).__name__}"
            if reason:
                reasons.append(f"study {study[:12]}: {reason}")
    return reasons


def find_uncompared(state: LedgerState, documents: Mapping[str, bytes]) -> list[str]:
    """Return the digests of enrolled studies whose signed document is not among `documents`."""
    return sorted(study for study, account in state.studies.items() if account.enrolment.plan not in documents)


def _compare(account: StudyAccount, content: bytes, tasks: list[tuple[TaskKey, Task]]) -> str:
    """Return the first thing that differs, or nothing."""
    enrolment = account.enrolment
    signed = verify_study(content, coordinator=signer_of(content) or "")
    if signed.study.digest != enrolment.study:
        return "expected the enrolled study in the document that its enrolment names, found another"
    if enrolment.parts != plan_programme(signed.study, plan=enrolment.plan).parts:
        return "expected the parts and mechanisms of the signed study as enrolled, found others"
    uses = _uses_of(signed)
    for key, task in tasks:
        if task.reserve.uses != uses.get(key.task):
            return f"expected what one task of the signed study runs as reserved, found other: {key}"
        if not task.whole:
            return f"expected every block of the study's part as charged, found fewer: {key}"
    return ""


def _uses_of(signed: SignedStudy) -> dict[str, tuple[Use, ...]]:
    return {kind.value: task_uses(signed.study, kind) for kind in Kind}
