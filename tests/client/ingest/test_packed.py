"""The packed form: what is written is read, and what does not add up is refused whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtwin_client.ingest.packed import BYTES_A_READING, MAXIMUM_BYTES, read_message, write_message
from fedtwin_client.ingest.readings import Readings
from fedtwin_client.observation_batch import NO_SEQUENCE
from fedtwin_client.quarantine import Reason
from tests.client.ingest.foreign import INPUTS, judge

MESSAGE = write_message(
    patients=["p1", "pä"],
    kinds=[("heart_rate", "/min"), ("mdc:150456", "%")],
    base=1_795_345_000_000,
    time=[0, -5, 250],
    value=[81, 97, 82],
    patient=[0, 1, 1],
    kind=[0, 1, 0],
    quality=[0, 1, 0],
    first=41,
)
# The same message byte for byte, so that a device's maker can check an encoder against it.
GOLDEN = (
    "46545031" "0200" "0200" "03000000" "2900000000000000" "40a6e602a2010000"
    "027031" "0370c3a4" "0a68656172745f72617465" "042f6d696e" "0a6d64633a313530343536" "0125"
    "00000000" "fbffffff" "fa000000" "0000a242" "0000c242" "0000a442" "000001000100" "000001000000" "000100"
)  # fmt: skip


REFUSALS = {"message too large", "message unreadable", "version not supported"}


def test_what_is_written_is_read() -> None:
    readings = read_message(MESSAGE)
    assert isinstance(readings, Readings)
    batch = judge(readings).batch
    assert batch.value.tolist() == [81, 97, 82]
    assert (batch.time - 1_795_345_000_000).tolist() == [0, -5, 250]
    assert [batch.patients[index] for index in batch.patient] == ["p1", "pä", "pä"]
    assert batch.sequence.tolist() == [41, 42, 43]
    assert batch.quality.tolist() == [0, 1, 0]


def test_the_form_is_the_published_one() -> None:
    assert MESSAGE.hex() == GOLDEN
    assert len(MESSAGE) == 28 + 36 + 3 * BYTES_A_READING


def test_a_device_that_numbers_nothing() -> None:
    unnumbered = write_message(
        patients=["p"], kinds=[("heart_rate", "/min")], base=0, time=[0], value=[81], patient=[0], kind=[0]
    )
    readings = read_message(unnumbered)
    assert isinstance(readings, Readings)
    assert readings.sequence.tolist() == [NO_SEQUENCE]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        MESSAGE[:-1],
        MESSAGE + b"\0",
        b"FTP2" + MESSAGE[4:],
        MESSAGE.replace(b"\xc3\xa4", b"\xff\xff"),
        MESSAGE[:-1] + b"\3",
        MESSAGE[:8] + b"\xff\xff\xff\xff" + MESSAGE[12:],
        MESSAGE.replace(b"\3p\xc3\xa4", b"\2p1"),
        b"\0" * (MAXIMUM_BYTES + 1),
    ],
)
def test_what_does_not_add_up_is_refused(data: bytes) -> None:
    assert isinstance(read_message(data), str)


def test_an_index_that_points_nowhere_is_refused() -> None:
    at = len(MESSAGE) - 3 - 6
    assert isinstance(read_message(MESSAGE[:at] + b"\2" + MESSAGE[at + 1 :]), str)


def test_a_time_that_no_calendar_has_is_set_aside() -> None:
    readings = read_message(MESSAGE[:20] + (2**51).to_bytes(8, "little") + MESSAGE[28:])
    assert isinstance(readings, Readings)
    assert judge(readings).set_aside.counts() == {Reason.TIME_UNREADABLE: 3}


def test_a_value_that_is_no_number_is_set_aside() -> None:
    at = len(MESSAGE) - 3 * (1 + 2 + 2 + 4)
    for value in (np.nan, np.inf, -np.inf):
        readings = read_message(MESSAGE[:at] + np.float32(value).tobytes() + MESSAGE[at + 4 :])
        assert isinstance(readings, Readings)
        assert len(judge(readings).batch) == 2


@settings(max_examples=INPUTS, deadline=1000, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_input_crashes_it(data: st.DataObject) -> None:
    if data.draw(st.booleans()):
        message = b"FTP1" + data.draw(st.binary(max_size=80))
    else:
        start, length = data.draw(st.integers(0, len(MESSAGE))), data.draw(st.integers(0, 8))
        message = MESSAGE[:start] + data.draw(st.binary(min_size=length, max_size=length)) + MESSAGE[start + length :]
    readings = read_message(message)
    if isinstance(readings, str):
        assert readings in REFUSALS
    else:
        count = int.from_bytes(message[8:12], "little")
        judged = judge(readings)
        assert len(judged.batch) + len(judged.set_aside) == len(readings) == count
