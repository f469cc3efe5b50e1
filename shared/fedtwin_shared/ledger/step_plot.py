"""A plot of amounts that only change at entries, as SVG text to stand inside a page: no script, nothing fetched.

Design note: the base install has no plotting library, and an auditor's page needs one kind of plot. Numbers are written
with a fixed number of digits, so the same amounts are the same bytes.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

WIDTH, HEIGHT = 860, 360
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 22, 66
COLOURS: Final = ("#0f766e", "#1d4ed8", "#b45309", "#7c3aed", "#be185d", "#4d7c0f", "#0369a1", "#6b7280")
LIMIT_COLOUR: Final = "#b91c1c"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLine:
    """One amount: (place, value) where it changes, in order; 0 before the first, and to the end after the last.

    beside: another reading of the same amount, drawn dotted in the same colour.
    """

    label: str
    points: tuple[tuple[int, float], ...]
    beside: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A place on the horizontal axis and the lines of text below it."""

    place: int
    words: tuple[str, ...]


def draw_steps(
    lines: Sequence[StepLine], *, limits: StepLine, ticks: Sequence[Tick], last: int, title: str, amount: str
) -> str:
    """Return the SVG of some amounts below a limit that may itself change. last: the last place on the axis.

    - every text is escaped
    - the same arguments give the same bytes
    """
    values = [value for line in (*lines, limits) for _, value in (*line.points, *line.beside)]
    top = _round_up(max([1e-9, *values]) * 1.05)
    axes = _Axes(last=max(last, 1), top=top)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">',
        f"<title>{html.escape(title)}</title>",
        *_draw_grid(axes, ticks, amount),
        _draw_line(axes, limits.points, LIMIT_COLOUR, dashes="7 5"),
    ]
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(_draw_line(axes, line.points, colour, dashes=""))
        parts.append(_draw_line(axes, line.beside, colour, dashes="2 3") if line.beside else "")
    return "".join([*parts, "</svg>", _draw_legend(lines, limits)])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axes:
    last: int
    top: float

    def x(self, place: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * place / self.last

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(value / self.top, 1.0)


def _draw_grid(axes: _Axes, ticks: Sequence[Tick], amount: str) -> Iterator[str]:
    for step in range(5):
        value = axes.top * step / 4
        y = axes.y(value)
        yield f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e5e7eb"/>'
        yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
    yield f'<text x="{LEFT}" y="{TOP - 6}">{html.escape(amount)}</text>'
    for tick in ticks:
        x = axes.x(tick.place)
        anchor = "start" if tick.place == 0 else "end" if tick.place >= axes.last else "middle"
        yield f'<path d="M{x:.1f} {HEIGHT - BOTTOM}v5" stroke="#6b7280"/>'
        for row, words in enumerate(tick.words):
            y = HEIGHT - BOTTOM + 19 + 15 * row
            yield f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}">{html.escape(words)}</text>'


def _draw_line(axes: _Axes, points: Sequence[tuple[int, float]], colour: str, *, dashes: str) -> str:
    # What begins at the first entry has no rise to show; everything else rises from nothing.
    begins = points[0][1] if points and points[0][0] == 0 else 0.0
    path = [f"M{axes.x(0):.1f} {axes.y(begins):.1f}"]
    for place, value in points:
        path.append(f"H{axes.x(place):.1f}V{axes.y(value):.1f}")
    path.append(f"H{axes.x(axes.last):.1f}")
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path d="{"".join(path)}" fill="none" stroke="{colour}" stroke-width="2"{dashed}/>'


def _draw_legend(lines: Sequence[StepLine], limits: StepLine) -> str:
    keys = [(LIMIT_COLOUR, limits.label), *((COLOURS[at % len(COLOURS)], one.label) for at, one in enumerate(lines))]
    items = (f'<li><i style="background:{colour}"></i>{html.escape(label)}</li>' for colour, label in keys)
    return f'<ul class="legend">{"".join(items)}</ul>'


def _round_up(value: float) -> float:
    """The next of 1, 2, 4 or 8 times a power of ten, so that quarters of it are short numbers."""
    power = 10.0 ** (len(f"{int(value)}") - 1) if value >= 1 else 0.1
    while power > value:
        power /= 10
    return next(factor * power for factor in (1, 2, 4, 8, 10, 20) if factor * power >= value)
