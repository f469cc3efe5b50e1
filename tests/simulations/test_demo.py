"""The parts of the demo that need no process: its folder, its methods, its patients."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedtwin_shared.errors import ConfigurationError
from fedtwin_simulations.consortium import make_consortium
from fedtwin_simulations.demo import MARKER, as_demo, empty_folder, place_patients
from fedtwin_simulations.deployment import Deployment, Node, free_ports
from fedtwin_simulations.specification import draft_study, list_experiments, read_experiment
from tests.simulations.laboratory import experiment_document, small_experiment


def test_only_an_earlier_demo_is_emptied(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigurationError, match="new folder"):
        empty_folder(mine)
    assert (mine / "thesis.txt").exists()
    ours = tmp_path / "deep" / "demo"
    empty_folder(ours)
    (ours / "report.json").touch()
    empty_folder(ours)
    assert [path.name for path in ours.iterdir()] == [MARKER]


@pytest.mark.parametrize("name", sorted(set(list_experiments()) - {"sequence"}))
def test_every_packaged_demo_uses_the_hospitals_own_split_and_has_a_curve_within_its_price(name: str) -> None:
    experiment = as_demo(read_experiment(name))
    assert [partition.rule for partition in experiment.partitions] == ["hash"]
    assert all(entry.primary for entry in experiment.methods)
    (deployed,) = (entry for entry in experiment.methods if entry.epsilon == experiment.demo_epsilon)
    study = draft_study(experiment, deployed, make_consortium(experiment.sites).roster)
    assert len(study.evaluation.rounds) >= 2
    assert study.split.rule == "hash"
    assert study.price() <= study.privacy.epsilon == experiment.demo_epsilon


def test_a_demo_without_its_price_among_the_methods_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="demo_epsilon"):
        as_demo(small_experiment(methods=experiment_document()["methods"][:3]))


def test_an_experiment_whose_sites_share_noise_is_no_demo() -> None:
    with pytest.raises(ConfigurationError, match="own noise"):
        as_demo(read_experiment("sequence"))


def test_each_hospital_gets_its_own_patients_only(tmp_path: Path) -> None:
    nodes = []
    for site in ("city", "valley"):
        (tmp_path / site / "data").mkdir(parents=True)
        nodes.append(Node(site=site, directory=tmp_path / site, runtime_port=1, health_port=2))
    place_patients(read_experiment("virtual"), None, Deployment(coordinator=tmp_path, nodes=tuple(nodes), front_port=3))
    city, valley = ((tmp_path / site / "data" / "patients.csv").read_text().splitlines() for site in ("city", "valley"))
    assert len(city) == 701
    assert len(valley) == 401
    assert not {line.split(",")[0] for line in city[1:]} & {line.split(",")[0] for line in valley[1:]}


def test_ports_are_different() -> None:
    assert len(set(free_ports(12))) == 12
