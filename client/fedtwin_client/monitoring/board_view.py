"""The board as a table in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.table import Table
from rich.text import Text

BARS: Final = "▁▂▃▄▅▆▇█"
STYLES: Final = {"high": "bold red", "medium": "yellow", "low": "cyan", "": ""}
COLUMNS: Final = {
    "heart_rate": "pulse",
    "mean_pressure": "pressure",
    "pulse_oximetry": "SpO2",
    "respiratory_rate": "breaths",
    "temperature": "°C",
}


def draw_spark(values: Sequence[float]) -> str:
    """Return a row of bars from the lowest to the highest of `values`.

    >>> draw_spark([1, 2, 3])
    '▁▅█'
    """
    if not values:
        return ""
    low, high = min(values), max(values)
    if not high > low:
        return BARS[0] * len(values)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in values)


def render_board(board: Mapping[str, Any], history: Mapping[tuple[str, str], Sequence[float]]) -> Table:
    """Return the board that the interface gave, with sparklines of what was shown before.

    history: (patient, signal) -> values.
    """
    table = Table(title=f"patients: {len(board['lines'])}", expand=True)
    for heading in ("patient", "priority"):
        table.add_column(heading, overflow="fold")
    table.add_column("why", overflow="fold", min_width=24)
    for heading in COLUMNS.values():
        table.add_column(heading, overflow="fold")
    for line in board["lines"]:
        readings = {reading["signal"]: reading for reading in line["readings"]}
        cells = [_cell(line["patient"], signal, readings.get(signal), history) for signal in COLUMNS]
        words = "; ".join(alert["words"] for alert in line["alerts"])
        priority = Text(f"{line['priority']} {line['stage']}".strip(), style=STYLES.get(line["priority"], ""))
        table.add_row(Text(_plain(line["patient"])), priority, Text(words), *cells)
    if board["missed"]:
        table.caption = f"{board['missed']} observations are in the store and not yet in the twins"
    return table


def _cell(
    patient: str, signal: str, reading: Mapping[str, Any] | None, history: Mapping[tuple[str, str], Sequence[float]]
) -> Text:
    if reading is None:
        return Text("-", style="dim")
    age = f"{reading['age'] / 60_000:.0f} min"
    spark = draw_spark(history.get((patient, signal), ()))
    return Text(f"{reading['value']:.4g} {age} {spark}".rstrip(), style="dim" if reading["stale"] else "")


def _plain(words: str) -> str:
    """No character of an id moves the cursor."""
    return "".join(letter if letter.isprintable() else "�" for letter in words)
