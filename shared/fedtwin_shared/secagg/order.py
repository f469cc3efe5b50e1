"""What the coordinator asks of a site in each phase, and what comes back, as bytes.

    4 bytes, big-endian: the header's length ‖ header, canonical JSON ‖ parts

Orders are not signed and need not be: in every one of them a site believes nothing but what other sites signed. What it
computes with in a step (plan, model) it verifies itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.secagg.message import Phase
from fedtwin_shared.signing import canonical_json, parse_canonical

MAXIMUM_HEADER_BYTES: Final = 1 << 16  # names of 200 sites and sizes of 200 parts take 20,000; prevents DoS
ROUTES: Final = {phase: f"secagg_{phase.value}" for phase in Phase}  # Flower's names, after "train."


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One request. A site finds the terms of the set-up in the study that it approved, never here.

    number: of the set-up. instance: from the phase `masked` on. survivors: in the phase `agreement`.
    parts: by phase, in this order
      keys: none; shares: everybody's keys; ready: the dealings for this site; masked: the signed plan and the model;
      agreement: none; unmasking: the survivors' agreements.
    """

    phase: Phase
    study: str
    run: str
    number: int
    instance: int = 0
    survivors: tuple[str, ...] = ()
    parts: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer: a site's messages, or that it refuses.

    refused: the phase in which it refused what it was sent, or empty. blamed: whose message that was, or empty.
    parts: one message; in the phase `shares` one dealing for each other site that advertised, by name.
    """

    refused: str = ""
    blamed: str = ""
    parts: tuple[bytes, ...] = ()


def encode_order(order: Order) -> bytes:
    """Return the order as bytes."""
    header = {
        "instance": order.instance,
        "number": order.number,
        "phase": order.phase.value,
        "run": order.run,
        "study": order.study,
        "survivors": list(order.survivors),
    }
    return _frame(header, order.parts)


def decode_order(data: bytes) -> Order:
    """Return the order that `encode_order` wrote. Raises `VerificationError` for any other bytes."""
    header, parts = _unframe(data)
    match header:
        case {
            "instance": int(instance),
            "number": int(number),
            "phase": str(phase),
            "run": str(run),
            "study": str(study),
            "survivors": list(survivors),
        } if len(header) == 6 and phase in list(Phase) and all(isinstance(name, str) for name in survivors):
            return Order(
                phase=Phase(phase),
                study=study,
                run=run,
                number=number,
                instance=instance,
                survivors=tuple(map(str, survivors)),
                parts=parts,
            )
    raise VerificationError(field="order", expected="an order", found="another header")


def encode_answer(answer: Answer) -> bytes:
    """Return the answer as bytes."""
    return _frame({"blamed": answer.blamed, "refused": answer.refused}, answer.parts)


def decode_answer(data: bytes) -> Answer:
    """Return the answer that `encode_answer` wrote. Raises `VerificationError` for any other bytes."""
    header, parts = _unframe(data)
    match header:
        case {"blamed": str(blamed), "refused": str(refused)} if len(header) == 2 and refused in ("", *Phase):
            return Answer(refused=refused, blamed=blamed[:64], parts=parts)
    raise VerificationError(field="answer", expected="an answer", found="another header")


def _frame(header: Mapping[str, object], parts: Sequence[bytes]) -> bytes:
    encoded = canonical_json({**header, "sizes": [len(part) for part in parts]})
    return b"".join([len(encoded).to_bytes(4, "big"), encoded, *parts])


def _unframe(data: bytes) -> tuple[dict[str, object], tuple[bytes, ...]]:
    malformed = VerificationError(field="header", expected="a header and its parts", found="other bytes")
    length = int.from_bytes(data[:4], "big")
    if not (4 + length <= len(data) and length <= MAXIMUM_HEADER_BYTES):
        raise malformed
    header = parse_canonical(data[4 : 4 + length])
    if not isinstance(header, dict):
        raise malformed
    sizes = header.pop("sizes", None)
    # `True` is an int to Python and no size to anybody.
    if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
        raise malformed
    if 4 + length + sum(sizes) != len(data):
        raise malformed
    parts, at = [], 4 + length
    for size in sizes:
        parts.append(data[at : at + size])
        at += size
    return header, tuple(parts)
