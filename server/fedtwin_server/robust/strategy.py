"""Rules that see every site's update by itself, through Flower's own strategies; none of them works under masks.

Design note: with Flower's SecAgg workflow these strategies silently get one sum and do nothing. Here a rule that needs
single updates and a study that masks them are refused together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.app.message import make_message
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum, MultiKrum

from fedtwin_shared.errors import ConfigurationError

WEIGHT: Final = "weight"
_NOWHERE: Final = Metadata(
    run_id=0,
    message_id="",
    src_node_id=0,
    dst_node_id=0,
    reply_to_message_id="",
    group_id="",
    created_at=0.0,
    ttl=0.0,
    message_type="train",
)

Vector = npt.NDArray[np.float32]


class Rule(StrEnum):
    """How updates become one."""

    MEAN = "mean"
    TRIMMED_MEAN = "trimmed-mean"  # Yin et al. (ICML 2018)
    MEDIAN = "median"  # the same paper
    KRUM = "krum"  # Blanchard et al. (NeurIPS 2017)
    MULTI_KRUM = "multi-krum"


@dataclass(frozen=True, slots=True, kw_only=True)
class Robustness:
    """A rule, and how many hostile sites it is to bear. `ConfigurationError` where it cannot.

    masked: whether updates are seen through secure aggregation only.
    """

    rule: Rule
    sites: int
    hostile: int
    masked: bool

    def __post_init__(self) -> None:
        if self.masked and self.rule is not Rule.MEAN:
            found = f"{self.rule} under secure aggregation, which shows sums only"
            raise ConfigurationError(field="rule", expected="mean, or groups, with secure aggregation", found=found)
        # A majority for the median and for what is left of a trimmed mean; 2f + 3 for Krum (proposition 2).
        needed = {Rule.MEAN: 1, Rule.KRUM: 2 * self.hostile + 3, Rule.MULTI_KRUM: 2 * self.hostile + 3}
        fewest = needed.get(self.rule, 2 * self.hostile + 1)
        if not self.hostile >= 0 or self.sites < fewest:
            expected = f"at least {fewest} sites for {self.rule} and {self.hostile} hostile ones"
            raise ConfigurationError(field="hostile", expected=expected, found=f"{self.sites}")


def aggregate_robustly(robustness: Robustness, updates: Sequence[Vector]) -> Vector:
    """Return one update f32[d] from the sites' updates, all of equal weight."""
    strategy, hostile, count = _strategy(robustness), robustness.hostile, len(updates)
    if count != robustness.sites:
        raise ConfigurationError(field="updates", expected=f"{robustness.sites}", found=f"{count}, {hostile} hostile")
    arrays, _ = strategy.aggregate_train(1, [_as_reply(update) for update in updates])
    if arrays is None:
        raise RuntimeError("Flower's strategy returned nothing for updates that were all there")
    return arrays["update"].numpy().astype(np.float32)


def _strategy(robustness: Robustness) -> FedAvg:
    hostile, count = robustness.hostile, robustness.sites
    match robustness.rule:
        case Rule.MEAN:
            return FedAvg(weighted_by_key=WEIGHT)
        case Rule.TRIMMED_MEAN:
            # So that beta · n, which Flower rounds down, is the hostile sites' number at either end.
            return FedTrimmedAvg(weighted_by_key=WEIGHT, beta=math.nextafter(hostile / count, 1.0))
        case Rule.MEDIAN:
            return FedMedian(weighted_by_key=WEIGHT)
        case Rule.KRUM:
            return Krum(weighted_by_key=WEIGHT, num_malicious_nodes=hostile)
        case Rule.MULTI_KRUM:
            return MultiKrum(
                weighted_by_key=WEIGHT, num_malicious_nodes=hostile, num_nodes_to_select=count - hostile - 2
            )


def _as_reply(update: Vector) -> Message:
    """The update as the message that Flower's strategies read; it is never sent."""
    arrays = ArrayRecord({"update": Array(np.asarray(update))})
    return make_message(_NOWHERE, RecordDict({"arrays": arrays, "metrics": MetricRecord({WEIGHT: 1.0})}))
