"""Round 4, Unmasking: with t agreements in hand a survivor reveals, for each member, one share: seed or mask key.

Survivors' seeds take away the survivors' own masks; the others' keys take away the masks that survivors had with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedtwin_shared.secagg.advertising import commit_seed
from fedtwin_shared.secagg.agreement import Agreed, verify_agreement
from fedtwin_shared.secagg.masking import MaskedSum, mask_pair, mask_seed
from fedtwin_shared.secagg.masks import add_masks, public_half
from fedtwin_shared.secagg.message import Phase, ProtocolError, WrongShareError, sign_message, verify_message
from fedtwin_shared.secagg.shamir import SHARE_BYTES, is_share, read_share, recover_secrets
from fedtwin_shared.secagg.sharing import COMMITMENT_BYTES, KEY, KINDS, SEED, commit_share
from fedtwin_shared.secagg.terms import Seat


@dataclass(frozen=True, slots=True, kw_only=True)
class Revealed:
    """One survivor's shares, by member, each as its dealer committed to it."""

    sender: str
    shares: Mapping[str, bytes] = field(repr=False)


def reveal(seat: Seat, state: Agreed, agreements: Iterable[bytes]) -> bytes:
    """Return a site's shares: of the seed for a survivor, of the key for everybody else. The instance ends here.

    Raises `ProtocolError` for a word that does not verify, is on other survivors, comes twice, or is of no survivor;
    and for fewer than t of them, this site's own included.
    """
    signers = set[str]()
    for data in agreements:
        sender = verify_agreement(data, binding=state.binding, survivors=state.survivors, terms=seat.terms)
        if sender in signers:
            raise ProtocolError(phase=Phase.UNMASKING, sender=sender, expected="one agreement", found="a second one")
        signers.add(sender)
    count, threshold = len(signers | {seat.name}), seat.terms.threshold
    if count < threshold:
        raise ProtocolError(phase=Phase.UNMASKING, sender="", expected=f"{threshold} agreements", found=f"{count}")
    body = b"".join(state.held[name][SEED if name in state.survivors else KEY] for name in state.members)
    return sign_message(body, phase=Phase.UNMASKING, sender=seat.name, context=state.binding, sign=seat.sign)


def verify_reveal(state: MaskedSum, data: bytes) -> Revealed:
    """Return the shares of one survivor; the coordinator's check in round 4.

    Raises `ProtocolError`, naming the sender, for a message that does not verify, is of no survivor, or of another
    length; `WrongShareError` for a share to which its dealer had not committed: the sender lies about its shares.
    """
    message = verify_message(data, phase=Phase.UNMASKING, context=state.binding, terms=state.roll.setup.terms)
    sender, members = message.sender, state.roll.members
    expected = len(members) * SHARE_BYTES
    if sender not in state.survivors or len(message.body) != expected:
        wanted = f"a survivor's {expected} bytes"
        raise ProtocolError(phase=Phase.UNMASKING, sender=sender, expected=wanted, found="others")
    shares = {
        name: bytes(message.body[place * SHARE_BYTES : (place + 1) * SHARE_BYTES]) for place, name in enumerate(members)
    }
    for dealer, share in shares.items():
        # Nobody commits to a share of its own secret: a wrong one is found with the secret, and names the same site.
        if not is_share(share) or (dealer != sender and not _is_committed(state, share, dealer=dealer, holder=sender)):
            raise WrongShareError(
                phase=Phase.UNMASKING, sender=sender, expected=f"the share that {dealer} dealt", found="another"
            )
    return Revealed(sender=sender, shares=shares)


def unmask_sum(state: MaskedSum, revealed: Sequence[Revealed]) -> npt.NDArray[np.int64]:
    """Return the exact sum of the survivors' vectors, i64[length].

    Raises `ProtocolError` for fewer than t survivors' shares; `WrongShareError`, naming the dealer, for shares that
    make no secret or another one than the dealer had advertised.
    """
    roll, terms, binding = state.roll, state.roll.setup.terms, state.binding
    by_holder = {shares.sender: shares for shares in revealed}
    if len(by_holder) < terms.threshold:
        expected = f"shares of {terms.threshold} survivors"
        raise ProtocolError(phase=Phase.UNMASKING, sender="", expected=expected, found=f"{len(by_holder)}")
    secrets = _recover(state, by_holder)
    added, subtracted = list[bytes](), list[bytes]()
    for member, secret in secrets.items():
        if member in state.survivors:
            subtracted.append(mask_seed(secret, binding=binding, owner=member))
            continue
        for survivor in state.survivors:
            public = roll.advertised[survivor].masks[state.step.instance]
            key = mask_pair(secret, public, binding=binding, names=(member, survivor))
            # What the survivor had added is taken away, and the other way round.
            (subtracted if survivor < member else added).append(key)
    total = state.total.copy()
    add_masks(total, added=added, subtracted=subtracted)
    return total.view(np.int64)


def _recover(state: MaskedSum, by_holder: Mapping[str, Revealed]) -> dict[str, bytes]:
    """Every member's seed or key, from t holders' shares of it."""
    roll, instance = state.roll, state.step.instance
    names = roll.setup.terms.names
    found = dict[str, bytes]()
    holders = sorted(by_holder)[: roll.setup.terms.threshold]
    rows = [read_share(b"".join(by_holder[name].shares.values())) for name in holders]
    for member, secret in zip(
        roll.members, recover_secrets(rows, [names.index(name) for name in holders]), strict=True
    ):
        advertised = roll.advertised[member]
        if member in state.survivors:
            right = secret is not None and (
                commit_seed(secret, setup=roll.setup, owner=member, instance=instance)
                == advertised.commitments[instance]
            )
        else:
            right = secret is not None and public_half(secret) == advertised.masks[instance]
        if secret is None or not right:
            raise WrongShareError(
                phase=Phase.UNMASKING, sender=member, expected="shares of what was advertised", found="others"
            )
        found[member] = secret
    return found


def _is_committed(state: MaskedSum, share: bytes, *, dealer: str, holder: str) -> bool:
    place = state.step.instance * KINDS + (SEED if dealer in state.survivors else KEY)
    committed = state.roll.commitments[dealer, holder][place * COMMITMENT_BYTES : (place + 1) * COMMITMENT_BYTES]
    return commit_share(share, place, setup=state.roll.setup, dealer=dealer, recipient=holder) == committed
