"""A site's part in secure aggregations: every message answered once, and the answer durable before it leaves.

Design note: what is decided is in `fedtwin_shared.secagg`; here is the order of deciding and remembering. A set-up
lives in memory until it is complete: a site that restarts within one has lost it, and the others count it as lost. From
then on every instance is in the store, and a site that restarts within a step goes on where it was:

    unused ── keep ──► masked ── keep ──► agreed ── keep ──► revealed
                    └ a crash before the vector has left: the instance is spent, this site is out of the step

- no instance serves two steps; no step gets two vectors, two survivor sets or two kinds of share
- the very same request gets the very same bytes again, until another step begins (a masked vector: until a restart);
  any other one is refused
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from fedtwin_client.secure_store import InstanceStore, Kept, Status
from fedtwin_shared.secagg.advertising import Advertised, advertise_keys
from fedtwin_shared.secagg.agreement import Agreed, agree, encode_survivors
from fedtwin_shared.secagg.masking import Masked, mask_input
from fedtwin_shared.secagg.message import Phase, ProtocolError
from fedtwin_shared.secagg.sharing import Dealt, Instance, receive_shares, share_keys
from fedtwin_shared.secagg.terms import Draw, Seat, Setup, Sign, Step
from fedtwin_shared.secagg.unmasking import reveal
from fedtwin_shared.signing import digest

COORDINATOR: Final = "coordinator"  # who asked, where the request itself is refused

Compute = Callable[[], npt.NDArray[np.int64]]  # charges, samples, trains, adds noise: once for a step, or not at all


class SecureRounds:
    """One site in any number of secure aggregations, one after the other.

    Every method raises `ProtocolError` for what the protocol refuses, and nothing has changed then; `SecureStoreError`
    when something cannot be remembered, and nothing has left then.
    """

    def __init__(self, *, name: str, sign: Sign, store: InstanceStore, draw: Draw = os.urandom) -> None:
        self._name, self._sign, self._store, self._draw = name, sign, store, draw
        self._setups = dict[str, Advertised | Dealt]()
        self._masked = "", b""  # the last step that was masked, and the message

    def advertise(self, setup: Setup) -> bytes:
        """Return this site's keys for a new set-up. Earlier set-ups that were not completed are forgotten."""
        if not self._store.open_setup(setup.digest):
            raise self._out_of_order(Phase.KEYS, expected="a new set-up", found="one that was begun before")
        state, message = advertise_keys(self._seat(setup))
        self._setups = {setup.digest: state}
        return message

    def share(self, setup: Setup, messages: Iterable[bytes]) -> dict[str, bytes]:
        """Return the dealing for each peer that advertised keys."""
        state = self._setups.get(setup.digest)
        if not isinstance(state, Advertised):
            raise self._out_of_order(Phase.SHARES, expected="keys that were advertised", found="none")
        dealt, dealings = share_keys(self._seat(setup), state, messages)
        self._setups[setup.digest] = dealt
        return dealings

    def receive(self, setup: Setup, dealings: Iterable[bytes]) -> bytes:
        """Return the message that this site is ready; its instances are on the disk then."""
        state = self._setups.get(setup.digest)
        if not isinstance(state, Dealt):
            raise self._out_of_order(Phase.READY, expected="shares that were dealt", found="none")
        instances, message = receive_shares(self._seat(setup), state, dealings)
        self._store.keep(setup.digest, instances)
        del self._setups[setup.digest]
        return message

    def mask(self, setup: Setup, step: Step, compute: Compute) -> bytes:
        """Return this site's masked vector, which `compute` makes: at most once for an instance.

        An exception of `compute` passes through and uses nothing; whether it charged is its own affair.
        """
        request = step.bind(setup.digest)
        kept = self._find(setup, step.instance, Phase.MASKED)
        if kept.status is Status.MASKED and self._masked[0] == request:
            return self._masked[1]
        if not isinstance(kept.state, Instance):
            raise self._out_of_order(Phase.MASKED, expected="an unused instance", found=f"one that is {kept.status}")
        vector, uses = compute(), _Uses(store=self._store, setup=setup.digest)
        _, message = mask_input(self._seat(setup), kept.state, step, vector, uses=uses)
        self._masked = request, message
        return message

    def agree(self, setup: Setup, instance: int, survivors: Sequence[str]) -> bytes:
        """Return this site's word on the survivors: on one set of them, ever."""
        request = digest(encode_survivors(survivors))
        kept = self._find(setup, instance, Phase.AGREEMENT)
        if (again := _answered(kept, Status.AGREED, request)) is not None:
            return again
        if not isinstance(kept.state, Masked):
            raise self._out_of_order(Phase.AGREEMENT, expected="a masked vector", found=f"one that is {kept.status}")
        agreed, message = agree(self._seat(setup), kept.state, survivors)
        after = Kept(status=Status.AGREED, state=agreed, request=request, answer=message)
        self._store.replace(setup.digest, instance, after, before=Status.MASKED)
        return message

    def reveal(self, setup: Setup, instance: int, agreements: Iterable[bytes]) -> bytes:
        """Return one share for each member, once; afterwards this site holds none of them any more."""
        words = list(agreements)
        request = digest("".join(sorted(digest(word) for word in words)).encode())
        kept = self._find(setup, instance, Phase.UNMASKING)
        if (again := _answered(kept, Status.REVEALED, request)) is not None:
            return again
        if not isinstance(kept.state, Agreed):
            raise self._out_of_order(Phase.UNMASKING, expected="an agreement", found=f"one that is {kept.status}")
        message = reveal(self._seat(setup), kept.state, words)
        after = Kept(status=Status.REVEALED, request=request, answer=message)
        self._store.replace(setup.digest, instance, after, before=Status.AGREED)
        return message

    def forget(self, setup: Setup) -> None:
        """Forget all secrets of a set-up: its run is over."""
        self._setups.pop(setup.digest, None)
        self._store.forget(setup.digest)

    def _find(self, setup: Setup, instance: int, phase: Phase) -> Kept:
        kept = self._store.find(setup.digest, instance)
        if kept is None:
            raise self._out_of_order(phase, expected="an instance of a complete set-up", found="none")
        return kept

    def _seat(self, setup: Setup) -> Seat:
        return Seat(setup=setup, name=self._name, sign=self._sign, draw=self._draw)

    def _out_of_order(self, phase: Phase, *, expected: str, found: str) -> ProtocolError:
        return ProtocolError(phase=phase, sender=COORDINATOR, expected=expected, found=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Uses:
    """The `UseRecord` of one set-up."""

    store: InstanceStore
    setup: str

    def use(self, masked: Masked) -> None:
        """See `UseRecord.use`. The site's own secrets of the instance are gone when it returns."""
        self.store.replace(self.setup, masked.number, Kept(status=Status.MASKED, state=masked), before=Status.UNUSED)


def _answered(kept: Kept, status: Status, request: str) -> bytes | None:
    """The answer that was given to the very same request, where nothing has happened since."""
    return kept.answer if kept.status is status and kept.request == request else None
