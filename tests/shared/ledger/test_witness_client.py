"""Real sockets wherever a socket matters: a small server that answers as it is told."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger.cosignature import verify_cosignatures
from fedtwin_shared.ledger.note import Checkpoint, format_note, parse_note, sign_note
from fedtwin_shared.ledger.store import LogWriter, NewEntry
from fedtwin_shared.ledger.witness import Answer
from fedtwin_shared.ledger.witness_client import (
    MAX_ANSWER_BYTES,
    HistoryError,
    WitnessContact,
    cosign_checkpoint,
    send_over_http,
)
from fedtwin_shared.ledger.witness_store import WitnessStore
from tests.shared.ledger.hospital_log import LOG, LOG_KEY, LOGS, entries_of, signed_note


def clock() -> int:
    return 1_800_000_000


def contact(store: WitnessStore) -> WitnessContact:
    return WitnessContact(key=store.verifier_key, send=lambda body: store.add_checkpoint(body, clock=clock))


def grow(log: LogWriter, size: int, *, story: str = "true") -> bytes:
    """Append up to `size` entries and return the log's own signed note."""
    entries = entries_of(size, story=story)
    log.append([NewEntry(key=f"{story}/{n}", kind="reserve", body=entries[n]) for n in range(log.size, size)])
    text = Checkpoint(origin=LOG.name, size=log.size, root=log.root()).text
    return format_note(text, [sign_note(text, name=LOG.name, key=LOG_KEY)])


@pytest.fixture
def log(tmp_path: Path) -> Iterator[LogWriter]:
    with LogWriter(tmp_path / "ledger.sqlite") as opened:
        yield opened


@pytest.fixture
def witnesses(tmp_path: Path) -> list[WitnessStore]:
    return [
        WitnessStore.create(tmp_path / f"witness{number}.sqlite", name=f"witness.example/{number}", logs=LOGS)
        for number in range(3)
    ]


def test_a_growing_log_is_cosigned_again_and_again(log: LogWriter, witnesses: list[WitnessStore]) -> None:
    keys = [store.verifier_key for store in witnesses]
    for size in (1, 2, 7, 7, 30):
        result = cosign_checkpoint(log, grow(log, size), [contact(store) for store in witnesses])
        assert result.cosigners == tuple(key.name for key in keys)
        assert result.absent == {}
        assert len(verify_cosignatures(parse_note(result.note), keys, required=3)) == 3
        log.keep_note(result.kept)
        assert log.latest_note() == result.note
        assert {log.witnessed_size(key.name) for key in keys} == {size}


def test_a_witness_that_is_away_is_absent_and_catches_up(log: LogWriter, witnesses: list[WitnessStore]) -> None:
    def away(body: bytes) -> Answer:
        raise ConnectionRefusedError("connection refused")

    first, second, third = map(contact, witnesses)
    result = cosign_checkpoint(log, grow(log, 4), [first, WitnessContact(key=second.key, send=away), third])
    assert result.cosigners == (first.key.name, third.key.name)
    assert result.absent == {second.key.name: "connection refused"}
    log.keep_note(result.kept)
    assert [log.witnessed_size(one.key.name) for one in (first, second, third)] == [4, 0, 4]
    assert cosign_checkpoint(log, grow(log, 9), [first, second, third]).absent == {}


def test_a_lost_answer_is_recovered_from(log: LogWriter, witnesses: list[WitnessStore]) -> None:
    """The witness cosigned, the hospital crashed before it knew: the next call starts where the witness is."""
    store = witnesses[0]

    def lose(body: bytes) -> Answer:
        store.add_checkpoint(body, clock=clock)
        raise TimeoutError("no answer")

    assert cosign_checkpoint(log, grow(log, 4), [WitnessContact(key=store.verifier_key, send=lose)]).cosigners == ()
    assert log.witnessed_size(store.verifier_key.name) == 0
    assert cosign_checkpoint(log, grow(log, 6), [contact(store)]).cosigners == (store.verifier_key.name,)


@pytest.mark.parametrize(("size", "found"), [(4, "9"), (9, "9"), (12, "another history")])
def test_a_restored_ledger_learns_that_it_is_not_what_it_was(
    tmp_path: Path, witnesses: list[WitnessStore], size: int, found: str
) -> None:
    # Shorter, as long, and longer than what was cosigned: each is stopped; what proves another history is kept.
    with LogWriter(tmp_path / "true.sqlite") as true:
        cosign_checkpoint(true, grow(true, 9), [contact(witnesses[0])])
    with LogWriter(tmp_path / "restored.sqlite") as restored:
        grow(restored, 4)
        note = grow(restored, size, story="other")
        with pytest.raises(HistoryError, match=found) as caught:
            cosign_checkpoint(restored, note, [contact(witnesses[0])])
    # In words for whoever runs the hospital's machines.
    assert "expected the ledger that this witness knows, with 9 entries" in str(caught.value)
    assert "a restored backup or another history" in str(caught.value)
    # One that is shorter, of a size that was never cosigned, could be an old note that anybody posted.
    assert len(witnesses[0].evidence()) == (size >= 9)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(status=200, body=b""),
        Answer(status=200, body=b"\xff\n"),
        Answer(status=200, body=signed_note(entries_of(3)).split(b"\n\n")[1]),
        Answer(status=403, body=b""),
        Answer(status=500, body=b"oops"),
        Answer(status=409, body=b"many\n"),
        Answer(status=409, body=b"9" * 400),
        Answer(status=302, body=b""),
    ],
)
def test_a_witness_that_answers_nonsense_is_absent(
    log: LogWriter, witnesses: list[WitnessStore], answer: Answer
) -> None:
    bad = WitnessContact(key=witnesses[0].verifier_key, send=lambda body: answer)
    result = cosign_checkpoint(log, grow(log, 3), [bad, contact(witnesses[1])])
    assert result.cosigners == (witnesses[1].verifier_key.name,)
    assert list(result.absent) == [bad.key.name]


def test_a_cosignature_under_another_key_does_not_count(log: LogWriter, witnesses: list[WitnessStore]) -> None:
    impostor = WitnessContact(key=witnesses[0].verifier_key, send=contact(witnesses[1]).send)
    assert cosign_checkpoint(log, grow(log, 3), [impostor]).cosigners == ()


@contextmanager
def answering(handle: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the name that the library calls
            self.rfile.read(int(self.headers["Content-Length"]))
            handle(self)

        def do_GET(self) -> None:
            raise AssertionError("a redirect was followed")

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/prefix/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def test_a_call_goes_to_the_prefix_and_an_error_status_is_an_answer() -> None:
    seen: list[str] = []

    def handle(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.path)
        reply(handler, 409, b"7\n", Content_Type="text/x.tlog.size")

    with answering(handle) as prefix:
        assert send_over_http(prefix)(b"body") == Answer(status=409, body=b"7\n", media_type="text/x.tlog.size")
    assert seen == ["/prefix/add-checkpoint"]


def test_a_redirect_is_not_followed() -> None:
    with answering(lambda handler: reply(handler, 302, b"", Location="http://127.0.0.1:9/")) as prefix:
        assert send_over_http(prefix)(b"body").status == 302


def test_an_answer_that_is_too_long_is_no_answer() -> None:
    with (
        answering(lambda handler: reply(handler, 200, bytes(MAX_ANSWER_BYTES + 1))) as prefix,
        pytest.raises(OSError, match="that is too long"),
    ):
        send_over_http(prefix)(b"body")


def test_an_answer_that_drips_is_no_answer() -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(20):
            try:
                handler.wfile.write(b"x")
                handler.wfile.flush()
            except OSError:
                return
            time.sleep(0.05)

    with answering(drip) as prefix:
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="takes too long"):
            send_over_http(prefix, seconds=0.3)(b"body")
        assert time.monotonic() - began < 0.9


def test_nobody_there_is_an_operating_system_s_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="refused"):
            send_over_http(f"http://127.0.0.1:{unused.getsockname()[1]}")(b"body")


@pytest.mark.parametrize("prefix", ["http://witness.example", "ftp://witness.example", "file:///etc/hostname", ""])
def test_an_address_without_tls_is_refused(prefix: str) -> None:
    with pytest.raises(VerificationError, match="https"):
        send_over_http(prefix)
