"""Every kind of bad input has a stated outcome in the twin, and how observations arrive leaves no trace."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.observation_batch import ObservationBatch, Quality, make_batch
from fedtwin_client.twins.entries import STUCK_COUNT, Outcome
from fedtwin_client.twins.patient_twin import Badge, Intervention, PatientTwin
from fedtwin_client.twins.twins import Dose, TwinError, Twins

MINUTE = 60_000
START = 1_700_000_000_000
LATEST = START + 10**9

Row = tuple[str, float, str, float]  # patient, minute, signal, value


def batch(*rows: Row, device: str = "monitor", quality: Quality = Quality.VALID) -> ObservationBatch:
    patients = sorted({row[0] for row in rows})
    return make_batch(
        patients=patients,
        devices=(device,),
        patient=[patients.index(row[0]) for row in rows],
        signal=[SIGNAL_KEYS.index(row[2]) for row in rows],
        time=[START + round(row[1] * MINUTE) for row in rows],
        value=[row[3] for row in rows],
        device=[0] * len(rows),
        sequence=[-1] * len(rows),
        quality=[quality] * len(rows),
    )


def steady(patient: str, minutes: range, seed: int = 0) -> list[Row]:
    generator = np.random.default_rng(seed)
    usual = {"heart_rate": 80, "mean_pressure": 85, "pulse_oximetry": 96, "respiratory_rate": 16, "glucose": 120}
    return [
        (patient, minute, signal, float(value + generator.normal(0, 1)))
        for minute in minutes
        for signal, value in usual.items()
    ]


def bits(twin: PatientTwin) -> bytes:
    parts = [bank.state.tobytes() + bank.clock.tobytes() + bank.strikes.tobytes() for bank in twin.banks.values()]
    return b"".join(parts) + repr(sorted(twin.used.items())).encode()


def take(twins: Twins, rows: ObservationBatch, now: int = LATEST) -> list[Outcome]:
    return [Outcome(fate) for fate in twins.receive(rows, now=now).outcome]


def select(rows: ObservationBatch, index: np.ndarray[tuple[int], np.dtype[np.int64]]) -> ObservationBatch:
    columns = ("patient", "signal", "time", "value", "device", "sequence", "quality")
    return replace(rows, **{name: getattr(rows, name)[index] for name in columns})


def test_any_cut_into_batches_gives_the_same_bits() -> None:
    rows = batch(*steady("a", range(0, 600, 10)), *steady("b", range(3, 600, 7), seed=1))
    rows = select(rows, np.argsort(rows.time, kind="stable"))
    together, apart = Twins(), Twins()
    together.receive(rows, now=LATEST)
    for part in np.array_split(np.arange(len(rows)), 23):
        apart.receive(select(rows, part), now=LATEST)
    assert bits(together.twin("a")) == bits(apart.twin("a"))
    assert bits(together.twin("b")) == bits(apart.twin("b"))


def test_within_the_window_any_order_of_arrival_and_any_repetition_gives_the_same_bits() -> None:
    rows = batch(*steady("a", range(0, 400, 5)))
    ordered, shuffled = Twins(), Twins()
    ordered.receive(rows, now=LATEST)
    generator = np.random.default_rng(2)
    jumbled = np.argsort(rows.time + generator.integers(0, 14 * MINUTE, len(rows)), kind="stable")
    seen: list[Outcome] = []
    for part in np.array_split(jumbled, 40):
        fates = take(shuffled, select(rows, np.append(part, part[-2:])))
        seen += fates[:-2]
        assert set(fates[-2:]) == {Outcome.DUPLICATE}
    assert Outcome.LATE not in seen
    assert bits(ordered.twin("a")) == bits(shuffled.twin("a"))


def test_what_is_later_than_the_window_changes_nothing() -> None:
    twins = Twins()
    twins.receive(batch(*steady("a", range(0, 100, 5))), now=LATEST)
    before = bits(twins.twin("a"))
    assert take(twins, batch(("a", 70, "heart_rate", 81))) == [Outcome.LATE]
    assert bits(twins.twin("a")) == before
    assert twins.twin("a").counts["late"] == 1


def test_a_clock_that_jumped_ahead_changes_nothing() -> None:
    twins = Twins()
    twins.receive(batch(*steady("a", range(0, 100, 5))), now=LATEST)
    before = bits(twins.twin("a"))
    assert take(twins, batch(("a", 600, "heart_rate", 81)), now=START + 100 * MINUTE) == [Outcome.FUTURE]
    assert bits(twins.twin("a")) == before
    # and the next right one is neither late nor lost
    assert take(twins, batch(("a", 101, "heart_rate", 81)), now=START + 101 * MINUTE) == [Outcome.USED]


def test_an_impossible_value_is_an_artefact() -> None:
    twins = Twins()
    twins.receive(batch(*steady("a", range(0, 100, 5))), now=LATEST)
    assert take(twins, batch(("a", 101, "heart_rate", 290), ("a", 101, "pulse_oximetry", 40))) == [
        Outcome.ARTEFACT,
        Outcome.ARTEFACT,
    ]
    assert take(twins, batch(("a", 102, "heart_rate", 85), quality=Quality.INVALID)) == [Outcome.INVALID]
    assert take(twins, batch(("a", 102, "urine_output", 85))) == [Outcome.NOT_READ]


def test_a_device_that_says_two_things_at_once_is_not_used_for_either() -> None:
    twins, without = Twins(), Twins()
    for each in (twins, without):
        each.receive(batch(*steady("a", range(0, 100, 5))), now=LATEST)
    assert take(twins, batch(("a", 101, "heart_rate", 82))) == [Outcome.USED]
    assert take(twins, batch(("a", 101, "heart_rate", 95))) == [Outcome.CONFLICT]
    later = batch(("a", 102, "respiratory_rate", 16))
    assert take(twins, later) == take(without, later) == [Outcome.USED]
    estimates = [
        each.twin("a").forecast("heart_rate", now=START + 102 * MINUTE, minutes=[0]) for each in (twins, without)
    ]
    assert estimates[0][0].middle == pytest.approx(estimates[1][0].middle, rel=1e-5)


def test_of_two_devices_that_contradict_each_other_the_unlikely_one_is_set_aside() -> None:
    twins = Twins()
    twins.receive(batch(*steady("a", range(0, 100, 5))), now=LATEST)
    assert take(twins, batch(("a", 101, "heart_rate", 81), device="first")) == [Outcome.USED]
    assert take(twins, batch(("a", 101, "heart_rate", 180), device="second")) == [Outcome.ARTEFACT]


def test_a_stuck_sensor_is_noticed_and_the_twin_ages() -> None:
    twins = Twins()
    rows = [("a", float(minute), "heart_rate", 77.0) for minute in range(0, 120, 2)]
    fates = take(twins, batch(*rows))
    assert fates[: STUCK_COUNT - 1] == [Outcome.USED] * (STUCK_COUNT - 1)
    assert set(fates[STUCK_COUNT - 1 :]) == {Outcome.STUCK}
    (estimate,) = twins.twin("a").forecast("heart_rate", now=START + 24 * 60 * MINUTE, minutes=[0])
    assert estimate.age == (24 * 60 - 2 * (STUCK_COUNT - 2)) * MINUTE
    assert estimate.stale


def test_a_patient_who_is_forgotten_or_merged_leaves_nothing() -> None:
    twins, fresh = Twins(), Twins()
    twins.receive(batch(*steady("wrong", range(0, 100, 5))), now=LATEST)
    assert twins.forget("wrong")
    assert not twins.forget("wrong")
    rows = batch(*steady("right", range(50, 200, 5), seed=3))
    for each in (twins, fresh):
        each.receive(rows, now=LATEST)
    assert twins.patients == ("right",)
    assert bits(twins.twin("right")) == bits(fresh.twin("right"))
    with pytest.raises(KeyError):
        twins.twin("wrong")


def test_a_saved_state_goes_on_with_the_same_bits_and_another_version_is_refused() -> None:
    twins = Twins()
    twins.receive(batch(*steady("a", range(0, 1000, 5))), now=LATEST)
    loaded = Twins.load(twins.save())
    later = batch(*steady("a", range(995, 1100, 5), seed=4))
    for each in (twins, loaded):
        each.receive(later, now=LATEST)
    assert bits(twins.twin("a")) == bits(loaded.twin("a"))
    with pytest.raises(TwinError, match="saved state"):
        Twins.load(twins.save()[:-40])
    with pytest.raises(TwinError, match="version"):
        Twins.load(_of_another_version(twins.save()))


def _of_another_version(saved: bytes) -> bytes:
    import io

    with np.load(io.BytesIO(saved)) as arrays:
        parts = dict(arrays)
    parts["header"] = np.frombuffer(parts["header"].tobytes().replace(b'"version": "', b'"version": "x'), np.uint8)
    out = io.BytesIO()
    np.savez(out, **parts)
    return out.getvalue()


def test_no_number_without_its_age_and_interval() -> None:
    twins = Twins()
    twins.receive(batch(("a", 0, "temperature", 37.0)), now=LATEST)
    twin = twins.twin("a")
    now = START + 60 * MINUTE
    known = twin.forecast("temperature", now=now, minutes=[0, 60, 600])
    assert [estimate.age for estimate in known] == [60 * MINUTE] * 3
    widths = [estimate.high - estimate.low for estimate in known]
    assert 0 < widths[0] < widths[1] < widths[2]
    (unknown,) = twin.forecast("pulse_oximetry", now=now, minutes=[0])
    assert unknown.age is None
    assert unknown.stale
    assert unknown.low < unknown.middle < unknown.high < 100
    assert "37" not in repr(twin) + repr(known)


def test_what_ifs_change_nothing_and_carry_a_badge() -> None:
    twins = Twins()
    rows = [("a", float(minute), "interstitial_glucose", 150.0 + minute % 7) for minute in range(0, 300, 5)]
    twins.receive(batch(*rows), now=LATEST)
    twins.give("a", [Dose(kind="insulin", amount=2.0, time=START + 290 * MINUTE)])
    twin, now = twins.twin("a"), START + 300 * MINUTE
    before = bits(twin)

    def simulate(kind: str, amount: float) -> tuple[float, Badge]:
        one = Intervention(kind=kind, amount=amount, time=now + 5 * MINUTE)  # type: ignore[arg-type]  # by name
        found = twin.simulate([one], now=now, minutes=[0, 60, 120])
        assert found.done[0].middle == found.undone[0].middle
        return found.done[2].middle - found.undone[2].middle, found.badge

    fall, badge = simulate("insulin", 3.0)
    rise, _ = simulate("carbohydrate", 20.0)
    assert fall < -5 < 5 < rise
    assert badge is Badge.UNVALIDATED
    assert simulate("insulin", 300.0)[1] is Badge.OUTSIDE
    assert bits(twin) == before
    assert (
        replace(twin, validated=frozenset({"insulin"}))
        .simulate([Intervention(kind="insulin", amount=1.0, time=now)], now=now, minutes=[60])
        .badge
        is Badge.VALIDATED
    )
    with pytest.raises(ValueError, match="from now on"):
        twin.simulate([Intervention(kind="insulin", amount=1.0, time=now - 1)], now=now, minutes=[60])


def test_oxygen_given_raises_saturation() -> None:
    twins = Twins()
    rows = [("a", float(minute), "pulse_oximetry", 90.0 + minute % 3) for minute in range(0, 300, 10)]
    twins.receive(batch(*rows), now=LATEST)
    now = START + 300 * MINUTE
    found = twins.twin("a").simulate([Intervention(kind="oxygen", amount=40.0, time=now)], now=now, minutes=[60])
    assert found.done[0].low > found.undone[0].middle
