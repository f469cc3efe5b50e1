"""Who may say what: identity, patients, signals, rate, replay, gaps and clocks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtwin_client.ingest.device import (
    EARLY,
    NEW,
    WINDOW,
    Device,
    Gap,
    Progress,
    check_readings,
    estimate_clock,
    identity_of,
    missing,
    spend,
)
from fedtwin_client.ingest.readings import NO_FAULT, SOUND, Draft, Readings
from fedtwin_client.ingest.registry import Registry, add_device, read_registry, set_state, write_registry
from fedtwin_client.observation_batch import NO_SEQUENCE
from fedtwin_client.quarantine import REASONS, Reason
from fedtwin_shared.errors import ConfigurationError

NOW = 1_795_345_200_000
MONITOR = Device(
    id="monitor", identity=identity_of(b"key"), patients=frozenset({"p1"}), signals=frozenset({"heart_rate"})
)


def readings(
    sequence: list[int], *, patient: str = "p1", code: str = "heart_rate", time: int = NOW, unit: str = "/min"
) -> Readings:
    draft = Draft()
    for number in sequence:
        draft.rows.append((patient, (code, unit), time, 80.0, number, SOUND, NO_FAULT))
    return draft.readings()


def reasons(found: Readings, device: Device = MONITOR, progress: Progress = NEW) -> list[Reason]:
    verdicts, _, _ = check_readings(found, device, progress, now=NOW)
    return [REASONS[index] for index in verdicts.rejected()[1]]


def test_a_device_speaks_for_its_own_patients_and_signals_only() -> None:
    assert reasons(readings([NO_SEQUENCE])) == []
    assert reasons(readings([NO_SEQUENCE], patient="p2")) == [Reason.FOREIGN_PATIENT]
    assert reasons(readings([NO_SEQUENCE], code="pulse_oximetry", unit="%")) == [Reason.FOREIGN_SIGNAL]
    assert reasons(readings([NO_SEQUENCE], patient="p2"), replace(MONITOR, patients=None)) == []
    assert reasons(readings([1, 2]), replace(MONITOR, state="quarantined")) == [Reason.DEVICE_QUARANTINED] * 2


def test_times_are_bounded_after_the_clock_is_corrected() -> None:
    assert reasons(readings([1], time=NOW + EARLY)) == []
    assert reasons(readings([1], time=NOW + EARLY + 1)) == [Reason.FUTURE_TIME]
    assert reasons(readings([1], time=NOW + 3_600_000), replace(MONITOR, clock=-3_600_000)) == []
    assert reasons(readings([1], time=NOW - 61_000), replace(MONITOR, oldest=60)) == [Reason.OLD_TIME]


def test_a_gap_is_raised_and_what_fills_it_is_taken() -> None:
    _, progress, gaps = check_readings(readings([0, 1, 2]), MONITOR, NEW, now=NOW)
    assert gaps == ()
    _, progress, gaps = check_readings(readings([6, 7]), MONITOR, progress, now=NOW)
    assert gaps == (Gap(device="monitor", first=3, last=5),)
    assert missing(progress) == 3
    assert reasons(readings([4, 3]), progress=progress) == []
    _, progress, gaps = check_readings(readings([4, 3, 5]), MONITOR, progress, now=NOW)
    assert missing(progress) == 0
    assert reasons(readings([4]), progress=progress) == [Reason.DUPLICATE]


def test_a_number_from_before_the_window_is_replayed() -> None:
    _, progress, _ = check_readings(readings([10, 10 + WINDOW]), MONITOR, NEW, now=NOW)
    assert reasons(readings([10]), progress=progress) == [Reason.REPLAYED]
    assert reasons(readings([11]), progress=progress) == []


def test_a_device_that_was_switched_off_numbers_from_the_beginning() -> None:
    _, progress, _ = check_readings(readings([900]), MONITOR, NEW, now=NOW)
    assert reasons(readings([0, 1], time=NOW + 1), progress=progress) == []
    _, after, gaps = check_readings(readings([0, 1], time=NOW + 1), MONITOR, progress, now=NOW)
    assert after.highest == 1
    assert gaps == ()


@settings(max_examples=200, deadline=None)
@given(batches=st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=12), max_size=12))
def test_every_number_is_taken_exactly_once(batches: list[list[int]]) -> None:
    progress, taken = Progress(latest=NOW), list[int]()
    for numbers in batches:
        verdicts, progress, _ = check_readings(readings(numbers), MONITOR, progress, now=NOW)
        taken += np.array(numbers)[verdicts.accepted].tolist()
    assert sorted(taken) == sorted({number for numbers in batches for number in numbers})
    assert missing(progress) == (max(taken) + 1 - len(taken) if taken else 0)


@settings(max_examples=100, deadline=None)
@given(asks=st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 30)), max_size=40))
def test_no_more_passes_than_the_rate_and_the_burst(asks: list[tuple[int, int]]) -> None:
    device, progress, now, passed = replace(MONITOR, rate=10.0, burst=20), NEW, 0, 0
    for wait, number in asks:
        now += wait
        after = spend(progress, number, device, now=now)
        if after is not None:
            progress, passed = after, passed + number
    assert passed <= 20 + 10 * now / 1000 + 30


def test_a_clock_that_goes_back_fills_nothing() -> None:
    device = replace(MONITOR, rate=10.0, burst=10)
    empty = spend(NEW, 10, device, now=10_000)
    assert empty is not None
    assert spend(empty, 1, device, now=0) is None
    assert spend(empty, 1, device, now=10_100) is not None


def test_the_clock_is_estimated_from_the_least_late_reading() -> None:
    assert estimate_clock([(1000, 1500), (2000, 2400), (3000, 9000)]) == 400


def test_the_registry_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "node" / "devices.json"
    assert read_registry(path).devices == {}
    feed = Device(id="lab", identity=identity_of(b"other"), patients=None, signals=None, zone="Europe/Berlin")
    registry = add_device(add_device(read_registry(path), MONITOR), feed)
    write_registry(path, registry)
    assert read_registry(path) == registry
    assert path.stat().st_mode & 0o777 == 0o600
    assert registry.find(b"key") == MONITOR
    assert registry.find(b"another") is None
    assert registry.find(b"") is None


def test_a_revoked_device_is_nobody_for_good() -> None:
    registry = set_state(add_device(Registry(devices={}), MONITOR), "monitor", "revoked")
    assert registry.find(b"key") is None
    assert registry.get("monitor") is None
    with pytest.raises(ConfigurationError):
        set_state(registry, "monitor", "active")
    with pytest.raises(ConfigurationError):
        set_state(registry, "nobody", "revoked")
    assert add_device(registry, replace(MONITOR, id="successor")).find(b"key") is not None


@pytest.mark.parametrize(
    "device",
    [
        MONITOR,
        replace(MONITOR, id="other"),
        replace(MONITOR, id="a/b", identity=identity_of(b"x")),
        replace(MONITOR, id="+", identity=identity_of(b"x")),
        replace(MONITOR, id="x", identity="zz"),
        replace(MONITOR, id="x", identity=identity_of(b"x"), rate=float("nan")),
        replace(MONITOR, id="x", identity=identity_of(b"x"), signals=frozenset({"hr"})),
        replace(MONITOR, id="x", identity=identity_of(b"x"), zone="Mars/Base"),
    ],
)
def test_what_cannot_be_a_device_is_not_registered(device: Device) -> None:
    with pytest.raises(ConfigurationError):
        add_device(add_device(Registry(devices={}), MONITOR), device)


def test_a_broken_registry_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "devices.json"
    for text in ("{", "[]", '{"devices":[{"id":"x"}]}', "[" * 100_000):
        path.write_text(text)
        with pytest.raises(ConfigurationError):
            read_registry(path)
