"""A hospital as the coordinator meets it: a signed plan in, a signed answer out, and every check in between.

Design note: a thin shell with everything passed in, so that the node of a real hospital and a simulated one run the
same lines. The order is the guarantee: check everything, charge (durably), train, seal (durably), have witnesses see
the ledger that says so, answer. A study that no patient's budget can pay is refused before any data is read. The cohort
is read before the charge, because a disk that fails is no patient's doing and should cost nobody; no patient takes part
in a computation before the charge. An answer that too few witnesses have seen waits, sealed: whoever asks again while
they are away gets a refusal that says so, and the same bytes once they are back.

The hospital's own log names the study, round, task and outcome. It holds no value of a patient, no number of patients
and no loss.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fedtwin_client.admission import Admission, AdmitEverybody
from fedtwin_client.gate import Gate
from fedtwin_client.journal import Journal, JournalError, SealedAnswer, Spend, TaskKey, WitnessesAwayError
from fedtwin_client.policy import Policy
from fedtwin_client.studies import ApprovedStudy, FindStudy
from fedtwin_shared.errors import FedtwinError, VerificationError
from fedtwin_shared.models import Parameters, digest_parameters, parameter_shapes, verify_parameters
from fedtwin_shared.round import Arrays, RefusalCode, RoundPlan, Task, verify_round_plan
from fedtwin_shared.signing import digest
from fedtwin_shared.study import Participant, Study

if TYPE_CHECKING:  # torch and pandas, which checks and refusals do not need
    from fedtwin_client.cohort import Cohort, Examples
    from fedtwin_client.randomness import Randomness

LOGGER: Final = logging.getLogger("fedtwin.hospital")

LoadCohort = Callable[
    [Study, str], "Cohort"
]  # study, own name; raises FedtwinError or OSError where data is unreadable
Train = Callable[[Study, Participant, Parameters, "Examples", "Randomness"], Parameters]
ReleaseHistogram = Callable[[Study, Parameters, "Examples", "Randomness"], Arrays]


class _RefusedError(Exception):
    """Ends the checks of one task; the code is all that leaves."""

    def __init__(self, code: RefusalCode) -> None:
        super().__init__(code)
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """A plan that passed every check."""

    plan: RoundPlan
    study: Study
    participant: Participant
    parameters: Parameters

    @property
    def spend(self) -> Spend:
        if self.plan.task is Task.TRAIN:
            return Spend(steps=self.study.training.local_steps)
        return Spend(releases=1)

    @property
    def limit(self) -> Spend:
        return Spend(steps=self.study.planned_steps, releases=self.study.planned_evaluations)


class Hospital:
    """Answers signed plans. One task at a time, from whichever thread.

    - nothing is trained or evaluated that is not charged
    - a repeated plan gets the same bytes again and is never trained twice
    - whatever is missing is a signed refusal with a fixed code: no text, no count
    """

    def __init__(
        self,
        *,
        gate: Gate,
        coordinator: str,
        find_study: FindStudy,
        policy: Policy,
        journal: Journal,
        randomness: Randomness,
        load_cohort: LoadCohort,
        train: Train,
        release_histogram: ReleaseHistogram,
        admission: Admission | None = None,
    ) -> None:
        self._gate, self._coordinator = gate, coordinator
        self._find_study, self._policy, self._journal = find_study, policy, journal
        self._randomness = randomness
        self._load_cohort, self._train, self._release_histogram = load_cohort, train, release_histogram
        self._admission = admission or AdmitEverybody()
        self._cohorts: dict[str, Cohort] = {}
        self._one_at_a_time = threading.Lock()

    def answer(self, envelope: bytes, arrays: Arrays) -> tuple[bytes, Arrays, bytes]:
        """Return the signed answer to a plan's envelope and the arrays that came with it; its arrays; what proves it.

        In this order: server signature, study known, approved and signed, own part in it, task foreseen by it, model
        digest and form, policy, attested cohort, a programme that can be paid; then read the cohort, charge, train or
        evaluate, seal, release. An exception of the training itself passes through, and the attempt stays charged.
        """
        with self._one_at_a_time:
            try:
                task = self._check(envelope, arrays)
                answer = self._sealed(envelope, task) or self._work(envelope, task)
                evidence = self._journal.release(TaskKey.of(task.plan))
            except _RefusedError as refused:
                return self.refuse(envelope, refused.code), {}, b""
            except WitnessesAwayError as err:
                LOGGER.warning("an answer waits: %s", err)
                return self.refuse(envelope, RefusalCode.WITNESSES_AWAY), {}, b""
            except JournalError as err:
                LOGGER.error("%s", err)
                return self.refuse(envelope, RefusalCode.SITE_NOT_READY), {}, b""
            _log(task, "released")
        return answer.envelope, answer.arrays, evidence

    def refuse(self, envelope: bytes, code: RefusalCode) -> bytes:
        """Return the signed refusal of an envelope, whatever it holds. It is an entry of the ledger, where that works.

        A journal that cannot be written refuses every task, so nothing hides behind a refusal that is not kept.
        """
        plan = digest(envelope)
        LOGGER.warning("refused %s: %s", plan[:12], code.value)
        try:
            self._journal.refuse(plan, code)
        except JournalError as err:
            LOGGER.error("the refusal is not kept: %s", err)
        return self._gate.refuse(envelope, code)

    def prepare(self, study: str) -> None:
        """Read the cohort of an approved study ahead of its first task. Raises what reading raises, `JournalError`.

        - of a study that policy or budget refuse, nothing is read
        """
        approved = self._find_study(study)
        if approved is None:
            return
        with self._one_at_a_time:
            if (code := self._policy.refuses(approved.study) or self._journal.admit(study)) is not None:
                LOGGER.warning("%s will be refused: %s", approved.study.name, code.value)
                return
            self._cohort(approved.study, study)

    def _check(self, envelope: bytes, arrays: Arrays) -> _Task:
        plan = _verify_plan(envelope, coordinator=self._coordinator)
        approved = self._approved(plan.study)
        if not approved.complete:
            raise _RefusedError(RefusalCode.STUDY_UNSIGNED)
        participant = _check_part(approved, gate=self._gate)
        _check_foreseen(plan, approved.study)
        parameters = _verify_model(plan, approved.study, arrays)
        if (code := self._policy.refuses(approved.study)) is not None:
            raise _RefusedError(code)
        if not approved.attested:
            raise _RefusedError(RefusalCode.COHORT_NOT_ATTESTED)
        if (code := self._journal.admit(plan.study)) is not None:
            raise _RefusedError(code)
        return _Task(plan=plan, study=approved.study, participant=participant, parameters=parameters)

    def _approved(self, study: str) -> ApprovedStudy:
        try:
            approved = self._find_study(study)
        except (FedtwinError, OSError) as err:
            LOGGER.error("an approved study cannot be read: %s", _describe(err))
            raise _RefusedError(RefusalCode.STUDY_UNKNOWN) from err
        if approved is None:
            self._cohorts.pop(study, None)  # withdrawn: its patients leave this process too
            raise _RefusedError(RefusalCode.STUDY_UNKNOWN)
        return approved

    def _sealed(self, envelope: bytes, task: _Task) -> SealedAnswer | None:
        sealed = self._journal.sealed(TaskKey.of(task.plan))
        if sealed is None or sealed.plan != digest(envelope):
            return None  # the charge below refuses a second, different plan of the same key
        _log(task, "sealed before")
        return sealed

    def _work(self, envelope: bytes, task: _Task) -> SealedAnswer:
        plan, study = task.plan, task.study
        key = TaskKey.of(plan)
        cohort = self._cohort_or_refusal(task, key)
        if (code := self._journal.charge(key, task.spend, limit=task.limit)) is not None:
            raise _RefusedError(code)
        # A crash, or an exception, from here to the seal means that the attempt is spent.
        self._note_or_refusal(key)
        if plan.task is Task.TRAIN:
            arrays: Arrays = self._train(study, task.participant, task.parameters, cohort.train, self._randomness)
        else:
            arrays = self._release_histogram(study, task.parameters, cohort.test, self._randomness)
        try:
            statement = self._gate.release(envelope, study, plan.task, arrays)
        except VerificationError as err:
            # Noised numbers that are not finite: saying so is post-processing of them and tells nothing more.
            raise _RefusedError(RefusalCode.MODEL_UNVERIFIED) from err
        answer = SealedAnswer(plan=digest(envelope), envelope=statement, arrays=arrays)
        self._journal.seal(key, answer)
        return answer

    def _cohort_or_refusal(self, task: _Task, key: TaskKey) -> Cohort:
        try:
            return self._admission.choose(key, self._cohort(task.study, task.plan.study))
        except (FedtwinError, OSError) as err:
            LOGGER.error("the data cannot be read: %s", _describe(err))
            raise _RefusedError(RefusalCode.SITE_NOT_READY) from err

    def _note_or_refusal(self, key: TaskKey) -> None:
        try:
            self._admission.note(key)
        except (FedtwinError, OSError) as err:
            LOGGER.error("what would be touched cannot be kept: %s", _describe(err))
            raise _RefusedError(RefusalCode.SITE_NOT_READY) from err

    def _cohort(self, study: Study, study_digest: str) -> Cohort:
        if study_digest not in self._cohorts:
            self._cohorts[study_digest] = self._load_cohort(study, self._gate.site)
        return self._cohorts[study_digest]


def _verify_plan(envelope: bytes, *, coordinator: str) -> RoundPlan:
    try:
        return verify_round_plan(envelope, coordinator=coordinator)
    except VerificationError as err:
        raise _RefusedError(RefusalCode.PLAN_UNVERIFIED) from err


def _check_part(approved: ApprovedStudy, *, gate: Gate) -> Participant:
    """A study in which this hospital, with this very key, takes no part is none of its studies."""
    participant = approved.study.participant(gate.site)
    if participant is None or approved.roster.keys().get(gate.public_key) != gate.site:
        raise _RefusedError(RefusalCode.STUDY_UNKNOWN)
    return participant


def _check_foreseen(plan: RoundPlan, study: Study) -> None:
    """A round, task or attempt that the study does not name is not part of what was approved."""
    rounds = study.training.rounds
    if plan.task is Task.TRAIN:
        foreseen = 1 <= plan.round <= rounds
    else:
        foreseen = plan.round in study.evaluation.rounds or plan.round == rounds
    if not (foreseen and plan.attempt <= 1 + study.privacy.spare_rounds):
        raise _RefusedError(RefusalCode.PLAN_UNVERIFIED)


def _verify_model(plan: RoundPlan, study: Study, arrays: Arrays) -> Parameters:
    try:
        parameters = verify_parameters(arrays, parameter_shapes(study))
    except VerificationError as err:
        raise _RefusedError(RefusalCode.MODEL_UNVERIFIED) from err
    if digest_parameters(parameters) != plan.model:
        raise _RefusedError(RefusalCode.MODEL_UNVERIFIED)
    return parameters


def _log(task: _Task, outcome: str) -> None:
    plan = task.plan
    LOGGER.info("%s: %s of round %d, attempt %d: %s", task.study.name, plan.task, plan.round, plan.attempt, outcome)


def _describe(error: Exception) -> str:
    """Our own errors never hold a patient's value; the text of any other one might."""
    return str(error) if isinstance(error, FedtwinError) else type(error).__name__
