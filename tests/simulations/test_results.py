"""The JSON that programs read: the stated keys, nothing that is not JSON."""

from __future__ import annotations

import json
import math

from rich.console import Console

from fedtwin_simulations.results import Bench, BenchRow, Reference, Results, Row, list_versions, write_json
from fedtwin_simulations.tables import bench_table, show_results


def row(**changes: object) -> Row:
    values: dict[str, object] = {
        "method": "private",
        "algorithm": "fedavg",
        "model": "logistic",
        "noise": "local",
        "epsilon": 1.0,
        "delta": 1e-3,
        "metric": "auroc",
        "primary": True,
        "overall": 0.8,
        "site_mean": 0.75,
        "per_site": {"north": 0.7, "south": math.nan},
        "per_seed": {"0": 0.75, "1": 0.85},
    }
    return Row(**{**values, **changes})  # type: ignore[arg-type]  # a test's own shorthand


def results() -> Results:
    return Results(
        study="heart",
        versions=list_versions(),
        seeds=(0, 1),
        results=(row(), row(method="pooled", noise="none", epsilon=None, delta=None, overall=None)),
        seconds=1.5,
        references=(Reference(name="published", metric="auroc", value=0.7, source="a paper", interval=(0.6, 0.8)),),
        policy=("epsilon is of one fold",),
    )


def refuse_constant(text: str) -> None:
    raise AssertionError(f"{text} is not JSON")


def test_results_have_the_stated_keys() -> None:
    document = json.loads(write_json(results()), parse_constant=refuse_constant)
    assert {"study", "versions", "seeds", "results", "seconds"} <= set(document)
    assert set(document["results"][0]) == {
        *("method", "algorithm", "model", "noise", "epsilon", "delta", "metric", "primary"),
        *("overall", "site_mean", "per_site", "per_seed"),
    }
    assert document["seeds"] == [0, 1]


def test_no_value_is_null_and_never_nan() -> None:
    document = json.loads(write_json(results()), parse_constant=refuse_constant)
    assert document["results"][0]["per_site"]["south"] is None
    assert document["results"][1]["epsilon"] is None


def test_a_bench_has_the_stated_keys() -> None:
    rows = (
        BenchRow(
            case="round", ours=0.5, baseline=6.2, baseline_name="stock", unit="s", goal="at most 1.0 s", holds=True
        ),
        BenchRow(case="alone", ours=0.5, baseline=None, baseline_name="", unit="ms", goal="", holds=False),
    )
    document = json.loads(write_json(Bench(bench="round", rows=rows)), parse_constant=refuse_constant)
    assert set(document) == {"bench", "machine", "versions", "rows"}
    assert set(document["rows"][0]) == {
        *("case", "ours", "baseline", "baseline_name", "ratio", "unit", "goal", "holds"),
    }
    assert document["rows"][0]["ratio"] == 0.5 / 6.2
    assert document["rows"][1]["ratio"] is None


def test_tables_show_every_row_and_say_none_for_no_privacy() -> None:
    console = Console(width=200, record=True, file=None)
    with console.capture() as captured:
        show_results(console, results())
        console.print(bench_table(Bench(bench="round", rows=())))
    text = captured.get()
    assert "0.800" in text
    assert "none" in text
    assert "0.600 to 0.800" in text
    assert "epsilon is of one fold" in text
    assert "0.071 (2)" in text  # the standard deviation over two seeds
