"""The auditor's report: every figure is the ledger's, every word is escaped, and a bundle that fails gets none."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_shared.cli import main
from fedtwin_shared.conformance_result import Claim, ConformanceResult, Noise, Point, sign_conformance
from fedtwin_shared.documents import sign_study
from fedtwin_shared.ledger.audit_report import describe_audit
from fedtwin_shared.ledger.entry import Conformance, Enrolment
from fedtwin_shared.ledger.report_page import render_report
from fedtwin_shared.ledger.spending_history import SpendingHistory, trace_history
from fedtwin_shared.ledger.study_programme import plan_programme
from fedtwin_shared.ledger.verification import VerifiedBundle, verify_bundle
from fedtwin_shared.signing import digest
from tests.shared.ledger.book import STUDY_A, TRAIN_A, Book, opened, sampled, task_key
from tests.shared.ledger.forge import GOLDEN, LOG_KEY, PINNED, SITE, bundle_of, note_of
from tests.world import make_world

KEYS = GOLDEN / "pinned-keys.json"
HOSTILE = '<script>alert("1")</script> & <img src=x onerror=alert(1)>'
PRIVACY = {"epsilon": 8.0, "delta": 1e-5, "noise_multiplier": 4.5, "sampling_rate": 0.1, "spare_rounds": 2}


def signed_world() -> tuple[bytes, Enrolment]:
    world = make_world(question=HOSTILE, privacy=PRIVACY)
    envelope = sign_study(world.study, world.roster, world.coordinator)
    parts = plan_programme(world.study, plan=digest(envelope)).parts
    return envelope, Enrolment(time=1, salt="0" * 32, study=world.study.digest, plan=digest(envelope), parts=parts)


def conformance(*, true: int, key: Ed25519PrivateKey = LOG_KEY) -> bytes:
    result = ConformanceResult(
        site=SITE,
        day="2030-01-02",
        engine="<b>opacus</b>",
        versions={"fedtwin": "0.1.0"},
        claim=Claim(sampling_rate=1.0, noise_multiplier=2.0, steps=4, delta=1e-5),
        points=(Point(false_positives=50, absent=1000, true_positives=true, present=1000),),
        noise=Noise(numbers=100_000, variance=1.0, lag=0.0),
    )
    return sign_conformance(result, key)


def write_eventful() -> tuple[Book, list[bytes]]:
    """A ledger in which everything happened that a report tells of, and the documents that it names."""
    envelope, enrolment = signed_world()
    stranger = Ed25519PrivateKey.from_private_bytes(bytes(32))
    passed, failed = conformance(true=259), conformance(true=400, key=stranger)
    book = opened()
    book.enrol(STUDY_A, train=[TRAIN_A])
    time, salt = book.stamp()
    book.write(Enrolment(time=time, salt=salt, study=enrolment.study, plan=enrolment.plan, parts=enrolment.parts))
    for round_ in range(1, 5):
        book.reserve(STUDY_A, sampled("0.05", "1", 10), blocks=["0/1.train", "0/1.train/2.test"], round_=round_)
        key = task_key(STUDY_A, round_)
        for step in ([book.abort], [book.start], [book.start, book.seal], [book.start, book.seal, book.release])[
            round_ - 1
        ]:
            step(key)
    book.refuse()
    for result, outcome in ((passed, "passed"), (failed, "passed"), (b"", "failed")):
        time, salt = book.stamp()
        book.write(Conformance(time=time, salt=salt, code=digest(b"code"), result=digest(result), outcome=outcome))
    book.write(book.claim("9"))
    book.close(STUDY_A)
    return book, [envelope, passed, failed]


def verified(data: bytes) -> VerifiedBundle[SpendingHistory]:
    found = verify_bundle(data, pinned=PINNED, replay=trace_history)
    assert isinstance(found, VerifiedBundle)
    return found


def report_of(entries: Sequence[bytes], documents: Sequence[bytes] = ()) -> tuple[dict[str, Any], str]:
    data = bundle_of(entries, note_of(entries), documents=documents)
    described = describe_audit(data, verified(data), pinned=PINNED)
    return described, render_report(described, verified(data))


@pytest.fixture(scope="module")
def book() -> tuple[Book, list[bytes]]:
    return write_eventful()


@pytest.fixture(scope="module")
def eventful(book: tuple[Book, list[bytes]]) -> tuple[dict[str, Any], str]:
    return report_of(book[0].written, book[1])


def test_every_figure_is_the_ledgers(book: tuple[Book, list[bytes]], eventful: tuple[dict[str, Any], str]) -> None:
    state, told = book[0].state, eventful[0]["hospitals"][SITE]
    (sentence,) = eventful[0]["claims"]
    assert "every patient of north" in sentence
    assert "(2 answers of 2 studies)" in sentence
    assert "(ε = 9, δ = 0.000001)-differentially private" in sentence
    assert told["claim"]["epsilon"] == "9"
    assert [one["epsilon"] for one in told["claim"]["claims"]] == ["8", "9"]
    assert told["claim"]["releases"] == {"train": 2}  # what was sealed may have left
    for row in told["blocks"]:
        share = Decimal(state.spent(row["block"])) / state.budget
        assert abs(Decimal(row["spent"]) - share) <= Decimal("0.0001")
        assert Decimal(row["spent"]) + Decimal(row["remaining"]) == 1
        assert Decimal(row["epsilon_odometer"]) >= (0 if state.spent(row["block"]) == 0 else Decimal("0.001"))
    (study_a, signed) = told["studies"]
    assert (study_a["compared"], signed["compared"]) == (False, True)
    assert eventful[1].count("not compared with it") == 1
    assert study_a["parts"][0]["programme"][0]["charged"] == 30  # of 200; the aborted ten were given back
    assert study_a["closed"]
    assert Decimal(study_a["parts"][0]["remaining"]) == 0  # what is closed charges nothing more
    assert told["work"] | {"unsealed": 0} == {
        "reserved": 4,
        "released": 1,
        "sealed_only": 1,
        "started_never_sealed": 1,
        "reserved_never_started": 0,
        "aborted": 1,
        "unsealed": 0,
        "refusals": {"budget-spent": 1},
    }
    assert told["work"]["unsealed"] == [task_key(STUDY_A, 2)]
    assert sum(told["integrity"]["kinds"].values()) == told["integrity"]["entries"] == len(book[0].written)


def test_conformance_is_judged_anew_and_its_hospital_is_not_believed(eventful: tuple[dict[str, Any], str]) -> None:
    passed, lied, absent = eventful[0]["hospitals"][SITE]["conformance"]
    assert (passed["outcome"], passed["judged_anew"]["as_claimed"]) == ("passed", True)
    assert (lied["outcome"], lied["judged_anew"]["as_claimed"]) == ("passed", False)
    assert absent["judged_anew"] is None
    assert (passed["judged_anew"]["by_ledger_key"], lied["judged_anew"]["by_ledger_key"]) == (True, False)
    assert eventful[1].count("not the ledger&#x27;s key") == 1
    assert eventful[1].count("NOT as claimed") == 1
    assert eventful[1].count("which sealed answers") == 3


def test_what_comes_from_a_bundle_is_escaped_and_nothing_is_fetched(eventful: tuple[dict[str, Any], str]) -> None:
    described, page = eventful
    questions = [study["question"] for study in described["hospitals"][SITE]["studies"]]
    assert HOSTILE in questions  # it is there, as text
    tags: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            tags.append(tag)
            assert not {"src", "srcset", "action", "data"} & {name for name, _ in attrs}
            assert all(value == f"#{SITE}" for name, value in attrs if name == "href")
            assert not [name for name, _ in attrs if name.startswith("on")]

    Reader().feed(page)
    assert not {"script", "img", "link", "iframe", "object", "b"} & set(tags)
    assert {"svg", "table", "style"} <= set(tags)
    assert "&lt;script&gt;" in page
    assert not re.search(r"url\(|@import|https?://", page)


def test_the_same_bundle_gives_the_same_bytes(
    book: tuple[Book, list[bytes]], eventful: tuple[dict[str, Any], str]
) -> None:
    assert report_of(book[0].written, book[1]) == eventful


def test_a_report_of_an_empty_ledger_and_of_one_that_spent_nothing() -> None:
    assert "which is empty" in report_of([])[1]
    assert "No block has spent anything" in report_of(opened().written[:1])[1]  # not even an admission epoch
    _, page = report_of(opened().written)
    assert "No block has spent anything" in page
    assert "No conformance audit is recorded" in page


def test_every_law_names_what_is_no_evidence(eventful: tuple[dict[str, Any], str]) -> None:
    rows = eventful[0]["mapping"]
    sources = " ".join(row["source"] for row in rows)
    assert all(name in sources for name in ("2016/679", "164.514", "2024/1689", "800-226"))
    assert all(row["not_evidence"] and row["place"] for row in rows)
    words = " ".join(row["evidence"] for row in rows)
    assert not re.search(r"\b(complies|compliant|satisfies|fulfils|anonymous)\b", words)


def run(bundle: Path, out: Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["audit", "report", str(bundle), "--keys", str(KEYS), "--out", str(out)])
    return int(ended.value.code or 0)


def test_the_command_writes_both_forms(tmp_path: Path) -> None:
    assert run(GOLDEN / "honest.zip", tmp_path / "new" / "folder") == 0
    written = json.loads((tmp_path / "new" / "folder" / "report.json").read_text())
    assert written["bundle"]["sha256"] == digest((GOLDEN / "honest.zip").read_bytes())
    assert "<!doctype html>" in (tmp_path / "new" / "folder" / "report.html").read_text()


def test_a_bundle_that_does_not_hold_gets_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(GOLDEN / "restored-backup.zip", tmp_path / "out") == 1
    shown = capsys.readouterr()
    assert shown.out.startswith("restored-backup.zip: does not hold\n1. ")
    assert shown.err == ""
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert run(GOLDEN / "honest.zip", tmp_path / "file") == 2
    assert capsys.readouterr().err.count("\n") == 1
