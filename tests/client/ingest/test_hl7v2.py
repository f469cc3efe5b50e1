"""HL7 v2: what is read, what is answered, and that nothing is lost on the way."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import hl7
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtwin_client.ingest import hl7_values, hl7v2
from fedtwin_client.ingest.hl7_answers import Message, acknowledge
from fedtwin_client.ingest.hl7_values import Separators, read_time, unescape
from fedtwin_client.ingest.hl7v2 import MAXIMUM_BYTES, read_message
from fedtwin_client.ingest.readings import Draft
from fedtwin_client.observation import SIGNAL_KEYS
from fedtwin_client.quarantine import Reason
from tests.client.ingest.foreign import DATA, INPUTS, judge, needs_data

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
MSH = r"MSH|^~\&|MONITOR|ICU|NODE|SITE|20261122115900+0100||ORU^R01^ORU_R01|M1|P|2.5.1"
ORU = "\r".join(
    [
        MSH,
        "PID|1||p1^^^HOSP^MR~77^^^SSA^SS",
        "OBR|1|||X|||20261122115800+0100",
        "OBX|1|NM|8867-4^Heart rate^LN||81|/min^^UCUM|||||F|||20261122115830",
        "OBX|2|NM|150456^MDC_PULS_OXIM_SAT_O2^MDC||97|262688^MDC_DIM_PERCENT^MDC|||||F",
        "OBX|3|SN|8310-5^Temperature^LN||=^98.6|[degF]^^UCUM|||||P",
        "OBX|4|SN|2524-7^Lactate^LN||<^0.5|mmol/L^^UCUM|||||F",
        "OBX|5|NM|HR^local^L||81|/min^^UCUM|||||F",
        "OBX|6|NM|8867-4^Heart rate^LN||81|bpm^^L|||||F",
        "OBX|7|NM|8867-4^Heart rate^LN||999|/min^^UCUM|||||F",
        "OBX|8|NM|8867-4^Heart rate^LN||82|/min^^UCUM|||||D",
        "OBX|9|NM|8867-4^Heart rate^LN||8~9|/min^^UCUM|||||F",
    ]
).encode()


def test_a_result_becomes_an_observation_or_has_a_reason() -> None:
    draft = Draft()
    message = read_message(ORU, draft)
    assert message.refusal is None
    assert message.rows == 9
    judged = judge(draft.readings())
    batch = judged.batch
    assert [SIGNAL_KEYS[index] for index in batch.signal] == ["heart_rate", "pulse_oximetry", "temperature"]
    assert batch.value.tolist() == pytest.approx([81, 97, 37.0])
    assert batch.patients == ("p1",)
    assert batch.quality.tolist() == [0, 0, 1]
    # OBX-14, then OBR-7; the zone is that of MSH-7
    assert batch.time.tolist() == [1795345110000, 1795345080000, 1795345080000]
    assert judged.set_aside.counts() == {
        Reason.NOT_A_NUMBER: 2,
        Reason.UNKNOWN_SIGNAL: 1,
        Reason.UNKNOWN_UNIT: 1,
        Reason.IMPLAUSIBLE: 1,
        Reason.WITHDRAWN: 1,
    }


def test_separators_are_those_of_the_message() -> None:
    draft = Draft()
    other = ORU.decode()
    for mark, instead in zip("|^~&", "!*%@", strict=True):
        other = other.replace(mark, instead)
    assert read_message(other.replace("\\", "?", 1).encode(), draft).refusal is None
    assert len(judge(draft.readings()).batch) == 3


@pytest.mark.parametrize(
    ("data", "answer", "code"),
    [
        (b"", b"AR", b"100"),
        (b"PID|1||p1\r", b"AR", b"100"),
        (ORU.replace(rb"^~\&", rb"^~\\&"), b"AR", b"100"),
        (ORU.replace(b"|P|2.5.1", b"|P|3.0"), b"AR", b"203"),
        (ORU.replace(b"|P|2.5.1", b"|T|2.5.1"), b"AR", b"202"),
        (ORU.replace(b"|M1|", b"||"), b"AR", b"101"),
        (ORU.replace(b"ORU^R01^ORU_R01", b"SIU^S12"), b"AR", b"200"),
        (ORU.replace(b"|P|2.5.1", b"|P|2.5.1||||||ISO IR87"), b"AE", b"102"),
        (ORU.replace(b"local", b"\xff"), b"AE", b"102"),
        (ORU.replace(b"ORU^R01^ORU_R01", b"ADT^A01").replace(b"PID|", b"PIX|"), b"AE", b"100"),
        (b"MSH|" + b"x" * MAXIMUM_BYTES, b"AR", b"207"),
    ],
)
def test_a_refused_message_leaves_nothing_and_is_answered(data: bytes, answer: bytes, code: bytes) -> None:
    draft = Draft()
    message = read_message(data, draft)
    assert message.refusal is not None
    assert len(draft) == 0
    assert message.rows == 0
    (said,) = acknowledge(message, now=NOW, control="A1")
    parsed = hl7.parse(said.decode())
    assert parsed.segment("MSA")[1][0] == answer.decode()
    assert f"{parsed.segment('ERR')[3]}".startswith(code.decode())


def test_an_acknowledgement_goes_back_to_its_sender() -> None:
    (said,) = acknowledge(read_message(ORU, Draft()), now=NOW, control="A1")
    assert said == b"MSH|^~\\&|NODE|SITE|MONITOR|ICU|20261122120000+0000||ACK^R01^ACK|A1|P|2.5.1\rMSA|AA|M1\r"


@pytest.mark.parametrize(
    ("accept", "application", "bad", "answers"),
    [
        ("AL", "NE", False, ["CA"]),
        ("AL", "AL", False, ["CA", "AA"]),
        ("NE", "AL", False, ["AA"]),
        ("ER", "ER", False, []),
        ("ER", "ER", True, ["CR", "AR"]),
        ("SU", "", False, ["CA"]),
        ("SU", "", True, []),
    ],
)
def test_enhanced_mode_answers_what_was_asked(accept: str, application: str, bad: bool, answers: list[str]) -> None:
    data = ORU.replace(b"|P|2.5.1", f"|{'T' if bad else 'P'}|2.5.1|||{accept}|{application}".encode())
    said = acknowledge(read_message(data, Draft()), now=NOW, control="A1")
    assert [f"{hl7.parse(one.decode()).segment('MSA')[1]}" for one in said] == answers


def test_an_old_version_gets_its_error_in_msa() -> None:
    message = read_message(ORU.replace(b"|P|2.5.1", b"|T|2.3"), Draft())
    (said,) = acknowledge(message, now=NOW, control="A1")
    assert b"ERR" not in said
    assert f"{hl7.parse(said.decode()).segment('MSA')[6]}" == "202^unsupported processing id^HL70357"


def test_times_need_a_zone_and_a_minute() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    assert read_time("20240701120000", berlin) == (int(datetime(2024, 7, 1, 10, tzinfo=UTC).timestamp()) * 1000, -1)
    assert read_time("202407011200-0500", None)[0] == int(datetime(2024, 7, 1, 17, tzinfo=UTC).timestamp()) * 1000
    assert read_time("20240701120000.1234Z"[:-1], UTC)[0] % 1000 == 123
    for text in ("20240701", "2024070112", "20241301120000", "20240701120000+9900", "", "x", "00000101000000-0100"):
        assert read_time(text, UTC)[1] >= 0, text
    assert read_time("20240701120000", None)[1] >= 0


def test_escape_sequences_say_what_they_stand_for() -> None:
    marks = Separators()
    assert unescape(r"\X41426320\x", marks) == "ABc x"
    assert unescape(r"\H\bold\N\ \.br\ \Zown\ \Xzz\ open\ end", marks) == "bold \n \\Zown\\ \\Xzz\\ open\\ end"
    assert unescape(r"a\E\F\E\b", marks) == r"a\F\b"


def test_character_sets_are_kept_to() -> None:
    named = ORU.replace(b"p1^", "pä^".encode("latin-1")).replace(b"|P|2.5.1", b"|P|2.5.1||||||8859/1")
    draft = Draft()
    read_message(named, draft)
    assert draft.rows[0][0] == "pä"
    silent = Draft()
    read_message(ORU.replace(b"p1^", "pä^".encode()), silent)
    assert silent.rows[0][0] == "pä"


def test_an_adt_message_is_an_event() -> None:
    adt = ORU.replace(b"ORU^R01^ORU_R01", b"ADT^A40^ADT_A40").split(b"\rOBR")[0] + b"\rMRG|p0^^^HOSP^MR\r"
    event = read_message(adt, Draft()).event
    assert event is not None
    assert (event.event, event.patient, event.retired) == ("A40", "p1", "p0")
    assert "p1" not in repr(event)


def count_results(text: str) -> int:
    """Count OBX segments by another's parser."""
    return sum(str(segment[0]) == "OBX" for segment in hl7.parse(text))


@needs_data
def test_foreign_messages_are_read_or_refused_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    table: list[str] = []
    outcomes: Counter[str] = Counter()
    for path in sorted((DATA / "hl7v2_samples").glob("*/*.hl7")):
        data, draft = path.read_bytes(), Draft()
        message = read_message(data, draft, zone=UTC, processing=frozenset("PTD"))
        judged = judge(draft.readings())
        if message.refusal is not None:
            outcomes["refused"] += 1
            table.append(f"{path.name:<45} refused: {message.refusal.code} {message.refusal.words}")
            continue
        outcomes["read"] += 1
        text = data.decode("utf-8-sig", "replace").replace("\r\n", "\r").replace("\n", "\r").strip()
        assert message.rows == count_results(text), path.name
        assert message.rows == len(judged.batch) + len(judged.set_aside)
        assert message.event is None or message.event.patient
        what = message.event.event if message.event else "ORU"
        why = ", ".join(f"{reason} {number}" for reason, number in judged.set_aside.counts().items())
        table.append(f"{path.name:<45} {what:<4} accepted {len(judged.batch):>3} of {message.rows:>3}  {why}")
    with capsys.disabled():
        print("", *table, sep="\n")
    assert outcomes["read"] > 25
    assert outcomes["refused"] > 25


def test_patients_and_values_agree_with_another_parser() -> None:
    draft = Draft()
    read_message(ORU, draft)
    theirs = hl7.parse(ORU.decode())
    for row, segment in zip(draft.rows, theirs.segments("OBX"), strict=True):
        assert row[0] == str(theirs.segment("PID")[3][0][0])
        if str(segment[2]) == "NM" and str(segment[5]).isdigit():
            assert row[3] == float(str(segment[5]))


def check_total(data: bytes) -> Message:
    """Read anything: it is read or refused, is answered, and no row of it is lost."""
    draft = Draft()
    message = read_message(data, draft)
    assert message.rows == len(draft)
    assert not (message.refusal and len(draft))
    judge(draft.readings())
    for answer in acknowledge(message, now=NOW, control="A1"):
        assert answer.endswith(b"\r")
    return message


RESULT = b"OBX|1|NM|8867-4^^LN||81|/min^^UCUM|||||F|||20261122115830\r"
MARKS = [b"|", b"^", b"~", b"\\", b"&", b"\r", b"\n", b"\xff", b"\0", b"<", b"1e999", b"nan", b"NM", b"SN"]
PIECES = st.sampled_from([*MARKS, RESULT, b"\rPID|1||p1^^^H^MR", b"\rMRG|", b"\\X41\\", b"\\X"])


@settings(max_examples=INPUTS, deadline=1000, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_input_crashes_it(data: st.DataObject) -> None:
    kind = data.draw(st.integers(0, 3))
    if kind == 0:
        check_total(data.draw(st.binary(max_size=200)))
        return
    base = ORU if kind < 3 else ORU.replace(b"ORU^R01^ORU_R01", b"ADT^A08")
    start, length = data.draw(st.integers(0, len(base))), data.draw(st.integers(0, 40))
    inserted = b"".join(data.draw(st.lists(st.one_of(PIECES, st.binary(max_size=8)), max_size=6)))
    check_total(base[:start] + inserted + base[start + length :])


TIMES = st.builds(
    lambda text, at, other: text[:at] + other + text[at + len(other) :],
    st.sampled_from(["20201122133007+0100", "202011221330-0500", "20201122133007.1234+0000", "20201122133007"]),
    st.integers(0, 24),
    st.text("0123456789+-.", max_size=3),
)


@given(text=TIMES)
def test_the_quick_way_to_read_a_time_is_the_slow_one(text: str) -> None:
    for zone in (None, ZoneInfo("Europe/Berlin")):
        assert hl7_values.read_time(text, zone) == hl7_values._read_whole(text, zone)


def test_a_long_segment_is_read_like_a_short_one_and_not_remembered() -> None:
    before = hl7_values.recall_kind.cache_info().currsize
    draft = Draft()
    for name in ("x", "x" * 5000):
        hl7v2.read_message(ORU.replace(b"Heart rate", name.encode()), draft)
    assert draft.rows[: len(draft) // 2] == draft.rows[len(draft) // 2 :]
    assert hl7_values.recall_kind.cache_info().currsize <= before + len(draft) // 2
