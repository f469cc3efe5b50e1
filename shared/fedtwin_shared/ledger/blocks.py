"""Blocks: patients who took part in the same things, and what each of them has spent at most.

Design note: no entry names a block into existence, since a block that somebody may shape is a budget that somebody may
refill. Blocks follow from three public events, for every combination of memberships at once, so that they tell nothing:

- an admission epoch opens a family of empty blocks for patients never seen before, and raises family `r`, for patients
  of whom that is not certain, to the element-wise maximum of everything there is;
- an enrolment splits every block into those outside the study and those in each of its parts; each copies all spend;
- a closure merges the blocks that differ in that study alone; the merged one carries the element-wise maximum.

A patient only ever moves to a block of the same family with more memberships, or at an epoch to family `r`: blocks that
have spent at least as much. Whoever leaves a study stays in its block and is left out of its cohort.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from operator import add, sub
from typing import Final

from fedtwin_shared.ledger.renyi import ORDERS, Curve

READMITTED: Final = "r"  # family of patients who may have been in any block
NOTHING: Final[Curve] = (0,) * len(ORDERS)

Membership = tuple[tuple[int, str], ...]  # number of the study in this ledger and its part, by number


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One block. family: number of the admission epoch, or `READMITTED`. spent: nano-RDP at each of `renyi.ORDERS`."""

    family: str
    membership: Membership
    spent: Curve = NOTHING

    @property
    def name(self) -> str:
        """The block's name: `0/1.train/3.test` is of epoch 0, in part `train` of study 1 and `test` of study 3."""
        return "/".join([self.family, *(f"{number}.{part}" for number, part in self.membership)])

    def part_of(self, number: int) -> str | None:
        """Return the part of a study in which these patients are, or None."""
        return dict(self.membership).get(number)


def charge(block: Block, price: Curve) -> Block:
    """Return the block after one more price."""
    return replace(block, spent=tuple(map(add, block.spent, price)))


def refund(block: Block, price: Curve) -> Block:
    """Return the block before that price."""
    return replace(block, spent=tuple(map(sub, block.spent, price)))


def dominates(one: Curve, other: Curve) -> bool:
    """Return whether `one` is at least `other` at every order."""
    return all(left >= right for left, right in zip(one, other, strict=True))


def maximum(curves: Iterable[Curve]) -> Curve:
    """Return the element-wise maximum."""
    return tuple(map(max, zip(NOTHING, *curves, strict=True)))


def open_epoch(blocks: Iterable[Block], epoch: int, studies: Mapping[int, tuple[str, ...]]) -> tuple[Block, ...]:
    """Return all blocks after an admission epoch. studies: parts of each open study.

    - new blocks have spent nothing and belong to the new epoch alone
    - every block of family `r` dominates every block that there was
    """
    before = tuple(blocks)
    most = maximum(block.spent for block in before)
    kept = (block for block in before if block.family != READMITTED)
    memberships = combinations(studies)
    new = (Block(family=str(epoch), membership=membership) for membership in memberships)
    unknown = (Block(family=READMITTED, membership=membership, spent=most) for membership in memberships)
    return (*kept, *new, *unknown)


def split_blocks(blocks: Iterable[Block], number: int, parts: tuple[str, ...]) -> tuple[Block, ...]:
    """Return all blocks after the enrolment of study `number`: every child carries all that its parent spent."""
    return tuple(
        replace(block, membership=block.membership + member)
        for block in blocks
        for member in ((), *(((number, part),) for part in parts))
    )


def merge_blocks(blocks: Iterable[Block], number: int) -> tuple[Block, ...]:
    """Return all blocks after the closure of study `number`: the element-wise maximum of those that become one."""
    merged: dict[tuple[str, Membership], list[Curve]] = {}
    for block in blocks:
        left = tuple(member for member in block.membership if member[0] != number)
        merged.setdefault((block.family, left), []).append(block.spent)
    return tuple(
        Block(family=family, membership=membership, spent=maximum(curves))
        for (family, membership), curves in merged.items()
    )


def combinations(studies: Mapping[int, tuple[str, ...]]) -> tuple[Membership, ...]:
    """Return every way to be in at most one part of each study."""
    choices = [[None, *((number, part) for part in parts)] for number, parts in sorted(studies.items())]
    return tuple(tuple(member for member in chosen if member is not None) for chosen in itertools.product(*choices))
