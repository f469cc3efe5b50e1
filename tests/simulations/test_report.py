"""The page: self-contained, truthful about its ε, nothing of it made up."""

from __future__ import annotations

import math
import re
from typing import Any
from xml.etree import ElementTree as ET

from fedtwin_shared.privacy import CAVEAT
from fedtwin_shared.study import Study
from fedtwin_simulations.plots import Bars, Line, draw_bars, draw_lines
from fedtwin_simulations.report import Course, write_page
from fedtwin_simulations.results import Results, Row, list_versions
from tests.simulations.laboratory import study_document
from tests.world import make_world

SITES = ("city", "coast", "valley")


def make_course() -> Course:
    document = study_document() | {
        "privacy": {"epsilon": 3.0, "delta": 1e-4, "noise_multiplier": 3.0},
        "evaluation": {"rounds": [2], "noise_multiplier": 3.0},
    }
    world = make_world(sites=SITES, **{key: document[key] for key in document if key != "participants"})
    metrics = {"auroc": 0.71, "accuracy": 0.8}
    report: dict[str, Any] = {
        "run": "0" * 32,
        "rounds": {"planned": 4, "done": 4},
        "model": {"digest": "f" * 64},
        "privacy": {"spent_epsilon": 2.345, "budget_epsilon": 3.0, "delta": 1e-4, "unit": "one <patient>"},
        "evaluations": [{"round": number, "overall": {"everybody": metrics}} for number in (2, 4)],
        "answered_rounds": {site: {"train": [1, 2, 3, 4], "evaluate": [2, 4]} for site in SITES},
        "history": [
            {"task": "train", "round": 3, "refusals": {"coast": "site-not-ready"}},
            {"task": "train", "round": 4, "refusals": {}},
        ],
    }
    study = Study.model_validate(world.study.model_dump())
    return Course(study=study, report=report, seconds=12.0, nodes=4)


def make_results() -> Results:
    def row(method: str, epsilon: float | None, overall: float) -> Row:
        return Row(
            method=method,  # type: ignore[arg-type]  # one of the four
            algorithm="fedavg",
            model="logistic",
            noise="none" if epsilon is None else "local",
            epsilon=epsilon,
            delta=None if epsilon is None else 1e-4,
            metric="auroc",
            primary=True,
            overall=overall,
            site_mean=overall,
            per_site={"city": overall, "coast": None, "valley": math.nan},
            per_seed={"0": overall},
        )

    rows = (row("pooled", None, 0.81), row("federated", None, 0.805), row("private", 3.0, 0.777))
    return Results(study="small", versions=list_versions(), seeds=(0,), results=rows, seconds=1.0, policy=("a & b",))


def test_the_page_says_what_its_epsilon_means() -> None:
    page = write_page(make_results(), make_course(), title="A <study>", metric="auroc")
    assert CAVEAT[1:] in page
    assert "ε = 2.345" in page
    assert "budget of 3" in page
    assert "A &lt;study&gt;" in page
    assert "one &lt;patient&gt;" in page
    assert "a &amp; b" in page


def test_nothing_is_loaded_from_anywhere() -> None:
    page = write_page(make_results(), make_course(), title="page", metric="auroc")
    assert not re.search(r"<(script|link|img|iframe)|\b(src|href)=[\"'](?!#)|url\((?!#)|@import", page)


def test_figures_refusals_and_missing_values_stand_in_the_tables() -> None:
    page = write_page(make_results(), make_course(), title="page", metric="auroc")
    assert "<td>0.777</td>" in page
    assert "train 3: site-not-ready" in page
    assert "nan" not in page.lower().replace("resonance", "")
    assert page.count("<td>–</td>") >= 6


def test_plots_are_well_formed_and_described() -> None:
    line = Line(label="one & two", x=[0, 1], y=[0.5, 0.75], colour="#000000", steps=True)
    bars = Bars(label="alone", values=[0.7, math.nan], colour="#000000")
    drawn = {
        "lines <1>": draw_lines([line], title="lines <1>", x="round", y="auroc"),
        "bars": draw_bars(["north", "south"], [bars], title="bars", y="auroc"),
    }
    for title, svg in drawn.items():
        root = ET.fromstring(svg)
        assert root.get("role") == "img"
        assert next(iter(root)).text == title
        assert "one & two" in "".join(root.itertext()) or "alone" in "".join(root.itertext())


def test_the_same_data_give_the_same_page() -> None:
    course = make_course()
    first, again = (write_page(make_results(), course, title="page", metric="auroc") for _ in range(2))
    assert first == again
