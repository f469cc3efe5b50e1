"""One study by its name or file, on virtual hospitals or on given folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedtwin_client.errors import DataError
from fedtwin_shared.errors import ConfigurationError
from fedtwin_simulations.single_run import read_document, run_single, with_virtual_sites
from fedtwin_simulations.specification import merge, set_price
from fedtwin_simulations.toml_text import write_toml
from tests.simulations.laboratory import SITES, study_document, write_small_hospitals


def write_study(folder: Path, *, epsilon: float | None) -> Path:
    document = merge(study_document(), {"training": {"rounds": 2}, "evaluation": {"rounds": []}})
    set_price(document, epsilon=epsilon, delta=1e-4)
    file = folder / "study.toml"
    file.write_text(write_toml({"roster": "0" * 64, **document}), encoding="utf-8")
    return file


@pytest.mark.parametrize(("epsilon", "method"), [(3.0, "private"), (None, "federated")])
def test_a_file_runs_on_given_folders(tmp_path: Path, epsilon: float | None, method: str) -> None:
    write_small_hospitals(tmp_path / "hospitals")
    results = run_single(str(write_study(tmp_path, epsilon=epsilon)), data=tmp_path / "hospitals")
    assert {row.method for row in results.results} == {method}
    assert {row.epsilon for row in results.results} == {epsilon}
    assert set(results.results[0].per_site) == set(SITES)
    assert [row.metric for row in results.results if row.primary] == ["auroc"]


def test_virtual_hospitals_take_the_participants_place() -> None:
    document = with_virtual_sites(study_document(), 5)
    assert [part["site"] for part in document["participants"]] == ["city", "coast", "university", "valley", "city-2"]
    assert with_virtual_sites(study_document(), 1)["training"]["minimum_sites"] == 1


def test_a_packaged_study_runs_by_its_name() -> None:
    results = run_single("virtual", sites=2, seed=3)
    assert results.seeds == (3,)
    assert set(results.results[0].per_site) == {"city", "coast"}
    assert results.results[0].overall is not None
    assert results.results[0].overall > 0.7


def test_a_missing_hospital_is_an_error_before_anything_runs(tmp_path: Path) -> None:
    write_small_hospitals(tmp_path / "hospitals", sites=SITES[:2])
    with pytest.raises(DataError):
        run_single(str(write_study(tmp_path, epsilon=3.0)), data=tmp_path / "hospitals")


@pytest.mark.parametrize("text", ["rounds = [", "name = 'a'", "participants = [1, 2]"])
def test_a_malformed_file_is_one_error_of_ours(tmp_path: Path, text: str) -> None:
    file = tmp_path / "study.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=r"study.toml"):
        read_document(str(file))


def test_an_unknown_study_says_what_is_known() -> None:
    with pytest.raises(ConfigurationError, match=r"one of .*virtual"):
        read_document("nothing.toml")


def test_a_study_whose_price_is_above_its_budget_names_the_field(tmp_path: Path) -> None:
    file = write_study(tmp_path, epsilon=3.0)
    file.write_text(file.read_text().replace("epsilon = 3.0", "epsilon = 0.5"))
    write_small_hospitals(tmp_path / "hospitals")
    with pytest.raises(ConfigurationError, match=r"price of the plan"):
        run_single(str(file), data=tmp_path / "hospitals")
