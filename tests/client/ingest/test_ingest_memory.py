"""No message takes more memory than its format's stated factor, whatever small things it is full of."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest

from fedtwin_client.ingest import fhir, hl7v2, packed, senml
from fedtwin_client.ingest.readings import Draft

SIZE = 60_000
FIXED = 300_000  # bytes that do not grow with the message: caches, buffers


def fill(before: bytes, part: bytes, after: bytes = b"") -> bytes:
    return before + part * ((SIZE - len(before)) // len(part)) + after


HEAD = b"MSH|^~\\&|A|B|C|D|20261122||ORU^R01|1|P|2.5.1\r"
OBSERVATION = b'{"resourceType":"Observation","status":"final","code":{},"component":[{"code":{}}'
CASES: dict[str, tuple[Callable[[bytes, Draft], object], int, bytes]] = {
    "hl7v2 results": (hl7v2.read_message, hl7v2.MEMORY_FACTOR, fill(HEAD, b"OBX\r")),
    "hl7v2 segments": (hl7v2.read_message, hl7v2.MEMORY_FACTOR, fill(HEAD, b"\r")),
    "hl7v2 fields": (hl7v2.read_message, hl7v2.MEMORY_FACTOR, fill(HEAD + b"OBX", b"|")),
    "hl7v2 patients": (hl7v2.read_message, hl7v2.MEMORY_FACTOR, fill(HEAD + b"PID|||", b"~")),
    "fhir lines": (fhir.read_ndjson, fhir.MEMORY_FACTOR, fill(b"", b"0\n")),
    "fhir entries": (
        fhir.read_message,
        fhir.MEMORY_FACTOR,
        fill(b'{"resourceType":"Bundle","entry":[{}', b",{}", b"]}"),
    ),
    "fhir components": (fhir.read_message, fhir.MEMORY_FACTOR, fill(OBSERVATION, b',{"code":{}}', b"]}")),
    "senml": (
        lambda data, draft: senml.read_message(data, draft, now=0),
        senml.MEMORY_FACTOR,
        fill(b"[{}", b",{}", b"]"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_memory_is_bounded_by_the_stated_factor(name: str) -> None:
    read, factor, data = CASES[name]
    read(data[:100], Draft())
    tracemalloc.start()
    try:
        draft = Draft()
        read(data, draft)
        draft.readings()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < factor * len(data) + FIXED, f"{(peak - FIXED) / len(data):.0f} times the message"
    assert peak > factor * len(data) / 100  # something was measured


def test_the_packed_form_is_bounded_too() -> None:
    data = packed.MAGIC + b"\0\0\x10\x27" + b"\0" * (4 + 16) + b"\0" * 20_000
    assert not isinstance(packed.read_message(data), str)
    tracemalloc.start()
    try:
        packed.read_message(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < packed.MEMORY_FACTOR * len(data) + FIXED
