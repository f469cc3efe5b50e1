"""Where the samples that others made lie, and the counting rule that every parser keeps."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from fedtwin_client.ingest.readings import Judged, Readings, believe
from fedtwin_client.quarantine import Verdicts
from tests.soak import SOAK

DATA = Path(os.environ.get("FEDTWIN_DATA", ""))
INPUTS = 20_000 if SOAK else 300  # examples of hypothesis, a parser
MUTANTS = 1_000_000 if SOAK else 3_000  # inputs of the mutation campaign, a format

needs_data = pytest.mark.skipif("FEDTWIN_DATA" not in os.environ, reason="FEDTWIN_DATA does not name the public sets")


def judge(readings: Readings) -> Judged:
    """Return what becomes of readings that no registry speaks against, and check that none is lost on the way."""
    judged = believe(readings, Verdicts(len(readings)), device="device")
    assert len(judged.batch) + len(judged.set_aside) == len(readings)
    assert sum(judged.set_aside.counts().values()) == len(judged.set_aside)
    assert np.isfinite(judged.batch.value).all()
    return judged
