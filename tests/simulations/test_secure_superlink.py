"""Secure aggregation between real processes: Flower's SuperLink and SuperNodes, sites' executors, TLS on loopback."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedtwin_server.bundle import bundle_digest
from fedtwin_simulations.secure_superlink import (
    BUNDLE,
    make_vector,
    read_consortium,
    time_superlink_rounds,
    write_consortium,
)
from tests.soak import only_in_soak


def test_a_consortium_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    names = write_consortium(tmp_path, sites=4, length=7, instances=2)
    terms, length = read_consortium(tmp_path)
    assert (list(terms.names), length, terms.threshold, terms.dropouts) == (names, 7, 3, 1)
    assert not np.array_equal(make_vector(names[0], 7), make_vector(names[1], 7))


def test_the_bundle_holds_no_code() -> None:
    assert [path.name for path in BUNDLE.iterdir()] == ["pyproject.toml"]
    assert len(bundle_digest(BUNDLE)) == 64


@pytest.mark.slow
@only_in_soak("twelve processes for a minute")
def test_sums_are_exact_on_a_real_superlink(tmp_path: Path) -> None:
    assert len(time_superlink_rounds(tmp_path / "link", sites=4, length=2000, rounds=2)) == 2


@pytest.mark.slow
@only_in_soak("twelve processes for minutes")
def test_a_site_that_is_killed_in_a_step_leaves_the_exact_sum_of_the_others(tmp_path: Path) -> None:
    # Every sum is checked against its own survivors' vectors; the steps after the kill wait out their patience.
    folder = tmp_path / "link"
    times = time_superlink_rounds(folder, sites=4, length=2000, rounds=3, patience_seconds=20.0, kill="site-02")
    assert len(times) == 3
    assert max(times) > 20.0
