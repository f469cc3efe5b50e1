"""A change of a key: both keys sign, once, about one roster, and the new key was nobody's."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_shared.countersigning import SignedDocument, read_document, sign_document
from fedtwin_shared.errors import VerificationError
from fedtwin_shared.rotation import ROTATION_TYPE, Rotation, apply_rotation, sign_rotation
from fedtwin_shared.signing import canonical_json, format_public_key
from tests.world import make_world

WORLD = make_world()
ROSTER, OLD = WORLD.roster, WORLD.sites["north"]
NEW = Ed25519PrivateKey.generate()


def public(key: Ed25519PrivateKey) -> str:
    return format_public_key(key.public_key())


def rotation(*signers: Ed25519PrivateKey, **changes: str) -> bytes:
    """Return the envelope of a rotation of north's key, some of it changed, signed by anybody."""
    usual = Rotation(roster=ROSTER.digest, site="north", old=public(OLD), new=public(NEW))
    payload = canonical_json(usual.model_copy(update=changes).model_dump(mode="json"))
    document = SignedDocument(payload=payload, payload_type=ROTATION_TYPE, signatures={})
    for key in signers:
        document = sign_document(document, key)
    return document.envelope()


def test_both_keys_make_the_next_version_of_the_roster() -> None:
    envelope = sign_rotation(ROSTER, "north", old=OLD, new=NEW)
    assert envelope == rotation(OLD, NEW) == rotation(NEW, OLD)
    after = apply_rotation(ROSTER, envelope)
    assert after.version == ROSTER.version + 1
    assert after.keys() == {**{k: v for k, v in ROSTER.keys().items() if v != "north"}, public(NEW): "north"}
    assert [site.name for site in after.sites] == [site.name for site in ROSTER.sites]
    assert after.coordinator == ROSTER.coordinator


@pytest.mark.parametrize(
    "signers",
    [(OLD,), (NEW,), (OLD, NEW, WORLD.sites["south"]), (OLD, WORLD.coordinator), (WORLD.coordinator,)],
    ids=["only old", "only new", "somebody more", "coordinator for new", "coordinator alone"],
)
def test_any_other_signers_are_refused(signers: tuple[Ed25519PrivateKey, ...]) -> None:
    with pytest.raises(VerificationError, match="signatures: expected the old and the new key's"):
        apply_rotation(ROSTER, rotation(*signers))


@pytest.mark.parametrize("forged", [OLD, NEW], ids=["old", "new"])
def test_a_signature_that_is_copied_is_refused(forged: Ed25519PrivateKey) -> None:
    document = read_document(rotation(OLD, NEW), payload_type=ROTATION_TYPE)
    other = next(value for key, value in document.signatures.items() if key != public(forged))
    changed = SignedDocument(
        payload=document.payload, payload_type=ROTATION_TYPE, signatures={**document.signatures, public(forged): other}
    )
    with pytest.raises(VerificationError, match="expected a valid signature"):
        apply_rotation(ROSTER, changed.envelope())


def test_a_rotation_is_of_one_roster_and_is_not_said_twice() -> None:
    first = rotation(OLD, NEW)
    second_roster = apply_rotation(ROSTER, first)
    with pytest.raises(VerificationError, match=r"rotation\.roster"):
        apply_rotation(second_roster, first)
    # Back to the old key: the very keys of the first roster, and still the first rotation is not said again.
    third_roster = apply_rotation(second_roster, sign_rotation(second_roster, "north", old=NEW, new=OLD))
    assert third_roster.keys() == ROSTER.keys()
    with pytest.raises(VerificationError, match=r"rotation\.roster"):
        apply_rotation(third_roster, first)


@pytest.mark.parametrize("holder", ["south", "coordinator", "north"])
def test_a_key_that_somebody_holds_is_refused(holder: str) -> None:
    key = WORLD.coordinator if holder == "coordinator" else WORLD.sites[holder]
    with pytest.raises(VerificationError, match=r"rotation\.new: expected a key that nobody holds"):
        apply_rotation(ROSTER, rotation(OLD, key, new=public(key)))
    with pytest.raises(VerificationError):
        sign_rotation(ROSTER, "north", old=OLD, new=key)


@pytest.mark.parametrize("site", ["south", "nowhere"])
def test_the_old_key_is_the_one_that_is_pinned(site: str) -> None:
    with pytest.raises(VerificationError, match=r"rotation\.old"):
        apply_rotation(ROSTER, rotation(OLD, NEW, site=site))
    thief = Ed25519PrivateKey.generate()
    with pytest.raises(VerificationError, match=r"rotation\.old"):
        apply_rotation(ROSTER, rotation(thief, NEW, old=public(thief)))


def test_another_document_is_no_rotation() -> None:
    document = SignedDocument(payload=b'{"site":"north"}', payload_type=ROTATION_TYPE, signatures={})
    for envelope in (b"", b"{}", sign_document(sign_document(document, OLD), NEW).envelope()):
        with pytest.raises(VerificationError):
            apply_rotation(ROSTER, envelope)
