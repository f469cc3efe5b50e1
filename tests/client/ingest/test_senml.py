"""SenML: base fields are resolved as RFC 8428 says, and nothing is lost on the way."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtwin_client.ingest.readings import Draft
from fedtwin_client.ingest.senml import MAXIMUM_BYTES, read_message
from fedtwin_client.observation_batch import NO_SEQUENCE
from fedtwin_client.quarantine import Reason
from tests.client.ingest.foreign import INPUTS, judge

NOW = 1_795_345_200_000


def read(pack: Any) -> Draft:
    draft = Draft()
    document = read_message(json.dumps(pack).encode(), draft, now=NOW)
    assert document.rows == len(draft)
    return draft


def test_base_fields_are_resolved() -> None:
    # The shape of the example in RFC 8428 §5.1.3, with our names
    draft = read(
        [
            {"bn": "p1/", "bt": 1.795345e9, "bu": "beat/min", "bv": 80, "n": "heart_rate", "v": 1, "sq": 7},
            {"n": "mdc:147842", "t": -5, "v": 2},
            {"n": "8310-5", "u": "Cel", "t": 0.25, "bv": 0, "v": 37},
            {"bn": "p2/", "n": "pulse_oximetry", "u": "/", "v": 0.97},
        ]
    )
    batch = judge(draft.readings()).batch
    assert batch.value.tolist() == pytest.approx([81, 82, 37, 97])
    assert (batch.time - 1_795_345_000_000).tolist() == [0, -5000, 250, 0]
    assert batch.sequence.tolist() == [7, 8, 9, 10]
    assert [batch.patients[index] for index in batch.patient] == ["p1", "p1", "p1", "p2"]


def test_a_small_time_counts_from_now() -> None:
    batch = judge(read([{"n": "p/heart_rate", "u": "/min", "v": 80}, {"n": "p/heart_rate", "t": -2}]).readings())
    assert batch.batch.time.tolist() == [NOW]
    assert batch.batch.sequence.tolist() == [NO_SEQUENCE]
    assert batch.set_aside.counts() == {Reason.UNKNOWN_UNIT: 1}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"n": "p/heart_rate", "u": "/min", "vs": "80"}, Reason.NOT_A_NUMBER),
        ({"n": "heart_rate", "u": "/min", "v": 80}, Reason.PATIENT_MISSING),
        ({"n": "p/x", "u": "/min", "v": 80}, Reason.UNKNOWN_SIGNAL),
        ({"n": "p/heart_rate", "u": "dBm", "v": 80}, Reason.UNKNOWN_UNIT),
        ({"n": "p/heart_rate", "u": "/min", "v": 8000}, Reason.IMPLAUSIBLE),
        ({"n": "p ü/heart_rate", "u": "/min", "v": 80}, Reason.MALFORMED),
        ({"n": "p/heart_rate", "u": "/min", "v": 80, "t": 1e300}, Reason.TIME_UNREADABLE),
    ],
)
def test_what_is_no_observation_has_a_reason(record: dict[str, Any], reason: Reason) -> None:
    assert judge(read([record]).readings()).set_aside.counts() == {reason: 1}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b'[{"n":',
        b"\xff",
        b'[{"bver":11,"n":"a"}]',
        b'[{"n":"p/x","v":1,"new_":2}]',
        b"[" * 9999,
        b" " * (MAXIMUM_BYTES + 1),
    ],
)
def test_a_refused_pack_leaves_nothing(data: bytes) -> None:
    draft = Draft()
    assert read_message(data, draft, now=NOW).refused
    assert len(draft) == 0


LABELS = st.sampled_from(["bn", "bt", "bu", "bv", "bs", "bver", "n", "u", "v", "vs", "vb", "s", "t", "ut", "sq", "x_"])
PARTS = st.one_of(
    *(st.none(), st.integers(), st.floats(), st.text(max_size=6)),
    st.sampled_from(["p/", "p/heart_rate", "/min", "heart_rate", 80, 1.8e9, 2**53, -1]),
)


@settings(max_examples=INPUTS, deadline=1000, suppress_health_check=list(HealthCheck))
@given(pack=st.one_of(st.binary(max_size=60), st.lists(st.dictionaries(LABELS, PARTS, max_size=5), max_size=5)))
def test_no_input_crashes_it(pack: Any) -> None:
    draft = Draft()
    data = pack if isinstance(pack, bytes) else json.dumps(pack).encode()
    document = read_message(data, draft, now=NOW)
    assert document.rows == len(draft)
    assert not (document.refused and len(draft))
    judge(draft.readings())
