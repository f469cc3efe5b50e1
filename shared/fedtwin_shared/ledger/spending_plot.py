"""The plot of what blocks of patients have spent, by the filter and by the odometer, against what was claimed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Final

from fedtwin_shared.ledger.account import PLACES
from fedtwin_shared.ledger.filter import read_odometer
from fedtwin_shared.ledger.renyi import Curve, convert_to_epsilon
from fedtwin_shared.ledger.spending_history import Point, SpendingHistory
from fedtwin_shared.ledger.statement import format_time
from fedtwin_shared.ledger.step_plot import StepLine, Tick, draw_steps

MOST_LINES: Final = 8  # those that spent most
MOST_POINTS: Final = 64  # of one line


def draw_spending(history: SpendingHistory) -> str:
    """Return the plot of every block's ε over the ledger, below what was claimed, as SVG with its legend and words."""
    state = history.state
    policy, at = state.in_force, PLACES[state.in_force.order]

    @cache
    def odometer(spent: Curve) -> float:
        return float(read_odometer(spent, order=policy.order, delta=policy.delta))

    def kept(spent: Curve) -> float:
        return float(convert_to_epsilon(spent[at], order=policy.order, delta=policy.delta))

    alike: dict[tuple[tuple[int, Curve], ...], list[str]] = {}
    for name, block in sorted(history.blocks.items()):
        if block.points:
            alike.setdefault(tuple((point.entry, point.spent) for point in _thin(block.points)), []).append(name)
    if not alike:
        return "<p>No block has spent anything.</p>"
    drawn = sorted(alike.items(), key=lambda item: (-item[0][-1][1][at], item[1]))[:MOST_LINES]
    lines = [
        StepLine(
            label=_join(names),
            points=tuple((entry, kept(spent)) for entry, spent in points),
            beside=tuple((entry, odometer(spent)) for entry, spent in points),
        )
        for points, names in drawn
    ]
    limits = tuple((one.entry, float(one.epsilon)) for one in history.claims)
    last = len(history.times) - 1
    ticks = [
        Tick(place=place, words=(f"entry {place}", *format_time(history.times[place]).split(" ", 1)))
        for place in sorted({round(last * step / 4) for step in range(5)})
    ]
    plot = draw_steps(
        lines,
        limits=StepLine(label="claimed for the lifetime", points=limits),
        ticks=ticks,
        last=last,
        title="ε of each block over the ledger",
        amount="ε",
    )
    words = (
        "One line for all blocks that spent alike. Full lines: ε by the filter, at its one fixed order, which is what "
        "may not pass the claim. Dotted: ε by the odometer, a bound that holds at every moment at once; that costs it "
        "some tightness, so late in a life it may stand above the claim. Times are by the hospital's own clock. Of "
        "very many charges only some are drawn."
    )
    if len(alike) > len(drawn):
        words += f" {len(alike) - len(drawn)} lines of blocks that spent less are not drawn."
    return f"{plot}<p><small>{words}</small></p>"


def _thin(points: tuple[Point, ...]) -> tuple[Point, ...]:
    step = -(-len(points) // MOST_POINTS)
    return points[::-step][::-1] if points else points


def _join(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} more"
