"""An experiment's file, and the studies that are drafted from it."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.privacy import accounted_delta, compute_epsilon
from fedtwin_simulations.consortium import make_consortium
from fedtwin_simulations.sources import LARGE
from fedtwin_simulations.specification import (
    POOLED,
    MethodEntry,
    calibrated_noise,
    draft_study,
    list_experiments,
    merge,
    read_experiment,
)
from fedtwin_simulations.virtual_hospitals import CASE_MIXES
from tests.simulations.laboratory import SITES, experiment_document, small_experiment, study_document
from tests.soak import only_in_soak


def list_drafts(*, sampled: bool) -> list[tuple[str, tuple[MethodEntry, ...]]]:
    """Every packaged experiment with those of its methods whose patients are drawn for each step, or are not."""
    found = []
    for name in list_experiments():
        methods = read_experiment(name).methods
        chosen = (one for one in methods if (one.changes.get("privacy", {}).get("sampling_rate", 1.0) < 1) is sampled)
        found.append((name, tuple(chosen)))
    return [(name, entries) for name, entries in found if entries]


@only_in_soak("ten seconds of accounting for each of hundreds of sampled steps")
@pytest.mark.parametrize(("name", "entries"), list_drafts(sampled=True))
def test_sampled_methods_draft_valid_studies_within_their_price(name: str, entries: Sequence[MethodEntry]) -> None:
    check_drafts(name, entries)


@pytest.mark.parametrize(("name", "entries"), list_drafts(sampled=False))
def test_every_packaged_experiment_drafts_valid_studies_within_their_price(
    name: str, entries: Sequence[MethodEntry]
) -> None:
    check_drafts(name, entries)


def check_drafts(name: str, entries: Sequence[MethodEntry]) -> None:
    experiment = read_experiment(name)
    roster = make_consortium([*experiment.sites, POOLED]).roster
    for entry in entries:
        study = draft_study(experiment, entry, roster, pooled=entry.method == "pooled")
        if entry.epsilon is None:
            assert study.privacy.mode == "none"
        elif entry.noise == "local":
            assert 0.97 * entry.epsilon < study.price() <= entry.epsilon == study.privacy.epsilon
        else:
            shared = study.training_event(study.planned_steps)
            whole = replace(shared, noise_multiplier=shared.noise_multiplier * math.sqrt(len(study.participants)))
            price = compute_epsilon([whole], delta=accounted_delta(study.privacy.delta))
            assert 0.97 * entry.epsilon < price <= entry.epsilon < study.price() <= study.privacy.epsilon


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"local_steps": 2}},
        {"training": {"minimum_sites": 2}},
        {
            "participants": [
                {"site": site, "patients": 50, "weight": weight} for site, weight in zip(SITES, (1, 1, 2), strict=True)
            ]
        },
    ],
    ids=["two steps", "a site may be missing", "weights of another kind"],
)
def test_noise_is_shared_only_where_the_sum_is_what_the_accountant_thinks(changes: dict[str, Any]) -> None:
    roster = make_consortium([*SITES, POOLED]).roster
    shared = {"participants": [{"site": site, "patients": 50} for site in SITES], "training": {"minimum_sites": 3}}
    entry = MethodEntry(method="private", epsilon=3.0, noise="distributed", changes=shared)
    experiment = small_experiment()
    assert draft_study(experiment, entry, roster).privacy.epsilon > 3.0
    with pytest.raises(ConfigurationError, match=r"weights by patients, one local step and every site"):
        draft_study(experiment, entry.model_copy(update={"changes": merge(shared, changes)}), roster)


def test_the_four_experiments_are_packaged() -> None:
    assert {"virtual", "heart"} <= set(list_experiments())
    folder = files("fedtwin_simulations") / "experiments"
    assert all(
        tomllib.loads(item.read_text(encoding="utf-8"))["name"] + ".toml" == item.name for item in folder.iterdir()
    )


def test_the_series_experiment_states_three_quarters_of_the_patients_that_are_written() -> None:
    stated = {part["site"]: part["patients"] for part in read_experiment("sequence").study["participants"]}
    assert stated == {case.site: round(0.75 * LARGE * case.patients) for case in CASE_MIXES}
    assert sum(stated.values()) > 20_000


def test_a_path_works_as_well_as_a_name(tmp_path: Path) -> None:
    packaged = files("fedtwin_simulations") / "experiments" / "virtual.toml"
    copy = tmp_path / "mine.toml"
    copy.write_text(packaged.read_text(encoding="utf-8"), encoding="utf-8")
    assert read_experiment(str(copy)) == read_experiment("virtual")


def test_an_unknown_name_says_which_are_known() -> None:
    with pytest.raises(ConfigurationError, match=r"nothing-of-ours: expected one of .*virtual"):
        read_experiment("nothing-of-ours")


def test_a_malformed_file_names_the_file_and_the_field(tmp_path: Path) -> None:
    file = tmp_path / "broken.toml"
    text = (files("fedtwin_simulations") / "experiments" / "virtual.toml").read_text(encoding="utf-8")
    file.write_text(text.replace('dataset = "virtual"', 'dataset = "imagined"'), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"broken.toml: dataset"):
        read_experiment(str(file))


def test_the_noise_is_calibrated_for_the_steps_that_are_planned() -> None:
    experiment, roster = small_experiment(), make_consortium([*SITES, POOLED]).roster
    private = experiment.methods[3]
    study = draft_study(experiment, private, roster)
    twice = small_experiment(study=merge(study_document(), {"training": {"local_steps": 2}}))
    assert study.privacy.noise_multiplier < draft_study(twice, private, roster).privacy.noise_multiplier
    assert study.evaluation.noise_multiplier == calibrated_noise(2, 1.0, 3.0, 1e-4)


def test_a_pooled_study_keeps_the_hospitals_place_in_the_features() -> None:
    experiment, roster = small_experiment(), make_consortium([*SITES, POOLED]).roster
    federated = draft_study(experiment, experiment.methods[2], roster)
    pooled = draft_study(experiment, experiment.methods[0], roster, pooled=True, minimum_sites=1)
    assert pooled.feature_names()[: len(federated.feature_names())] == federated.feature_names()
    part = pooled.participant(POOLED)
    assert part is not None
    assert part.patients == 60 * len(SITES)


def test_two_primary_methods_of_one_price_are_refused() -> None:
    methods = [*experiment_document()["methods"], {"method": "private", "epsilon": 3.0}]
    with pytest.raises(ValueError, match="one primary method"):
        small_experiment(methods=methods)


@pytest.mark.parametrize("entry", [{"method": "private"}, {"method": "pooled", "epsilon": 1.0}])
def test_epsilon_belongs_to_private_methods_alone(entry: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="epsilon"):
        small_experiment(methods=[entry])


def test_merging_changes_neither_of_its_arguments() -> None:
    base = {"model": {"name": "mlp", "hidden": 8}, "x": 1}
    changed = merge(base, {"model": {"hidden": 16}})
    changed["model"]["name"] = "lstm"
    assert base == {"model": {"name": "mlp", "hidden": 8}, "x": 1}
