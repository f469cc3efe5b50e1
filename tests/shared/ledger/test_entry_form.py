"""Every entry has one form as bytes, which is kept in golden files for as long as there are ledgers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger.encoding import encode_entry, parse_entry
from fedtwin_shared.ledger.entry import Entry, Epoch, TaskKey
from fedtwin_shared.ledger.state import verify_history
from fedtwin_shared.signing import canonical_json, digest
from tests.shared.ledger.book import RELEASES_B, STUDY_A, STUDY_B, TRAIN_A, TRAIN_B, Book, opened, sampled, task_key

GOLDEN = Path(__file__).parents[2] / "vectors" / "ledger" / "entries"
TYPES = (
    *("policy", "epoch", "enrolment", "cohort", "reserve", "start", "seal", "release"),
    *("abort", "refusal", "conformance", "claim", "closure", "statistics"),
)


def one_of_each() -> Book:
    """Return a ledger in which every type of entry occurs."""
    book = opened()
    book.enrol(STUDY_A, train=[TRAIN_A])
    book.enrol(STUDY_B, everyone=RELEASES_B, train=[TRAIN_B])
    members = book.state.members(STUDY_A)
    book.reserve(STUDY_A, sampled("0.05", "1", 10), blocks=members)
    book.start(task_key(STUDY_A))
    book.seal(task_key(STUDY_A))
    book.release(task_key(STUDY_A))
    book.reserve(STUDY_A, sampled("0.05", "1", 10), blocks=members, attempt=2)
    book.abort(task_key(STUDY_A, attempt=2))
    book.reserve(STUDY_B, RELEASES_B[0], blocks=["0/1.train/2.everyone", "0/2.everyone"], task="statistics")
    book.refuse()
    book.conform()
    book.write(book.claim("9"))
    book.close(STUDY_A)
    return book


def samples() -> dict[str, bytes]:
    """Return one entry of each type, and the two other forms of a reservation."""
    found: dict[str, bytes] = {}
    for data in one_of_each().written:
        kind = parse_entry(data).TYPE
        name = "statistics" if b"/statistics" in data else kind
        found.setdefault(name, data)
    return found


def test_there_is_one_sample_of_each_type() -> None:
    assert sorted(samples()) == sorted(TYPES)


@pytest.mark.parametrize("kind", TYPES)
def test_the_form_never_changes(kind: str) -> None:
    golden = (GOLDEN / f"{kind}.json").read_bytes()
    assert samples()[kind] == golden
    entry: Entry = parse_entry(golden)
    assert encode_entry(entry) == golden


def test_a_ledger_of_golden_entries_is_still_verified() -> None:
    history = (GOLDEN / "history.jsonl").read_bytes().split(b"\n")[:-1]
    assert history == one_of_each().written
    state = verify_history(history)
    assert state.entries == len(history)
    # What version 1 of the format says about these entries, for ever.
    assert {name: state.spent(name) for name in sorted(state.blocks)} == json.loads(
        (GOLDEN / "history-spent.json").read_text(encoding="ascii")
    )


@pytest.mark.parametrize("kind", TYPES)
def test_an_unknown_missing_or_mistyped_field_is_refused(kind: str) -> None:
    good = json.loads(samples()[kind])
    broken: list[dict[str, Any]] = [good | {"patients": 12}, good | {"v": 2}, good | {"v": True}, good | {"v": "1"}]
    broken += [{name: value for name, value in good.items() if name != missing} for missing in good]
    for name, value in good.items():
        others: list[object] = [
            None,
            True,
            [],
            {},
            [[]],
            -1,
            2**53,
            "",
            "NaN",
            "-1",
            "1e400",
            "x" * 100_000,
            f"{value}\n",
            [value],
        ]
        broken += [good | {name: other} for other in others]
    for value in broken:
        try:
            data = canonical_json(value)
        except TypeError:
            data = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
        with pytest.raises(VerificationError):
            parse_entry(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"\n",
        lambda data: b" " + data,
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.replace(b'"number":0', b'"number":0.0'),
        lambda data: data.replace(b'"number":0', b'"number":-0'),
        lambda data: data.replace(b'"number":0', b'"number":0e0'),
        lambda data: data.replace(b'"number":0', b'"number":NaN'),
        lambda data: data.replace(b'"number":0', b'"number":Infinity'),
        lambda data: data.replace(b'"number":0', b'"number":' + b"9" * 5000),
        lambda data: data.replace(b'"number":0', b'"number":1,"number":0'),
        lambda data: data.replace(b'"number":0', b'"number":' + b"[" * 100_000),
        lambda data: data.replace(b'"v":1', b'"v":1 '),
        lambda data: data.replace(b'"type"', b'"\\u0074ype"'),
        lambda data: data.replace(b'"epoch"', b'"\\ud800"'),
        lambda data: data.replace(b'"epoch"', b'"\xff"'),
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: b"[" + data + b"]",
    ],
)
def test_other_bytes_of_the_same_entry_are_refused(change: Any) -> None:
    data = samples()["epoch"]
    parse_entry(data)
    assert change(data) != data
    with pytest.raises(VerificationError):
        parse_entry(change(data))


def test_blocks_are_named_in_order_and_once() -> None:
    good = json.loads(samples()["reserve"])
    for blocks in (["r/1.train", "0/1.train"], ["0/1.train", "0/1.train"], ["0/1.train/"], ["0/01.train"], ["A"], []):
        with pytest.raises(VerificationError):
            parse_entry(canonical_json(good | {"blocks": blocks}))


def test_a_mechanism_is_named_once() -> None:
    good = json.loads(samples()["reserve"])
    with pytest.raises(VerificationError):
        parse_entry(canonical_json(good | {"uses": good["uses"] * 2}))


def test_what_could_not_be_read_is_not_written() -> None:
    for entry in (
        Epoch(time=1, salt="00", number=0),
        Epoch(time=-1, salt="0" * 32, number=0),
        Epoch(time=1, salt="0" * 32, number=1.5),  # type: ignore[arg-type]  # what a mistaken caller might pass
    ):
        with pytest.raises(VerificationError):
            encode_entry(entry)


def test_a_task_key_reads_as_it_was_written() -> None:
    text = task_key(STUDY_A, 12, 3, "evaluate")
    key = TaskKey.parse(text)
    assert (str(key), key.round, key.attempt, key.task) == (text, 12, 3, "evaluate")
    for other in (text + "\n", text.upper(), text.replace("/3/", "/0/"), text.replace("/12/", "/-1/"), "a/b/1/1/train"):
        with pytest.raises(VerificationError):
            TaskKey.parse(other)


def test_no_entry_has_a_field_for_a_number_of_patients() -> None:
    fields = {name for data in samples().values() for name in json.loads(data)}
    assert not fields & {"n", "count", "patients", "sampled", "size", "noise_check"}


def test_the_salt_hides_an_entry_that_holds_little() -> None:
    one, other = (Epoch(time=1, salt=digest(salt)[:32], number=0) for salt in (b"1", b"2"))
    assert digest(encode_entry(one)) != digest(encode_entry(other))
