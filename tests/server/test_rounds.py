"""Rounds: the order of answers is irrelevant, refusals change nothing, retries stay within the plan."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtwin_server.errors import RunError
from fedtwin_server.rounds import (
    Answers,
    RunState,
    attempts_issued,
    finish_round,
    group_names,
    is_settled,
    measure,
    model_to_send,
    next_task,
    plan_round,
    release_model,
    retry_round,
)
from fedtwin_server.strategy import aggregate_updates
from fedtwin_shared.errors import VerificationError
from fedtwin_shared.histogram import bin_edges, count_scores
from fedtwin_shared.models import digest_parameters
from fedtwin_shared.round import Refusal, RefusalCode, SiteUpdate, Task
from fedtwin_shared.signing import canonical_json
from tests.server.consortium import start, train_by_rule
from tests.world import SITES, World, make_world

PLAN = "0" * 64
TRAINING = {"rounds": 3, "learning_rate": 1.0, "minimum_sites": 2}
PRIVACY = {"epsilon": 8.0, "delta": 1e-5, "noise_multiplier": 6.0}


def answer_all(world: World, state: RunState, sites: tuple[str, ...] = SITES) -> tuple[SiteUpdate, ...]:
    plan = plan_round(world.study, state)
    assert plan is not None
    sent = model_to_send(world.study, state)
    return tuple(
        SiteUpdate(site=site, plan=PLAN, arrays=train_by_rule(world.study, plan, sent, site)) for site in sites
    )


def refuse(site: str, code: RefusalCode = RefusalCode.POLICY) -> Refusal:
    return Refusal(site=site, plan=PLAN, code=code)


def finish(world: World, state: RunState, answers: Answers) -> RunState:
    return finish_round(world.study, state, answers, aggregate=aggregate_updates).state


def complete(world: World, state: RunState) -> RunState:
    while next_task(world.study, state) is not None:
        state = finish(world, state, Answers(updates=answer_all(world, state)))
    return state


def test_a_run_evaluates_and_trains_in_the_order_of_the_study() -> None:
    world = make_world(evaluation={"noise_multiplier": 6.0, "rounds": [0, 2]})
    state, tasks = start(world), list[tuple[str, int]]()
    while (plan := plan_round(world.study, state)) is not None:
        tasks.append((plan.task.value, plan.round))
        state = finish(world, state, Answers(updates=answer_all(world, state)))
    assert tasks == [
        ("evaluate", 0),
        ("train", 1),
        ("train", 2),
        ("evaluate", 2),
        ("train", 3),
        ("evaluate", 3),
    ]
    assert sorted(state.histograms) == [0, 2, 3]
    assert [record.task for record in state.history].count(Task.TRAIN) == 3


@given(order=st.permutations(SITES), task=st.sampled_from(["fedavg", "fedprox", "fedadam", "fedyogi"]))
@settings(max_examples=20, deadline=None)
def test_the_order_in_which_answers_arrive_changes_nothing(order: list[str], task: str) -> None:
    world = make_world(training=TRAINING | {"algorithm": task, "proximal": 0.1 if task == "fedprox" else 0.0})
    state = start(world)
    updates = {update.site: update for update in answer_all(world, state)}
    straight = finish(world, state, Answers(updates=tuple(updates.values())))
    shuffled = finish(world, state, Answers(updates=tuple(updates[site] for site in order)))
    assert digest_parameters(straight.model.parameters) == digest_parameters(shuffled.model.parameters)
    assert straight.history == shuffled.history


@given(
    weights=st.lists(st.floats(min_value=0.01, max_value=100), min_size=4, max_size=4),
    present=st.sets(st.sampled_from(SITES), min_size=2),
)
@settings(max_examples=30, deadline=None)
def test_weights_are_the_public_constants_over_their_sum(weights: list[float], present: set[str]) -> None:
    participants = [
        {"site": site, "patients": 100, "weight": weight} for site, weight in zip(SITES, weights, strict=True)
    ]
    world = make_world(participants=participants)
    state = start(world)
    after = finish(world, state, Answers(updates=answer_all(world, state, tuple(sorted(present)))))
    share = {site: weight for site, weight in zip(SITES, weights, strict=True) if site in present}
    updates = {update.site: update.arrays for update in answer_all(world, state)}
    for name, array in after.model.parameters.items():
        expected = sum(
            weight / sum(share.values()) * updates[site][name].astype(np.float64) for site, weight in share.items()
        )
        np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-5)


@given(
    refusing=st.dictionaries(st.sampled_from(SITES[2:]), st.sampled_from(list(RefusalCode))),
    unverified=st.integers(0, 5),
    errors=st.dictionaries(st.sampled_from(["node-unavailable", "app-failed"]), st.integers(1, 3)),
)
@settings(max_examples=30, deadline=None)
def test_refusals_errors_and_unverified_answers_never_change_parameters(
    refusing: dict[str, RefusalCode], unverified: int, errors: dict[str, int]
) -> None:
    world = WORLD
    state = start(world)
    updates = answer_all(world, state, SITES[:2])
    alone = finish(world, state, Answers(updates=updates))
    refusals = tuple(refuse(site, code) for site, code in refusing.items())
    mixed = finish(world, state, Answers(updates=updates, refusals=refusals, unverified=unverified, errors=errors))
    assert digest_parameters(alone.model.parameters) == digest_parameters(mixed.model.parameters)
    (record,) = mixed.history
    assert record.refusals == refusing
    assert record.errors == errors
    assert record.unverified == unverified


WORLD = make_world()


def test_below_the_minimum_only_failed_changes() -> None:
    world = make_world()
    before = start(world)
    result = finish_round(
        world.study, before, Answers(updates=answer_all(world, before, SITES[:1])), aggregate=aggregate_updates
    )
    assert not result.counts
    assert result.state.failed == result.record
    assert dataclasses.replace(result.state, failed=None).model is before.model
    assert result.state.history == ()
    assert plan_round(world.study, result.state) == plan_round(world.study, before)


def test_two_answers_of_one_site_are_an_error() -> None:
    world = make_world()
    state = start(world)
    updates = answer_all(world, state)
    with pytest.raises(RunError, match="two of one site"):
        finish(world, state, Answers(updates=(*updates, updates[0])))
    with pytest.raises(RunError, match="two of one site"):
        finish(world, state, Answers(updates=updates, refusals=(refuse(SITES[0]),)))


def test_a_sum_that_is_not_finite_is_refused() -> None:
    world = make_world()
    state = start(world)
    huge = {name: np.full(array.shape, 3e38, np.float32) for name, array in state.model.parameters.items()}
    heavy = {name: array / np.float32(0.9) for name, array in huge.items()}
    updates = tuple(SiteUpdate(site=site, plan=PLAN, arrays=heavy if site == SITES[0] else huge) for site in SITES)

    def overflow(*arguments: Any) -> Any:
        model = aggregate_updates(*arguments)
        return dataclasses.replace(model, parameters={name: a * 10 for name, a in model.parameters.items()})

    with np.errstate(over="ignore"), pytest.raises(VerificationError, match="finite"):
        finish_round(world.study, state, Answers(updates=updates), aggregate=overflow)


def test_the_same_state_gives_the_same_plan_byte_for_byte() -> None:
    world = make_world()
    first, second = (plan_round(world.study, start(world)) for _ in range(2))
    assert first is not None
    assert second is not None
    assert canonical_json(first.model_dump(mode="json")) == canonical_json(second.model_dump(mode="json"))


def test_the_released_model_is_the_mean_from_the_named_round_on() -> None:
    world = make_world(training=TRAINING | {"average_from_round": 2})
    state, models = start(world), list[dict[str, Any]]()
    while next_task(world.study, state) is not None:
        before = state.rounds_done
        state = finish(world, state, Answers(updates=answer_all(world, state)))
        if state.rounds_done > before:
            models.append(dict(state.model.parameters))
    released = release_model(world.study, state)
    for name, array in released.items():
        expected = np.mean([models[1][name].astype(np.float64), models[2][name].astype(np.float64)], axis=0)
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, expected.astype(np.float32))


def test_without_averaging_the_released_model_is_the_last_one() -> None:
    state = complete(WORLD, start(WORLD))
    assert release_model(WORLD.study, state) is state.model.parameters


def test_nothing_is_released_before_the_last_round() -> None:
    with pytest.raises(RunError, match="rounds_done"):
        release_model(WORLD.study, start(WORLD))


@pytest.mark.parametrize(
    ("updates", "refusals", "waiting", "waited", "settled"),
    [
        (4, 0, 0, 0.0, True),  # everybody
        (1, 3, 0, 0.0, True),  # everybody, and it will not get better
        (2, 0, 0, 0.0, True),  # everybody who is connected
        (2, 0, 1, 29.9, False),  # patience
        (2, 0, 1, 30.0, True),
        (1, 0, 0, 30.0, False),  # below the minimum: until the deadline
        (1, 0, 3, 299.9, False),
        (1, 0, 3, 300.0, True),
        (0, 0, 0, 0.0, False),
        (0, 0, 0, float("nan"), True),  # a broken clock never waits for ever
    ],
)
def test_when_a_round_ends(updates: int, refusals: int, waiting: int, waited: float, settled: bool) -> None:
    found = is_settled(WORLD.study, updates=updates, refusals=refusals, waiting=waiting, waited_seconds=waited)
    assert found is settled


def fail(world: World, state: RunState, *refusals: Refusal) -> RunState:
    state = finish(world, state, Answers(refusals=refusals))
    assert state.failed is not None
    return state


def test_a_retry_keeps_the_attempt_while_enough_sites_can_still_answer() -> None:
    failed = fail(WORLD, start(WORLD), *(refuse(site, RefusalCode.ATTEMPT_SPENT) for site in SITES[:2]))
    again = retry_round(WORLD.study, failed)
    assert (again.attempt, again.failed) == (1, None)


def test_a_retry_raises_the_attempt_only_within_the_spare_rounds() -> None:
    world = make_world(
        privacy=PRIVACY | {"spare_rounds": 2}, evaluation={"noise_multiplier": 6.0}, training=TRAINING | {"rounds": 2}
    )
    crashed = [refuse(site, RefusalCode.ATTEMPT_SPENT) for site in SITES[:3]]
    state = retry_round(world.study, fail(world, start(world), *crashed))
    assert state.attempt == 2
    state = finish(world, state, Answers(updates=answer_all(world, state)))
    assert state.attempt == 1
    state = retry_round(world.study, fail(world, state, *crashed))
    assert state.attempt == 2
    with pytest.raises(RunError, match="spare_rounds"):
        retry_round(world.study, fail(world, state, *crashed))
    assert attempts_issued(world.study, state, Task.TRAIN) == 4  # two rounds, each asked twice
    assert attempts_issued(world.study, state, Task.EVALUATE) == 0


def test_a_retry_of_a_run_that_did_not_fail_changes_nothing() -> None:
    state = start(WORLD)
    assert retry_round(WORLD.study, state) is state


def test_metrics_are_those_of_the_summed_histograms() -> None:
    world = make_world(evaluation={"noise_multiplier": 6.0, "subgroups": ["sex"], "bins": 1000, "low": -8.0})
    study = world.study
    generator = np.random.Generator(np.random.PCG64(1))
    edges, sites, scored = bin_edges(study.evaluation), dict[str, Any](), list[Any]()
    for site in SITES:
        outcome = (generator.random(200) < 0.3).astype(np.float64)
        score = 1 / (1 + np.exp(-(outcome - 0.5 + generator.normal(0, 1, 200))))
        counts = count_scores(score, outcome, edges)
        sites[site] = np.stack([counts, *[counts * 0] * (len(group_names(study)) - 1)])
        scored.append((score, outcome))
    found = measure(study, sites)
    assert list(found.overall) == list(group_names(study))
    score, outcome = (np.concatenate(parts) for parts in zip(*scored, strict=True))
    positive, negative = score[outcome == 1][:, None], score[outcome == 0][None]
    exact = float((positive > negative).mean() + (positive == negative).mean() / 2)
    assert found.overall["everybody"].auroc == pytest.approx(exact, abs=2e-3)
    assert np.isnan(found.overall[group_names(study)[1]].auroc)
    assert set(found.sites) == set(SITES)
