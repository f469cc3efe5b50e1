"""The benchmark of ingest measures what it says, at a size that takes a moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedtwin_client.ingest import fhir, hl7v2
from fedtwin_client.ingest.broker import find_broker
from fedtwin_client.ingest.readings import Draft
from fedtwin_simulations import broker_bench
from fedtwin_simulations.ingest_site import make_site
from fedtwin_simulations.parser_bench import time_parsers, write_observation, write_result_message
from tests.soak import only_in_soak


def test_every_parser_is_measured_on_messages_that_are_read_whole() -> None:
    rows = list(time_parsers(200))
    assert len(rows) == 3
    assert all(row.ours > 0 for row in rows)
    draft = Draft()
    assert hl7v2.read_message(write_result_message(7, 6), draft).rows == 6
    assert fhir.read_message(write_observation(7), draft).rows == 1
    assert set(draft.readings().fault.tolist()) == {-1}


@pytest.mark.slow
@only_in_soak("a long campaign")
@pytest.mark.skipif(find_broker() is None, reason="mosquitto is not installed")
def test_a_killed_subscriber_is_measured_and_loses_nothing(tmp_path: Path) -> None:
    rate, lost = broker_bench.time_killed_subscriber(make_site(tmp_path), messages=3000)
    assert rate > 0
    assert lost == 0
