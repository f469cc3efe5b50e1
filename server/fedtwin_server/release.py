"""What a run releases and says about itself: the report that stands beside the model, and one line for each round."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from fedtwin_server.rounds import (
    Measurement,
    RoundRecord,
    RunState,
    attempts_issued,
    measure,
    next_task,
    release_model,
)
from fedtwin_shared.histogram import Metrics
from fedtwin_shared.models import digest_parameters
from fedtwin_shared.privacy import CAVEAT
from fedtwin_shared.round import Task
from fedtwin_shared.study import Study

NOT_PRIVATE = "no noise: no privacy guarantee"

Json = Mapping[str, Any]


def describe_privacy(study: Study, state: RunState) -> dict[str, Any]:
    """Return what the plan may cost and what the run has cost one patient at most; ε is None where it is infinite.

    - every attempt that a site can have been charged for is counted, whether or not it answered
    """
    steps = study.training.local_steps * attempts_issued(study, state, Task.TRAIN)
    releases = attempts_issued(study, state, Task.EVALUATE)
    return {
        "unit": "one patient with all their records, added or removed",
        "delta": study.privacy.delta,
        "budget_epsilon": _finite(study.privacy.epsilon if study.privacy.mode != "none" else math.inf),
        "plan_epsilon": _finite(study.price()),
        "spent_epsilon": _finite(study.spent(steps=steps, releases=releases)),
        "training_steps": steps,
        "histograms_released": releases,
        "statement": NOT_PRIVATE if study.privacy.mode == "none" else CAVEAT,
    }


def describe_run(study: Study, state: RunState) -> dict[str, Any]:
    """Return the whole report of a run as JSON; the model's digest is there once the run is complete."""
    complete = next_task(study, state) is None
    return {
        "format": 1,
        "run": state.run,
        "study": {"name": study.name, "version": study.version, "digest": state.study},
        "complete": complete,
        "rounds": {"planned": study.training.rounds, "done": state.rounds_done},
        "model": {
            "name": study.model.name,
            "algorithm": study.training.algorithm,
            "digest": digest_parameters(release_model(study, state)) if complete else None,
        },
        "privacy": describe_privacy(study, state),
        "answered_rounds": {part.site: _answered(state, part.site) for part in study.participants},
        "evaluations": [
            {
                "round": number,
                "released_model": number == study.training.rounds,
                **describe_measurement(measure(study, state.histograms[number])),
            }
            for number in sorted(state.histograms)
        ],
        "history": [describe_record(record) for record in state.history],
        "failed": None if state.failed is None else describe_record(state.failed),
    }


def describe_record(record: RoundRecord) -> dict[str, Any]:
    """Return one attempt at one task as JSON."""
    return {
        "task": record.task.value,
        "round": record.round,
        "attempt": record.attempt,
        "sites": list(record.sites),
        "refusals": {site: code.value for site, code in record.refusals.items()},
        "errors": dict(record.errors),
        "unverified": record.unverified,
    }


def describe_measurement(measurement: Measurement) -> dict[str, Any]:
    """Return metrics by group, over all sites and by site, as JSON; None stands for a metric that is not defined."""
    return {
        "overall": {group: _as_json(metrics) for group, metrics in measurement.overall.items()},
        "sites": {
            site: {group: _as_json(metrics) for group, metrics in groups.items()}
            for site, groups in measurement.sites.items()
        },
    }


def _answered(state: RunState, site: str) -> dict[str, list[int]]:
    return {
        task.value: [record.round for record in state.history if record.task is task and site in record.sites]
        for task in Task
    }


def _as_json(metrics: Metrics) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in dataclasses.asdict(metrics).items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
