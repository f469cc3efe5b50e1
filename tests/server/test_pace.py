from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedtwin_server.pace import Pace


def drive(complete_seconds: float, rounds: int, *, blocked_seconds: float = 1.0, every: float = 0.1) -> list[float]:
    """Seconds of each round when answers are complete at `complete_seconds` and half there a moment before."""
    pace, taken = Pace(), []
    for _ in range(rounds):
        now, looks, longest = pace.first_look_seconds, 0, 0.0
        while True:
            looks += 1
            if now >= complete_seconds:
                break
            if now >= complete_seconds * 0.5:  # shown and not complete: the look waits inside Flower
                now, longest = now + blocked_seconds, blocked_seconds
                break
            now += every
        taken.append(now)
        pace = pace.after(looks=looks, settled_seconds=now, longest_look_seconds=longest)
    return taken


def test_answers_that_are_there_at_once_are_never_waited_for() -> None:
    assert drive(0.0, 20) == [0.0] * 20


@given(st.floats(0.2, 20.0))
def test_most_rounds_take_little_longer_than_their_answers(complete_seconds: float) -> None:
    taken = sorted(drive(complete_seconds, 40)[10:])
    assert taken[len(taken) // 2] <= 1.3 * complete_seconds + 0.1


def test_a_round_that_becomes_faster_is_noticed() -> None:
    pace = Pace(first_look_seconds=10.0, too_early_seconds=9.0)
    for _ in range(120):
        early = pace.first_look_seconds < 1.0
        pace = pace.after(looks=2 if early else 1, settled_seconds=1.0, longest_look_seconds=0.0)
    assert pace.first_look_seconds < 1.6


@given(st.floats(0, 100), st.floats(0, 100), st.integers(1, 5), st.floats(0, 3))
def test_a_pace_alone_never_makes_rounds_longer(first: float, settled: float, looks: int, longest: float) -> None:
    taken = max(first, settled)
    early = first / 2
    pace = Pace(first_look_seconds=first, too_early_seconds=early)
    assert pace.after(looks=looks, settled_seconds=taken, longest_look_seconds=longest).first_look_seconds <= taken
