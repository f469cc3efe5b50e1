"""A rule and a reason for the tests of alerts."""

from __future__ import annotations

from fedtwin_client.monitoring.alerts import Priority, Reason
from fedtwin_client.monitoring.rules import Rule

MINUTE = 60_000
HYPOXIA = Rule(
    name="hypoxia",
    measure="pulse_oximetry",
    side="below",
    on=90,
    off=93,
    of=4,
    needed=3,
    quiet=10 * MINUTE,
    priority=Priority.HIGH,
    words="oxygen saturation {value:.0f} %, below 90",
    signals=("pulse_oximetry",),
)
REASON = Reason(
    rule="hypoxia", words="oxygen saturation 84 %, below 90", signals=("pulse_oximetry",), value=84.0, time=0
)
