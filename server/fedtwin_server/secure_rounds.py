"""The coordinator's part in secure aggregations: it asks, checks what comes back, and learns sums.

Design note: what is decided is in `fedtwin_shared.secagg`; how nodes are asked is passed in (`Exchange`), so that the
same code runs on Flower and in a test without it. Sites may be lost anywhere: before they share, after it, after they
masked, after they agreed. A step goes on with whoever is left, and ends without anything being unmasked below the
terms' minimum.

    set_up      keys, shares, ready                     once for R steps
    aggregate   masked, agreement, unmasking            once for each step
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.secagg.advertising import check_enough, read_advertisements
from fedtwin_shared.secagg.agreement import close_sum, verify_agreement
from fedtwin_shared.secagg.masking import MaskedSum, add_masked, start_sum
from fedtwin_shared.secagg.message import Phase, ProtocolError, WrongShareError, verify_message
from fedtwin_shared.secagg.order import Answer, Order, decode_answer, encode_order
from fedtwin_shared.secagg.sharing import Roll, complete_setup, verify_dealings, verify_ready
from fedtwin_shared.secagg.terms import Setup, Step, Terms
from fedtwin_shared.secagg.unmasking import Revealed, unmask_sum, verify_reveal

LOGGER: Final = logging.getLogger("fedtwin.coordinator")

Take = Callable[[int, bytes], bool]  # a node's answer: whether it counts


class Exchange(Protocol):
    """How nodes are asked."""

    def online(self) -> list[int]:
        """Return the nodes that are there."""

    def ask(self, orders: Mapping[int, bytes], *, phase: Phase, take: Take, enough: int) -> None:
        """Send each node its order and hand its answer to `take`, until every node has answered or been lost.

        After a bounded time it returns with `enough` answers that count, and after a longer one with fewer.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Members:
    """A complete set-up: its roll, and at which node each member that is ready sits."""

    roll: Roll
    nodes: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Aggregate:
    """The sum of a step, whose vectors are in it, and who was caught lying about shares."""

    total: npt.NDArray[np.int64]
    survivors: tuple[str, ...]
    liars: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class SecureCoordinator:
    """Secure aggregations of one run.

    Every method raises `ProtocolError` when too few sites are left; nothing was unmasked then.

    - no instance is asked for twice: a set-up that is used up, or in which a step failed, is replaced by a new one
    """

    terms: Terms
    study: str
    run: str
    exchange: Exchange
    draw_number: Callable[[], int] = field(default=lambda: secrets.randbelow(2**53 - 1) + 1)
    _members: Members | None = field(default=None, init=False)
    _used: int = field(default=0, init=False)

    def aggregate(self, *, make_step: Callable[[int], Step], plan: bytes, model: bytes) -> Aggregate:
        """Return the sum of one step over all sites that are left; `make_step` makes it of an instance's number."""
        if self._members is None or self._used >= self.terms.instances:
            self._members, self._used = set_up(self._new_setup(), self.exchange), 0
        members, step = self._members, make_step(self._used)
        self._used += 1
        try:
            return aggregate(members, step, self.exchange, plan=plan, model=model)
        except ProtocolError:
            self._members = None
            raise

    def _new_setup(self) -> Setup:
        # A site refuses a number that it has seen, so a coordinator that lost its memory must not count.
        return Setup(terms=self.terms, study=self.study, run=self.run, number=self.draw_number())


def set_up(setup: Setup, exchange: Exchange) -> Members:
    """Return a complete set-up of everybody who shared. Raises `ProtocolError` when fewer than n - d are ready."""
    fewest, keys, nodes = setup.terms.minimum, dict[str, bytes](), dict[str, int]()

    def take_keys(node: int, data: bytes) -> bool:
        (message,) = _parts(data, 1, Phase.KEYS)
        sender = verify_message(message, phase=Phase.KEYS, context=setup.digest, terms=setup.terms).sender
        keys.setdefault(sender, message)  # a second node with the same key is the same site
        return nodes.setdefault(sender, node) == node

    order = encode_order(_order(setup, Phase.KEYS))
    exchange.ask(dict.fromkeys(exchange.online(), order), phase=Phase.KEYS, take=_safely(take_keys), enough=fewest)
    advertised = read_advertisements(setup, _without_weak(setup, keys))
    names = {node: name for name, node in nodes.items() if name in advertised}
    dealt, committed = dict[str, dict[str, bytes]](), dict[str, dict[str, bytes]]()

    def take_dealings(node: int, data: bytes) -> bool:
        dealer = names[node]
        others = [name for name in advertised if name != dealer]
        dealings = dict(zip(others, _parts(data, len(others), Phase.SHARES), strict=True))
        committed[dealer] = verify_dealings(setup, advertised, dealer, dealings)
        dealt[dealer] = dealings
        return True

    order = encode_order(_order(setup, Phase.SHARES, parts=[keys[name] for name in advertised]))
    exchange.ask(dict.fromkeys(names, order), phase=Phase.SHARES, take=_safely(take_dealings), enough=fewest)
    roll = complete_setup(setup, advertised, committed)
    ready = dict[str, int]()

    def take_ready(node: int, data: bytes) -> bool:
        (message,) = _parts(data, 1, Phase.READY)
        ready[verify_ready(roll, message)] = node
        return True

    orders = {
        nodes[name]: encode_order(
            _order(setup, Phase.READY, parts=[dealt[dealer][name] for dealer in roll.members if dealer != name])
        )
        for name in roll.members
    }
    exchange.ask(orders, phase=Phase.READY, take=_safely(take_ready), enough=fewest)
    check_enough(setup, ready, phase=Phase.READY)
    return Members(roll=roll, nodes=ready)


def aggregate(members: Members, step: Step, exchange: Exchange, *, plan: bytes, model: bytes) -> Aggregate:
    """Return the sum of one step. Raises `ProtocolError` below the minimum before anything is unmasked."""
    setup, nodes = members.roll.setup, members.nodes
    state = _collect(members, step, exchange, parts=[plan, model])
    survivors = close_sum(state)
    words = dict[str, bytes]()

    def take_word(node: int, data: bytes) -> bool:
        (message,) = _parts(data, 1, Phase.AGREEMENT)
        sender = verify_agreement(message, binding=state.binding, survivors=survivors, terms=setup.terms)
        words[sender] = message
        return True

    order = encode_order(_order(setup, Phase.AGREEMENT, instance=step.instance, survivors=survivors))
    asked = {nodes[name]: order for name in survivors}
    threshold = setup.terms.threshold
    exchange.ask(asked, phase=Phase.AGREEMENT, take=_safely(take_word), enough=threshold)
    revealed, liars = dict[str, Revealed](), list[str]()

    def take_shares(node: int, data: bytes) -> bool:
        (message,) = _parts(data, 1, Phase.UNMASKING)
        try:
            shares = verify_reveal(state, message)
        except WrongShareError as err:
            liars.append(err.sender)
            raise
        revealed[shares.sender] = shares
        return True

    if len(words) >= threshold:
        order = encode_order(_order(setup, Phase.UNMASKING, instance=step.instance, parts=list(words.values())))
        asked = {nodes[name]: order for name in words}
        exchange.ask(asked, phase=Phase.UNMASKING, take=_safely(take_shares), enough=threshold)
    total = _unmask(state, revealed, liars)
    return Aggregate(total=total, survivors=survivors, liars=tuple(sorted(set(liars))))


def _collect(members: Members, step: Step, exchange: Exchange, *, parts: Iterable[bytes]) -> MaskedSum:
    setup, state = members.roll.setup, start_sum(members.roll, step)

    def take_masked(node: int, data: bytes) -> bool:
        nonlocal state
        (message,) = _parts(data, 1, Phase.MASKED)
        state = add_masked(state, message)
        return True

    order = encode_order(_order(setup, Phase.MASKED, instance=step.instance, parts=list(parts)))
    asked = dict.fromkeys(members.nodes.values(), order)
    exchange.ask(asked, phase=Phase.MASKED, take=_safely(take_masked), enough=setup.terms.minimum)
    return state


def _unmask(state: MaskedSum, revealed: Mapping[str, Revealed], liars: list[str]) -> npt.NDArray[np.int64]:
    """A site whose own secret comes out wrong may have lied in its own share only: try once more without it."""
    try:
        return unmask_sum(state, list(revealed.values()))
    except WrongShareError as err:
        rest = [shares for name, shares in revealed.items() if name != err.sender]
        if len(rest) == len(revealed):
            raise
        liars.append(err.sender)
        return unmask_sum(state, rest)


def _without_weak(setup: Setup, keys: Mapping[str, bytes]) -> list[bytes]:
    """Everybody's keys but of those whom `read_advertisements` names: they are told by name, and left out."""
    left = dict(keys)
    while True:
        try:
            read_advertisements(setup, left.values())
        except ProtocolError as err:
            if err.sender not in left:
                raise
            LOGGER.warning("left out of the set-up: %s", err)
            del left[err.sender]
            continue
        return list(left.values())


def _order(
    setup: Setup, phase: Phase, *, instance: int = 0, survivors: tuple[str, ...] = (), parts: Iterable[bytes] = ()
) -> Order:
    return Order(
        phase=phase,
        study=setup.study,
        run=setup.run,
        number=setup.number,
        instance=instance,
        survivors=survivors,
        parts=tuple(parts),
    )


def _parts(data: bytes, count: int, phase: Phase) -> tuple[bytes, ...]:
    answer: Answer = decode_answer(data)
    if answer.refused:
        raise ProtocolError(
            phase=phase, sender="", expected="an answer", found=f"a refusal that blames {answer.blamed!r}"
        )
    if len(answer.parts) != count:
        raise ProtocolError(phase=phase, sender="", expected=f"{count} messages", found=f"{len(answer.parts)}")
    return answer.parts


def _safely(take: Take) -> Take:
    """Nothing that a site sends ends a step: what does not verify does not count."""

    def taken(node: int, data: bytes) -> bool:
        try:
            return take(node, data)
        except (ProtocolError, VerificationError) as err:
            LOGGER.warning("an answer of node %d was ignored: %s", node, err)
            return False

    return taken
