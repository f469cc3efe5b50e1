from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.ledger.account import LedgerState
from fedtwin_shared.ledger.bundle import read_audit_bundle
from fedtwin_shared.ledger.cosignature import verify_cosignatures
from fedtwin_shared.ledger.note import COSIGNATURE, make_verifier_key, parse_note, verify_checkpoint
from fedtwin_shared.ledger.pins import PinnedKeys, read_pinned_keys
from fedtwin_shared.ledger.state import verify_history
from fedtwin_shared.ledger.statement import describe_ledger
from fedtwin_shared.ledger.study_comparison import find_uncompared
from fedtwin_shared.ledger.verification import Finding, VerifiedBundle, verify_bundle
from tests.shared.ledger.book import STUDY_A
from tests.shared.ledger.forge import (
    GOLDEN,
    LOG_KEY,
    NOW,
    ORIGIN,
    PINNED,
    SITE,
    WITNESSES,
    bundle_of,
    forge_all,
    note_of,
    write_book,
)

# What must be found, all of it: a bundle refused for a second reason beside the right one would hide a broken check.
REASONS = {
    "dropped-entry": {"size", "history"},
    "swapped-entries": {"root", "history"},
    "edited-sigma": {"root", "history"},
    "edited-total": {"root", "history"},
    "edited-note": {"checkpoint", "cosignatures", "root"},
    "reused-key": {"history"},
    "wrong-total-cosigned": {"history"},
    "fewer-witnesses": {"cosignatures"},
    "one-witness-many-times": {"checkpoint", "cosignatures"},
    "restored-backup": {"cosignatures"},
    "forked-history": {"cosignatures"},
    "two-views": {"cosignatures"},
    "unpinned-signature": {"checkpoint"},
    "unnamed-document": {"documents"},
    "unknown-log": {"logs"},
    "zipped-by-another-tool": {"bundle"},
    # Ledgers that are sound on their own, and not of the signed study beside them.
    "less-enrolled": {"study"},
    "less-reserved": {"study"},
    "fewer-blocks": {"study"},
    "another-study-enrolled": {"study"},
    "no-study-named": {"study"},
}


def golden(name: str) -> bytes:
    return (GOLDEN / f"{name}.zip").read_bytes()


def verify(data: bytes) -> VerifiedBundle[LedgerState] | tuple[Finding, ...]:
    return verify_bundle(data, pinned=PINNED, replay=verify_history)


def test_the_honest_bundle_is_accepted_and_says_what_it_adds_up_to() -> None:
    found = verify(golden("honest"))
    assert isinstance(found, VerifiedBundle)
    log = found.logs[SITE]
    assert (log.checkpoint.size, log.state.entries, len(log.state.tasks)) == (18, 18, 3)
    assert [(one.witness, one.timestamp) for one in log.cosignatures] == [(key.name, NOW) for key in WITNESSES[:4]]


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        ("less-enrolled", "the parts and mechanisms of the signed study"),
        ("less-reserved", "what one task of the signed study runs"),
        ("fewer-blocks", "every block of the study's part"),
        ("another-study-enrolled", "the enrolled study in the document"),
    ],
)
def test_a_ledger_of_less_than_its_signed_study_is_refused_for_what_differs(attack: str, words: str) -> None:
    found = verify(golden(attack))
    assert isinstance(found, tuple)
    assert words in str(found[0])


def test_a_study_is_compared_where_its_document_is_there_and_else_said_not_to_be() -> None:
    for name, uncompared in (("honest-with-study", []), ("honest", [STUDY_A])):
        found = verify(golden(name))
        assert isinstance(found, VerifiedBundle)
        assert find_uncompared(found.logs[SITE].state, found.documents) == uncompared
        assert describe_ledger(found.logs[SITE], found.documents)["studies_not_compared"] == uncompared


@pytest.mark.parametrize("attack", sorted(REASONS))
def test_an_attack_is_refused_for_the_right_reason(attack: str) -> None:
    found = verify(golden(attack))
    assert isinstance(found, tuple)
    assert {finding.check for finding in found} == REASONS[attack]


def test_each_attack_has_its_golden_file_and_is_made_as_it_is_there() -> None:
    forged = forge_all()
    assert set(forged) == set(REASONS) | {"honest", "honest-with-study"} == {file.stem for file in GOLDEN.glob("*.zip")}
    assert all(golden(name) == content for name, content in forged.items())
    assert read_pinned_keys(GOLDEN / "pinned-keys.json") == PINNED


@pytest.mark.parametrize("attack", ["restored-backup", "forked-history", "two-views"])
def test_what_witnesses_prevent_passes_a_check_of_signatures_and_history_alone(attack: str) -> None:
    export = read_audit_bundle(golden(attack)).logs[SITE]
    note = parse_note(export.note)
    assert verify_checkpoint(note, make_verifier_key(ORIGIN, LOG_KEY)).size == len(export.entries)
    verify_cosignatures(note, WITNESSES, required=0)
    verify_history(export.entries)


def test_of_two_views_at_most_one_is_accepted() -> None:
    assert isinstance(verify(golden("honest")), VerifiedBundle)
    assert isinstance(verify(golden("two-views")), tuple)


def test_whatever_breaks_in_replay_is_a_finding() -> None:
    def broken(entries: Sequence[bytes]) -> LedgerState:
        raise KeyError(entries[0])

    found = verify_bundle(golden("honest"), pinned=PINNED, replay=broken)
    assert isinstance(found, tuple)
    assert [finding.check for finding in found] == ["history"]
    assert "KeyError" in str(found[0])


def test_an_empty_log_can_be_verified() -> None:
    found = verify(bundle_of([], note_of([]), documents=()))
    assert isinstance(found, VerifiedBundle)


def test_a_pinned_log_that_is_missing_is_found() -> None:
    second = make_verifier_key("south.example/ledger", Ed25519PrivateKey.from_private_bytes(bytes(32)))
    pinned = PinnedKeys(
        version=1, logs={**PINNED.logs, "south": str(second)}, witnesses=PINNED.witnesses, faulty=PINNED.faulty
    )
    found = verify_bundle(bundle_of(write_book(1), note_of(write_book(1))), pinned=pinned, replay=verify_history)
    assert isinstance(found, tuple)
    assert "'south'" in str(found[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"logs": {}},
        {"logs": {"north": "nonsense"}},
        {"logs": {"north": PINNED.witnesses[0]}},
        {"logs": {"documents": PINNED.logs["north"]}},
        {"logs": {"North": PINNED.logs["north"]}},
        {"logs": {"north": PINNED.logs["north"], "south": PINNED.logs["north"]}},
        {"witnesses": []},
        {"witnesses": [PINNED.logs["north"]]},
        {"witnesses": [PINNED.witnesses[0], PINNED.witnesses[0]]},
        {"faulty": 5},
        {"faulty": -1},
        {"more": 1},
    ],
)
def test_pinned_keys_that_would_prove_nothing_are_refused(
    changes: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("pins") / "pinned.json"
    file.write_text(json.dumps(PINNED.model_dump(mode="json") | changes))
    with pytest.raises(ConfigurationError):
        read_pinned_keys(file)


def test_one_key_is_not_both_log_and_witness() -> None:
    both = str(make_verifier_key("w", LOG_KEY, algorithm=COSIGNATURE))
    with pytest.raises(ValueError, match="every public key once"):
        PinnedKeys(version=1, logs=PINNED.logs, witnesses=(both, *PINNED.witnesses), faulty=1)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "null", "\xff", '{"version": 1e999}'])
def test_a_malformed_file_of_keys_is_our_own_error(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("pins") / "pinned.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigurationError):
        read_pinned_keys(file)
    with pytest.raises(ConfigurationError):
        read_pinned_keys(file.with_name("absent.json"))
