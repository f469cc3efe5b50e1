"""A hospital's models: only what verifies is taken, and promotion and rollback are one step each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_client.monitoring.drift import (
    MOVED,
    compare_shadow,
    count_scores,
    index_stability,
    measure_drift,
)
from fedtwin_client.monitoring.model_shelf import (
    STATE,
    Arrangement,
    ModelShelf,
    ShelfError,
    place_in_shadow,
    promote,
    roll_back,
)
from fedtwin_shared.documents import sign_study, verify_study
from fedtwin_shared.errors import VerificationError
from fedtwin_shared.release import Release, sign_release, state_guarantee
from fedtwin_shared.signing import digest
from tests.world import World, make_world

PRIVACY = {"epsilon": 8.0, "delta": 1e-5, "noise_multiplier": 4.5, "sampling_rate": 0.1, "spare_rounds": 2}


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(privacy=PRIVACY)


def make_shelf(world: World, folder: Path) -> ModelShelf:
    signed = verify_study(sign_study(world.study, world.roster, world.coordinator), coordinator=world.coordinator_key)
    return ModelShelf(folder / "models", signed=signed)


def make_release(world: World, weights: bytes, *, run: str = "ab") -> Release:
    study = world.study
    return Release(
        study=study.digest,
        name=study.name,
        version=study.version,
        run=run * 16,
        weights=digest(weights),
        model=digest(weights),
        time=1_800_000_000,
        sites=tuple(sorted(world.sites)),
        guarantee=state_guarantee(study, steps=3, histograms=1),
        checkpoints={},
    )


def test_a_release_runs_in_the_shadow_until_it_is_promoted_and_can_be_rolled_back(world: World, tmp_path: Path) -> None:
    shelf = make_shelf(world, tmp_path)
    assert shelf.at_work() is None
    with pytest.raises(ShelfError, match="shadow"):
        shelf.promote()
    release = shelf.take(sign_release(make_release(world, b"w"), world.coordinator), b"w")
    assert shelf.at_work() is None
    shadow = shelf.shadow()
    assert shadow is not None
    assert (shadow.release, shadow.weights) == (release, b"w")
    assert shelf.promote() == release
    again = make_shelf(world, tmp_path)
    found = again.at_work()
    assert found is not None
    assert found.weights == b"w"
    assert again.shadow() is None
    with pytest.raises(ShelfError, match="before"):
        again.roll_back()


def test_what_does_not_verify_changes_nothing(world: World, tmp_path: Path) -> None:
    shelf = make_shelf(world, tmp_path)
    good = make_release(world, b"w")
    shelf.take(sign_release(good, world.coordinator), b"w")
    before = shelf.arrangement()
    other = make_release(world, b"v", run="cd")
    refused = [
        (sign_release(good, Ed25519PrivateKey.generate()), b"w"),  # an unknown key
        (sign_release(good, world.coordinator), b"other weights"),
        (sign_release(good.model_copy(update={"study": "0" * 64}), world.coordinator), b"w"),  # another study
        (sign_release(other, world.coordinator), b"v"),  # a second model of the same version
        (sign_release(good, world.coordinator)[:-9], b"w"),
    ]
    for envelope, weights in refused:
        with pytest.raises(VerificationError):
            shelf.take(envelope, weights)
    assert shelf.arrangement() == before


def test_a_file_that_was_changed_is_never_used(world: World, tmp_path: Path) -> None:
    shelf = make_shelf(world, tmp_path)
    shelf.take(sign_release(make_release(world, b"w"), world.coordinator), b"w")
    (weights,) = (tmp_path / "models").glob("*.weights")
    weights.write_bytes(b"poison")
    with pytest.raises(VerificationError, match="weights"):
        shelf.promote()
    assert shelf.arrangement().at_work == ""
    (tmp_path / "models" / STATE).write_bytes(b"{")
    with pytest.raises(ShelfError, match="which release"):
        shelf.at_work()


def test_rolling_back_returns_what_was_at_work_before() -> None:
    one = promote(place_in_shadow(Arrangement(), "one"))
    two = promote(place_in_shadow(one, "two"))
    back = roll_back(two)
    assert (back.at_work, back.shadow, back.newest) == ("one", "two", "two")
    assert promote(back).at_work == "two"


def test_drift_is_seen_in_scores_and_in_outcomes() -> None:
    generator = np.random.default_rng(0)
    risk = generator.beta(1, 6, 5000)
    usual = count_scores(generator.beta(1, 6, 5000))
    calm = measure_drift(risk, generator.random(5000) < risk, before=usual)
    assert calm.words == "as it was made"
    assert abs(calm.calibration - 1) < 0.1
    worse = measure_drift(risk, generator.random(5000) < np.minimum(1.5 * risk, 1), before=usual)
    assert worse.z > 3
    assert "outcomes for each that is expected" in worse.words
    moved = measure_drift(np.sqrt(risk), generator.random(5000) < np.sqrt(risk), before=usual)
    assert moved.stability > MOVED
    assert "moved" in moved.words
    # Two bins, by hand: (0.75 - 0.5) ln 1.5 + (0.25 - 0.5) ln 0.5
    assert index_stability((50, 50), (75, 25)) == pytest.approx(0.25 * np.log(1.5) + 0.25 * np.log(2))
    with pytest.raises(ValueError, match="0 to 1"):
        measure_drift([float("nan")], [1], before=usual)


def test_a_shadow_is_compared_before_it_is_promoted() -> None:
    report = compare_shadow([0.1, 0.4, 0.5, 0.2], [0.4, 0.4, 0.1, 0.2], level=0.3)
    assert (report.patients, report.newly_above, report.newly_below, report.agree) == (4, 1, 1, 0.5)
    with pytest.raises(ValueError, match="same patients"):
        compare_shadow([0.1], [0.1, 0.2], level=0.3)
