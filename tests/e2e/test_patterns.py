"""The search finds what was hidden: a search that cannot find is no evidence."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from tests.e2e.patterns import found_in, number_forms, text_forms

PATIENT = "mrn-2d5b0234-8492591"


@pytest.mark.parametrize(
    "leak",
    [
        PATIENT.encode(),
        PATIENT.encode("utf-16"),
        PATIENT.encode().hex().encode(),
        json.dumps({"who": PATIENT}).encode(),
        *(base64.b64encode(b"x" * before + PATIENT.encode() + b"tail") for before in range(7)),
        *(base64.b64encode(b"x" * before + PATIENT.encode()) for before in range(3)),
    ],
)
def test_an_identifier_is_found_in_every_form(leak: bytes) -> None:
    assert found_in(b"before" + leak + b"after", text_forms(PATIENT))


@pytest.mark.parametrize("kind", ["<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("before", range(4))
def test_a_row_of_numbers_is_found_in_every_form(kind: str, before: int) -> None:
    row = np.array([0.25, -1.375, 0.1, 3.7], dtype=np.float32)
    raw = bytes(before) + row.astype(kind).tobytes() + b"tail"
    assert found_in(raw, number_forms(row[1:3]))
    assert found_in(base64.b64encode(raw), number_forms(row[1:3]))
    assert found_in(json.dumps(row.tolist()).encode(), number_forms(row[1:3]))


def test_nothing_is_found_where_nothing_is() -> None:
    noise = np.random.default_rng(0).bytes(200_000)
    assert not found_in(noise, [*text_forms(PATIENT), *number_forms(np.array([0.1, -1.375]))])


def test_a_needle_that_chance_could_find_is_refused() -> None:
    with pytest.raises(AssertionError):
        found_in(b"anything", [b"short"])
