"""The one door: counts add up, nothing is remembered before it is safe, nobody speaks for another."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtwin_client.ingest.device import Gap
from fedtwin_client.ingest.gateway import Gateway
from fedtwin_client.ingest.intake import NOT_REGISTERED, NOT_STORED, RATE
from fedtwin_client.ingest.readings import NO_FAULT, SOUND, Draft, Readings
from fedtwin_client.ingest.registry import read_registry, set_state, write_registry
from fedtwin_client.quarantine import Reason
from tests.client.ingest.bedside import NOW, Kept, make_device, make_gateway

MONITOR = make_device("monitor", b"a", frozenset({"p1"}))


def readings(*numbers: int, patient: str = "p1", value: float = 80.0) -> Readings:
    draft = Draft()
    for number in numbers:
        draft.rows.append((patient, ("heart_rate", "/min"), NOW - 1000, value, number, SOUND, NO_FAULT))
    return draft.readings()


def check_totals(gateway: Gateway) -> None:
    totals = gateway.totals
    assert totals.accepted + totals.set_aside + totals.duplicate + totals.refused == totals.received


def test_counts_add_up(tmp_path: Path) -> None:
    kept = Kept()
    gateway = make_gateway(tmp_path, kept, MONITOR)
    assert gateway.take(MONITOR, readings(0, 1, 2)).accepted == 3
    assert gateway.take(MONITOR, readings(2, 5)).duplicate == 1
    assert gateway.take(MONITOR, readings(6, patient="p2")).set_aside == 1
    assert gateway.take(None, readings(7)).refused == NOT_REGISTERED
    assert gateway.reasons == {Reason.DUPLICATE: 1, Reason.FOREIGN_PATIENT: 1}
    assert kept.gaps == [Gap(device="monitor", first=3, last=4)]
    assert (gateway.totals.received, gateway.totals.accepted, len(kept.values())) == (7, 4, 4)
    check_totals(gateway)


def test_what_could_not_be_stored_is_no_duplicate_when_it_comes_again(tmp_path: Path) -> None:
    kept = Kept(broken=True)
    gateway = make_gateway(tmp_path, kept, MONITOR)
    assert gateway.take(MONITOR, readings(0, 1), digest=b"m").refused == NOT_STORED
    kept.broken = False
    assert gateway.take(MONITOR, readings(0, 1), digest=b"m").accepted == 2
    assert gateway.take(MONITOR, readings(-1, -1), digest=b"m").duplicate == 2
    check_totals(gateway)


def test_more_than_the_rate_is_refused_whole(tmp_path: Path) -> None:
    kept, slow = Kept(), replace(MONITOR, rate=1.0, burst=3)
    gateway = make_gateway(tmp_path, kept, slow)
    assert gateway.take(slow, readings(0, 1, 2)).accepted == 3
    assert gateway.take(slow, readings(3)).refused == RATE
    assert len(kept.values()) == 3
    check_totals(gateway)


def test_a_revocation_holds_at_once_and_a_broken_registry_lets_nobody_in(tmp_path: Path) -> None:
    gateway = make_gateway(tmp_path, Kept(), MONITOR)
    path = tmp_path / "devices.json"
    assert gateway.registry().find(b"a") == MONITOR
    write_registry(path, set_state(read_registry(path), "monitor", "revoked"))
    assert gateway.registry().find(b"a") is None
    write_registry(path, set_state(read_registry(path), "monitor", "revoked"))
    path.write_text("{")
    os.utime(path, ns=(1, 1))
    assert gateway.registry().get("monitor") is None


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    messages=st.lists(
        st.tuples(
            st.lists(st.integers(-1, 30), max_size=6), st.sampled_from(["p1", "p2", ""]), st.floats(), st.booleans()
        )
    )
)
def test_counts_add_up_whatever_comes(tmp_path: Path, messages: list[tuple[list[int], str, float, bool]]) -> None:
    kept = Kept()
    gateway = make_gateway(tmp_path, kept, MONITOR)
    for numbers, patient, value, broken in messages:
        kept.broken = broken
        gateway.take(MONITOR, readings(*numbers, patient=patient, value=value))
        check_totals(gateway)
    assert len(kept.values()) == gateway.totals.accepted
    assert sum(map(len, kept.aside)) == gateway.totals.set_aside
