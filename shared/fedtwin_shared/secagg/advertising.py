"""Round 0, AdvertiseKeys: every site makes the secrets of R instances and signs the public halves.

A site's message holds one X25519 key for encrypting shares and for each instance one X25519 key for masks and the
commitment to a seed, 32 bytes each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from fedtwin_shared.secagg.masks import KEY_BYTES, derive_key, public_half
from fedtwin_shared.secagg.message import Phase, ProtocolError, sign_message, verify_each
from fedtwin_shared.secagg.terms import Seat, Setup

FIELD: Final = 2**255 - 19  # of Curve25519, RFC 7748 section 4.1
_ORDER_EIGHT: Final = 325606250916557431795983626356110631294008115727848805560023387167927233504
# The five coordinates whose points have small order; a secret made with one of them is known to everybody.
# Source: Bernstein, "Curve25519" (PKC 2006), and cr.yp.to/ecdh.html#validate, reduced by FIELD.
SMALL_ORDER: Final = frozenset(
    {0, 1, FIELD - 1, _ORDER_EIGHT, 39382357235489614581723060781553021112529911719440698176882885853963445705823}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertised:
    """A site's secrets after round 0, and the public keys that it sent. By instance: mask_keys and seeds."""

    channel_key: bytes = field(repr=False)
    mask_keys: tuple[bytes, ...] = field(repr=False)
    seeds: tuple[bytes, ...] = field(repr=False)
    public: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Advertisement:
    """What a site advertised: public keys, and by instance a mask key and a commitment to the seed."""

    body: bytes = field(repr=False)
    channel: bytes
    masks: tuple[bytes, ...]
    commitments: tuple[bytes, ...]
    sha256: str  # of the signed header


def advertise_keys(seat: Seat) -> tuple[Advertised, bytes]:
    """Return a site's fresh secrets and its message."""
    count = seat.terms.instances
    channel, keys = seat.draw(KEY_BYTES), tuple(seat.draw(KEY_BYTES) for _ in range(count))
    seeds = tuple(seat.draw(KEY_BYTES) for _ in range(count))
    parts = [public_half(channel)]
    for instance, (key, seed) in enumerate(zip(keys, seeds, strict=True)):
        parts += [public_half(key), commit_seed(seed, setup=seat.setup, owner=seat.name, instance=instance)]
    body = b"".join(parts)
    message = sign_message(body, phase=Phase.KEYS, sender=seat.name, context=seat.setup.digest, sign=seat.sign)
    return Advertised(channel_key=channel, mask_keys=keys, seeds=seeds, public=body), message


def commit_seed(seed: bytes, *, setup: Setup, owner: str, instance: int) -> bytes:
    """Return the commitment to a seed: another output of the function that makes its mask, so it tells nothing."""
    return derive_key(seed, purpose="commitment", context=setup.digest, names=[owner, str(instance)])


def read_advertisements(setup: Setup, messages: Iterable[bytes]) -> dict[str, Advertisement]:
    """Return what each member of U1 advertised, sorted by name.

    Raises `ProtocolError` for a message that does not verify, of another length, with a key of small order, or with a
    key that somebody advertised already; and when fewer than n - d sites are there.
    """
    verified = verify_each(list(messages), phase=Phase.KEYS, context=setup.digest, terms=setup.terms)
    seen, found = set[int](), dict[str, Advertisement]()
    for sender, message in verified.items():
        body = bytes(message.body)
        expected = KEY_BYTES * (1 + 2 * setup.terms.instances)
        if len(body) != expected:
            raise ProtocolError(phase=Phase.KEYS, sender=sender, expected=f"{expected} bytes", found=f"{len(body)}")
        channel, *rest = [body[at : at + KEY_BYTES] for at in range(0, len(body), KEY_BYTES)]
        masks, commitments = tuple(rest[0::2]), tuple(rest[1::2])
        for key in (channel, *masks):
            # RFC 7748, section 5: the last bit is ignored, and coordinates are numbers modulo 2^255 - 19.
            coordinate = (int.from_bytes(key, "little") & 2**255 - 1) % FIELD
            if coordinate in SMALL_ORDER or coordinate in seen:
                raise ProtocolError(phase=Phase.KEYS, sender=sender, expected="fresh keys", found="a weak or known one")
            seen.add(coordinate)
        found[sender] = Advertisement(
            body=body, channel=channel, masks=masks, commitments=commitments, sha256=message.sha256
        )
    check_enough(setup, found, phase=Phase.KEYS)
    return found


def check_enough(setup: Setup, members: Mapping[str, object] | Iterable[str], *, phase: Phase) -> None:
    """Raise `ProtocolError` for fewer than n - d sites: a sum over fewer is never begun."""
    count, fewest = len(set(members)), setup.terms.minimum
    if count < fewest:
        raise ProtocolError(phase=phase, sender="", expected=f"at least {fewest} sites", found=f"{count}")
