"""Everybody's alerts: the thin stateful shell around rules and the life of an alert.

Design note: a measure arrives (a reading, a score, a forecast), the rules on it are asked, alerts change, and what
changed is returned; `tick` lets time pass. What an alert says is kept with it, so that it can be explained later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from fedtwin_client.monitoring.alerts import (
    Alert,
    Bundle,
    Priority,
    Reason,
    acknowledge,
    bundle,
    escalate,
    raise_alert,
    resolve,
    worsen,
)
from fedtwin_client.monitoring.rules import IDLE, RULES, Debounce, Rule, take_reading

KEPT: Final = 10_000  # resolved alerts that are remembered


class Monitor:
    """Alerts of a hospital. Not for several threads at once.

    - a patient has at most one open alert of a rule
    - what is not understood raises nothing: a measure without a rule is ignored
    """

    def __init__(self, rules: Sequence[Rule] = RULES) -> None:
        self._rules: Mapping[str, tuple[Rule, ...]] = {
            measure: tuple(rule for rule in rules if rule.measure == measure) for measure in {r.measure for r in rules}
        }
        self._memory: dict[tuple[str, str], Debounce] = {}
        self._open: dict[tuple[str, str], Alert] = {}
        self._resolved: list[Alert] = []

    @property
    def measures(self) -> frozenset[str]:
        """What there are rules on."""
        return frozenset(self._rules)

    def take(self, patient: str, measure: str, value: float, *, time: int, now: int) -> list[Alert]:
        """Take one measurement of `time`; return the alerts that it raised, changed in priority, or resolved."""
        changed = []
        for rule in self._rules.get(measure, ()):
            key = (patient, rule.name)
            before = self._memory.get(key, IDLE)
            after = take_reading(rule, before, value, time)
            if after is before:
                continue
            self._memory[key] = after
            alert = self._open.get(key)
            if after.active:
                reason = Reason(
                    rule=rule.name, words=rule.words.format(value=value), signals=rule.signals, value=value, time=time
                )
                if alert is None:
                    self._open[key] = raise_alert(patient, rule.name, rule.priority, reason, now=now)
                    changed.append(self._open[key])
                elif rule.is_beyond(value):
                    self._open[key] = worsen(alert, rule.priority, reason, now=now)
            elif alert is not None:
                changed.append(self._end(key, resolve(alert, now=now)))
        return changed

    def tick(self, *, now: int) -> list[Alert]:
        """Let time pass; return the alerts that nobody took in time."""
        changed = []
        for key, alert in self._open.items():
            later = escalate(alert, now=now)
            if later is not alert:
                self._open[key] = later
                changed.append(later)
        return changed

    def acknowledge(self, patient: str, *, by: str, now: int) -> tuple[Alert, ...]:
        """Note that someone has taken all of a patient's open alerts; return them."""
        taken = []
        for key, alert in self._open.items():
            if key[0] == patient:
                self._open[key] = acknowledge(alert, by=by, now=now)
                taken.append(self._open[key])
        return tuple(taken)

    def resolve(self, patient: str, rule: str, *, by: str, now: int) -> Alert | None:
        """End an alert because someone says so; None where there is none. It may be raised again."""
        key = (patient, rule)
        if key not in self._open:
            return None
        self._memory.pop(key, None)
        return self._end(key, resolve(self._open[key], now=now, by=by))

    def forget(self, patient: str) -> None:
        """Drop everything about a patient."""
        self._memory = {key: kept for key, kept in self._memory.items() if key[0] != patient}
        self._open = {key: alert for key, alert in self._open.items() if key[0] != patient}
        self._resolved = [alert for alert in self._resolved if alert.patient != patient]

    def bundles(self) -> tuple[Bundle, ...]:
        """Return what is open, one bundle a patient, the most urgent first."""
        return bundle(self._open.values())

    def resolved(self) -> tuple[Alert, ...]:
        """Return what ended, the oldest first."""
        return tuple(self._resolved)

    def highest(self, patient: str) -> Priority | None:
        """Return the priority of the patient's most urgent open alert."""
        return max((alert.priority for key, alert in self._open.items() if key[0] == patient), default=None)

    def _end(self, key: tuple[str, str], alert: Alert) -> Alert:
        del self._open[key]
        self._resolved.append(alert)
        del self._resolved[:-KEPT]
        return alert
