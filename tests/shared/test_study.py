from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedtwin_shared.documents import check_document
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.privacy import Mechanism
from fedtwin_shared.roster import Roster, Site
from fedtwin_shared.study import Split, Study, is_held_out
from tests.world import make_world, study_document

WORLD = make_world()


def changed(path: str, value: object) -> dict[str, Any]:
    """The valid document with one field, named by a dotted path, replaced."""
    document = study_document(WORLD.roster)
    target: Any = document
    *parents, last = path.split(".")
    for part in parents:
        target = target[int(part)] if part.isdigit() else target[part]
    target[last] = value
    return document


def test_the_digest_is_that_of_the_canonical_form_and_survives_it() -> None:
    again = Study.model_validate_json(WORLD.study.canonical())
    assert again == WORLD.study
    assert again.digest == WORLD.study.digest


def test_canonical_json_writes_numbers_as_decimal_strings() -> None:
    assert b'"noise_multiplier":"4.0"' in WORLD.study.canonical()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "Bad Name"),
        ("name", "../up"),
        ("question", ""),
        ("question", "Who?\n price  nothing"),
        ("question", "Who?\x1b[1A\x1b[2K"),
        ("question", "Who?\u202e"),
        ("version", 0),
        ("version", "1"),
        ("roster", "00"),
        ("outcome", "Died; drop"),
        ("participants", []),
        ("participants.0.patients", 0),
        ("participants.0.weight", float("nan")),
        ("participants.0.weight", 0.0),
        ("participants.1.site", "north"),
        ("cohort.minimum_patients", 0),
        ("features.window_hours", 25.0),
        ("features.series.0.signal", "nonsense"),
        ("features.series.0.statistics", ["median"]),
        ("features.series.0.statistics", []),
        ("features.categories", ["nonsense"]),
        ("features.limit", float("inf")),
        ("model.name", "resnet"),
        ("model.hidden", -1),
        ("training.rounds", 0),
        ("training.minimum_sites", 5),
        ("training.learning_rate", 0.0),
        ("training.momentum", 1.0),
        ("training.algorithm", "fedprox"),
        ("training.average_from_round", 4),
        ("training.patience_seconds", 1e6),
        ("privacy.epsilon", 0.0),
        ("privacy.epsilon", float("nan")),
        ("privacy.delta", 1.0),
        ("privacy.noise_multiplier", 0.0),
        ("privacy.noise_multiplier", float("nan")),
        ("privacy.sampling_rate", 1.5),
        ("privacy.mode", "none"),
        ("evaluation.noise_multiplier", 0.0),
        ("evaluation.rounds", [2, 1]),
        ("evaluation.rounds", [3]),
        ("evaluation.low", 7.0),
        ("evaluation.subgroups", ["nonsense"]),
        ("unknown_key", 1),
        ("privacy.unknown_key", 1),
        ("split.test_fraction", 1.0),
    ],
)
def test_a_malformed_study_is_refused(path: str, value: object) -> None:
    document = (
        changed(path, value)
        if not path.startswith("split")
        else study_document(WORLD.roster) | {"split": {"test_fraction": value}}
    )
    with pytest.raises(ValidationError):
        Study.model_validate(document)


@pytest.mark.parametrize(
    ("path", "value", "field", "found"),
    [
        ("privacy.epsilon", 0.01, "privacy.epsilon", "0.01"),
        ("privacy.noise_multiplier", 0.0, "privacy.noise_multiplier", "0.0"),
        ("evaluation.noise_multiplier", 0.0, "evaluation.noise_multiplier", "0.0"),
        ("evaluation.rounds", [2, 1], "evaluation.rounds", "[2, 1]"),
        ("evaluation.subgroups", ["nonsense"], "evaluation.subgroups.0", "'nonsense'"),
        ("training.minimum_sites", 5, "training.minimum_sites", "5"),
        ("training.patience_seconds", 1e6, "training.patience_seconds", "1000000.0"),
        ("features.series.0.signal", "nonsense", "features.series.0", "'nonsense'"),
        ("features.window_hours", 25.0, "features.window_hours", "25.0"),
        ("participants.1.site", "north", "participants.1.site", "north"),
    ],
)
def test_a_disagreement_between_fields_names_one_and_what_it_holds(
    path: str, value: object, field: str, found: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_document(changed(path, value), Study, file="study.toml")
    assert (caught.value.file, caught.value.field, caught.value.found) == ("study.toml", field, found)
    assert caught.value.expected


def test_a_study_above_its_own_budget_cannot_be_written_down() -> None:
    with pytest.raises(ValidationError, match="price of the plan"):
        Study.model_validate(changed("privacy.epsilon", WORLD.study.price() * 0.999))
    assert Study.model_validate(changed("privacy.epsilon", WORLD.study.price() * 1.001)).price() == WORLD.study.price()


def test_spare_rounds_and_evaluations_are_part_of_the_price() -> None:
    assert Study.model_validate(changed("privacy.spare_rounds", 2)).price() > WORLD.study.price()
    costly = Study.model_validate(changed("evaluation.noise_multiplier", 1.0))
    assert costly.price() > WORLD.study.price()
    # a patient is in one part only: the maximum of the two, not their sum
    assert costly.price() == costly.spent(steps=0, releases=costly.planned_evaluations)


def test_planned_steps_count_every_local_step_of_every_round_and_spare() -> None:
    document = study_document(WORLD.roster)
    document["training"] |= {"rounds": 5, "local_steps": 7}
    document["privacy"] |= {"spare_rounds": 2, "noise_multiplier": 40.0}
    assert Study.model_validate(document).planned_steps == 49


def test_no_noise_is_not_private() -> None:
    document = study_document(WORLD.roster)
    document["privacy"] |= {"mode": "none", "noise_multiplier": 0.0}
    document["evaluation"] |= {"noise_multiplier": 0.0}
    study = Study.model_validate(document)
    assert study.training_event(3).mechanism is Mechanism.NOT_PRIVATE
    assert study.price() == float("inf")


def test_feature_names_are_in_the_order_of_the_tensors() -> None:
    document = study_document(WORLD.roster)
    document["features"] |= {"site_indicator": True}
    assert Study.model_validate(document).feature_names() == (
        "heart_rate.mean",
        "heart_rate.mean.high",
        "heart_rate.mean.low",
        "heart_rate.max",
        "heart_rate.max.high",
        "heart_rate.max.low",
        "age",
        *(f"sex={level}" for level in ("female", "male")),
        "site=north",
        "site=south",
        "site=east",
        "site=west",
    )


@given(st.text(max_size=20))
def test_the_part_of_one_patient_depends_on_their_id_alone(patient: str) -> None:
    split = Split(test_fraction=0.25, salt="s")
    assert is_held_out(split, patient) == is_held_out(split, patient)
    assert not is_held_out(Split(test_fraction=0.0), patient)


def test_the_held_out_fraction_is_the_planned_one() -> None:
    split = Split(test_fraction=0.25, salt="s")
    share = sum(is_held_out(split, f"patient-{number}") for number in range(20_000)) / 20_000
    assert abs(share - 0.25) < 0.012  # four standard errors
    other = Split(test_fraction=0.25, salt="t")
    same = sum(is_held_out(split, f"{n}") == is_held_out(other, f"{n}") for n in range(2_000))
    assert 1_100 < same < 1_400  # independent salts agree on 62.5 %


def test_a_roster_holds_every_name_and_key_once() -> None:
    north = WORLD.roster.sites[0]
    with pytest.raises(ValidationError, match="once"):
        Roster(
            version=1, coordinator=WORLD.roster.coordinator, sites=(north, Site(name="b", public_key=north.public_key))
        )
    with pytest.raises(ValidationError, match="once"):
        Roster(version=1, coordinator=WORLD.roster.coordinator, sites=(north, north))
    with pytest.raises(ValidationError, match="public_key"):
        Site(name="a", public_key="ed25519:short")
