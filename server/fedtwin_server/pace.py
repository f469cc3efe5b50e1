"""When to look for answers: late enough that they are complete, early enough to lose nothing.

Design note: a SuperLink shows an answer a moment before it holds all of it, and a coordinator that looks in that moment
waits a whole second inside Flower. Looking often also costs: every look is a write to the SuperLink's database. So a
coordinator learns from each round when the next one will be complete, and looks then for the first time. It moves in
small factors, as congestion control does (Chiu, Jain, Computer Networks and ISDN Systems 17, 1989).
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCKED_SECONDS = 0.8  # a look that took longer waited inside Flower, whose first wait is 1 s
LATER = 1.25  # after a look that came too early
STEP_SECONDS = 0.05
NEARER = 0.5  # of the way from the last time that was too early; the first rounds find the time in a few steps
FORGOTTEN = 0.98  # of that last time, each round: sites become faster, too


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds after a message at which to look for its answer for the first time, and when a look was last too early.

    - rounds whose answers are there at once, as in one process, are never waited for
    """

    first_look_seconds: float = 0.0
    too_early_seconds: float = 0.0

    def after(self, *, looks: int, settled_seconds: float, longest_look_seconds: float) -> Pace:
        """Return the pace of the next round of this kind.

        looks: that this round needed; settled_seconds: when it was complete; longest_look_seconds: of one look.

        - never later than the round took, so a pace alone never makes rounds longer
        """
        first, early = self.first_look_seconds, self.too_early_seconds * FORGOTTEN
        if looks > 1 or longest_look_seconds >= BLOCKED_SECONDS:
            later = first * LATER + STEP_SECONDS if first > 0 else settled_seconds
            return Pace(first_look_seconds=min(later, settled_seconds), too_early_seconds=first)
        return Pace(first_look_seconds=early + (first - early) * NEARER, too_early_seconds=early)
