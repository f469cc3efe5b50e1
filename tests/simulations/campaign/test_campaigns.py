"""Campaigns: what a file may say, trials that end, fail, resume and repeat, findings that add up."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from fedtwin_client.cohort import Cohort
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.signing import digest
from fedtwin_simulations.campaign import world
from fedtwin_simulations.campaign.attacks import attack_by_loss, run_inversion
from fedtwin_simulations.campaign.findings import interval, summarise, write_findings
from fedtwin_simulations.campaign.learning import draft, run_learning
from fedtwin_simulations.campaign.specification import Campaign, Case, list_campaigns, read_campaign
from fedtwin_simulations.campaign.trials import TrialError, parse_trial, run_one, run_trials
from fedtwin_simulations.campaign.world import deal_by_label, make_world
from fedtwin_simulations.cli import app
from fedtwin_simulations.scores import Scored
from tests.simulations.laboratory import study_document

TOML = """
format = 1
name = "tiny"
title = "Tiny"
question = "Does it run?"
seeds = [0, 1]
measures = ["auroc", "gain_over_alone"]
hospitals = { count = 2, patients = 40 }
plot = { y = "auroc" }
cases = [{ name = "alone", method = "alone" }, { name = "together" }]
[study]
name = "tiny"
"""


def make_campaign(**changes: Any) -> Campaign:
    study = {key: value for key, value in study_document().items() if key != "participants"}
    study["features"] = {**study["features"], "site_indicator": False}
    study |= {"cohort": {"minimum_patients": 1}, "model": {"name": "mlp", "hidden": 4}, "evaluation": {}}
    study["training"] = {"rounds": 3, "local_steps": 2, "learning_rate": 1.0}
    document: dict[str, Any] = {
        "name": "tiny",
        "title": "Tiny",
        "question": "Does it run?",
        "seeds": [0, 1],
        "measures": ["auroc", "site_auroc", "gain_over_alone", "sites_better_than_alone", "answers"],
        "hospitals": {"count": 3, "patients": 40},
        "cases": [{"name": "alone", "method": "alone"}, {"name": "fedavg"}],
        "plot": {"y": "auroc"},
        "study": study,
    }
    return Campaign.model_validate(document | changes)


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worlds")


@pytest.mark.parametrize("name", list_campaigns())
def test_every_packaged_campaign_drafts_valid_studies_within_their_price(name: str) -> None:
    campaign = read_campaign(name)
    assert campaign.name == name
    for case in campaign.cases:
        study = draft(campaign, case, ("one", "two"))
        assert (study.privacy.mode == "none") == (case.epsilon is None)
        assert case.epsilon is None or study.price() <= case.epsilon == study.privacy.epsilon


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("seeds = [0, 1]\n", "", "seeds: expected "),
        ('name = "together"', 'name = "together", metod = "fedavg"', "cases.1.metod"),
        ('name = "together"', 'name = "together", absent = 1.5', "cases.1.absent: expected at most 1"),
        ('name = "together"', 'name = "alone"', "cases.1.name: expected each once"),
        ('name = "together"', 'name = "together", method = "ditto", epsilon = 1.0', "cases.1.epsilon"),
        ('name = "together"', 'name = "together", noise = "distributed"', "cases.1.epsilon: expected a price"),
        ('name = "together"', 'name = "together", hospitals = { beds = 3 }', r"cases.1.hospitals: beds"),
        ("count = 2", "count = 0", "hospitals.count: expected at least 1"),
    ],
)
def test_a_malformed_file_names_file_key_and_what_was_expected(tmp_path: Path, old: str, new: str, named: str) -> None:
    file = tmp_path / "tiny.toml"
    assert old in TOML
    file.write_text(TOML.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=rf"tiny.toml: {named}"):
        read_campaign(str(file))


def test_a_study_of_a_case_that_is_not_valid_names_campaign_and_case() -> None:
    case = Case(name="odd", changes={"training": {"roundz": 3}})
    with pytest.raises(ConfigurationError, match=r"campaign tiny, case odd: study: training.roundz"):
        draft(make_campaign(), case, ("one",))


def trial(campaign: Campaign, case: Case, seed: int, folder: Path) -> dict[str, Any]:
    """A trial that costs nothing."""
    value = 0.7 + 0.01 * seed + 0.1 * (case.name == "fedavg")
    return {"figures": {"auroc": value}, "sites": {"a": value, "b": 0.5, "c": None}}


def test_a_crash_leaves_finished_trials_and_the_rest_is_run_when_started_again(tmp_path: Path) -> None:
    campaign, ran = make_campaign(), list[str]()

    def fail_once(campaign: Campaign, case: Case, seed: int, folder: Path) -> dict[str, Any]:
        ran.append(f"{case.name}@{seed}")
        if ran.count("fedavg@0") == 1 and ran[-1] == "fedavg@0":
            raise ArithmeticError("odd")
        return trial(campaign, case, seed, folder)

    with pytest.raises(TrialError, match=r"--trial fedavg@0, found 1 that failed: fedavg@0; .*ArithmeticError: odd"):
        run_trials(campaign, tmp_path, run_trial=fail_once)
    assert len(ran) == 4  # one failed, the others ended
    finished = (tmp_path / "trials" / "alone@1.json").read_bytes()
    assert [one.name for one in run_trials(campaign, tmp_path, run_trial=fail_once)] == [
        "alone@0",
        "alone@1",
        "fedavg@0",
        "fedavg@1",
    ]
    assert ran[4:] == ["fedavg@0"]
    assert (tmp_path / "trials" / "alone@1.json").read_bytes() == finished
    with pytest.raises(ConfigurationError, match="another campaign's trials"):
        run_trials(make_campaign(delta=1e-4), tmp_path, run_trial=trial)


def test_a_trial_is_named_by_case_and_seed() -> None:
    campaign = make_campaign()
    assert parse_trial(campaign, "fedavg@7") == (campaign.cases[1], 7)
    for name in ("fedavg", "fedavg@", "fedavg@x", "nobody@0"):
        with pytest.raises(ConfigurationError):
            parse_trial(campaign, name)


def test_findings_are_means_with_intervals_and_compare_each_site_with_itself(tmp_path: Path) -> None:
    campaign = make_campaign()
    trials = run_trials(campaign, tmp_path, run_trial=trial)
    alone, together = summarise(campaign, trials)
    assert alone.figures["gain_over_alone"].mean == 0
    assert together.figures["auroc"].mean == pytest.approx(0.805)
    assert together.figures["auroc"].half == pytest.approx(12.706 * 0.005, rel=1e-3)  # t of 1 degree · sd / √2
    assert together.figures["gain_over_alone"].mean == pytest.approx(0.05)  # one site gains 0.1, one nothing
    assert together.figures["sites_better_than_alone"].mean == 0.5
    assert str(interval([math.nan])) == "–"
    write_findings(campaign, trials, tmp_path)
    written = {name: (tmp_path / name).read_bytes() for name in ("table.csv", "trials.csv", "plot.svg", "report.md")}
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["seeds"] == [0, 1]
    assert manifest["digest"] == campaign.digest
    assert manifest["files"]["table.csv"] == digest(written["table.csv"])
    assert {"python", "torch", "flwr"} <= set(manifest["versions"])
    assert b"fedavg,fedavg,,none,0.805" in written["table.csv"]
    assert written["report.md"].count(b"| 0.805 ") == 1
    write_findings(campaign, trials, tmp_path)
    assert written["plot.svg"] == (tmp_path / "plot.svg").read_bytes()


@pytest.mark.parametrize(
    "case",
    [
        Case(name="fedavg"),
        Case(name="alone", method="alone"),
        Case(name="pooled", method="pooled"),
        Case(name="scaffold", method="scaffold"),
        Case(name="ditto", method="ditto"),
        Case(name="fedbn", method="fedbn"),
        Case(name="fedyogi", method="fedyogi", changes={"training": {"server_learning_rate": 0.05}}),
        Case(name="away", absent=0.5),
        Case(name="shared", epsilon=8.0, noise="distributed", changes={"training": {"local_steps": 1}}),
    ],
    ids=lambda case: case.name,
)
def test_every_method_runs_and_repeats_itself(case: Case, worlds: Path) -> None:
    found = [run_learning(make_campaign(), case, 0, worlds) for _ in range(2)]
    for one in found:
        del one["figures"]["seconds"]
    assert found[0] == found[1]
    assert 0 < found[0]["figures"]["auroc"] < 1
    assert len(found[0]["sites"]) == 3
    assert (found[0]["figures"]["answers"] < 1) == (case.absent > 0)


def test_a_trial_alone_gives_what_the_campaign_gives(worlds: Path, tmp_path: Path) -> None:
    campaign = make_campaign(seeds=[0])
    whole = run_trials(campaign, tmp_path)
    alone = run_one(campaign, campaign.cases[1], 0, tmp_path / "other")
    assert alone.figures["auroc"] == whole[1].figures["auroc"]
    assert alone.sites == whole[1].sites


def test_patients_are_dealt_by_label_and_everybody_is_somewhere(worlds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = make_campaign()
    study = draft(campaign, campaign.cases[1], ("city", "coast", "university"))
    cohorts = make_world(campaign.hospitals, study, worlds, seed=0)
    dealt = deal_by_label(cohorts, 0.5, seed=0)

    def everybody(some: dict[str, Cohort]) -> list[str]:
        return sorted(one for cohort in some.values() for one in (*cohort.train.patients, *cohort.test.patients))

    assert everybody(dealt) == everybody(cohorts)
    rates = [[float(one.train.y.mean()) for one in some.values()] for some in (cohorts, dealt)]
    assert np.std(rates[1]) > 2 * np.std(rates[0])
    monkeypatch.setattr(world, "FEWEST_TRAINING", 1000)
    with pytest.raises(ConfigurationError, match="label_skew"):
        deal_by_label(cohorts, 0.5, seed=0)


def test_every_patient_of_a_batch_of_four_is_read_out_without_privacy_and_none_with(worlds: Path) -> None:
    campaign = read_campaign("gradient-inversion")
    few = campaign.model_copy(update={"hospitals": make_campaign().hospitals})
    without = run_inversion(few, campaign.case("no privacy, batch 4"), 0, worlds)
    private = run_inversion(few, campaign.case("ε = 100, batch 4"), 0, worlds)
    assert without["figures"]["recovered"] == 1.0
    assert private["figures"]["recovered"] == 0.0
    assert private["figures"]["reconstruction_error"] > 20 * without["figures"]["reconstruction_error"]


def test_one_trial_of_a_campaign_runs_from_the_command_line(tmp_path: Path) -> None:
    output = tmp_path / "inversion"
    arguments = ["experiment", "gradient-inversion", "--output", str(output), "--trial"]
    done = CliRunner().invoke(app, [*arguments, "no privacy, batch 4@3"])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[0] == "recovered 1"
    assert [file.name for file in (output / "trials").iterdir()] == ["no privacy, batch 4@3.json"]
    with pytest.raises(ConfigurationError, match="CASE@SEED"):
        CliRunner().invoke(app, [*arguments, "batch 4"], catch_exceptions=False)


def test_a_threshold_on_the_loss_tells_nothing_where_losses_are_alike() -> None:
    outcomes = np.repeat([0.0, 1.0], 50)

    def scored(scores: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Scored:
        return Scored(patients=("",) * len(scores), scores=scores, outcomes=outcomes)

    same = attack_by_loss(scored(np.full(100, 0.3)), scored(np.full(100, 0.3)))
    assert same == {"attack_auroc": 0.5, "attack_advantage": 0.0}
    sure = attack_by_loss(scored(np.where(outcomes > 0, 0.9, 0.1)), scored(np.full(100, 0.5)))
    assert sure == pytest.approx({"attack_auroc": 1.0, "attack_advantage": 1.0})
