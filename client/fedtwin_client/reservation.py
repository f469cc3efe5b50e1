"""What a task's charge says, as entries that follow from a ledger's state. Pure: whoever calls it writes them."""

from __future__ import annotations

from collections.abc import Callable

from fedtwin_client.journal import Spend
from fedtwin_shared.ledger import entry as entries
from fedtwin_shared.ledger.account import PLACES, BudgetExceededError, LedgerState
from fedtwin_shared.ledger.mechanism import Mechanism, Use
from fedtwin_shared.ledger.renyi import price_uses
from fedtwin_shared.ledger.study_programme import TEST, TRAIN, StudyProgramme


def reserve_task(
    state: LedgerState,
    task: entries.TaskKey,
    programme: StudyProgramme,
    spend: Spend,
    *,
    cohort: str,
    membership: str,
    time: int,
    draw_salt: Callable[[], str],
) -> list[entries.Entry]:
    """Return the round's cohort, unless it is there, the reservation and the start of a task of an enrolled study.

    cohort, membership: salted digests, see `entry`. time: seconds since 1970. Raises `BudgetExceededError` for a
    mechanism without noise; whether the blocks can pay is for the ledger's rules to say.

    - all blocks of the parts that take part are charged
    """
    number = state.studies[task.study].number
    parts = {TRAIN} if spend.releases == 0 else {TEST} if spend.steps == 0 else {TRAIN, TEST}
    blocks = sorted(name for name, block in state.blocks.items() if block.part_of(number) in parts)
    asked: list[tuple[Mechanism, int]] = [(programme.training, spend.steps), (programme.evaluation, spend.releases)]
    uses = tuple(Use(mechanism=mechanism, count=count) for mechanism, count in asked if count)
    price = price_uses(uses)
    if price is None:
        raise BudgetExceededError(field="charge", expected="noise", found="a mechanism without")
    opening = entries.CohortDigest(time=time, salt=draw_salt(), round=task.round_key, cohort=cohort)
    reserve = entries.Reserve(
        time=time,
        salt=draw_salt(),
        task=str(task),
        blocks=tuple(blocks),
        uses=uses,
        price=price[PLACES[state.in_force.order]],
        membership=membership,
    )
    start = entries.Start(time=time, salt=draw_salt(), task=str(task))
    first = [] if task.round_key in state.rounds else [opening]
    return [*first, reserve, start]
