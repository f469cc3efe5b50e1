"""How a hospital gets its checkpoint cosigned: one HTTP call to each witness, bounded in time and size.

Design note: a witness's answer is believed only where its cosignature verifies under the pinned key, so this needs no
trust in the connection. A 409 with a size that this log never had, and a 422, are how a hospital learns that its
ledger is not the one it had: restored from a backup, or forked. That is an error, never something to try again.
"""

from __future__ import annotations

import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from fedtwin_shared.errors import FedtwinError, VerificationError
from fedtwin_shared.ledger.cosignature import check_witnesses
from fedtwin_shared.ledger.note import (
    MAX_NOTE_BYTES,
    NoteSignature,
    VerifierKey,
    format_note,
    parse_checkpoint,
    parse_note,
    parse_signature,
    verify_note,
)
from fedtwin_shared.ledger.store import LogWriter
from fedtwin_shared.ledger.witness import (
    ACCEPTED,
    CONFLICT,
    INCONSISTENT,
    SIZE_TYPE,
    TEXT_TYPE,
    AddCheckpoint,
    Answer,
)

CALL_SECONDS: Final = 10.0  # an answer takes one fsync; whoever is slower counts as away
MAX_ANSWER_BYTES: Final = MAX_NOTE_BYTES

Send = Callable[[bytes], Answer]  # the body of add-checkpoint -> the answer; raises `OSError` where there is none


class HistoryError(FedtwinError):
    """A witness remembers another history of this log than the log has. The ledger must stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessContact:
    """A pinned witness and the way to it."""

    key: VerifierKey
    send: Send


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosigned:
    """A checkpoint with the cosignatures it got, and who gave none and why."""

    note: bytes
    cosigners: tuple[str, ...]
    absent: dict[str, str]


def cosign_checkpoint(log: LogWriter, note: bytes, witnesses: Sequence[WitnessContact]) -> Cosigned:
    """Ask every witness to cosign the log's own signed note, and keep the result in the log.

    - the note that is kept has the log's signature first, then the witnesses' in the order given
    - a witness that is away, refuses or signs wrongly is `absent`; whether enough remain is for the caller to check
    - a witness that remembers another history raises `HistoryError`
    """
    check_witnesses([contact.key for contact in witnesses])
    own = parse_note(note)
    size = parse_checkpoint(own.text).size
    log.keep_note(note)
    gained: list[NoteSignature] = []
    absent: dict[str, str] = {}
    for contact in witnesses:
        try:
            gained.append(_ask(log, note, size, contact))
        except HistoryError:
            raise
        except (OSError, FedtwinError) as err:
            absent[contact.key.name] = str(err) or type(err).__name__
            continue
        log.keep_witnessed(contact.key.name, size)
    whole = format_note(own.text, [*own.signatures, *gained])
    log.keep_note(whole)
    return Cosigned(note=whole, cosigners=tuple(one.name for one in gained), absent=absent)


def _ask(log: LogWriter, note: bytes, size: int, contact: WitnessContact) -> NoteSignature:
    old = log.witnessed_size(contact.key.name)
    for _ in range(2):  # the second time with the size that the witness said
        request = AddCheckpoint(old_size=old, proof=log.prove_consistency(min(old, size), size), note=note)
        answer = contact.send(request.encode())
        if answer.status != CONFLICT:
            break
        said = _read_size(answer)
        if said > size or said == old:
            raise HistoryError(
                field=contact.key.name, expected=f"a witness that cosigned at most {size} entries", found=f"{said}"
            )
        old = said
    if answer.status == INCONSISTENT:
        raise HistoryError(
            field=contact.key.name, expected=f"the {old} entries that it cosigned", found="another history of this log"
        )
    if answer.status != ACCEPTED:
        raise VerificationError(field=contact.key.name, expected="a cosignature", found=f"status {answer.status}")
    return _read_cosignature(answer, note, contact.key)


def _read_size(answer: Answer) -> int:
    text = answer.body.decode("ascii", errors="replace")
    if not text.endswith("\n") or not text[:-1].isdecimal() or len(text) > 20:
        raise VerificationError(field="409", expected="the size that was cosigned last", found="something else")
    return int(text)


def _read_cosignature(answer: Answer, note: bytes, witness: VerifierKey) -> NoteSignature:
    """The witness's own line; lines of keys that are not pinned are ignored, as C2SP tlog-witness asks."""
    text = answer.body.decode("utf-8", errors="replace")
    lines = tuple(parse_signature(line) for line in text.removesuffix("\n").split("\n"))
    offered = parse_note(format_note(parse_note(note).text, lines))
    found = verify_note(offered, [witness])
    if witness not in found:
        raise VerificationError(field=witness.name, expected="its cosignature", found="none")
    return found[witness]


def send_over_http(prefix: str, *, context: ssl.SSLContext | None = None, seconds: float = CALL_SECONDS) -> Send:
    """Return how to call add-checkpoint under this submission prefix (`https://host:port/…`).

    - plain HTTP only to this machine; no proxy, no redirect
    - at most `seconds` in all and `MAX_ANSWER_BYTES`, or `OSError`
    """
    parts = urlsplit(prefix)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname == "127.0.0.1"):
        raise VerificationError(field="witness", expected="an https:// address", found=parts.scheme or "none")
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context), _NoRedirect()
    )

    def send(body: bytes) -> Answer:
        deadline = time.monotonic() + seconds
        request = urllib.request.Request(f"{prefix.rstrip('/')}/add-checkpoint", data=body, method="POST")
        request.add_header("Content-Type", TEXT_TYPE)
        try:
            response = opener.open(request, timeout=seconds)
        except urllib.error.HTTPError as err:  # a 4xx is an answer too
            response = err
        with response:
            media_type = SIZE_TYPE if response.headers.get_content_type() == SIZE_TYPE else TEXT_TYPE
            read = _read_bounded(response.read1, deadline)
            return Answer(status=response.status or 0, body=read, media_type=media_type)

    return send


def _read_bounded(read: Callable[[int], bytes], deadline: float) -> bytes:
    data = bytearray()
    while piece := read(MAX_ANSWER_BYTES + 1 - len(data)):
        data += piece
        if len(data) > MAX_ANSWER_BYTES:
            raise OSError("an answer that is too long")
        if not time.monotonic() < deadline:
            raise TimeoutError("an answer that takes too long")
    return bytes(data)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object, **__: object) -> None:
        """Nothing is followed: the address was configured, and another one was not."""
