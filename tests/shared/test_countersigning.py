"""Documents under many signatures: one form, each signature valid and of somebody known; studies signed by sites."""

from __future__ import annotations

import base64
import itertools
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_shared.countersigning import SignedDocument, merge_signatures, read_document, sign_document
from fedtwin_shared.documents import STUDY_TYPE, SignedStudy, countersign_study, merge_studies, sign_study, verify_study
from fedtwin_shared.errors import VerificationError
from fedtwin_shared.roster import Roster, Site
from fedtwin_shared.signing import canonical_json, format_public_key, sign_envelope, verify_envelope
from tests.world import SITES, World, make_world

WORLD = make_world()
TYPE = "application/vnd.fedtwin.test+json"


def signed_by(*names: str, world: World = WORLD) -> SignedStudy:
    """Return the world's study with the signatures of the coordinator and of these sites."""
    signed = verify(sign_study(world.study, world.roster, world.coordinator), world)
    for name in names:
        signed = verify(countersign_study(signed, world.sites[name]), world)
    return signed


def verify(envelope: bytes, world: World = WORLD) -> SignedStudy:
    return verify_study(envelope, coordinator=world.coordinator_key)


def test_an_envelope_with_one_signature_is_the_usual_one() -> None:
    key = Ed25519PrivateKey.generate()
    usual = sign_envelope(b"{}", payload_type=TYPE, key=key)
    document = sign_document(SignedDocument(payload=b"{}", payload_type=TYPE, signatures={}), key)
    assert document.envelope() == usual
    assert read_document(usual, payload_type=TYPE) == document
    public = format_public_key(key.public_key())
    assert verify_envelope(document.envelope(), payload_type=TYPE, trusted={public: "holder"}).signer == public


def test_a_study_keeps_its_digest_and_tells_who_signed() -> None:
    alone = signed_by()
    assert alone.signers == frozenset()
    everybody = signed_by(*SITES)
    assert everybody.signers == frozenset(SITES)
    assert everybody.study.digest == alone.study.digest
    assert everybody.roster == alone.roster


def test_the_order_of_signing_and_of_merging_does_not_matter() -> None:
    forms = {signed_by(*order).envelope for order in itertools.permutations(SITES[:3])}
    apart = [signed_by(name) for name in SITES[:3]]
    forms |= {merge_studies(order) for order in itertools.permutations(apart)}
    assert forms == {merge_studies([apart[0], apart[1], apart[2], apart[0]])}
    assert verify(forms.pop()).signers == frozenset(SITES[:3])


def test_another_study_is_not_merged() -> None:
    other = WORLD.study.model_copy(update={"version": 2})
    envelope = sign_study(other, WORLD.roster, WORLD.coordinator)
    with pytest.raises(VerificationError, match="expected the same document"):
        merge_studies([signed_by("north"), verify(envelope)])


def test_two_signatures_of_one_key_are_not_merged() -> None:
    document = read_document(signed_by("north").envelope, payload_type=STUDY_TYPE)
    forged = SignedDocument(
        payload=document.payload,
        payload_type=document.payload_type,
        signatures={key: bytes(64) for key in document.signatures},
    )
    with pytest.raises(VerificationError, match="expected one signature of each key"):
        merge_signatures([document, forged])


def test_a_site_that_takes_no_part_or_a_stranger_does_not_sign() -> None:
    part = tuple(one for one in WORLD.study.participants if one.site != "west")
    study = WORLD.study.model_copy(update={"participants": part})
    world = World(coordinator=WORLD.coordinator, sites=WORLD.sites, roster=WORLD.roster, study=study)
    signed = signed_by("north", world=world)
    for key in (WORLD.sites["west"], Ed25519PrivateKey.generate()):
        with pytest.raises(VerificationError, match="expected a trusted signer"):
            countersign_study(signed, key)


def test_the_sites_alone_make_no_study() -> None:
    document = read_document(signed_by(*SITES).envelope, payload_type=STUDY_TYPE)
    others = {key: value for key, value in document.signatures.items() if key != WORLD.coordinator_key}
    without = SignedDocument(payload=document.payload, payload_type=STUDY_TYPE, signatures=others)
    with pytest.raises(VerificationError, match="expected a trusted signer"):
        verify(without.envelope())


@pytest.mark.parametrize("name", ["coordinator", *SITES])
def test_one_invalid_signature_spoils_the_study(name: str) -> None:
    document = read_document(signed_by(*SITES).envelope, payload_type=STUDY_TYPE)
    key = WORLD.coordinator_key if name == "coordinator" else format_public_key(WORLD.sites[name].public_key())
    other = next(value for signer, value in document.signatures.items() if signer != key)
    for wrong in (other, bytes(64), b""):
        changed = SignedDocument(
            payload=document.payload, payload_type=STUDY_TYPE, signatures={**document.signatures, key: wrong}
        )
        with pytest.raises(VerificationError, match="expected a valid signature"):
            verify(changed.envelope())


def test_any_other_form_is_refused() -> None:
    envelope = signed_by("north", "south").envelope
    document = json.loads(envelope)
    signatures = document["signatures"]
    spoilt = [
        {**document, "signatures": signatures[::-1]},
        {**document, "signatures": [*signatures, signatures[0]]},
        {**document, "signatures": []},
        {**document, "signatures": [{**signatures[0], "name": "north"}, *signatures[1:]]},
        {**document, "more": 1},
        {**document, "payload": document["payload"] + "="},
        {**document, "payload": 1},
        {**document, "payloadType": 1},
        {**document, "signatures": [{"keyid": 1, "sig": "AAAA"}]},
        [document],
    ]
    for form in spoilt:
        with pytest.raises(VerificationError):
            verify(canonical_json(form))
    for data in (envelope + b" ", b"", b"{", b"[" * 100_000, base64.b64encode(envelope)):
        with pytest.raises(VerificationError):
            verify(data)


def test_a_document_of_another_type_is_refused() -> None:
    with pytest.raises(VerificationError, match="payloadType"):
        read_document(signed_by().envelope, payload_type=TYPE)


def test_only_peers_that_were_verified_count() -> None:
    """Source: soundness.md 12: with all peers invented, ε = 3 becomes 13.8."""
    trusted = {name: format_public_key(WORLD.sites[name].public_key()) for name in ("south", "east")}
    assert WORLD.roster.verified(trusted) == {"south", "east"}
    assert WORLD.roster.verified({}) == frozenset()
    # A coordinator that enrols a hospital of its own under a verified name has another key.
    stranger = format_public_key(Ed25519PrivateKey.generate().public_key())
    sites = tuple(
        Site(name=site.name, public_key=stranger) if site.name == "south" else site for site in WORLD.roster.sites
    )
    invented = Roster(version=2, coordinator=WORLD.roster.coordinator, sites=sites)
    assert invented.verified(trusted) == {"east"}
    # And a verified key under another name is nobody's either.
    assert WORLD.roster.verified({"east": trusted["south"]}) == frozenset()
