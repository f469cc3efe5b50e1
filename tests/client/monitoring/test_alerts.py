"""The life of an alert, what it takes to raise and to end one, and how a patient's alerts become one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtwin_client.monitoring.alerts import (
    ESCALATE_AFTER,
    Harm,
    Onset,
    Priority,
    Stage,
    acknowledge,
    escalate,
    prioritise,
    raise_alert,
    resolve,
)
from fedtwin_client.monitoring.monitor import Monitor
from fedtwin_client.monitoring.rules import IDLE, RULES, Debounce, Rule, take_reading
from tests.client.monitoring.examples import HYPOXIA, MINUTE, REASON


def test_priorities_are_those_of_the_standard() -> None:
    # IEC 60601-1-8:2006 + A2:2020, table 1, read by row: immediate, prompt, delayed.
    low, medium, high = Priority.LOW, Priority.MEDIUM, Priority.HIGH
    table = {
        Harm.DEATH: (high, high, medium),
        Harm.REVERSIBLE: (high, medium, low),
        Harm.DISCOMFORT: (medium, low, low),
    }
    for harm, row in table.items():
        for onset, priority in zip((Onset.IMMEDIATE, Onset.PROMPT, Onset.DELAYED), row, strict=True):
            assert prioritise(harm, onset) is priority


def test_the_life_of_an_alert() -> None:
    alert = raise_alert("p", "hypoxia", Priority.HIGH, REASON, now=0)
    due = ESCALATE_AFTER[Priority.HIGH]
    assert escalate(alert, now=due - 1) is alert
    escalated = escalate(alert, now=due)
    taken = acknowledge(escalated, by="nurse", now=due + 5)
    ended = resolve(taken, now=due + 9)
    assert [stage for stage, _, _ in ended.history] == [
        Stage.RAISED,
        Stage.ESCALATED,
        Stage.ACKNOWLEDGED,
        Stage.RESOLVED,
    ]
    assert ended.history[2] == (Stage.ACKNOWLEDGED, due + 5, "nurse")
    assert resolve(ended, now=99) is ended
    assert acknowledge(ended, by="nurse", now=99) is ended
    assert escalate(acknowledge(alert, by="nurse", now=1), now=10**9).stage is Stage.ACKNOWLEDGED
    with pytest.raises(ValueError, match="who"):
        acknowledge(alert, by="", now=1)


def fold(rule: Rule, values: list[float]) -> list[bool]:
    memory, active = IDLE, []
    for minute, value in enumerate(values):
        memory = take_reading(rule, memory, value, minute * MINUTE)
        active.append(memory.active)
    return active


def test_it_takes_k_of_n_and_ends_only_after_quiet() -> None:
    assert not any(fold(HYPOXIA, [95, 80, 95, 80, 95, 95] * 5))  # 2 of 4 is not 3
    assert fold(HYPOXIA, [95, 80, 80, 95, 80]) == [False, False, False, False, True]
    # between `off` and `on` it neither raises nor ends; back for ten minutes without a break, it ends
    raised = [80.0] * 3
    assert fold(HYPOXIA, raised + [91.5] * 100)[-1]
    assert fold(HYPOXIA, [*raised, *[94.0] * 10])[-1]
    assert not fold(HYPOXIA, [*raised, *[94.0] * 11])[-1]
    assert fold(HYPOXIA, [*raised, *[94.0] * 6, 89.0, *[94.0] * 6])[-1]


def test_old_readings_do_not_add_up() -> None:
    memory = IDLE
    for hour in range(10):
        memory = take_reading(HYPOXIA, memory, 80.0, hour * 61 * MINUTE)
        assert not memory.active


@given(st.lists(st.floats(60, 100), max_size=60), st.integers(0, 59))
def test_one_artefact_never_raises_an_alert(values: list[float], at: int) -> None:
    good = [max(value, 90.0) for value in values]
    spoiled = [*good[:at], 40.0, *good[at:]]
    assert not any(fold(HYPOXIA, spoiled))


@given(st.lists(st.tuples(st.integers(0, 100), st.floats(60, 100) | st.just(float("nan"))), max_size=40))
def test_a_reading_from_before_changes_nothing(readings: list[tuple[int, float]]) -> None:
    one, other, newest = IDLE, IDLE, -1
    for time, value in readings:
        one = take_reading(HYPOXIA, one, value, time)
        if time >= newest and value == value:
            other, newest = take_reading(HYPOXIA, other, value, time), time
    assert one == other


def test_rules_make_sense() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert "{value" in rule.words
        beyond = rule.on + (-1 if rule.side == "below" else 1) * 1e-3
        assert rule.is_beyond(beyond)
        assert not rule.is_back(beyond)
        assert not rule.is_beyond(rule.off)
    with pytest.raises(ValueError, match="needed"):
        Rule(
            name="x", measure="x", side="below", on=1, off=2, of=3, needed=4, quiet=0,
            priority=Priority.LOW, words="", signals=(),
        )  # fmt: skip
    assert Debounce() == IDLE


def test_one_line_for_a_patient_with_every_reason() -> None:
    monitor = Monitor((HYPOXIA, *(rule for rule in RULES if rule.name in ("fast_breathing", "news2_medium"))))
    for minute in range(6):
        for patient, value in (("well", 97.0), ("ill", 84.0)):
            monitor.take(patient, "pulse_oximetry", value, time=minute * MINUTE, now=minute * MINUTE)
            monitor.take(patient, "respiratory_rate", 35.0, time=minute * MINUTE, now=minute * MINUTE)
    ill, well = monitor.bundles()
    assert (ill.patient, ill.priority, len(ill.alerts)) == ("ill", Priority.HIGH, 2)
    assert ill.words == "oxygen saturation 84 %, below 90; breathing 35 /min, above 29"
    assert (well.patient, well.priority) == ("well", Priority.MEDIUM)
    assert [alert.rule for alert in monitor.tick(now=8 * MINUTE)] == ["hypoxia"]
    assert monitor.bundles()[0].stage is Stage.ESCALATED
    assert {alert.stage for alert in monitor.acknowledge("ill", by="nurse", now=9 * MINUTE)} == {Stage.ACKNOWLEDGED}
    assert monitor.tick(now=10**9)[0].patient == "well"
    ended = monitor.resolve("ill", "hypoxia", by="doctor", now=10 * MINUTE)
    assert ended is not None
    assert ended.history[-1] == (Stage.RESOLVED, 10 * MINUTE, "doctor")
    assert monitor.resolved() == (ended,)
    assert monitor.resolve("ill", "hypoxia", by="doctor", now=10 * MINUTE) is None
    monitor.forget("ill")
    assert [bundle.patient for bundle in monitor.bundles()] == ["well"]
    assert monitor.resolved() == ()
    assert "ill" not in repr(monitor.bundles())
