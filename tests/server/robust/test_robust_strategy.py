from __future__ import annotations

import numpy as np
import pytest

from fedtwin_server.robust.strategy import Robustness, Rule, aggregate_robustly
from fedtwin_shared.errors import ConfigurationError

HONEST = np.random.default_rng(0).normal(1.0, 0.01, size=(9, 4)).astype(np.float32)
HOSTILE = np.full((2, 4), -1e6, dtype=np.float32)
UPDATES = [*HONEST, *HOSTILE]


def rule_for(rule: Rule, *, hostile: int = 2, sites: int = 11, masked: bool = False) -> Robustness:
    return Robustness(rule=rule, sites=sites, hostile=hostile, masked=masked)


@pytest.mark.parametrize("rule", [rule for rule in Rule if rule is not Rule.MEAN])
def test_hostile_updates_do_not_move_the_result(rule: Rule) -> None:
    found = aggregate_robustly(rule_for(rule), UPDATES)
    assert np.abs(found - 1.0).max() < 0.05
    undefended = aggregate_robustly(rule_for(Rule.MEAN), UPDATES)
    assert np.abs(undefended - 1.0).min() > 1e4


def test_the_rules_are_what_their_papers_say() -> None:
    ordered = np.sort(np.stack(UPDATES), axis=0)
    assert aggregate_robustly(rule_for(Rule.MEDIAN), UPDATES) == pytest.approx(ordered[5], rel=1e-6)
    trimmed = ordered[2:-2].mean(axis=0)  # two at either end
    assert aggregate_robustly(rule_for(Rule.TRIMMED_MEAN), UPDATES) == pytest.approx(trimmed, rel=1e-5)
    krum = aggregate_robustly(rule_for(Rule.KRUM), UPDATES)
    assert any(np.array_equal(krum, update) for update in HONEST)


@pytest.mark.parametrize("rule", [rule for rule in Rule if rule is not Rule.MEAN])
def test_a_rule_that_needs_single_updates_is_refused_under_masks(rule: Rule) -> None:
    with pytest.raises(ConfigurationError, match=f"{rule.value} under secure aggregation, which shows sums only"):
        rule_for(rule, masked=True)
    rule_for(Rule.MEAN, masked=True)


@pytest.mark.parametrize(
    ("rule", "hostile", "sites"),
    [(Rule.KRUM, 4, 10), (Rule.MULTI_KRUM, 2, 6), (Rule.MEDIAN, 5, 10), (Rule.TRIMMED_MEAN, 1, 2), (Rule.MEAN, -1, 5)],
)
def test_more_hostile_sites_than_a_rule_bears_are_refused(rule: Rule, hostile: int, sites: int) -> None:
    with pytest.raises(ConfigurationError, match="hostile: expected at least"):
        rule_for(rule, hostile=hostile, sites=sites)


def test_another_number_of_updates_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="updates: expected 11"):
        aggregate_robustly(rule_for(Rule.MEDIAN), UPDATES[:10])
