"""What the protocol refuses: every refusal names the phase and the sender, and leaves the state as it was."""

from __future__ import annotations

import base64
import copy
import json
import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from fedtwin_shared.secagg.advertising import FIELD, SMALL_ORDER, read_advertisements
from fedtwin_shared.secagg.agreement import verify_agreement
from fedtwin_shared.secagg.masking import MaskedSum, add_masked, start_sum
from fedtwin_shared.secagg.masks import exchange
from fedtwin_shared.secagg.message import Phase, ProtocolError, sign_message
from fedtwin_shared.secagg.sharing import verify_dealings, verify_ready
from fedtwin_shared.secagg.unmasking import verify_reveal
from fedtwin_shared.signing import canonical_json, parse_canonical
from tests.shared.secagg.assembly import (
    Assembly,
    assemble,
    make_seat,
    make_setup,
    make_step,
    make_terms,
    masked_sum,
    random_vectors,
    set_up,
)

ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493  # RFC 8032, section 5.1
SETUP = make_setup(make_terms(4, dropouts=1))
SENDER = "site-001"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One message of a whole run, and whatever reads it: `read` returns something or raises."""

    phase: Phase
    data: bytes
    read: Callable[[bytes], object]
    state: object


def every_message() -> list[Sent]:
    """One message of every phase, all of `SENDER`, as the coordinator or another site reads it."""
    assembly = assemble(SETUP)
    members = assembly.members
    keys = {name: member.advertise() for name, member in members.items()}
    others = [data for name, data in keys.items() if name != SENDER]
    found = [
        Sent(
            phase=Phase.KEYS,
            data=keys[SENDER],
            read=lambda data: read_advertisements(SETUP, [*others, data]),
            state=members["site-000"],
        )
    ]
    advertised = read_advertisements(SETUP, keys.values())
    dealt = {name: member.share(keys.values()) for name, member in members.items()}
    from_others = [dealings["site-000"] for name, dealings in dealt.items() if name not in ("site-000", SENDER)]
    fresh = copy.copy(members["site-000"])
    found.append(
        Sent(
            phase=Phase.SHARES,
            data=dealt[SENDER]["site-000"],
            read=lambda data: fresh.receive([*from_others, data]),
            state=fresh,
        )
    )
    found.append(
        Sent(
            phase=Phase.SHARES,
            data=dealt[SENDER]["site-000"],
            read=lambda data: verify_dealings(SETUP, advertised, SENDER, {**dealt[SENDER], "site-000": data}),
            state=advertised,
        )
    )
    assembly = set_up(SETUP)
    members, roll = assembly.members, assembly.rolled
    ready = sign_message(
        bytes.fromhex(roll.digest),
        phase=Phase.READY,
        sender=SENDER,
        context=SETUP.digest,
        sign=members[SENDER].seat.sign,
    )
    found.append(Sent(phase=Phase.READY, data=ready, read=lambda data: verify_ready(roll, data), state=roll))
    state = masked_sum(assembly, make_step(), random_vectors(members, 5, seed=0))
    without = set_up(SETUP)
    empty = masked_sum_without(without, SENDER)
    masked = without.members[SENDER].mask(make_step(), np.arange(5))
    found.append(Sent(phase=Phase.MASKED, data=masked, read=lambda data: add_masked(empty, data), state=empty))
    words = {name: member.agree(state.survivors) for name, member in members.items()}
    found.append(
        Sent(
            phase=Phase.AGREEMENT,
            data=words[SENDER],
            read=lambda data: verify_agreement(
                data, binding=state.binding, survivors=state.survivors, terms=SETUP.terms
            ),
            state=state,
        )
    )
    revealed = members[SENDER].reveal(words.values())
    found.append(Sent(phase=Phase.UNMASKING, data=revealed, read=lambda data: verify_reveal(state, data), state=state))
    return found


def masked_sum_without(assembly: Assembly, absent: str) -> MaskedSum:
    state = start_sum(assembly.rolled, make_step())
    for name in assembly.rolled.members:
        if name != absent:
            state = add_masked(state, assembly.members[name].mask(make_step(), np.zeros(5, dtype=np.int64)))
    return state


MESSAGES = every_message()
NAMES = [f"{sent.phase}-{place}" for place, sent in enumerate(MESSAGES)]


def split(data: bytes) -> tuple[bytes, bytes]:
    length = int.from_bytes(data[:4], "big")
    return data[4 : 4 + length], data[4 + length :]


def join(envelope: bytes, body: bytes) -> bytes:
    return len(envelope).to_bytes(4, "big") + envelope + body


def refusal(sent: Sent, data: bytes) -> ProtocolError:
    """The refusal of `data` in the place of a message; whatever read it is as it was, and still reads the message."""
    before = repr(sent.state)
    with pytest.raises(ProtocolError) as refused:
        sent.read(data)
    assert repr(sent.state) == before
    assert str(sent.phase) in str(refused.value)
    return refused.value


@pytest.mark.parametrize("sent", MESSAGES, ids=NAMES)
def test_every_message_is_accepted_as_it_is(sent: Sent) -> None:
    assert sent.read(sent.data)


@pytest.mark.parametrize("sent", MESSAGES, ids=NAMES)
def test_a_flipped_bit_anywhere_is_refused(sent: Sent) -> None:
    generator = random.Random(11)
    envelope, body = split(sent.data)
    places = [*range(40), *generator.sample(range(len(sent.data) * 8), 60), 8 * (4 + len(envelope))]
    for place in places:
        flipped = bytearray(sent.data)
        flipped[place // 8] ^= 1 << place % 8
        refusal(sent, bytes(flipped))
    # In the body the sender is known, because the header still verifies.
    assert refusal(sent, join(envelope, bytes([body[0] ^ 1]) + body[1:])).sender == SENDER


@pytest.mark.parametrize("sent", MESSAGES, ids=NAMES)
@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff" * 100, bytes(4), b"\x00\x00\x00\x02{}"])
def test_bytes_of_nobody_are_refused(sent: Sent, data: bytes) -> None:
    assert refusal(sent, data).sender == ""


def sign_again(sent: Sent, *, body: bytes | None = None, **changes: str) -> bytes:
    """The message with another header or body, signed by its own sender."""
    envelope, original = split(sent.data)
    header = parse_canonical(base64.b64decode(json.loads(envelope)["payload"]))
    assert isinstance(header, dict)
    kept = {"phase": header["phase"], "context": header["context"], "recipient": header["recipient"], **changes}
    return sign_message(
        original if body is None else body,
        phase=Phase(kept["phase"]),
        sender=SENDER,
        context=kept["context"],
        sign=make_seat(SETUP, SENDER).sign,
        recipient=kept["recipient"],
    )


@pytest.mark.parametrize("sent", MESSAGES, ids=NAMES)
def test_a_message_of_another_phase_context_or_recipient_is_refused(sent: Sent) -> None:
    assert sent.read(sign_again(sent)) is not None
    for phase in Phase:
        if phase is not sent.phase:
            assert refusal(sent, sign_again(sent, phase=phase.value)).sender == SENDER
    assert refusal(sent, sign_again(sent, context="0" * 64)).sender == SENDER
    assert refusal(sent, sign_again(sent, recipient="site-002")).sender == SENDER


@pytest.mark.parametrize("sent", MESSAGES, ids=NAMES)
def test_another_length_is_refused(sent: Sent) -> None:
    _, body = split(sent.data)
    for changed in (body[:-1], body + b"\x00", b"", body + body):
        assert refusal(sent, sign_again(sent, body=changed)).sender == SENDER


@pytest.mark.parametrize("sent", MESSAGES, ids=NAMES)
def test_a_site_that_signs_in_anothers_name_is_refused_under_its_own(sent: Sent) -> None:
    forged = sign_message(
        split(sent.data)[1],
        phase=sent.phase,
        sender=SENDER,
        context=SETUP.digest,
        sign=make_seat(SETUP, "site-003").sign,
    )
    assert refusal(sent, forged).sender == "site-003"


@pytest.mark.parametrize("sent", MESSAGES, ids=NAMES)
def test_an_unknown_sender_is_refused(sent: Sent) -> None:
    stranger = sign_message(
        split(sent.data)[1],
        phase=sent.phase,
        sender="site-009",
        context=SETUP.digest,
        sign=make_seat(SETUP, "site-009").sign,
    )
    refused = refusal(sent, stranger)
    assert refused.sender == ""
    assert "trusted signer" in str(refused)


@pytest.mark.parametrize("sent", MESSAGES, ids=NAMES)
def test_a_signature_in_another_form_is_refused(sent: Sent) -> None:
    envelope, body = split(sent.data)
    document = json.loads(envelope)
    signature = base64.b64decode(document["signatures"][0]["sig"])
    # The same signature plus a multiple of the group's order verifies where the standard's check is left out.
    scalar = int.from_bytes(signature[32:], "little") + ED25519_ORDER
    document["signatures"][0]["sig"] = base64.b64encode(signature[:32] + scalar.to_bytes(32, "little")).decode()
    refused = refusal(sent, join(canonical_json(document), body))
    assert "valid signature" in str(refused)
    assert refusal(sent, join(envelope.replace(b":", b": "), body)).sender == ""


def test_a_second_message_of_one_sender_is_refused() -> None:
    assembly = set_up(SETUP)
    members = assembly.members
    keys = [member.keys for member in members.values()]
    with pytest.raises(ProtocolError, match="keys: site-001: expected one message, found a second"):
        read_advertisements(SETUP, [*keys, keys[1]])
    state = masked_sum(assembly, make_step(), random_vectors(members, 5, seed=0))
    fresh = set_up(SETUP)
    data = fresh.members[SENDER].mask(make_step(), np.zeros(5, dtype=np.int64))
    once = add_masked(masked_sum_without(fresh, SENDER), data)
    with pytest.raises(ProtocolError, match="masked: site-001: expected one message, found a second"):
        add_masked(once, data)
    words = [member.agree(state.survivors) for member in members.values()]
    with pytest.raises(ProtocolError, match="unmasking: site-001: expected one agreement, found a second"):
        members["site-000"].reveal([*words, words[1]])


@pytest.mark.parametrize("coordinate", sorted(SMALL_ORDER))
@pytest.mark.parametrize("form", [0, 1, 2])
def test_a_key_of_small_order_is_refused_in_every_form(coordinate: int, form: int) -> None:
    number = coordinate + (FIELD if form == 1 and coordinate + FIELD < 2**255 else 0) + (2**255 if form == 2 else 0)
    public = number.to_bytes(32, "little")
    with pytest.raises(ValueError):  # the library agrees that nothing secret comes of it
        exchange(b"\x07" * 32, public)
    assembly = assemble(SETUP)
    keys = [member.advertise() for member in assembly.members.values()]
    _, body = split(keys[1])
    keys[1] = sign_message(
        body[:32] + public + body[64:],
        phase=Phase.KEYS,
        sender=SENDER,
        context=SETUP.digest,
        sign=assembly.members[SENDER].seat.sign,
    )
    with pytest.raises(ProtocolError, match="keys: site-001: expected fresh keys"):
        read_advertisements(SETUP, keys)


def test_a_key_that_somebody_else_advertised_is_refused() -> None:
    assembly = assemble(SETUP)
    keys = [member.advertise() for member in assembly.members.values()]
    stolen = sign_message(
        split(keys[2])[1], phase=Phase.KEYS, sender=SENDER, context=SETUP.digest, sign=make_seat(SETUP, SENDER).sign
    )
    with pytest.raises(ProtocolError, match="expected fresh keys"):
        read_advertisements(SETUP, [keys[0], stolen, *keys[2:]])


def test_a_vector_beyond_the_terms_is_a_mistake_and_uses_nothing() -> None:
    assembly = set_up(SETUP)
    member = assembly.members[SENDER]
    for vector in (np.full(5, SETUP.terms.largest + 1), np.full(5, -SETUP.terms.largest - 1)):
        with pytest.raises(OverflowError):
            member.mask(make_step(), vector)
    for wrong in (np.zeros(4, dtype=np.int64), np.zeros(5, dtype=np.float64)):
        with pytest.raises(RuntimeError):
            member.mask(make_step(), wrong)  # type: ignore[arg-type]  # that is the mistake
    assert member.uses.bindings == {}


def test_no_secret_is_in_the_text_of_a_state() -> None:
    assembly = set_up(SETUP)
    member = assembly.members[SENDER]
    text = repr(member)
    assert member.advertised is not None
    for secret in (*member.advertised.seeds, *member.advertised.mask_keys, member.advertised.channel_key):
        assert repr(secret)[2:-1] not in text
    assert "held" not in repr(member.instances[0])


def test_a_refusal_survives_a_process_pool() -> None:
    refused = ProtocolError(phase=Phase.KEYS, sender="a", expected="b", found="c")
    again = pickle.loads(pickle.dumps(refused))
    assert (again.phase, again.sender, str(again)) == (refused.phase, refused.sender, str(refused))
