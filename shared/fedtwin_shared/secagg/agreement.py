"""Round 3, ConsistencyCheck: every survivor signs who survived, once, under the step's binding.

The binding stands for everything else that must be the same everywhere: U2 and all keys (the roll), instance, model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedtwin_shared.secagg.advertising import check_enough
from fedtwin_shared.secagg.masking import Masked, MaskedSum
from fedtwin_shared.secagg.message import Message, Phase, ProtocolError, sign_message, verify_message
from fedtwin_shared.secagg.terms import Seat, Terms
from fedtwin_shared.signing import canonical_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreed:
    """A site after round 3: it has signed these survivors (U3) and will sign no others for this instance."""

    number: int
    binding: str
    members: tuple[str, ...]
    survivors: tuple[str, ...]
    held: Mapping[str, tuple[bytes, bytes]] = field(repr=False)


def agree(seat: Seat, state: Masked, survivors: Sequence[str]) -> tuple[Agreed, bytes]:
    """Return a site's next state and its signed word on the survivors that the coordinator named.

    Raises `ProtocolError` unless they are distinct members, this site is one of them, and they are at least n - d.
    """
    named = tuple(sorted(set(survivors)))
    if len(named) != len(survivors) or not set(named) <= set(state.members) or seat.name not in named:
        expected = "members, each once, this site among them"
        raise ProtocolError(phase=Phase.AGREEMENT, sender="", expected=expected, found="other survivors")
    check_enough(seat.setup, named, phase=Phase.AGREEMENT)
    message = sign_message(
        encode_survivors(named), phase=Phase.AGREEMENT, sender=seat.name, context=state.binding, sign=seat.sign
    )
    agreed = Agreed(number=state.number, binding=state.binding, members=state.members, survivors=named, held=state.held)
    return agreed, message


def verify_agreement(data: bytes, *, binding: str, survivors: Sequence[str], terms: Terms) -> str:
    """Return the survivor who signed just these survivors under this binding. Raises `ProtocolError`."""
    message: Message = verify_message(data, phase=Phase.AGREEMENT, context=binding, terms=terms)
    if message.sender not in survivors or bytes(message.body) != encode_survivors(survivors):
        raise ProtocolError(
            phase=Phase.AGREEMENT, sender=message.sender, expected="a survivor's word on them", found="another"
        )
    return message.sender


def close_sum(state: MaskedSum) -> tuple[str, ...]:
    """Return the survivors that the coordinator names. Raises `ProtocolError` below n - d: nothing is unmasked."""
    check_enough(state.roll.setup, state.survivors, phase=Phase.MASKED)
    return state.survivors


def encode_survivors(survivors: Sequence[str]) -> bytes:
    """Return the one form of a survivor set."""
    return canonical_json(sorted(survivors))
