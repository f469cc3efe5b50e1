"""What every block has spent, what a study would cost it, and what is left: for people, from a ledger's state."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from fedtwin_shared.ledger.account import PLACES, LedgerState
from fedtwin_shared.ledger.entry import Part
from fedtwin_shared.ledger.filter import read_odometer
from fedtwin_shared.ledger.renyi import convert_to_epsilon, price_uses


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockReport:
    """One block. epsilon: of the filter, at its own order. odometer: valid at all times. left: share of the budget."""

    block: str
    epsilon: Decimal
    odometer: Decimal
    left: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class PartPrice:
    """The whole programme of a part of a study, for the patients of one block.

    share: of the budget of a lifetime; None: no noise. affordable: whether the block can pay for all of it now.
    """

    part: str
    block: str
    share: Decimal | None
    affordable: bool


def describe_blocks(state: LedgerState) -> tuple[BlockReport, ...]:
    """Return what each block has spent, by name."""
    policy, budget = state.in_force, state.budget
    return tuple(
        BlockReport(
            block=name,
            epsilon=convert_to_epsilon(state.spent(name), order=policy.order, delta=policy.delta),
            odometer=read_odometer(block.spent, order=policy.order, delta=policy.delta),
            left=share_of(budget - state.spent(name), budget),
        )
        for name, block in sorted(state.blocks.items())
    )


def price_parts(state: LedgerState, parts: tuple[Part, ...]) -> tuple[PartPrice, ...]:
    """Return what the parts of a study cost every block there is, whether or not the study is enrolled."""
    place, budget = PLACES[state.in_force.order], state.budget
    priced = []
    for part in parts:
        curve = price_uses(part.programme)
        price = None if curve is None else curve[place]
        for name in sorted(state.blocks):
            affordable = price is not None and state.spent(name) + price <= budget
            share = None if price is None else share_of(price, budget)
            priced.append(PartPrice(part=part.name, block=name, share=share, affordable=affordable))
    return tuple(priced)


def share_of(part: int, whole: int) -> Decimal:
    """Return part ÷ whole with four digits."""
    return (Decimal(part) / Decimal(whole)).quantize(Decimal("0.0001"))
