"""Plots as SVG text, to stand inside a page: no file, no script, nothing fetched."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.figure import Figure

COLOURS = {
    "private": "#0f766e",
    "federated": "#1d4ed8",
    "local": "#b45309",
    "pooled": "#6b7280",
    "budget": "#b91c1c",
}
PRIVATE_SHADES = ("#99d5cf", "#4fae9f", "#0f766e", "#0b4f4a")  # from the lowest ε to the highest


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a plot; `steps`: the value holds until the next point; `halves`: of each point's interval."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    dashed: bool = False
    steps: bool = False
    halves: Sequence[float] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """One bar in every group; NaN draws none."""

    label: str
    values: Sequence[float]
    colour: str


def draw_lines(lines: Sequence[Line], *, title: str, x: str, y: str, logarithmic: bool = False) -> str:
    """Return a line plot as an SVG element; `logarithmic`: along x."""
    with _style():
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            axes.plot(
                line.x,
                line.y,
                color=line.colour,
                label=line.label,
                linestyle="--" if line.dashed else "-",
                marker="" if line.dashed or line.steps else "o",
                drawstyle="steps-post" if line.steps else "default",
            )
            if line.halves:
                low = [value - half for value, half in zip(line.y, line.halves, strict=True)]
                high = [value + half for value, half in zip(line.y, line.halves, strict=True)]
                axes.fill_between(line.x, low, high, color=line.colour, alpha=0.15, linewidth=0)
        axes.set(title=title, xlabel=x, ylabel=y, xscale="log" if logarithmic else "linear")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return _as_svg(figure, title)


def draw_intervals(
    names: Sequence[str], values: Sequence[float], halves: Sequence[float], *, title: str, x: str
) -> str:
    """Return a mark with its interval for each name, one below the other, as an SVG element."""
    with _style():
        figure = Figure(figsize=(6.4, 1.2 + 0.26 * len(names)), layout="constrained")
        axes = figure.add_subplot()
        places = range(len(names))
        axes.errorbar(values, places, xerr=halves, fmt="o", color=COLOURS["private"], capsize=3)
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.set(title=title, xlabel=x)
        return _as_svg(figure, title)


def draw_bars(groups: Sequence[str], bars: Sequence[Bars], *, title: str, y: str) -> str:
    """Return grouped bars as an SVG element: one group for each of `groups`, one bar of it for each of `bars`."""
    with _style():
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        width = 0.8 / max(len(bars), 1)
        for index, one in enumerate(bars):
            places = [group + (index - (len(bars) - 1) / 2) * width for group in range(len(groups))]
            axes.bar(places, one.values, width=width * 0.92, label=one.label, color=one.colour)
        known = [value for one in bars for value in one.values if value == value]
        axes.set_ylim(bottom=max(0.0, min(known, default=0.0) - 0.1), top=min(1.0, max(known, default=1.0) + 0.02))
        axes.set_xticks(range(len(groups)), groups)
        axes.set(title=title, ylabel=y)
        axes.grid(visible=False, axis="x")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        return _as_svg(figure, title)


@contextmanager
def _style() -> Iterator[None]:
    with mpl.rc_context():
        mpl.rc("svg", fonttype="none", hashsalt="fedtwin")  # text stays text: it can be read aloud and searched
        mpl.rc("font", family="sans-serif", size=10)
        mpl.rc("axes", grid=True, axisbelow=True)
        mpl.rc("axes.spines", top=False, right=False)
        mpl.rc("grid", color="#e5e7eb")
        yield


def _as_svg(figure: Figure, title: str) -> str:
    """The bare element with a title for those who do not see it; no date, so that the same data give the same text."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    bare = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    opening, rest = bare.split(">", 1)
    return f'{opening} role="img"><title>{html.escape(title)}</title>{rest}'
