"""Round 1, ShareKeys: every site shares the secrets of its instances among all members, encrypted and committed to.

    body of one dealing: 12 bytes of nonce ‖ AES-256-GCM of the shares (72 bytes an instance) ‖ 16 bytes of tag
                         ‖ commitments to the shares (64 bytes an instance)

A dealing is signed by its dealer, for its recipient. The commitments let the coordinator, and everybody whom it shows
the dealing, see who lies: the one who later reveals another share, or the dealer whose shares make no secret.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedtwin_shared.secagg.advertising import Advertised, Advertisement, check_enough, read_advertisements
from fedtwin_shared.secagg.masks import LABEL, derive_key, exchange
from fedtwin_shared.secagg.message import (
    Message,
    Phase,
    ProtocolError,
    sign_message,
    verify_each,
    verify_message,
)
from fedtwin_shared.secagg.shamir import SHARE_BYTES, read_share, share_secrets
from fedtwin_shared.secagg.terms import Seat, Setup
from fedtwin_shared.signing import canonical_json, digest

NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
COMMITMENT_BYTES: Final = 32
KINDS: Final = 2  # of an instance: the seed's share, then the key's
SEED, KEY = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Dealt:
    """A site after round 1. channels: by peer, what the peer encrypts with. own_shares: of its own secrets."""

    advertised: Mapping[str, Advertisement]
    mask_keys: tuple[bytes, ...] = field(repr=False)
    seeds: tuple[bytes, ...] = field(repr=False)
    channels: Mapping[str, bytes] = field(repr=False)
    own_shares: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One instance at one site, unused: its own secrets, and by member of U2 the public mask key and what it holds.

    held: the share of the member's seed and that of its key, of which at most one will ever be revealed.
    """

    number: int
    roll: str
    seed: bytes = field(repr=False)
    key: bytes = field(repr=False)
    peers: Mapping[str, bytes]
    held: Mapping[str, tuple[bytes, bytes]] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roll:
    """A set-up that is complete: what the coordinator keeps of it.

    members: U2. commitments: by dealer and recipient, to every share.
    """

    setup: Setup
    advertised: Mapping[str, Advertisement]
    members: tuple[str, ...]
    commitments: Mapping[tuple[str, str], bytes]

    @property
    def digest(self) -> str:
        """What every member believes about the set-up."""
        return digest_roll(self.setup, self.advertised, self.members)


def digest_roll(setup: Setup, advertised: Mapping[str, Advertisement], members: Sequence[str]) -> str:
    """Return the digest of all advertised keys (U1) and of everybody who shared (U2)."""
    keys = {name: advertisement.sha256 for name, advertisement in advertised.items()}
    return digest(canonical_json({"keys": keys, "members": sorted(members), "setup": setup.digest}))


def share_keys(seat: Seat, state: Advertised, messages: Iterable[bytes]) -> tuple[Dealt, dict[str, bytes]]:
    """Return a site's next state, and for each peer that advertised keys the dealing that is for it.

    Raises `ProtocolError` for whatever `read_advertisements` refuses, and unless its own message is among them as sent.
    """
    setup, terms = seat.setup, seat.terms
    advertised = read_advertisements(setup, messages)
    own = advertised.get(seat.name)
    if own is None or own.body != state.public:
        raise ProtocolError(phase=Phase.SHARES, sender=seat.name, expected="its own keys, as sent", found="others")
    secrets = [secret for pair in zip(state.seeds, state.mask_keys, strict=True) for secret in pair]
    rows = share_secrets(secrets, threshold=terms.threshold, holders=len(terms.members), draw=seat.draw)
    shares = {name: row.tobytes() for name, row in zip(terms.names, rows, strict=True) if name in advertised}
    channels, dealings = dict[str, bytes](), dict[str, bytes]()
    for peer, advertisement in advertised.items():
        if peer == seat.name:
            continue
        secret = exchange(state.channel_key, advertisement.channel)
        channels[peer] = _channel(secret, setup, dealer=peer, recipient=seat.name)
        nonce = seat.draw(NONCE_BYTES)
        sealed = AESGCM(_channel(secret, setup, dealer=seat.name, recipient=peer)).encrypt(
            nonce, shares[peer], _bound_to(setup, dealer=seat.name, recipient=peer)
        )
        commitments = commit_shares(shares[peer], setup=setup, dealer=seat.name, recipient=peer)
        dealings[peer] = sign_message(
            nonce + sealed + commitments,
            phase=Phase.SHARES,
            sender=seat.name,
            context=setup.digest,
            sign=seat.sign,
            recipient=peer,
        )
    dealt = Dealt(
        advertised=advertised,
        mask_keys=state.mask_keys,
        seeds=state.seeds,
        channels=channels,
        own_shares=shares[seat.name],
    )
    return dealt, dealings


def receive_shares(seat: Seat, state: Dealt, dealings: Iterable[bytes]) -> tuple[tuple[Instance, ...], bytes]:
    """Return a site's instances, and the message that says under which roll it is ready. This ends the set-up.

    Raises `ProtocolError` for a dealing that does not verify, does not decrypt, does not match its own commitments or
    is of nobody who advertised keys; and when fewer than n - d sites, this one included, have dealt.
    """
    setup, count = seat.setup, seat.terms.instances
    verified = verify_each(
        list(dealings), phase=Phase.SHARES, context=setup.digest, terms=seat.terms, recipient=seat.name
    )
    shares = {seat.name: state.own_shares}
    for dealer, message in verified.items():
        if dealer not in state.channels:
            raise ProtocolError(phase=Phase.SHARES, sender=dealer, expected="somebody who advertised", found="another")
        shares[dealer] = _open(seat, state.channels[dealer], message)
    check_enough(setup, shares, phase=Phase.SHARES)
    members = tuple(sorted(shares))
    roll = digest_roll(setup, state.advertised, members)
    instances = tuple(
        Instance(
            number=number,
            roll=roll,
            seed=state.seeds[number],
            key=state.mask_keys[number],
            peers={name: state.advertised[name].masks[number] for name in members},
            held={name: _pair(shares[name], number) for name in members},
        )
        for number in range(count)
    )
    ready = sign_message(bytes.fromhex(roll), phase=Phase.READY, sender=seat.name, context=setup.digest, sign=seat.sign)
    return instances, ready


def commit_shares(shares: bytes, *, setup: Setup, dealer: str, recipient: str) -> bytes:
    """Return the commitment to each share in turn, 32 bytes each: hashes of 256 unknown bits."""
    label = LABEL + "/".join(["share", setup.digest, dealer, recipient, ""]).encode()
    parts = (shares[at : at + SHARE_BYTES] for at in range(0, len(shares), SHARE_BYTES))
    return b"".join(_commit(label, place, share) for place, share in enumerate(parts))


def commit_share(share: bytes, place: int, *, setup: Setup, dealer: str, recipient: str) -> bytes:
    """Return the one of these commitments that stands at `place`: 2 · instance, and 1 more for a key."""
    return _commit(LABEL + "/".join(["share", setup.digest, dealer, recipient, ""]).encode(), place, share)


def verify_dealings(
    setup: Setup, advertised: Mapping[str, Advertisement], dealer: str, dealings: Mapping[str, bytes]
) -> dict[str, bytes]:
    """Return the commitments of one dealer's dealings, by recipient; the coordinator's check in round 1.

    Raises `ProtocolError` unless there is one dealing of the right length for everybody else who advertised.
    """
    expected = sorted(name for name in advertised if name != dealer)
    if sorted(dealings) != expected or dealer not in advertised:
        raise ProtocolError(phase=Phase.SHARES, sender=dealer, expected="one for everybody else", found="others")
    found = {}
    for recipient in expected:
        message = verify_message(
            dealings[recipient], phase=Phase.SHARES, context=setup.digest, terms=setup.terms, recipient=recipient
        )
        if message.sender != dealer:
            raise ProtocolError(phase=Phase.SHARES, sender=message.sender, expected=f"one of {dealer}", found="another")
        _, commitments = _split(message, setup)
        found[recipient] = commitments
    return found


def complete_setup(
    setup: Setup, advertised: Mapping[str, Advertisement], committed: Mapping[str, Mapping[str, bytes]]
) -> Roll:
    """Return the roll of everybody whose dealings were verified. Raises `ProtocolError` below n - d sites."""
    check_enough(setup, committed, phase=Phase.SHARES)
    commitments = {(dealer, name): shares for dealer, by_name in committed.items() for name, shares in by_name.items()}
    return Roll(setup=setup, advertised=dict(advertised), members=tuple(sorted(committed)), commitments=commitments)


def verify_ready(roll: Roll, data: bytes) -> str:
    """Return who is ready. Raises `ProtocolError` for whoever is no member or believes another roll."""
    message = verify_message(data, phase=Phase.READY, context=roll.setup.digest, terms=roll.setup.terms)
    if message.sender not in roll.members or bytes(message.body).hex() != roll.digest:
        raise ProtocolError(phase=Phase.READY, sender=message.sender, expected="the same roll", found="another")
    return message.sender


def _commit(label: bytes, place: int, share: bytes) -> bytes:
    return hashlib.sha256(label + place.to_bytes(4, "big") + share).digest()


def _open(seat: Seat, channel: bytes, message: Message) -> bytes:
    sealed, commitments = _split(message, seat.setup)
    bound = _bound_to(seat.setup, dealer=message.sender, recipient=seat.name)
    try:
        shares = AESGCM(channel).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound)
        read_share(shares)
    except (InvalidTag, ValueError) as err:
        raise ProtocolError(phase=Phase.SHARES, sender=message.sender, expected="shares", found="other bytes") from err
    if commit_shares(shares, setup=seat.setup, dealer=message.sender, recipient=seat.name) != commitments:
        raise ProtocolError(
            phase=Phase.SHARES, sender=message.sender, expected="the shares that were committed to", found="others"
        )
    return shares


def _split(message: Message, setup: Setup) -> tuple[bytes, bytes]:
    """The encrypted shares and the commitments of a dealing."""
    secrets = setup.terms.instances * KINDS
    sealed = NONCE_BYTES + secrets * SHARE_BYTES + TAG_BYTES
    expected = sealed + secrets * COMMITMENT_BYTES
    if len(message.body) != expected:
        raise ProtocolError(
            phase=Phase.SHARES, sender=message.sender, expected=f"{expected} bytes", found=f"{len(message.body)}"
        )
    return bytes(message.body[:sealed]), bytes(message.body[sealed:])


def _pair(shares: bytes, number: int) -> tuple[bytes, bytes]:
    start = number * KINDS * SHARE_BYTES
    return shares[start : start + SHARE_BYTES], shares[start + SHARE_BYTES : start + KINDS * SHARE_BYTES]


def _channel(secret: bytes, setup: Setup, *, dealer: str, recipient: str) -> bytes:
    return derive_key(secret, purpose="channel", context=setup.digest, names=[dealer, recipient])


def _bound_to(setup: Setup, *, dealer: str, recipient: str) -> bytes:
    return canonical_json({"dealer": dealer, "recipient": recipient, "setup": setup.digest})
