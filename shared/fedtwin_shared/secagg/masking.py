"""Round 2, MaskedInputCollection: every site hides its vector under one seed's mask and one mask for each other member.

y_i = x_i + PRG(b_i) + Σ_{j > i} PRG(s_ij) - Σ_{j < i} PRG(s_ij)   mod 2^64
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fedtwin_shared.secagg.masks import Vector, add_masks, derive_key, exchange
from fedtwin_shared.secagg.message import Phase, ProtocolError, sign_message, verify_message
from fedtwin_shared.secagg.sharing import Instance, Roll
from fedtwin_shared.secagg.terms import Seat, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Masked:
    """A site after round 2: its own secrets of the instance are gone, what it holds of the others' is left."""

    number: int
    binding: str
    members: tuple[str, ...]
    held: Mapping[str, tuple[bytes, bytes]] = field(repr=False)


class UseRecord(Protocol):
    """Where a site remembers which instances it has used."""

    def use(self, masked: Masked) -> None:
        """Put the site's next state in the place of the unused instance; on return it is on the disk.

        Raises whatever ends the step when the instance was used before or the note cannot be made durable.
        """


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaskedSum:
    """What the coordinator has added up so far in one step. survivors: whose vectors are in it; U3 in the end."""

    roll: Roll
    step: Step
    total: Vector
    survivors: tuple[str, ...] = ()

    @property
    def binding(self) -> str:
        """The step's, under the roll's digest."""
        return self.step.bind(self.roll.digest)


def mask_input(
    seat: Seat, instance: Instance, step: Step, vector: npt.NDArray[np.int64], *, uses: UseRecord
) -> tuple[Masked, bytes]:
    """Return a site's next state and its masked vector, signed.

    Raises `OverflowError` for a coordinate beyond the terms: with honest numbers it cannot happen.

    - the instance is used, durably, before the first mask exists
    """
    if step.instance != instance.number or vector.shape != (step.length,) or vector.dtype != np.int64:
        raise RuntimeError("a step needs its own instance, and a vector of 64-bit integers of the planned length")
    largest = seat.terms.largest
    if not (-largest <= int(vector.min(initial=0)) and int(vector.max(initial=0)) <= largest):
        raise OverflowError(f"expected coordinates up to ± {largest}, as the terms have them")
    binding = step.bind(instance.roll)
    added = [mask_seed(instance.seed, binding=binding, owner=seat.name)]
    subtracted = list[bytes]()
    for peer, public in instance.peers.items():
        if peer != seat.name:
            key = mask_pair(instance.key, public, binding=binding, names=(seat.name, peer))
            (added if seat.name < peer else subtracted).append(key)
    members = tuple(sorted(instance.peers))
    after = Masked(number=instance.number, binding=binding, members=members, held=instance.held)
    uses.use(after)
    # A crash after this line costs the instance, and the step this site's part of it: nothing has left yet.
    masked = vector.astype("<i8").view("<u8")
    add_masks(masked, added=added, subtracted=subtracted)
    message = sign_message(
        masked.view(np.uint8).data, phase=Phase.MASKED, sender=seat.name, context=binding, sign=seat.sign
    )
    return after, message


def mask_seed(seed: bytes, *, binding: str, owner: str) -> bytes:
    """Return the key of a site's own mask."""
    return derive_key(seed, purpose="self", context=binding, names=[owner])


def mask_pair(private: bytes, public: bytes, *, binding: str, names: tuple[str, str]) -> bytes:
    """Return the key of the mask between two sites, the same from either side."""
    return derive_key(exchange(private, public), purpose="pair", context=binding, names=sorted(names))


def start_sum(roll: Roll, step: Step) -> MaskedSum:
    """Return the coordinator's sum of a step before anybody has answered."""
    return MaskedSum(roll=roll, step=step, total=np.zeros(step.length, dtype=np.uint64))


def add_masked(state: MaskedSum, data: bytes) -> MaskedSum:
    """Return the sum with one more site's masked vector.

    Raises `ProtocolError` for a message that does not verify, of another length, of no member, or of somebody whose
    vector is in the sum already; the sum is then as it was.
    """
    message = verify_message(data, phase=Phase.MASKED, context=state.binding, terms=state.roll.setup.terms)
    sender = message.sender
    if sender not in state.roll.members:
        raise ProtocolError(phase=Phase.MASKED, sender=sender, expected="a member of the set-up", found="another")
    if sender in state.survivors:
        raise ProtocolError(phase=Phase.MASKED, sender=sender, expected="one message", found="a second one")
    if len(message.body) != 8 * state.step.length:
        expected = f"{8 * state.step.length} bytes"
        raise ProtocolError(phase=Phase.MASKED, sender=sender, expected=expected, found=f"{len(message.body)}")
    total = state.total + np.frombuffer(message.body, dtype="<u8")
    return MaskedSum(roll=state.roll, step=state.step, total=total, survivors=tuple(sorted((*state.survivors, sender))))
