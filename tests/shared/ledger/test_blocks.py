"""Blocks come from public events alone, and no event makes any patient's spend smaller."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fedtwin_shared.ledger.blocks import (
    NOTHING,
    READMITTED,
    Block,
    charge,
    combinations,
    dominates,
    maximum,
    merge_blocks,
    open_epoch,
    refund,
    split_blocks,
)
from fedtwin_shared.ledger.renyi import ORDERS, Curve

CURVES = st.lists(st.integers(0, 10**9), min_size=len(ORDERS), max_size=len(ORDERS)).map(tuple)
TWO_PARTS = ("test", "train")


def by_name(blocks: tuple[Block, ...]) -> dict[str, Block]:
    return {block.name: block for block in blocks}


def some_blocks(first: Curve, second: Curve) -> tuple[Block, ...]:
    """Two families and one study, with different spends."""
    blocks = split_blocks(open_epoch([], 0, {}), 1, TWO_PARTS)
    spends = [first, second, NOTHING, second, first, NOTHING]
    return tuple(charge(block, spend) for block, spend in zip(blocks, spends, strict=True))


def test_an_epoch_opens_blocks_for_new_and_for_unknown_patients_in_every_combination() -> None:
    blocks = open_epoch([], 0, {1: TWO_PARTS, 4: ("all",)})
    names = {"", "/1.test", "/1.train", "/4.all", "/1.test/4.all", "/1.train/4.all"}
    assert by_name(blocks).keys() == {family + name for family in ("0", "r") for name in names}


def test_an_enrolment_splits_every_block_and_each_child_carries_all_spend() -> None:
    price = tuple(range(len(ORDERS)))
    before = tuple(charge(block, price) for block in open_epoch([], 0, {}))
    after = by_name(split_blocks(before, 1, TWO_PARTS))
    assert after.keys() == {"0", "0/1.test", "0/1.train", "r", "r/1.test", "r/1.train"}
    assert {block.spent for block in after.values()} == {price}


def test_what_is_split_by_enrolment_is_what_an_epoch_opens() -> None:
    studies = {1: TWO_PARTS, 2: ("all",)}
    split = split_blocks(split_blocks(open_epoch([], 0, {}), 1, TWO_PARTS), 2, ("all",))
    assert by_name(split) == by_name(open_epoch([], 0, studies))
    assert len(combinations(studies)) == 3 * 2


@settings(max_examples=10)
@given(first=CURVES, second=CURVES)
def test_a_merge_carries_the_element_wise_maximum(first: Curve, second: Curve) -> None:
    before = some_blocks(first, second)
    after = by_name(merge_blocks(before, 1))
    assert after.keys() == {"0", "r"}
    for block in before:
        assert dominates(after[block.family].spent, block.spent)
    assert after["0"].spent == maximum([first, second])


@settings(max_examples=10)
@given(first=CURVES, second=CURVES)
def test_whoever_is_not_certainly_new_joins_a_block_that_has_spent_the_most(first: Curve, second: Curve) -> None:
    before = some_blocks(first, second)
    after = by_name(open_epoch(before, 1, {1: TWO_PARTS}))
    for membership in ("", "/1.test", "/1.train"):
        assert after[f"1{membership}"].spent == NOTHING
        assert all(dominates(after[f"{READMITTED}{membership}"].spent, block.spent) for block in before)
    assert all(after[block.name].spent == block.spent for block in before if block.family != READMITTED)


def test_more_memberships_never_mean_less_spend() -> None:
    """Joining a study later is a move to a block that has spent at least as much."""
    price = (5,) * len(ORDERS)
    blocks = split_blocks(open_epoch([], 0, {}), 1, ("all",))
    charged = tuple(charge(block, price) if block.part_of(1) else block for block in blocks)
    split = by_name(split_blocks(charged, 2, ("all",)))
    assert dominates(split["0/1.all"].spent, split["0"].spent)
    assert dominates(split["0/1.all/2.all"].spent, split["0/2.all"].spent)


@settings(max_examples=10)
@given(first=CURVES, second=CURVES)
def test_a_refund_undoes_a_charge(first: Curve, second: Curve) -> None:
    block = Block(family="0", membership=(), spent=first)
    assert refund(charge(block, second), second) == block
    assert dominates(charge(block, second).spent, first)
