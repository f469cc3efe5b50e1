from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.secagg.message import Phase
from fedtwin_shared.secagg.order import (
    ROUTES,
    Answer,
    Order,
    decode_answer,
    decode_order,
    encode_answer,
    encode_order,
)

NAMES = st.text("abcdefgh-0123456789", min_size=1, max_size=12)
PARTS = st.lists(st.binary(max_size=40), max_size=5).map(tuple)
ORDERS = st.builds(
    Order,
    phase=st.sampled_from(Phase),
    study=NAMES,
    run=NAMES,
    number=st.integers(0, 2**53 - 1),
    instance=st.integers(0, 1000),
    survivors=st.lists(NAMES, max_size=4).map(tuple),
    parts=PARTS,
)
ANSWERS = st.builds(Answer, refused=st.sampled_from(["", *Phase]), blamed=NAMES, parts=PARTS)
ONE = encode_order(Order(phase=Phase.MASKED, study="s", run="r", number=1, parts=(b"plan", b"model")))


@given(order=ORDERS)
def test_an_order_is_read_back_as_it_was(order: Order) -> None:
    assert decode_order(encode_order(order)) == order


@given(answer=ANSWERS)
def test_an_answer_is_read_back_as_it_was(answer: Answer) -> None:
    assert decode_answer(encode_answer(answer)) == answer


@given(data=st.binary(max_size=200))
def test_any_bytes_are_an_order_or_refused(data: bytes) -> None:
    for decode in (decode_order, decode_answer):
        with pytest.raises(VerificationError):
            decode(data)


@given(place=st.integers(0, len(ONE) * 8 - 1))
def test_a_flipped_bit_is_refused_or_another_order(place: int) -> None:
    flipped = bytearray(ONE)
    flipped[place // 8] ^= 1 << place % 8
    try:
        assert decode_order(bytes(flipped)) != decode_order(ONE)
    except VerificationError:
        return


@pytest.mark.parametrize(
    "header",
    [
        b'{"blamed":"","refused":"","sizes":[true]}',
        b'{"blamed":"","refused":"","sizes":[-1]}',
        b'{"blamed":"","refused":"","sizes":1}',
        b'{"blamed":"","refused":"","sizes":[1]}',
        b'{"blamed":"","more":"","refused":"","sizes":[]}',
        b'{"blamed":"","refused":"somewhere","sizes":[]}',
        b'{"blamed":1,"refused":"","sizes":[]}',
        b"[]",
    ],
)
def test_another_header_is_refused(header: bytes) -> None:
    with pytest.raises(VerificationError):
        decode_answer(len(header).to_bytes(4, "big") + header)


def test_every_phase_has_a_route_of_its_own() -> None:
    assert sorted(ROUTES) == sorted(Phase)
    assert len(set(ROUTES.values())) == len(Phase)
    assert ROUTES[Phase.KEYS] == "secagg_keys"
