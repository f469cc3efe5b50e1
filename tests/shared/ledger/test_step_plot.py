"""The auditor's plot: amounts where they are, words escaped, the same bytes for the same amounts."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from fedtwin_shared.ledger.step_plot import StepLine, Tick, draw_steps

LIMIT = StepLine(label="limit", points=((0, 8.0),))


def draw(*lines: StepLine, limits: StepLine = LIMIT, last: int = 10) -> str:
    ticks = (Tick(place=0, words=("<start>",)), Tick(place=last, words=("end",)))
    return draw_steps(lines, limits=limits, ticks=ticks, last=last, title='a "title"', amount="ε")


def paths(page: str) -> list[str]:
    return re.findall(r'<path d="(M[^"]*)" fill="none"', page)


def test_a_line_rises_where_the_amount_does_and_goes_on_to_the_end() -> None:
    limit, line = paths(draw(StepLine(label="one", points=((5, 4.0),))))
    assert limit == "M52.0 76.4H52.0V76.4H844.0"  # 8 of 10, at the first entry already
    assert line == "M52.0 294.0H448.0V185.2H844.0"  # half-way along, 4 of 10 high


def test_a_second_reading_is_dotted_in_the_same_colour() -> None:
    page = draw(StepLine(label="one", points=((5, 4.0),), beside=((5, 2.0),)))
    drawn = re.findall(r'stroke="(#\w+)" stroke-width="2"([^/]*)/>', page)
    assert [dashes.strip() for _, dashes in drawn] == ['stroke-dasharray="7 5"', "", 'stroke-dasharray="2 3"']
    assert drawn[1][0] == drawn[2][0] != drawn[0][0]


def test_words_are_escaped_and_the_picture_is_well_formed() -> None:
    page = draw(StepLine(label="<b>&", points=((1, 1.0),)))
    svg, legend = page[: page.index("</svg>") + 6], page[page.index("<ul") :]
    assert ET.fromstring(svg).tag == "svg"
    assert "&lt;b&gt;&amp;" in legend
    assert "&lt;start&gt;" in svg
    assert "<b>" not in page


@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 1e6)), max_size=20), st.floats(1e-3, 1e6))
def test_whatever_the_amounts_are_nothing_leaves_the_frame(points: list[tuple[int, float]], limit: float) -> None:
    line = StepLine(label="one", points=tuple(sorted(points)))
    page = draw(line, limits=StepLine(label="limit", points=((0, limit),)), last=1000)
    assert page == draw(line, limits=StepLine(label="limit", points=((0, limit),)), last=1000)
    for path in paths(page):
        assert all(22 <= float(y) <= 294 for y in re.findall(r"V([\d.]+)", path))
        assert all(52 <= float(x) <= 844 for x in re.findall(r"H([\d.]+)", path))
