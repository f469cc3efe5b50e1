"""A site's answers to the orders of a secure aggregation: bytes in, bytes out.

Design note: the terms come from the study that this hospital approved, the step from a plan that it verifies itself
(`PrepareStep`); an order only says which phase of which set-up is next.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Final, Protocol

from fedtwin_client.secure_round import Compute, SecureRounds
from fedtwin_client.secure_store import SecureStoreError
from fedtwin_shared.errors import VerificationError
from fedtwin_shared.secagg.message import Phase, ProtocolError
from fedtwin_shared.secagg.order import Answer, Order, decode_order, encode_answer
from fedtwin_shared.secagg.terms import Setup, Step

LOGGER: Final = logging.getLogger("fedtwin.hospital")

IN_A_SETUP: Final = frozenset({Phase.KEYS, Phase.SHARES, Phase.READY})

FindSetup = Callable[[str, str, int], Setup | None]  # study, run, number: of an approved study with secure aggregation
# The order's instance, plan and model, verified: the step, and what computes this site's vector for it.
PrepareStep = Callable[[Setup, int, bytes, bytes], tuple[Step, Compute]]


class AnswersOrders(Protocol):
    """Whatever answers orders."""

    def answer(self, data: bytes) -> bytes:
        """Return the answer to an order, `order.encode_answer`'s form of it."""


class SecureSite:
    """One hospital in secure aggregations. One order at a time, from whichever thread.

    - whatever is refused is an answer that names the phase and whom it blames: no text, no count
    - the same order gets the same answer again: within a step from the store, within a set-up from memory
    """

    def __init__(self, *, rounds: SecureRounds, find_setup: FindSetup, prepare_step: PrepareStep) -> None:
        self._rounds, self._find_setup, self._prepare_step = rounds, find_setup, prepare_step
        self._one_at_a_time = threading.Lock()
        self._last: tuple[bytes, tuple[bytes, ...]] = b"", ()  # the last order of a set-up, and what it was answered

    def answer(self, data: bytes) -> bytes:
        """Return the answer to an order. An exception of the computation passes through; its instance is unused."""
        with self._one_at_a_time:
            return self._answer(data)

    def _answer(self, data: bytes) -> bytes:
        try:
            order = decode_order(data)
        except VerificationError as err:
            LOGGER.warning("an order was refused: %s", err)
            return encode_answer(Answer(refused=Phase.KEYS.value))
        asked, parts = self._last
        if asked == data:
            return encode_answer(Answer(parts=parts))
        try:
            parts = self._work(order)
        except ProtocolError as err:
            LOGGER.warning("refused %s", err)
            return encode_answer(Answer(refused=err.phase.value, blamed=err.sender))
        except (VerificationError, SecureStoreError) as err:
            LOGGER.error("refused %s: %s", order.phase, err)
            return encode_answer(Answer(refused=order.phase.value))
        if order.phase in IN_A_SETUP:
            self._last = data, parts
        return encode_answer(Answer(parts=parts))

    def _work(self, order: Order) -> tuple[bytes, ...]:
        setup = self._find_setup(order.study, order.run, order.number)
        if setup is None:
            raise VerificationError(field="study", expected="one with secure aggregation", found=order.study[:12])
        rounds, parts = self._rounds, order.parts
        match order.phase:
            case Phase.KEYS:
                return (rounds.advertise(setup),)
            case Phase.SHARES:
                dealings = rounds.share(setup, parts)
                return tuple(dealings[name] for name in sorted(dealings))
            case Phase.READY:
                return (rounds.receive(setup, parts),)
            case Phase.MASKED:
                if len(parts) != 2:
                    raise VerificationError(field="order", expected="a plan and a model", found=f"{len(parts)} parts")
                step, compute = self._prepare_step(setup, order.instance, *parts)
                return (rounds.mask(setup, step, compute),)
            case Phase.AGREEMENT:
                return (rounds.agree(setup, order.instance, order.survivors),)
            case Phase.UNMASKING:
                return (rounds.reveal(setup, order.instance, parts),)
