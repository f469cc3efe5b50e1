"""When a measure becomes an alert: a level, how often it must be beyond it, and how it becomes quiet again.

Design note: k of the last n readings must be beyond `on` (one artefact is no alarm), and an alert ends only after the
measure was back beyond `off` for `quiet` milliseconds without a break (a value that hovers is one alert, not twenty).
Measures are signals, scores and forecasts alike. Levels are those of the cited guideline; k, n and `quiet` were
chosen on simulated patients (`fedtwin simulate bench monitor`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from fedtwin_client.monitoring.alerts import Harm, Onset, Priority, prioritise

MINUTE: Final = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule on one measure. side: beyond is below, or above, `on`. words: `{value}` is put in.

    within: readings older than this, ms, do not count among the n.
    """

    name: str
    measure: str
    side: Literal["below", "above"]
    on: float
    off: float
    of: int
    needed: int
    quiet: int
    priority: Priority
    words: str
    signals: tuple[str, ...]
    within: int = 60 * MINUTE

    def __post_init__(self) -> None:
        if not 1 <= self.needed <= self.of <= 32:
            raise ValueError(f"{self.name}: expected 1 <= needed <= of <= 32, found {self.needed} of {self.of}")
        if (self.off < self.on) if self.side == "below" else (self.off > self.on):
            raise ValueError(f"{self.name}: expected `off` on the good side of `on`")

    def is_beyond(self, value: float) -> bool:
        """Whether a value counts towards an alert."""
        return value < self.on if self.side == "below" else value > self.on

    def is_back(self, value: float) -> bool:
        """Whether a value counts towards its end."""
        return value >= self.off if self.side == "below" else value <= self.off


@dataclass(frozen=True, slots=True, kw_only=True)
class Debounce:
    """What one rule remembers of one patient. hits: times of readings beyond the level, and of the last n readings."""

    readings: tuple[tuple[int, bool], ...] = ()
    active: bool = False
    back_since: int | None = None


IDLE: Final = Debounce()


def take_reading(rule: Rule, before: Debounce, value: float, time: int) -> Debounce:
    """Return what the rule remembers after one more reading; a reading older than the newest changes nothing.

    - one reading beyond the level raises nothing where `needed` is more than one
    - a NaN is no reading
    """
    if value != value or (before.readings and time < before.readings[-1][0]):
        return before
    kept = tuple(entry for entry in before.readings if time - entry[0] <= rule.within)
    readings = (*kept, (time, rule.is_beyond(value)))[-rule.of :]
    if before.active:
        if not rule.is_back(value):
            return Debounce(readings=readings, active=True)
        since = time if before.back_since is None else before.back_since
        if time - since >= rule.quiet:
            return Debounce(readings=(), active=False)
        return Debounce(readings=readings, active=True, back_since=since)
    return Debounce(readings=readings, active=sum(beyond for _, beyond in readings) >= rule.needed)


def _rule(
    name: str,
    measure: str,
    side: Literal["below", "above"],
    on: float,
    off: float,
    priority: Priority,
    words: str,
    *,
    needed: int = 4,
    of: int = 5,
    quiet: int = 240,
    signals: tuple[str, ...] = (),
) -> Rule:
    """Shorten the table below; quiet in minutes."""
    return Rule(
        name=name,
        measure=measure,
        side=side,
        on=on,
        off=off,
        of=of,
        needed=needed,
        quiet=quiet * MINUTE,
        priority=priority,
        words=words,
        signals=signals or (measure,),
    )


_DEATH_PROMPT = prioritise(Harm.DEATH, Onset.PROMPT)
_DEATH_DELAYED = prioritise(Harm.DEATH, Onset.DELAYED)
_REVERSIBLE_PROMPT = prioritise(Harm.REVERSIBLE, Onset.PROMPT)
_REVERSIBLE_DELAYED = prioritise(Harm.REVERSIBLE, Onset.DELAYED)
_NEWS = ("respiratory_rate", "pulse_oximetry", "systolic_pressure", "heart_rate", "temperature")

RULES: Final = (
    # Levels of a single vital sign: the red ranges of NEWS2, and a mean pressure of 65 (Evans 2021, CCM 49:e1063).
    _rule("hypoxia", "pulse_oximetry", "below", 90, 93, _DEATH_PROMPT, "oxygen saturation {value:.0f} %, below 90"),
    _rule("hypotension", "mean_pressure", "below", 65, 70, _DEATH_PROMPT, "mean pressure {value:.0f} mmHg, below 65"),
    _rule("bradycardia", "heart_rate", "below", 41, 48, _DEATH_PROMPT, "heart rate {value:.0f} /min, 40 or below"),
    _rule("tachycardia", "heart_rate", "above", 130, 115, _DEATH_PROMPT, "heart rate {value:.0f} /min, above 130"),
    _rule(
        "slow_breathing", "respiratory_rate", "below", 9, 11, _DEATH_PROMPT, "breathing {value:.0f} /min, 8 or below"
    ),
    _rule(
        "fast_breathing", "respiratory_rate", "above", 29, 24, _DEATH_DELAYED, "breathing {value:.0f} /min, above 29"
    ),
    _rule(
        "hypoglycaemia",
        "glucose_now",
        "below",
        70,
        80,
        _DEATH_PROMPT,
        "glucose {value:.0f} mg/dL, below 70",
        needed=1,
        of=1,
        signals=("interstitial_glucose", "glucose"),
    ),
    # Scores, at the levels of their publications
    _rule("news2_medium", "news2", "above", 4.5, 3.5, _DEATH_DELAYED, "NEWS2 {value:.0f}, 5 or more", signals=_NEWS),
    _rule("news2_high", "news2", "above", 6.5, 5.5, _DEATH_PROMPT, "NEWS2 {value:.0f}, 7 or more", signals=_NEWS),
    _rule(
        "qsofa",
        "qsofa",
        "above",
        1.5,
        0.5,
        _DEATH_DELAYED,
        "qSOFA {value:.0f}, 2 or more",
        signals=("respiratory_rate", "systolic_pressure", "glasgow"),
    ),
    _rule(
        "shock_index",
        "shock_index",
        "above",
        0.9,
        0.8,
        _DEATH_DELAYED,
        "shock index {value:.1f}, above 0.9",
        signals=("heart_rate", "systolic_pressure"),
    ),
    # What the twin expects: the chance, in %, that a sensor would read beyond the level
    _rule(
        "hypoglycaemia_30",
        "glucose_below_70_in_30",
        "above",
        50,
        30,
        _REVERSIBLE_PROMPT,
        "glucose below 70 mg/dL within 30 minutes: {value:.0f} %",
        needed=2,
        of=3,
        signals=("interstitial_glucose",),
    ),
    _rule(
        "hypoglycaemia_60",
        "glucose_below_70_in_60",
        "above",
        60,
        40,
        _REVERSIBLE_DELAYED,
        "glucose below 70 mg/dL within 60 minutes: {value:.0f} %",
        needed=2,
        of=3,
        signals=("interstitial_glucose",),
    ),
    _rule(
        "hypoxia_30",
        "saturation_below_90_in_30",
        "above",
        50,
        30,
        _DEATH_DELAYED,
        "oxygen saturation below 90 % in 30 minutes: {value:.0f} %",
        signals=("pulse_oximetry",),
    ),
    _rule(
        "hypotension_30",
        "pressure_below_65_in_30",
        "above",
        50,
        30,
        _DEATH_DELAYED,
        "mean pressure below 65 mmHg in 30 minutes: {value:.0f} %",
        signals=("mean_pressure",),
    ),
    # What the twin did not expect, and the released model's risk
    _rule(
        "unexpected",
        "surprise",
        "above",
        3.5,
        2.0,
        _REVERSIBLE_DELAYED,
        "readings {value:.1f} standard deviations from what the twin expected",
        needed=3,
        of=4,
        signals=_NEWS,
    ),
    _rule(
        "risk",
        "risk",
        "above",
        30,
        20,
        _DEATH_DELAYED,
        "risk of deterioration {value:.0f} %",
        needed=1,
        of=1,
        signals=_NEWS,
    ),
)
