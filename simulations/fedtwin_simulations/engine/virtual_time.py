"""Time that passes only where somebody waits: a coordinator's patience and a site's slowness, without waiting."""

from __future__ import annotations


class VirtualClock:
    """Seconds since the start; `sleep` moves them."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        """Return the seconds so far."""
        return self._now

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self._now += max(0.0, seconds)
