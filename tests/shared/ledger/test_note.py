from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger.note import (
    COSIGNATURE,
    ED25519,
    MAX_NOTE_BYTES,
    MAX_SIGNATURES,
    Checkpoint,
    NoteSignature,
    format_note,
    make_verifier_key,
    parse_checkpoint,
    parse_note,
    parse_verifier_key,
    sign_note,
    verify_checkpoint,
    verify_note,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "ledger" / "notes.json").read_text(encoding="utf-8"))
GO: dict[str, Any] = VECTORS["go"]
PETER, ENOCH = (parse_verifier_key(text) for text in GO["keys"])
PETER_LINE, ENOCH_LINE = GO["signatures"]
GO_NOTE = (GO["text"] + "\n" + PETER_LINE + ENOCH_LINE).encode()
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
LOG = make_verifier_key("north.example/ledger", KEY)
HEAD = Checkpoint(origin=LOG.name, size=7, root=bytes(32))


def test_our_signature_is_byte_for_byte_that_of_go() -> None:
    # Ed25519 is deterministic (RFC 8032), so Go's published key gives Go's published note.
    key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(GO["seed"])[1:])
    assert str(make_verifier_key("PeterNeumann", key)) == GO["keys"][0]
    assert (
        format_note(GO["text"], [sign_note(GO["text"], name="PeterNeumann", key=key)])
        == (GO["text"] + "\n" + PETER_LINE).encode()
    )


def test_the_notes_of_go_and_c2sp_verify() -> None:
    assert list(verify_note(parse_note(GO_NOTE), [PETER, ENOCH])) == [PETER, ENOCH]
    assert list(verify_note(parse_note(GO_NOTE), [ENOCH])) == [ENOCH]
    assert verify_note(parse_note(GO_NOTE), []) == {}
    example = parse_verifier_key(VECTORS["c2sp"]["key"])
    assert list(verify_note(parse_note(VECTORS["c2sp"]["note"].encode()), [example])) == [example]


def test_a_public_log_s_checkpoint_verifies() -> None:
    note = parse_note(VECTORS["checkpoint"]["note"].encode())
    head = verify_checkpoint(note, parse_verifier_key(VECTORS["checkpoint"]["log"]))
    assert head.size == 1_432_088_532
    assert head.text == note.text


def test_a_mangled_vkey_is_refused() -> None:
    # The manglings of Go's TestNewVerifier: every substring, every byte one higher, a longer key, another algorithm.
    text = GO["keys"][0]
    mangled = {text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1)} - {text}
    mangled |= {text[:i] + chr(ord(text[i]) + 1) + text[i + 1 :] for i in range(len(text))}
    mangled.add("PeterNeumann+cc469956+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TWBADKEY==")
    mangled.add("PeterNeumann+173116ae+ZRpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    mangled |= {"", text.upper(), text + "\n", text.replace("c74f20a3", "C74F20A3")}
    for candidate in mangled:
        with pytest.raises(VerificationError):
            parse_verifier_key(candidate)


@pytest.mark.parametrize("text", VECTORS["checkpoint"]["witnesses"] + GO["keys"] + [VECTORS["c2sp"]["key"]])
def test_a_vkey_has_one_form(text: str) -> None:
    assert str(parse_verifier_key(text)) == text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GO["text"].encode(),
        (GO["text"] + "\n").encode(),
        GO_NOTE[:-1],
        b"\x01" + GO_NOTE,
        b"\xff" + GO_NOTE,
        GO_NOTE + b"Unexpected line.\n",
        GO_NOTE.replace("— PeterNeumann".encode(), "— Peter Neumann".encode()),
        GO_NOTE.replace("— PeterNeumann".encode(), b"- PeterNeumann"),
        GO_NOTE.replace("— PeterNeumann".encode(), "— Peter+Neumann".encode()),
        GO_NOTE.replace("— PeterNeumann".encode(), "— Peter\u2003Neumann".encode()),
        GO_NOTE.replace(b"AM=", b"AN="),  # the same bytes in base64 that no encoder writes
        GO_NOTE.replace(b"\n", b"\r\n"),
        (GO["text"] + "\n" + PETER_LINE * (MAX_SIGNATURES + 1)).encode(),
        b"a" * MAX_NOTE_BYTES + GO_NOTE,
    ],
)
def test_another_form_of_a_note_is_refused(data: bytes) -> None:
    with pytest.raises(VerificationError):
        parse_note(data)


def test_a_note_s_text_may_hold_empty_lines() -> None:
    text = "one\n\ntwo\n"
    data = format_note(text, [sign_note(text, name=LOG.name, key=KEY)])
    assert parse_note(data).text == text
    assert list(verify_note(parse_note(data), [LOG])) == [LOG]


def test_a_wrong_signature_of_a_known_key_rejects_the_note() -> None:
    forged = NoteSignature(name=PETER.name, key_id=PETER.key_id, signature=bytes(64))
    short = NoteSignature(name=PETER.name, key_id=PETER.key_id, signature=bytes(63))
    for bad in (forged, short):
        note = parse_note(format_note(GO["text"], [*parse_note(GO_NOTE).signatures, bad]))
        with pytest.raises(VerificationError, match="PeterNeumann"):
            verify_note(note, [PETER, ENOCH])


def test_signatures_of_unknown_keys_are_ignored() -> None:
    # A name or a key id alone does not make a key known.
    same_name = NoteSignature(name=PETER.name, key_id=b"none", signature=bytes(64))
    same_id = NoteSignature(name="Peter", key_id=PETER.key_id, signature=bytes(64))
    note = parse_note(format_note(GO["text"], [same_name, same_id, *parse_note(GO_NOTE).signatures]))
    assert list(verify_note(note, [PETER])) == [PETER]


def test_a_key_counts_once_however_often_it_signed() -> None:
    line = sign_note(HEAD.text, name=LOG.name, key=KEY)
    assert len(verify_note(parse_note(format_note(HEAD.text, [line, line, line])), [LOG])) == 1


def test_one_key_given_twice_is_refused() -> None:
    with pytest.raises(VerificationError):
        verify_note(parse_note(GO_NOTE), [PETER, PETER])


@given(st.integers(0, len(GO_NOTE) * 8 - 1))
def test_every_bit_of_a_note_matters(bit: int) -> None:
    changed = bytearray(GO_NOTE)
    changed[bit // 8] ^= 1 << bit % 8
    try:
        signers = list(verify_note(parse_note(bytes(changed)), [PETER, ENOCH]))
    except VerificationError:
        return
    assert len(signers) < 2


@given(st.text(min_size=1, max_size=40), st.integers(0, 2**62), st.binary(min_size=32, max_size=32))
def test_a_checkpoint_round_trips(origin: str, size: int, root: bytes) -> None:
    head = Checkpoint(origin=origin.replace("\n", "_"), size=size, root=root)
    assert parse_checkpoint(head.text) == head


@pytest.mark.parametrize(
    "text",
    [
        "",
        HEAD.text[:-1],
        HEAD.text + "extension\n",
        HEAD.text.replace("\n7\n", "\n07\n"),
        HEAD.text.replace("\n7\n", "\n+7\n"),
        HEAD.text.replace("\n7\n", "\n٧\n"),
        HEAD.text.replace("\n7\n", f"\n{2**62 + 1}\n"),
        HEAD.text.replace("\n7\n", "\n\n"),
        HEAD.text.replace("AA=\n", "AA\n"),
        HEAD.text.replace("AAA=\n", "AAB=\n"),
        "\n7\n" + HEAD.text.split("\n", 2)[2],
    ],
)
def test_another_form_of_a_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(VerificationError):
        parse_checkpoint(text)


def test_a_checkpoint_needs_its_own_log_s_signature() -> None:
    other = make_verifier_key("south.example/ledger", KEY)
    signed = parse_note(format_note(HEAD.text, [sign_note(HEAD.text, name=LOG.name, key=KEY)]))
    assert verify_checkpoint(signed, LOG) == HEAD
    with pytest.raises(VerificationError, match="origin"):
        verify_checkpoint(signed, other)
    unsigned = parse_note(format_note(HEAD.text, [sign_note(HEAD.text, name=other.name, key=KEY)]))
    with pytest.raises(VerificationError, match="none"):
        verify_checkpoint(unsigned, LOG)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u2003b", "a\x00"])
def test_a_name_that_no_note_can_hold_makes_no_key(name: str) -> None:
    with pytest.raises(ValueError):
        make_verifier_key(name, KEY)


def test_one_key_has_two_ids_for_two_kinds_of_signature() -> None:
    assert LOG.algorithm == ED25519
    assert LOG.key_id != make_verifier_key(LOG.name, KEY, algorithm=COSIGNATURE).key_id
