"""Secure aggregation over Flower: one exchange of orders and answers on its Message API, within bounds of time.

Design note: only public API, and as little waiting inside Flower as can be: answers are first looked for when they
came in the step before (`pace`), then as often as it pays. A site that is lost is an error reply, or no reply; a site
that is slow is waited for as long as patience lasts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

import httpx
from flwr.app import Message
from flwr.serverapp import Grid

from fedtwin_server.pace import Pace
from fedtwin_server.secure_rounds import Take
from fedtwin_shared.errors import VerificationError
from fedtwin_shared.secagg.message import Phase
from fedtwin_shared.secagg.order import ROUTES
from fedtwin_shared.wire import pack_bytes, unpack_bytes

LOGGER: Final = logging.getLogger("fedtwin.coordinator")

SHORTEST_PAUSE_SECONDS: Final = 0.05
LONGEST_PAUSE_SECONDS: Final = 1.0
PAUSE_SHARE: Final = 0.02  # of the time waited so far: polling makes an exchange at most this much longer


class FlowerExchange:
    """An `Exchange` on a Flower Grid.

    patience_seconds: after this, an exchange goes on with as many as are enough. deadline_seconds: after this, it ends.

    - it ends: never later than the deadline, plus one request
    - nothing that a node sends ends it, but only that node's part in it
    """

    def __init__(
        self,
        grid: Grid,
        *,
        patience_seconds: float,
        deadline_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._grid, self._clock, self._sleep = grid, clock, sleep
        self._patience, self._deadline = patience_seconds, deadline_seconds
        self._paces = dict.fromkeys(Phase, Pace())  # the same phase of the next step takes about as long

    def online(self) -> list[int]:
        """See `Exchange.online`."""
        return sorted(self._grid.get_node_ids())

    def ask(self, orders: Mapping[int, bytes], *, phase: Phase, take: Take, enough: int) -> None:
        """See `Exchange.ask`."""
        pace, looks, longest_look, counted = self._paces[phase], 0, 0.0, 0
        waiting, alone = self._send(orders, phase), False
        began = self._clock()
        if waiting and pace.first_look_seconds > 0:
            self._sleep(min(pace.first_look_seconds, self._patience))
        while waiting:
            looked = self._clock()
            for batch in [[one] for one in waiting] if alone else [list(waiting)]:
                replies = self._pull(batch)
                if replies is not None:
                    counted += sum(_take(waiting.pop(one), reply, take) for one, reply in replies.items())
                elif alone:
                    del waiting[batch[0]]
                else:
                    # It took the others of its batch with it. A site answers the same order with the same bytes.
                    again = {node: orders[node] for node in waiting.values()}
                    waiting, alone = self._send(again, phase), True
            waited, looks = self._clock() - began, looks + 1
            longest_look = max(longest_look, began + waited - looked)
            if not waiting:  # a site that did not answer says nothing about when the others do
                self._paces[phase] = pace.after(looks=looks, settled_seconds=waited, longest_look_seconds=longest_look)
            if not waiting or not waited < self._deadline or (counted >= enough and not waited < self._patience):
                LOGGER.info("%s: %d of %d in %.3f s, %d looks", phase, counted, len(orders), waited, looks)
                return
            self._sleep(min(max(SHORTEST_PAUSE_SECONDS, waited * PAUSE_SHARE), LONGEST_PAUSE_SECONDS))

    def _send(self, orders: Mapping[int, bytes], phase: Phase) -> dict[str, int]:
        """Push every node's order; which message went to which node."""
        packed = {order: pack_bytes(order) for order in set(orders.values())}  # most orders are the same for all
        messages = [Message(packed[order], node, f"train.{ROUTES[phase]}") for node, order in orders.items()]
        sent = list(self._grid.push_messages(messages))
        # A message that was too large or malformed has no id, or there is no list at all.
        return {one: node for one, node in zip(sent, orders, strict=False) if one}

    def _pull(self, batch: list[str]) -> dict[str, Message] | None:
        """The replies that are there, by message; None: one of them is such that Flower cannot read it."""
        try:
            replies = list(self._grid.pull_messages(batch))
        except httpx.HTTPError:  # the link, not a site
            raise
        except Exception as err:  # whatever a hostile reply makes Flower raise
            LOGGER.warning("a reply could not be read: %s", type(err).__name__)
            return None
        found = {reply.metadata.reply_to_message_id: reply for reply in replies}
        return {one: reply for one, reply in found.items() if one in batch}


def _take(node: int, reply: Message, take: Take) -> bool:
    if reply.has_error():
        LOGGER.warning("node %d is lost: error %d", node, reply.error.code)
        return False
    try:
        return take(node, unpack_bytes(reply.content))
    except VerificationError as err:
        LOGGER.warning("an answer of node %d was ignored: %s", node, err)
        return False
