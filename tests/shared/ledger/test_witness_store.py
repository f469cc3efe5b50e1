from __future__ import annotations

import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.ledger import witness_store
from fedtwin_shared.ledger.cosignature import verify_cosignatures
from fedtwin_shared.ledger.database import LedgerError
from fedtwin_shared.ledger.note import parse_note, sign_note, verify_checkpoint
from fedtwin_shared.ledger.witness_store import WitnessStore
from tests.shared.ledger.hospital_log import LOG, LOGS, entries_of, request, signed_note


def clock() -> int:
    return 1_800_000_000


@pytest.fixture
def witness(tmp_path: Path) -> WitnessStore:
    return WitnessStore.create(tmp_path / "witness.sqlite", name="witness.example/1", logs=LOGS)


def test_a_witness_remembers_across_restarts(witness: WitnessStore, tmp_path: Path) -> None:
    key = witness.verifier_key
    answer = witness.add_checkpoint(request(entries_of(5), old=0), clock=clock)
    verify_cosignatures(parse_note(signed_note(entries_of(5)) + answer.body), [key], required=1)
    witness.close()
    again = WitnessStore(tmp_path / "witness.sqlite", logs=LOGS)
    assert again.verifier_key == key
    assert again.add_checkpoint(request(entries_of(9), old=0), clock=clock).status == 409
    assert again.add_checkpoint(request(entries_of(9), old=5), clock=clock).status == 200


def test_a_witness_that_lost_its_memory_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="found none"):
        WitnessStore(tmp_path / "witness.sqlite", logs=LOGS)


def test_a_witness_is_made_once(witness: WitnessStore, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no witness yet"):
        WitnessStore.create(tmp_path / "witness.sqlite", name="witness.example/1", logs=LOGS)
    assert (tmp_path / "witness.sqlite").stat().st_mode & 0o077 == 0  # the key is in it


def test_the_evidence_is_two_signed_notes_that_cannot_both_be_true(witness: WitnessStore) -> None:
    witness.add_checkpoint(request(entries_of(9), old=0), clock=clock)
    for _ in range(2):  # the same note twice is one piece of evidence
        assert witness.add_checkpoint(request(entries_of(12, story="other"), old=9), clock=clock).status == 422
    (kept,) = witness.evidence()
    old, new = (verify_checkpoint(parse_note(note), LOG) for note in (kept.against, kept.note))
    assert (old.size, new.size, kept.origin) == (9, 12, LOG.name)
    assert "inconsistent" in kept.reason
    assert witness.latest(LOG.name) == old  # and nothing of it was believed


def test_a_restored_backup_is_caught_though_its_signatures_are_sound(witness: WitnessStore) -> None:
    """Rollback: every signature of the restored log verifies; only the memory of a witness knows better."""
    whole = entries_of(9)
    assert witness.add_checkpoint(request(whole, old=0), clock=clock).status == 200
    restored = whole[:6]
    verify_checkpoint(parse_note(signed_note(restored)), LOG)  # a check of signatures alone accepts it
    assert witness.add_checkpoint(request(restored, old=6), clock=clock).status == 409
    regrown = [*restored, *entries_of(9, story="other")[6:], b"one more"]
    verify_checkpoint(parse_note(signed_note(regrown)), LOG)
    assert witness.add_checkpoint(request(regrown, old=6), clock=clock).status == 409
    assert witness.add_checkpoint(request(regrown, old=9), clock=clock).status == 422
    assert [verify_checkpoint(parse_note(kept.note), LOG).size for kept in witness.evidence()] == [10]


def test_replayed_honest_notes_are_no_evidence_and_take_no_room(
    witness: WitnessStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(witness_store, "MAX_EVIDENCE", 1)
    for old, size in [(0, 3), (3, 5)]:
        assert witness.add_checkpoint(request(entries_of(size), old=old), clock=clock).status == 200
    stranger = Ed25519PrivateKey.generate()
    for story, size in [("true", 3), ("true", 2), ("other", 7)]:
        for number in range(3):
            body = request(entries_of(size, story=story), old=min(size, 5))
            text = parse_note(signed_note(entries_of(size, story=story))).text
            body += str(sign_note(text, name=f"x{number}", key=stranger)).encode()
            assert witness.add_checkpoint(body, clock=clock).status == (409 if size < 5 else 422)
    (inconsistent,) = witness.evidence()
    assert inconsistent.note == signed_note(entries_of(7, story="other"))  # once, without foreign lines
    fork = request(entries_of(3, story="other"), old=0)
    assert witness.add_checkpoint(fork, clock=clock).status == 409
    kept = witness.evidence()[1]
    assert (kept.note, kept.against) == (signed_note(entries_of(3, story="other")), signed_note(entries_of(3)))


def test_two_views_are_caught_by_whoever_sees_both(witness: WitnessStore) -> None:
    assert witness.add_checkpoint(request(entries_of(9), old=0), clock=clock).status == 200
    assert witness.add_checkpoint(request(entries_of(9, story="other"), old=9), clock=clock).status == 409
    assert len(witness.evidence()) == 1


def test_of_two_histories_at_once_one_is_cosigned(tmp_path: Path) -> None:
    # C2SP tlog-witness: check and persistence are atomic, or the later request rolls the earlier one back.
    path = tmp_path / "witness.sqlite"
    WitnessStore.create(path, name="witness.example/1", logs=LOGS).close()
    bodies = [request(entries_of(size, story=f"story {size}"), old=0) for size in range(1, 9)]

    def ask(body: bytes) -> int:
        witness = WitnessStore(path, logs=LOGS)
        try:
            return witness.add_checkpoint(body, clock=clock).status
        finally:
            witness.close()

    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(ask, bodies))
    assert sorted(statuses) == [200] + [409] * 7


def test_what_could_not_be_kept_is_not_cosigned(witness: WitnessStore, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "witness.sqlite")
    connection.execute("CREATE TRIGGER full BEFORE INSERT ON latest BEGIN SELECT raise(ABORT, 'disk full'); END")
    connection.commit()
    with pytest.raises(LedgerError, match="disk full"):
        witness.add_checkpoint(request(entries_of(5), old=0), clock=clock)
    connection.execute("DROP TRIGGER full")
    connection.commit()
    connection.close()
    assert witness.latest(LOG.name) is None
    assert witness.add_checkpoint(request(entries_of(5), old=0), clock=clock).status == 200


def test_a_memory_of_another_version_says_so(witness: WitnessStore, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "witness.sqlite")
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(LedgerError, match=r"another version of fedtwin.*expected tables of version 3, found 7"):
        WitnessStore(tmp_path / "witness.sqlite", logs=LOGS)


def test_a_damaged_memory_is_our_own_error(tmp_path: Path) -> None:
    path = tmp_path / "witness.sqlite"
    path.write_bytes(os.urandom(8192))
    with pytest.raises(LedgerError):
        WitnessStore(path, logs=LOGS)
