from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fedtwin_shared.errors import ConfigurationError, VerificationError
from fedtwin_shared.signing import (
    MAX_ENVELOPE_BYTES,
    canonical_json,
    create_signing_key,
    format_public_key,
    load_signing_key,
    parse_public_key,
    sign_envelope,
    verify_envelope,
)

KIND = "application/vnd.fedtwin.test+json"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SIGNER = format_public_key(KEY.public_key())
TRUSTED = {SIGNER: "tester"}

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abcXYZ_09", max_size=6), inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_canonical_json_round_trips(value: object) -> None:
    encoded = canonical_json(value)
    assert json.loads(encoded) == value
    assert canonical_json(json.loads(encoded)) == encoded


@pytest.mark.parametrize("value", [1.5, float("nan"), {1: 2}, {"é": 1}, 2**53, b"bytes", {"a": [0.0]}])
def test_canonical_json_refuses_what_has_no_one_form(value: object) -> None:
    with pytest.raises(TypeError):
        canonical_json(value)


def test_canonical_json_is_rfc_8785_for_its_own_example_of_sorting_and_strings() -> None:
    # RFC 8785 §3.2.2.2 and §3.2.3 (the parts of its sample that hold no float)
    source = {"string": '€$\u000f\nA\'B"\\\\"/', "literals": [None, True, False]}
    expected = '{"literals":[null,true,false],"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    assert canonical_json(source) == expected.encode()


@given(st.binary(max_size=200))
def test_an_envelope_round_trips(payload: bytes) -> None:
    verified = verify_envelope(sign_envelope(payload, payload_type=KIND, key=KEY), payload_type=KIND, trusted=TRUSTED)
    assert (verified.payload, verified.signer) == (payload, SIGNER)


def test_the_signed_bytes_are_those_of_the_dsse_specification() -> None:
    # secure-systems-lab/dsse protocol.md, "Test Vectors": PAE of type http://example.com/HelloWorld, body hello world
    envelope = json.loads(sign_envelope(b"hello world", payload_type="http://example.com/HelloWorld", key=KEY))
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    KEY.public_key().verify(signature, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world")


@given(st.integers(0), st.integers(0, 7))
def test_an_envelope_with_any_bit_flipped_is_refused(position: int, bit: int) -> None:
    envelope = bytearray(sign_envelope(b'{"a":1}', payload_type=KIND, key=KEY))
    envelope[position % len(envelope)] ^= 1 << bit
    with pytest.raises(VerificationError):
        verify_envelope(bytes(envelope), payload_type=KIND, trusted=TRUSTED)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text + b" ",
        lambda text: text.replace(b'"payload"', b'"payload":"","payload"', 1),
        lambda text: json.dumps(json.loads(text), indent=1).encode(),
        lambda text: canonical_json(json.loads(text) | {"extra": 1}),
        lambda text: canonical_json(json.loads(text) | {"signatures": json.loads(text)["signatures"] * 2}),
        lambda text: canonical_json(json.loads(text) | {"signatures": []}),
        lambda text: b"[" * 100_000,
        lambda text: b"x" * (MAX_ENVELOPE_BYTES + 1),
        lambda text: b"",
        lambda text: b"[]",
        lambda text: b"\xff\xfe",
    ],
)
def test_an_envelope_in_any_other_form_is_refused(change: object) -> None:
    assert callable(change)
    changed = change(sign_envelope(b"{}", payload_type=KIND, key=KEY))
    with pytest.raises(VerificationError):
        verify_envelope(changed, payload_type=KIND, trusted=TRUSTED)


def test_an_envelope_of_another_type_or_signer_is_refused() -> None:
    envelope = sign_envelope(b"{}", payload_type=KIND, key=KEY)
    with pytest.raises(VerificationError, match="payloadType"):
        verify_envelope(envelope, payload_type=KIND + "2", trusted=TRUSTED)
    with pytest.raises(VerificationError, match="trusted signer"):
        verify_envelope(envelope, payload_type=KIND, trusted={})


def test_a_key_is_created_for_its_owner_only_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    key = create_signing_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert format_public_key(load_signing_key(path).public_key()) == format_public_key(key.public_key())
    with pytest.raises(FileExistsError):
        create_signing_key(path)


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    create_signing_key(path)
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="0600"):
        load_signing_key(path)


@pytest.mark.parametrize(
    "content", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_file_that_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "site.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match=r"site\.key"):
        load_signing_key(path)


@pytest.mark.parametrize("text", ["", "ed25519:", "ed25519:AAAA", SIGNER[8:], SIGNER + "=", SIGNER.replace("ed", "ec")])
def test_a_public_key_in_any_other_form_is_refused(text: str) -> None:
    assert format_public_key(parse_public_key(SIGNER)) == SIGNER
    with pytest.raises(VerificationError):
        parse_public_key(text)
