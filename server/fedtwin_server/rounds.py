"""Rounds as pure functions: a run's state and verified answers in, the next state out. No Flower, clock, disk or key.

Design note: the state alone determines the next plan, byte for byte, so a coordinator that was killed and resumed asks
exactly what it had asked before, and a site that had answered sends its sealed answer again.
Order of a run: evaluate the initial model (round 0) where the study names it, then for each round train it and
evaluate it where the study names it; the released model is evaluated after the last round.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from fedtwin_server.errors import RunError
from fedtwin_shared.histogram import Counts, Metrics, add_histograms, bin_centres, compute_metrics
from fedtwin_shared.models import Parameters, digest_parameters, initialise, parameter_shapes, verify_parameters
from fedtwin_shared.round import HISTOGRAM, Refusal, RefusalCode, RoundPlan, SiteUpdate, Task
from fedtwin_shared.signal import CATEGORIES
from fedtwin_shared.study import Study

EVERYBODY = "everybody"  # the first group of every histogram

Sums = Mapping[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GlobalModel:
    """Parameters, and the server optimizer's two moments: empty before its first round and where there is none."""

    parameters: Parameters
    first_moment: Parameters = field(default_factory=dict)
    second_moment: Parameters = field(default_factory=dict)


Aggregate = Callable[[Study, int, GlobalModel, Sequence[SiteUpdate]], GlobalModel]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRecord:
    """Who answered one attempt at one task of one round, and how."""

    task: Task
    round: int
    attempt: int
    sites: tuple[str, ...] = ()  # whose updates counted, sorted
    refusals: Mapping[str, RefusalCode] = field(default_factory=dict)  # by site
    errors: Mapping[str, int] = field(default_factory=dict)  # how often the transport, or missing evidence, said what
    unverified: int = 0  # answers that did not verify and were ignored


@dataclass(frozen=True, slots=True, kw_only=True)
class ProofRule:
    """Who must have cosigned the ledger behind an update. witnesses: vkeys, sorted; none: no proof is asked for.

    faulty: how many of them may lie.
    """

    witnesses: tuple[str, ...] = ()
    faulty: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunState:
    """Everything that a run must remember between two rounds.

    model: after `rounds_done` rounds of training.
    attempt: of the task that comes next; above 1 only after `retry_round`.
    total: sum of the global models from round average_from_round on; empty before it.
    histograms: by evaluated round and site, f64[groups, classes, bins], noised by the site.
    failed: the last attempt, when too few sites had answered it.
    proof: what every update needs, once it is fixed: before the first of them counts.
    """

    run: str
    study: str
    model: GlobalModel
    rounds_done: int = 0
    attempt: int = 1
    total: Sums = field(default_factory=dict)
    histograms: Mapping[int, Mapping[str, Counts]] = field(default_factory=dict)
    history: tuple[RoundRecord, ...] = ()
    failed: RoundRecord | None = None
    proof: ProofRule | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What came back for one plan: verified answers, at most one for each site, and counts of everything else.

    evidence: verified, by site: that the hospital charged for its update (`ledger.evidence`).
    """

    updates: tuple[SiteUpdate, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    errors: Mapping[str, int] = field(default_factory=dict)
    unverified: int = 0
    evidence: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RoundResult:
    """The next state, what happened, and whether the round counts."""

    state: RunState
    record: RoundRecord
    counts: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """Metrics of one model by group of patients: over all sites together, and at each site."""

    overall: Mapping[str, Metrics]
    sites: Mapping[str, Mapping[str, Metrics]]


def start_run(study: Study, *, run: str) -> RunState:
    """Return the state of a new run; `run` is its id, 128 random bits in hexadecimal."""
    return RunState(run=run, study=study.digest, model=GlobalModel(parameters=initialise(study)))


def next_task(study: Study, state: RunState) -> tuple[Task, int] | None:
    """Return the task that comes next and its round, or None when the run is complete.

    A training of round r makes model r from model r - 1; an evaluation of round r is that of model r.
    """
    done = state.rounds_done
    if done in (*study.evaluation.rounds, study.training.rounds) and done not in state.histograms:
        return Task.EVALUATE, done
    return (Task.TRAIN, done + 1) if done < study.training.rounds else None


def model_to_send(study: Study, state: RunState) -> Parameters:
    """Return what sites get with the next plan: the global model, or after the last round the released one."""
    return release_model(study, state) if state.rounds_done == study.training.rounds else state.model.parameters


def release_model(study: Study, state: RunState) -> Parameters:
    """Return the mean of the global models from round average_from_round on; the last one where that is 0.

    Raises `RunError` before the last round.
    """
    training = study.training
    if state.rounds_done != training.rounds:
        raise RunError(field="rounds_done", expected=f"{training.rounds}", found=f"{state.rounds_done}")
    if not training.average_from_round:
        return state.model.parameters
    models = training.rounds - training.average_from_round + 1
    return {name: (array / models).astype(np.float32) for name, array in state.total.items()}


def plan_round(study: Study, state: RunState) -> RoundPlan | None:
    """Return the instruction that comes next, or None when the run is complete.

    - the same state gives the same plan, byte for byte
    """
    following = next_task(study, state)
    if following is None:
        return None
    task, number = following
    return RoundPlan(
        study=state.study,
        run=state.run,
        round=number,
        attempt=state.attempt,
        task=task,
        model=digest_parameters(model_to_send(study, state)),
    )


def is_settled(study: Study, *, updates: int, refusals: int, waiting: int, waited_seconds: float) -> bool:
    """Return whether a round ends now: `waiting` connected sites have not answered yet.

    - all participants have answered: yes
    - everybody connected has answered, and the minimum is met: yes
    - the minimum is met and patience is over: yes
    - the deadline is over: yes, always
    """
    training = study.training
    if updates + refusals >= len(study.participants):
        return True
    if updates >= training.minimum_sites and (waiting == 0 or not waited_seconds < training.patience_seconds):
        return True
    return not waited_seconds < training.deadline_seconds


def finish_round(study: Study, state: RunState, answers: Answers, *, aggregate: Aggregate) -> RoundResult:
    """Return the state after the answers to `plan_round(study, state)`.

    Raises `RunError` when a site answers twice or nothing was to come, `VerificationError` when the aggregate is not
    finite.

    - a round counts when at least training.minimum_sites sites have sent an update; otherwise only `failed` changes
    - the order in which answers arrive changes nothing
    - refusals, errors and unverified answers never change parameters
    """
    following = next_task(study, state)
    if following is None:
        raise RunError(field="run", expected="a task to finish", found="a complete run")
    updates = sorted(answers.updates, key=lambda update: update.site)
    names = [*(update.site for update in updates), *(refusal.site for refusal in answers.refusals)]
    if len(set(names)) != len(names):
        raise RunError(field="answers", expected="one for each site", found="two of one site")
    record = RoundRecord(
        task=following[0],
        round=following[1],
        attempt=state.attempt,
        sites=tuple(update.site for update in updates),
        refusals={refusal.site: refusal.code for refusal in sorted(answers.refusals, key=lambda one: one.site)},
        errors=dict(sorted(answers.errors.items())),
        unverified=answers.unverified,
    )
    if len(updates) < study.training.minimum_sites:
        return RoundResult(state=replace(state, failed=record), record=record, counts=False)
    advance = _advance_model(study, state, updates, aggregate) if record.task is Task.TRAIN else _keep(state, updates)
    after = replace(advance, attempt=1, history=(*state.history, record), failed=None)
    return RoundResult(state=after, record=record, counts=True)


def _advance_model(study: Study, state: RunState, updates: Sequence[SiteUpdate], aggregate: Aggregate) -> RunState:
    number = state.rounds_done + 1
    model = aggregate(study, number, state.model, updates)
    # Each update is finite, but their sum may not be; sites would refuse such a model one round later.
    verify_parameters(model.parameters, parameter_shapes(study))
    total = state.total
    if 0 < study.training.average_from_round <= number:
        total = {name: array.astype(np.float64) + total.get(name, 0.0) for name, array in model.parameters.items()}
    return replace(state, model=model, rounds_done=number, total=total)


def _keep(state: RunState, updates: Sequence[SiteUpdate]) -> RunState:
    counts = {update.site: np.asarray(update.arrays[HISTOGRAM], dtype=np.float64) for update in updates}
    return replace(state, histograms={**state.histograms, state.rounds_done: counts})


def retry_round(study: Study, state: RunState) -> RunState:
    """Return the state in which the failed round is asked again.

    A site that had answered sends its sealed answer again and spends nothing, so the attempt stays the same unless so
    many sites have spent theirs without an answer (a crash) that the minimum could not be met.

    - the attempt is raised at most privacy.spare_rounds times for each task of a run: `RunError` beyond
    """
    if state.failed is None:
        return state
    spent = {site for site, code in state.failed.refusals.items() if code is RefusalCode.ATTEMPT_SPENT}
    if len(study.participants) - len(spent) >= study.training.minimum_sites:
        return replace(state, failed=None)
    task = state.failed.task
    raised = state.attempt - 1 + sum(record.attempt - 1 for record in state.history if record.task is task)
    if not raised < study.privacy.spare_rounds:
        raise RunError(
            field="privacy.spare_rounds",
            expected=f"a spare round for {task} {state.failed.round}: {len(spent)} sites had spent their attempt",
            found=f"{raised} of {study.privacy.spare_rounds} used",
        )
    return replace(state, attempt=state.attempt + 1, failed=None)


def attempts_issued(study: Study, state: RunState, task: Task) -> int:
    """Return how many attempts at `task` sites can have been charged for, the one that comes next included."""
    following = next_task(study, state)
    under_way = state.attempt if following is not None and following[0] is task else 0
    return under_way + sum(record.attempt for record in state.history if record.task is task)


def group_names(study: Study) -> tuple[str, ...]:
    """Return the name of each group of the study's histograms, in order."""
    return (EVERYBODY, *(f"{key}={level}" for key in study.evaluation.subgroups for level in CATEGORIES[key].levels))


def measure(study: Study, histograms: Mapping[str, Counts]) -> Measurement:
    """Return the metrics of one model from its histograms by site."""
    names, centres = group_names(study), bin_centres(study.evaluation)

    def by_group(counts: Counts) -> dict[str, Metrics]:
        return {name: compute_metrics(group, centres) for name, group in zip(names, counts, strict=True)}

    return Measurement(
        overall=by_group(add_histograms(histograms[site] for site in sorted(histograms))),
        sites={site: by_group(histograms[site]) for site in sorted(histograms)},
    )
