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
from concurrent.futures import ThreadPoolExecutor
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
from fedtwin_shared.ledger.store import KeptNote, LogReader
from fedtwin_shared.ledger.witness import (
    ACCEPTED,
    CONFLICT,
    INCONSISTENT,
    SIZE_TYPE,
    TEXT_TYPE,
    UNKNOWN_LOG,
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
    """A checkpoint with the cosignatures it got, and who gave none and why. kept: it as a log keeps it."""

    kept: KeptNote
    absent: dict[str, str]

    @property
    def note(self) -> bytes:
        """The note itself."""
        return self.kept.note

    @property
    def cosigners(self) -> tuple[str, ...]:
        """Who cosigned, in the order in which they were given."""
        return tuple(self.kept.witnessed)


def cosign_checkpoint(log: LogReader, note: bytes, witnesses: Sequence[WitnessContact]) -> Cosigned:
    """Ask every witness, all at once, to cosign the log's own signed note. What comes of it is for the caller to keep.

    - the note has the log's signature first, then the witnesses' in the order given
    - a witness that is away, refuses or signs wrongly is `absent`; whether enough remain is for the caller to check
    - a witness that remembers another history raises `HistoryError`
    """
    check_witnesses([contact.key for contact in witnesses])
    own = parse_note(note)
    size = parse_checkpoint(own.text).size
    asked = [_Asked(contact=contact, old_size=log.witnessed_size(contact.key.name)) for contact in witnesses]
    waiting = asked
    for _ in range(2):  # the second time with the sizes that witnesses said
        proofs = [log.prove_consistency(min(one.old_size, size), size) for one in waiting]
        bodies = [
            AddCheckpoint(old_size=one.old_size, proof=proof, note=note).encode()
            for one, proof in zip(waiting, proofs, strict=True)
        ]
        for one, answer in zip(waiting, _send_all(waiting, bodies), strict=True):
            one.hear(answer, note=note, size=size)
        waiting = [one for one in waiting if one.again]
        if not waiting:
            break
    gained = [one for one in asked if one.signature is not None]
    whole = format_note(own.text, [*own.signatures, *(one.signature for one in gained if one.signature is not None)])
    kept = KeptNote(note=whole, witnessed={one.contact.key.name: size for one in gained})
    return Cosigned(kept=kept, absent={one.contact.key.name: one.absence for one in asked if one.signature is None})


def ask_for_earlier(note: bytes, witnesses: Sequence[WitnessContact]) -> dict[str, str]:
    """Ask every witness whether it never saw this log; return who did not say, and why. note: of no entries, signed.

    - a witness that cosigned any entry of this log raises `HistoryError`
    - one that does not know the log (404) has seen nothing of it; this is believed as far as the connection is
    """
    check_witnesses([contact.key for contact in witnesses])
    body = AddCheckpoint(old_size=0, proof=(), note=note).encode()
    asked = [_Asked(contact=contact, old_size=0) for contact in witnesses]
    silent: dict[str, str] = {}
    for one, answer in zip(asked, _send_all(asked, [body] * len(asked)), strict=True):
        name = one.contact.key.name
        if isinstance(answer, OSError):
            silent[name] = str(answer) or type(answer).__name__
        elif answer.status == CONFLICT:
            found = f"one with {_read_size(answer)} entries, which this witness cosigned"
            raise HistoryError(field=name, expected="no ledger of this hospital yet", found=found)
        elif answer.status not in {ACCEPTED, UNKNOWN_LOG}:
            silent[name] = f"status {answer.status}"
    return silent


@dataclass(slots=True, kw_only=True)
class _Asked:
    """What one witness was asked, and what came of it."""

    contact: WitnessContact
    old_size: int
    signature: NoteSignature | None = None
    absence: str = "no answer"
    again: bool = False

    def hear(self, answer: Answer | OSError, *, note: bytes, size: int) -> None:
        """Take its answer. Raises `HistoryError`."""
        name, second = self.contact.key.name, self.again
        self.again = False
        try:
            if isinstance(answer, OSError):
                raise answer
            if answer.status == CONFLICT:
                said = _read_size(answer)
                if said > size or said == self.old_size:
                    raise _other_history(name, known=said, size=size)
                if not second:
                    self.old_size, self.again = said, True
                    return
            if answer.status == INCONSISTENT:
                raise _other_history(name, known=self.old_size, size=size)
            if answer.status != ACCEPTED:
                raise VerificationError(field=name, expected="a cosignature", found=f"status {answer.status}")
            self.signature = _read_cosignature(answer, note, self.contact.key)
        except HistoryError:
            raise
        except (OSError, FedtwinError) as err:
            self.absence = str(err) or type(err).__name__


def _other_history(witness: str, *, known: int, size: int) -> HistoryError:
    """In words for whoever runs the log, who may never have heard of Merkle trees."""
    return HistoryError(
        field=witness,
        expected=f"the ledger that this witness knows, with {known} entries",
        found=f"one of {size} that does not continue it: a restored backup or another history",
    )


def _send_all(asked: Sequence[_Asked], bodies: Sequence[bytes]) -> list[Answer | OSError]:
    """Every witness's answer; they are asked at once, so that one that is away costs no more than its own time."""

    def send(one: _Asked, body: bytes) -> Answer | OSError:
        try:
            return one.contact.send(body)
        except OSError as err:
            return err

    if len(asked) == 1:
        return [send(asked[0], bodies[0])]
    with ThreadPoolExecutor(max_workers=max(1, len(asked)), thread_name_prefix="fedtwin-witness") as pool:
        return list(pool.map(send, asked, bodies))


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
