"""A signed study in the words of a ledger: its two parts, and everything that may ever run on a patient of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fedtwin_shared.ledger.entry import Part
from fedtwin_shared.ledger.mechanism import Gaussian, Mechanism, NotPrivate, PoissonGaussian, Use, exact_decimal
from fedtwin_shared.privacy import Mechanism as Kind
from fedtwin_shared.privacy import PrivacyEvent
from fedtwin_shared.round import Task
from fedtwin_shared.study import Study

TEST: Final = "test"
TRAIN: Final = "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyProgramme:
    """What one site may ever run for a study. plan: digest of the signed study's envelope.

    training: one private step. evaluation: one histogram.
    """

    plan: str
    training: Mechanism
    evaluation: Mechanism
    parts: tuple[Part, ...]


def plan_programme(study: Study, *, plan: str) -> StudyProgramme:
    """Return the programme of a study, its spare rounds included.

    Raises `VerificationError` for parameters that no ledger can price.
    """
    training = _mechanism(study.training_event(study.planned_steps))
    evaluation = _mechanism(study.evaluation_event(study.planned_evaluations))
    trained, tested = (
        Use(mechanism=training, count=study.planned_steps),
        Use(mechanism=evaluation, count=study.planned_evaluations),
    )
    parts = (Part(name=TEST, programme=(tested,)), Part(name=TRAIN, programme=(trained,)))
    return StudyProgramme(plan=plan, training=training, evaluation=evaluation, parts=parts)


def task_uses(study: Study, task: Task) -> tuple[Use, ...]:
    """Return what one task of a study runs, and so what its reservation holds. Raises as `plan_programme`."""
    if task is Task.TRAIN:
        steps = study.training.local_steps
        return (Use(mechanism=_mechanism(study.training_event(steps)), count=steps),)
    return (Use(mechanism=_mechanism(study.evaluation_event(1)), count=1),)


def _mechanism(event: PrivacyEvent) -> Mechanism:
    match event.mechanism:
        case Kind.NOT_PRIVATE:
            return NotPrivate()
        case Kind.GAUSSIAN:
            return Gaussian(noise_multiplier=exact_decimal(event.noise_multiplier))
        case Kind.POISSON_GAUSSIAN:
            return PoissonGaussian(
                sampling_rate=exact_decimal(event.sampling_rate), noise_multiplier=exact_decimal(event.noise_multiplier)
            )
