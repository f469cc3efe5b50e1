"""Changing a site's key: a statement about one version of the roster, signed with the old key and with the new one.

Design note: the old key alone would let a thief name a key of theirs; the new key alone would let anybody take a name;
a statement without the roster's digest could be said again later. What follows is the next version of the roster, which
every hospital computes for itself from the one that it has pinned.
"""

from __future__ import annotations

from typing import Final, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict

from fedtwin_shared.countersigning import SignedDocument, read_document, sign_document
from fedtwin_shared.documents import check_document
from fedtwin_shared.errors import ConfigurationError, VerificationError
from fedtwin_shared.roster import Name, PublicKey, Roster, Site
from fedtwin_shared.signing import canonical_json, format_public_key, parse_canonical

ROTATION_TYPE: Final = "application/vnd.fedtwin.key-rotation+json"


class Rotation(BaseModel):
    """A site's change of key. roster: digest of the roster that it changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal[1] = 1
    roster: str
    site: Name
    old: PublicKey
    new: PublicKey


def sign_rotation(roster: Roster, site: str, *, old: Ed25519PrivateKey, new: Ed25519PrivateKey) -> bytes:
    """Return the rotation's envelope. Raises `VerificationError` for one that `apply_rotation` would refuse."""
    rotation = Rotation(
        roster=roster.digest,
        site=site,
        old=format_public_key(old.public_key()),
        new=format_public_key(new.public_key()),
    )
    payload = canonical_json(rotation.model_dump(mode="json"))
    document = SignedDocument(payload=payload, payload_type=ROTATION_TYPE, signatures={})
    envelope = sign_document(sign_document(document, old), new).envelope()
    apply_rotation(roster, envelope)
    return envelope


def apply_rotation(roster: Roster, envelope: bytes) -> Roster:
    """Return the next version of the roster, in which one site has its new key.

    Raises `VerificationError` unless
      (1) the envelope is a rotation in its one form, about this very roster;
      (2) the site is on the roster, and the old key is the one that the roster pins;
      (3) the new key is nobody's: neither a site's nor the coordinator's;
      (4) exactly the old and the new key signed it.
    """
    # (1)
    document = read_document(envelope, payload_type=ROTATION_TYPE)
    try:
        rotation = check_document(parse_canonical(document.payload), Rotation, file="rotation")
    except ConfigurationError as err:
        raise VerificationError(field=err.field, expected=err.expected, found=err.found) from err
    if rotation.roster != roster.digest:
        raise VerificationError(field="rotation.roster", expected=roster.digest, found=rotation.roster[:64])
    # (2)
    pinned = {site.name: site.public_key for site in roster.sites}
    if pinned.get(rotation.site) != rotation.old:
        raise VerificationError(field="rotation.old", expected="the key that the roster pins", found="another")
    # (3)
    if rotation.new in {*pinned.values(), roster.coordinator.public_key}:
        raise VerificationError(field="rotation.new", expected="a key that nobody holds", found="one of the roster")
    # (4)
    if set(document.signatures) != {rotation.old, rotation.new}:
        raise VerificationError(field="signatures", expected="the old and the new key's", found="others")
    document.verify_all({rotation.old: rotation.site, rotation.new: rotation.site})
    changed = Site(name=rotation.site, public_key=rotation.new)
    sites = tuple(changed if site.name == rotation.site else site for site in roster.sites)
    return Roster(version=roster.version + 1, coordinator=roster.coordinator, sites=sites)
