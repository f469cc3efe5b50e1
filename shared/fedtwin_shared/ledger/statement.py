"""A verified ledger in words and numbers, for a person and for a machine."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping

from fedtwin_shared.ledger.account import LedgerState
from fedtwin_shared.ledger.filter import read_odometer
from fedtwin_shared.ledger.study_comparison import find_uncompared
from fedtwin_shared.ledger.verification import VerifiedLog


def describe_ledger(log: VerifiedLog[LedgerState], documents: Mapping[str, bytes]) -> dict[str, object]:
    """Return what is claimed, what each block of patients has spent of it, and who saw this history when.

    epsilon: of the odometer, valid at all times and for every earlier choice of studies. spent_share: of the budget.
    studies_not_compared: enrolled ones whose signed study is not among the bundle's documents.
    """
    state = log.state
    described: dict[str, object] = {
        "origin": log.checkpoint.origin,
        "entries": log.checkpoint.size,
        "root": log.checkpoint.root.hex(),
        "cosigned": {one.witness: format_time(one.timestamp) for one in log.cosignatures},
    }
    if state.policy is None:
        return described
    policy, budget = state.policy, state.budget
    return described | {
        "unit": policy.unit,
        "claim": {"epsilon": str(state.claims[-1]), "delta": str(policy.delta), "adjacency": policy.adjacency},
        "claims_before": [str(epsilon) for epsilon in state.claims[:-1]],
        "studies": sorted(state.studies),
        "studies_not_compared": find_uncompared(state, documents),
        "blocks": {
            name: {
                "epsilon": str(read_odometer(block.spent, order=policy.order, delta=policy.delta)),
                "spent_share": f"{state.spent(name) / budget:.4f}",
            }
            for name, block in sorted(state.blocks.items())
        },
    }


def format_time(seconds: int) -> str:
    """Return Unix seconds as a UTC time; as they are where no calendar has them."""
    try:
        return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    except (OverflowError, ValueError, OSError):  # a witness may sign any 63-bit number
        return f"{seconds} s"
