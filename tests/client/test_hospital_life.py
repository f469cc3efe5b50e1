"""A hospital's whole life with one study: whatever is asked, in whatever order, with crashes and restarts."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtwin_client.file_journal import FileJournal
from fedtwin_client.journal import Spend
from fedtwin_shared.round import Arrays, SiteUpdate, Task, verify_answer
from tests.client.setting import Ward, make_setting
from tests.world import make_world

PRIVACY = {"epsilon": 8.0, "delta": 1e-5, "noise_multiplier": 4.0, "spare_rounds": 1}
WORLD = make_world(
    privacy=PRIVACY,
    training={"rounds": 2, "local_steps": 3, "learning_rate": 1.0, "minimum_sites": 2},
    evaluation={"noise_multiplier": 4.0, "rounds": [0]},
)


@dataclass(frozen=True)
class Ask:
    """One plan of the coordinator; `crash` ends the process in the middle of the work."""

    round: int
    attempt: int
    task: Task
    run: int
    model: int
    crash: bool


Key = tuple[int, int, Task, int]
RESTART = None
ASKS = st.builds(
    Ask,
    round=st.integers(0, 3),
    attempt=st.integers(1, 3),
    task=st.sampled_from(Task),
    run=st.integers(0, 1),
    model=st.integers(0, 1),
    crash=st.booleans(),
)


class Crash(BaseException):
    """The process ends here."""


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(ASKS, ASKS, st.just(RESTART)), max_size=25))
def test_whatever_is_asked_no_more_is_touched_than_charged_and_planned(events: list[Ask | None]) -> None:
    study = WORLD.study
    touched: Counter[Key] = Counter()
    answered: dict[bytes, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        journal = FileJournal(Path(folder))
        for event in events:
            if event is None:
                journal.close()
                journal = FileJournal(Path(folder))
                continue
            key: Key = (event.round, event.attempt, event.task, event.run)

            def touch(key: Key = key, crash: bool = event.crash) -> None:
                touched[key] += 1
                if crash:
                    raise Crash

            setting = make_setting(WORLD, journal=journal, ward=Ward(before_training=touch, before_scoring=touch))
            model: Arrays = {name: array + np.float32(event.model) for name, array in setting.model().items()}
            asked: dict[str, Any] = {"round": event.round, "attempt": event.attempt, "task": event.task}
            plan = setting.plan(arrays=model, run=f"{event.run:032x}", **asked)
            try:
                envelope, arrays, _ = setting.hospital.answer(plan, model)
            except Crash:
                journal.close()
                journal = FileJournal(Path(folder))
                continue
            answer = verify_answer(envelope, arrays, plan=plan, task=event.task, study=study, roster=WORLD.roster)
            if isinstance(answer, SiteUpdate):
                assert answered.setdefault(plan, envelope) == envelope  # a plan has one answer for ever
            else:
                assert plan not in answered  # and what was answered once is not refused later
        spent = journal.charged(study.digest)
        journal.close()

    trained = sum(count for (_, _, task, _), count in touched.items() if task is Task.TRAIN)
    evaluated = sum(count for (_, _, task, _), count in touched.items() if task is Task.EVALUATE)
    assert Spend(steps=trained * study.training.local_steps, releases=evaluated).within(spent)
    assert spent.within(Spend(steps=study.planned_steps, releases=study.planned_evaluations))
    assert all(count == 1 for count in touched.values())  # nothing is ever worked on twice
