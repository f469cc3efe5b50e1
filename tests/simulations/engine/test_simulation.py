"""The engine's promises: the same bytes here, in workers and after a crash; batched sites nearly so; memory bounded."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedtwin_client.cohort import Cohort
from fedtwin_client.journal import Spend
from fedtwin_server.checkpoint import encode_state
from fedtwin_server.errors import RunError
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.models import Parameters
from fedtwin_shared.round import RoundPlan, Task
from fedtwin_shared.study import Study
from fedtwin_simulations.engine import simulation
from fedtwin_simulations.engine.memory import MemoryNeed, check_memory, foresee_memory
from fedtwin_simulations.engine.simulation import Simulated, World, simulate
from fedtwin_simulations.engine.site_data import HeldData, SiteData, SpooledData, spool
from fedtwin_simulations.engine.site_tasks import Ground, choose_together
from fedtwin_simulations.engine_bench import Case, run_bare

CASE = Case(sites=7, model="mlp", patients=30, steps=3, features=4, hidden=4, rounds=3)


def digest(run: Simulated) -> str:
    return hashlib.sha256(encode_state(run.state)).hexdigest()


def test_the_same_seed_gives_the_same_bytes_here_and_in_workers() -> None:
    ground = CASE.make_ground()
    here = simulate(ground)
    assert digest(simulate(ground, workers=2)) == digest(here)
    assert digest(simulate(CASE.make_ground(seed=1))) != digest(here)
    assert here.spent == dict.fromkeys(ground.data.sites, Spend(steps=6, releases=1))


def test_sites_together_agree_with_sites_alone() -> None:
    ground = CASE.make_ground()
    alone, together = simulate(ground), simulate(replace(ground, together=3))
    for name, array in alone.state.model.parameters.items():
        np.testing.assert_allclose(together.state.model.parameters[name], array, atol=1e-5, rtol=0)
    assert together.spent == alone.spent


def test_the_engine_gives_what_the_bare_loop_gives() -> None:
    ground = CASE.make_ground()
    bare = run_bare(ground)
    for name, array in simulate(ground).state.model.parameters.items():
        np.testing.assert_allclose(array, bare[name], atol=1e-6, rtol=0)


def test_a_run_that_was_interrupted_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    whole = simulate(CASE.make_ground())

    class PullPlugError(Exception):
        pass

    def pull(done: int, planned: int) -> None:
        seen.append(done)
        if done == 2 and len(seen) == 2:
            raise PullPlugError

    seen: list[int] = []
    with pytest.raises(PullPlugError):
        simulate(CASE.make_ground(), folder=tmp_path / "run", on_round=pull)
    resumed = simulate(CASE.make_ground(), folder=tmp_path / "run", on_round=pull)
    assert seen == [1, 2, 3, 3]  # the last one is the evaluation
    assert digest(resumed) == digest(whole)
    with pytest.raises(RunError, match="another one"):
        simulate(CASE.make_ground(seed=5), folder=tmp_path / "run")


class CountingData:
    """Counts how many cohorts are alive at once."""

    def __init__(self, data: SiteData) -> None:
        self._data, self.read_sites = data, list[str]()
        self.sites = data.sites

    def read(self, study: Study, site: str) -> Cohort:
        self.read_sites.append(site)
        return self._data.read(study, site)

    def patients_held(self, study: Study, together: int) -> int:
        return self._data.patients_held(study, together)


def test_a_site_is_read_when_its_turn_comes_and_not_kept() -> None:
    ground = CASE.make_ground()
    data = CountingData(ground.data)
    simulate(replace(ground, data=data, together=3))
    assert data.read_sites == [*ground.data.sites] * 4  # three trainings and an evaluation


def test_spooled_cohorts_are_the_same_cohorts(tmp_path: Path) -> None:
    ground = CASE.make_ground()
    held = {site: ground.data.read(ground.study, site) for site in ground.data.sites}
    spooled = spool(held, tmp_path)
    assert spooled.patients_held(ground.study, 2) == 2 * 37
    runs = [simulate(replace(ground, data=data)) for data in (HeldData(cohorts=held), spooled)]
    assert digest(runs[0]) == digest(runs[1]) == digest(simulate(ground))
    with pytest.raises(ConfigurationError, match=r"elsewhere.npz: expected a spooled cohort"):
        SpooledData(folder=tmp_path, sites=("elsewhere",), largest=1).read(ground.study, "elsewhere")


def small_minimum(ground: Ground, sites: int) -> Ground:
    study = ground.study
    fewer = study.training.model_copy(update={"minimum_sites": sites})
    return replace(ground, study=study.model_copy(update={"training": fewer}))


def test_absent_sites_are_left_out_and_the_others_draw_the_same_noise() -> None:
    ground = small_minimum(CASE.make_ground(), 2)
    lost = ground.data.sites[:3]

    def absent(site: str, plan: RoundPlan) -> bool:
        return plan.round == 2 and plan.task is Task.TRAIN and site in lost

    alone = simulate(ground, world=World(absent=absent))
    together = simulate(replace(ground, together=4), world=World(absent=absent))
    assert [len(record.sites) for record in alone.state.history] == [7, 4, 7, 7]
    assert alone.spent[lost[0]] == Spend(steps=4, releases=1)
    for name, array in alone.state.model.parameters.items():
        np.testing.assert_allclose(together.state.model.parameters[name], array, atol=1e-5, rtol=0)


def test_a_coordinator_waits_for_slow_sites_no_longer_than_its_patience_and_nobody_really_waits() -> None:
    ground = small_minimum(CASE.make_ground(), 2)
    slow = ground.data.sites[0]
    run = simulate(ground, world=World(slow=lambda site, plan: 1e6 if site == slow else 2.0))
    assert all(slow not in record.sites and len(record.sites) == 6 for record in run.state.history)
    patience = ground.study.training.patience_seconds
    assert 4 * patience <= run.waited_seconds <= 4 * (patience + 2)


def test_what_a_hospital_raises_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        simulate(small_minimum(replace(CASE.make_ground(), train=fail), 1))


def fail(*anything: object) -> Parameters:
    raise ZeroDivisionError


def test_memory_is_foreseen_and_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ground = CASE.make_ground()
    need = foresee_memory(ground.study, ground.data)
    check_memory(need, free=need.total)
    with pytest.raises(ConfigurationError, match=r"memory: expected .* GiB .*sites .* free: .*found 0.00 GiB"):
        check_memory(need, free=need.total - 1 if need.total < 2**20 else 2**20)
    monkeypatch.setattr(
        simulation, "foresee_memory", lambda *_, **__: MemoryNeed(processes=1 << 60, sites=0, models=0, patients=0)
    )
    with pytest.raises(ConfigurationError, match="memory"):
        simulate(ground)


def test_what_is_foreseen_grows_with_sites_models_and_workers_not_with_patients_of_other_sites() -> None:
    def need(case: Case, together: int = 1, workers: int = 0) -> MemoryNeed:
        ground = case.make_ground()
        return foresee_memory(ground.study, ground.data, together=together, workers=workers)

    few, many = need(CASE), need(replace(CASE, sites=14))
    assert many.patients == few.patients
    assert many.sites == 2 * few.sites
    assert many.models == 2 * few.models
    assert need(CASE, workers=2).total > need(CASE).total
    assert need(CASE, together=4).patients != few.patients


def test_small_models_are_trained_together_and_long_recurrent_ones_alone() -> None:
    assert choose_together(Case(sites=2, model="logistic", steps=1).make_ground().study, 100) == 256
    assert choose_together(Case(sites=2, model="mlp").make_ground().study, 100) > 4
    assert choose_together(Case(sites=2, model="lstm", steps=48, hidden=32).make_ground().study, 100) == 1
