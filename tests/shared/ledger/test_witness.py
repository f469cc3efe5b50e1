from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger.cosignature import verify_cosignatures
from fedtwin_shared.ledger.merkle import compute_root
from fedtwin_shared.ledger.note import COSIGNATURE, Checkpoint, format_note, make_verifier_key, parse_note, sign_note
from fedtwin_shared.ledger.witness import MAX_REQUEST_BYTES, SIZE_TYPE, AddCheckpoint, Decision, decide, parse_request
from tests.shared.ledger.hospital_log import LOG, LOG_KEY, LOGS, entries_of, request, signed_note

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
WITNESS = make_verifier_key("witness.example/1", KEY, algorithm=COSIGNATURE)
NOW = 1_800_000_000


def ask(body: bytes, latest: Checkpoint | None) -> Decision:
    return decide(body, logs=LOGS, latest=latest, cosigned_root=lambda _: None, name=WITNESS.name, key=KEY, now=NOW)


def head(size: int, *, story: str = "true") -> Checkpoint:
    return Checkpoint(origin=LOG.name, size=size, root=compute_root(entries_of(size, story=story)))


def test_the_request_is_that_of_the_specification() -> None:
    # C2SP tlog-witness, "add-checkpoint", its example with fewer proof lines
    body = (
        b"old 20852014\nPlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\njrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=\n\n"
        b"example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
        + "— example.com/behind-the-sofa "
        "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n".encode()
    )
    parsed = parse_request(body)
    assert (parsed.old_size, len(parsed.proof)) == (20852014, 2)
    assert parsed.note.startswith(b"example.com/behind-the-sofa\n20852163\n")
    assert parsed.encode() == body


@pytest.mark.parametrize(("old", "size"), [(0, 0), (0, 1), (0, 9), (1, 2), (4, 9), (9, 9)])
def test_a_log_that_only_grew_is_cosigned(old: int, size: int) -> None:
    decision = ask(request(entries_of(size), old=old), head(old) if old else None)
    assert decision.answer.status == 200
    assert decision.latest == head(size)
    assert decision.evidence is None
    note = parse_note(signed_note(entries_of(size)) + decision.answer.body)
    (cosigned,) = verify_cosignatures(note, [WITNESS], required=1)
    assert cosigned.timestamp == NOW


@pytest.mark.parametrize(("old", "size"), [(4, 6), (0, 20), (6, 20), (20, 30)])
def test_an_old_size_that_is_not_the_latest_is_409_with_the_latest(old: int, size: int) -> None:
    # Anybody may replay an old note; a log that only lost the witness's answer asks again from the size in the answer.
    decision = ask(request(entries_of(size), old=old), head(9))
    assert (decision.answer.status, decision.answer.body, decision.answer.media_type) == (409, b"9\n", SIZE_TYPE)
    assert decision.latest is None
    assert decision.evidence is None


def test_two_roots_of_one_size_are_409_and_evidence() -> None:
    decision = ask(request(entries_of(9, story="other"), old=9), head(9))
    assert (decision.answer.status, decision.answer.body) == (409, b"9\n")
    assert decision.evidence == signed_note(entries_of(9, story="other"))
    assert decision.latest is None


def test_another_history_is_422_and_evidence() -> None:
    decision = ask(request(entries_of(12, story="other"), old=9), head(9))
    assert decision.answer.status == 422
    assert decision.evidence == signed_note(entries_of(12, story="other"))
    assert decision.latest is None


def test_an_unknown_log_is_404_and_another_key_is_403() -> None:
    stranger = Ed25519PrivateKey.from_private_bytes(bytes(32))
    body = request(entries_of(1), old=0)
    nobody = decide(body, logs={}, latest=None, cosigned_root=lambda _: None, name="w", key=KEY, now=NOW)
    assert nobody.answer.status == 404
    refused = ask(request(entries_of(12, story="other"), old=9, key=stranger), head(9))
    assert (refused.answer.status, refused.evidence) == (403, None)  # a stranger cannot make evidence against a log


def test_a_signature_beside_the_log_s_own_changes_nothing() -> None:
    text = head(2).text
    note = format_note(
        text, [sign_note(text, name="other.example", key=KEY), sign_note(text, name=LOG.name, key=LOG_KEY)]
    )
    assert ask(AddCheckpoint(old_size=0, proof=(), note=note).encode(), None).answer.status == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"old 0\n",
        b"old 00\n\n" + signed_note(entries_of(1)),
        b"old -1\n\n" + signed_note(entries_of(1)),
        b"old 0\n\n\n" + signed_note(entries_of(1)),
        b"new 0\n\n" + signed_note(entries_of(1)),
        b"old 0\nAAAA\n\n" + signed_note(entries_of(1)),
        b"old 5\n\n" + signed_note(entries_of(1)),
        b"old 0\n\xff\n\n" + signed_note(entries_of(1)),
        b"old 0\n" + b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n" * 64 + b"\n" + signed_note(entries_of(1)),
        b"old 0\n\n" + signed_note(entries_of(1))[:-1],
        b"x" * (MAX_REQUEST_BYTES + 1),
    ],
)
def test_a_malformed_request_is_400(body: bytes) -> None:
    decision = ask(body, None)
    assert decision.answer.status == 400
    assert (decision.latest, decision.evidence) == (None, None)


@given(st.binary(max_size=300))
def test_nothing_makes_a_witness_raise_another_error(body: bytes) -> None:
    assert ask(b"old 0\n\n" + body, None).answer.status == 400
    with pytest.raises(VerificationError):
        parse_request(body)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.booleans()), max_size=12))
def test_a_witness_never_cosigns_two_histories(steps: list[tuple[int, bool, bool]]) -> None:
    """Whatever a log tries, all that is cosigned lies on one history, and its size never falls."""
    latest: Checkpoint | None = None
    cosigned: list[tuple[int, str]] = []
    for growth, honest, informed in steps:
        known = latest.size if latest else 0
        story = "true" if honest else "other"
        size = max(0, known + growth - 2)
        decision = ask(request(entries_of(size, story=story), old=known if informed else size // 2), latest)
        if decision.latest:
            latest = decision.latest
            cosigned.append((latest.size, story if latest.size else "any"))
    sizes = [size for size, _ in cosigned]
    assert sizes == sorted(sizes)
    assert len({story for _, story in cosigned} - {"any"}) <= 1
