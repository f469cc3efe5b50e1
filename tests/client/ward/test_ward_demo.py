"""The demo as a person types it, small: kills, counts that add up, and a forgotten patient."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedtwin_client.ward.demo import Outcome
from fedtwin_client.ward.erasure import Erasure
from fedtwin_client.ward.series import make_stays, read_stays
from fedtwin_client.ward.tally import Tally
from fedtwin_shared.cli import main
from fedtwin_shared.errors import ConfigurationError
from tests.client.ingest.foreign import DATA, needs_data
from tests.client.ingest.test_mqtt import MOSQUITTO


@pytest.mark.slow
def test_a_small_ward_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    output = tmp_path / "outcome.json"
    arguments = ("--ward", "4", "--minutes", "12", "--seconds", "2", "--outage", "0.5", "--output", str(output))
    with pytest.raises(SystemExit) as ended:
        main(["client", "demo", *arguments])
    assert not ended.value.code
    outcome = json.loads(output.read_text())
    assert outcome["holds"]
    kinds = ["mqtt", "grpc", "hl7", "fhir"] if MOSQUITTO else ["grpc", "hl7", "fhir"]
    assert [tally["way"] for tally in outcome["tallies"]] == kinds
    assert sum(tally["sent"] for tally in outcome["tallies"]) == 4 * 12 * 6
    for tally in outcome["tallies"]:
        assert tally["stored"] + tally["aside"] == tally["acknowledged"] == tally["sent"] > 0
        assert tally["lost"] == tally["repeated"] == 0
    assert [kill for kill, _ in outcome["kills"]] == (["broker"] if MOSQUITTO else []) + ["gateway", "store"]
    totals = outcome["totals"]  # of the gateway that was started again
    parts = ("accepted", "set_aside", "duplicate", "refused")
    assert totals["received"] == sum(totals[part] for part in parts)
    erasure = outcome["erasure"]
    assert erasure["exported"] == 12 * 6
    assert erasure["sealed"] > 0
    assert (erasure["named"], erasure["ciphertexts"], erasure["keys"]) == (0, 0, 0)
    assert not any(erasure[name] for name in ("old_site_key", "backup_opens", "old_keys_open"))
    assert erasure["backup_others"] == 3


TALLY = Tally(way="hl7", beds=1, sent=5, acknowledged=5, stored=5, aside=0, lost=0, repeated=0)
ERASURE = Erasure(
    exported=1, sealed=1, files=9, named=0, ciphertexts=0, keys=0, old_site_key=False, backup_opens=False,
    backup_others=3, old_keys_open=False,
)  # fmt: skip
OUTCOME = Outcome(tallies=(TALLY,), kills=(), seconds=1.0, totals={}, erasure=ERASURE, store_whole=True)


@pytest.mark.parametrize(
    "worse",
    [
        replace(OUTCOME, store_whole=False),
        replace(OUTCOME, tallies=(replace(TALLY, lost=1),)),
        replace(OUTCOME, tallies=(replace(TALLY, acknowledged=4),)),
        replace(OUTCOME, erasure=replace(ERASURE, named=1)),
        replace(OUTCOME, erasure=replace(ERASURE, keys=1)),
        replace(OUTCOME, erasure=replace(ERASURE, exported=0)),
        replace(OUTCOME, erasure=replace(ERASURE, backup_opens=True)),
    ],
)
def test_the_outcome_can_fail(worse: Outcome) -> None:
    assert OUTCOME.holds
    assert not worse.holds


def test_made_up_stays_are_repeatable_and_plausible() -> None:
    one, again = (make_stays(2, minutes=5, seed=3) for _ in range(2))
    assert [stay.value.tolist() for stay in one] == [stay.value.tolist() for stay in again]
    assert len(one[0]) == 5 * 6
    assert one[0].value.tolist() != one[1].value.tolist()
    assert {one[0].kind(row) for row in range(6)} >= {("8867-4", "/min"), ("8310-5", "Cel")}


def test_a_hospitals_observations_are_read_and_no_others(tmp_path: Path) -> None:
    rows = ["patient,time,signal,value", "b,2026-01-01T00:01:00Z,heart_rate,81", "b,2026-01-01T00:00:00Z,heart_rate,80"]
    rows += ["b,2026-01-01T00:00:00Z,heart_rate,99", "a,2026-01-01T00:00:00Z,nonsense,1"]
    (tmp_path / "observations.csv").write_text("\n".join(rows) + "\n")
    (stay,) = read_stays(tmp_path, patients=9)
    assert stay.offset.tolist() == [0, 60_000]
    assert stay.value.tolist() == [80, 81]
    with pytest.raises(ConfigurationError, match="found neither"):
        read_stays(tmp_path / "nowhere", patients=1)


@needs_data
def test_physionets_set_is_read() -> None:
    stays = read_stays(DATA / "physionet2012", patients=5)
    assert len(stays) == 5
    assert all(len(stay) > 10 for stay in stays)
