from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_shared.errors import ConfigurationError, VerificationError
from fedtwin_shared.ledger.cosignature import check_witnesses, cosign, quorum, verify_cosignatures
from fedtwin_shared.ledger.note import (
    COSIGNATURE,
    Checkpoint,
    NoteSignature,
    cosigned_text,
    format_note,
    make_verifier_key,
    parse_note,
    parse_verifier_key,
    sign_note,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "ledger" / "notes.json").read_text(encoding="utf-8"))
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(5)]
WITNESSES = [
    make_verifier_key(f"witness.example/{number}", key, algorithm=COSIGNATURE) for number, key in enumerate(KEYS)
]
TEXT = Checkpoint(origin="north.example/ledger", size=3, root=bytes(32)).text


def lines(*numbers: int, text: str = TEXT) -> list[NoteSignature]:
    return [cosign(text, name=WITNESSES[number].name, key=KEYS[number], timestamp=1000 + number) for number in numbers]


def test_the_cosignatures_of_public_witnesses_verify() -> None:
    case = VECTORS["checkpoint"]
    witnesses = [parse_verifier_key(text) for text in case["witnesses"]]
    found = verify_cosignatures(parse_note(case["note"].encode()), witnesses, required=4)
    assert [one.witness for one in found] == [key.name for key in witnesses]
    assert {one.timestamp for one in found} == {case["timestamp"]}


def test_the_signed_message_is_that_of_the_specification() -> None:
    # C2SP tlog-cosignature, "Ed25519 signed message", its example
    text = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
    assert cosigned_text(text, timestamp=1679315147) == f"cosignature/v1\ntime 1679315147\n{text}"


def test_a_quorum_is_counted_over_the_pinned_witnesses_alone() -> None:
    note = parse_note(format_note(TEXT, lines(0, 1, 2, 3)))
    found = verify_cosignatures(note, WITNESSES, required=4)
    assert [(one.witness, one.timestamp) for one in found] == [(WITNESSES[n].name, 1000 + n) for n in range(4)]
    with pytest.raises(VerificationError, match="at least 4 of 3 witnesses, found 3"):
        verify_cosignatures(note, WITNESSES[:3], required=4)


def test_one_witness_that_signs_often_counts_once() -> None:
    with pytest.raises(VerificationError, match="found 1"):
        verify_cosignatures(parse_note(format_note(TEXT, lines(0, 0, 0, 0))), WITNESSES, required=2)


@pytest.mark.parametrize("place", [4, 5, 12, 20, 75])
def test_every_byte_of_a_cosignature_matters(place: int) -> None:
    (line,) = lines(0)
    raw = bytearray(line.key_id + line.signature)
    raw[place] ^= 1
    forged = NoteSignature(name=line.name, key_id=bytes(raw[:4]), signature=bytes(raw[4:]))
    with pytest.raises(VerificationError, match=r"witness\.example/0"):
        verify_cosignatures(parse_note(format_note(TEXT, [forged, *lines(1, 2)])), WITNESSES, required=2)


def test_a_cosignature_is_not_a_log_s_signature() -> None:
    # The prefix separates them: a witness's signature of the bare text is not a cosignature.
    bare = sign_note(TEXT, name=WITNESSES[0].name, key=KEYS[0])
    forged = NoteSignature(name=bare.name, key_id=WITNESSES[0].key_id, signature=bytes(8) + bare.signature)
    with pytest.raises(VerificationError):
        verify_cosignatures(parse_note(format_note(TEXT, [forged])), WITNESSES, required=1)


def test_a_timestamp_beyond_the_limit_is_refused() -> None:
    with pytest.raises(ValueError):
        cosign(TEXT, name="w", key=KEYS[0], timestamp=2**63)


def test_a_witness_cannot_be_pinned_twice() -> None:
    renamed = make_verifier_key("witness.example/other", KEYS[0], algorithm=COSIGNATURE)
    same_name = make_verifier_key(WITNESSES[0].name, KEYS[1], algorithm=COSIGNATURE)
    for twice in ([WITNESSES[0], renamed], [WITNESSES[0], same_name]):
        with pytest.raises(ConfigurationError, match="twice"):
            check_witnesses(twice)
    with pytest.raises(ConfigurationError, match="0x04"):
        check_witnesses([make_verifier_key("log.example", KEYS[0])])


@pytest.mark.parametrize("witnesses", range(1, 8))
def test_two_quorums_share_an_honest_witness(witnesses: int) -> None:
    for faulty in range(witnesses):
        required = quorum(witnesses, faulty=faulty)
        sets = [set(chosen) for chosen in combinations(range(witnesses), required)]
        assert all(len(one & other) > faulty for one in sets for other in sets)
        smaller = [set(chosen) for chosen in combinations(range(witnesses), required - 1)]
        assert any(len(one & other) <= faulty for one in smaller for other in smaller)  # it is the smallest such


@pytest.mark.parametrize(("witnesses", "faulty"), [(0, 0), (3, 3), (3, -1), (1, 1)])
def test_too_few_witnesses_have_no_quorum(witnesses: int, faulty: int) -> None:
    with pytest.raises(ConfigurationError):
        quorum(witnesses, faulty=faulty)


@pytest.mark.parametrize("length", [1, 7, 8, 71, 73])
def test_a_cosignature_of_another_length_is_refused(length: int) -> None:
    (line,) = lines(0)
    other = NoteSignature(name=line.name, key_id=line.key_id, signature=(line.signature + bytes(1))[:length])
    with pytest.raises(VerificationError, match=r"witness\.example/0"):
        verify_cosignatures(parse_note(format_note(TEXT, [other])), WITNESSES, required=0)
