"""The witness as a real process over real TLS, and its door's limits in the process of the test."""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from fedtwin_server.cli import app
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.ledger.cosignature import verify_cosignatures
from fedtwin_shared.ledger.database import LedgerError
from fedtwin_shared.ledger.note import parse_note, parse_verifier_key
from fedtwin_shared.ledger.witness import MAX_REQUEST_BYTES
from fedtwin_shared.ledger.witness_client import send_over_http
from fedtwin_shared.ledger.witness_service import make_witness, open_witness, read_witness_directory
from fedtwin_shared.ledger.witness_store import WitnessStore
from fedtwin_shared.supervision import wait_until
from tests.authority import free_ports, make_server_identity
from tests.shared.ledger.hospital_log import LOG, entries_of, request, signed_note

SETTINGS = 'name = "witness.example/1"\nlisten = "127.0.0.1:9"\nlogs = ["{log}"]\n'


def write_settings(directory: Path, text: str) -> Path:
    (directory / "witness.toml").write_text(text.replace("{log}", str(LOG)), encoding="utf-8")
    return directory


def run_command(directory: Path) -> list[str]:
    program = "import sys\nfrom fedtwin_server.cli import app\napp(sys.argv[1:])"
    return [sys.executable, "-c", program, "witness", str(directory)]


@pytest.mark.slow
def test_a_witness_process_cosigns_remembers_and_stops(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    identity = make_server_identity(tmp_path)
    lines = SETTINGS.replace(":9", f":{port}") + (
        f'certificate = "{identity.certificate}"\nprivate_key = "{identity.private_key}"\n'
    )
    write_settings(tmp_path, lines)
    context = ssl.create_default_context(cafile=str(identity.certificate_authority))
    made = CliRunner().invoke(app, ["witness", str(tmp_path), "--new"])
    witness = parse_verifier_key(made.stdout.split()[-1])
    send = send_over_http(f"https://127.0.0.1:{port}", context=context)

    def answers() -> bool:
        connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().read() == f"{witness}\n".encode()
        except OSError:
            return False
        finally:
            connection.close()

    for start, (old, size) in enumerate([(0, 5), (5, 9)]):
        process = subprocess.Popen(run_command(tmp_path), stderr=subprocess.PIPE)
        try:
            wait_until(answers, what="witness", deadline_seconds=20, interval_seconds=0.1)
            answer = send(request(entries_of(size), old=old))
            assert answer.status == 200
            verify_cosignatures(parse_note(signed_note(entries_of(size)) + answer.body), [witness], required=1)
            assert send(request(entries_of(3), old=3)).body == f"{size}\n".encode()
            # Killed, then stopped: what it said is remembered either way.
            os.kill(process.pid, signal.SIGTERM if start else signal.SIGKILL)
            process.wait(timeout=10)
        finally:
            process.kill()
            process.wait(timeout=10)
            assert process.stderr is not None
            process.stderr.close()


def call(witness: WitnessStore, content: bytes | None, path: str = "/add-checkpoint") -> httpx.Response:
    """POST, or GET without content, to the application itself."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=make_witness(witness))
        async with httpx.AsyncClient(transport=transport, base_url="http://witness") as client:
            return await client.request("GET" if content is None else "POST", path, content=content)

    return asyncio.run(send())


@pytest.fixture
def witness(tmp_path: Path) -> WitnessStore:
    return open_witness(read_witness_directory(write_settings(tmp_path, SETTINGS)), new=True)


def test_the_protocol_s_statuses_reach_the_wire(witness: WitnessStore) -> None:
    assert call(witness, request(entries_of(9), old=0)).status_code == 200
    conflict = call(witness, request(entries_of(9), old=0))
    assert (conflict.status_code, conflict.content) == (409, b"9\n")
    assert conflict.headers["content-type"] == "text/x.tlog.size"
    assert call(witness, request(entries_of(12, story="other"), old=9)).status_code == 422
    assert call(witness, b"nonsense").status_code == 400


def test_what_is_longer_than_any_request_is_not_read(witness: WitnessStore) -> None:
    assert call(witness, bytes(MAX_REQUEST_BYTES + 1)).status_code == 413


def test_nothing_else_is_served(witness: WitnessStore) -> None:
    assert call(witness, None).status_code == 405
    assert call(witness, b"", "/").status_code == 404
    assert call(witness, None, "/witness.sqlite").status_code == 404


def test_what_could_not_be_kept_is_500_and_no_cosignature(witness: WitnessStore) -> None:
    witness.close()
    answer = call(witness, request(entries_of(9), old=0))
    assert (answer.status_code, answer.content) == (500, b"")


def test_a_witness_without_its_memory_does_not_start(tmp_path: Path) -> None:
    directory = read_witness_directory(write_settings(tmp_path, SETTINGS))
    with pytest.raises(LedgerError, match="memory"):
        open_witness(directory, new=False)
    open_witness(directory, new=True).close()
    with pytest.raises(ConfigurationError, match="no witness yet"):
        open_witness(directory, new=True)
    open_witness(directory, new=False).close()


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("", "name"),
        ("name = ", "TOML"),
        (SETTINGS.replace("{log}", "nonsense"), "logs.0"),
        (SETTINGS.replace('["{log}"]', '["{log}", "{log}"]'), "logs.1"),
        (SETTINGS.replace('["{log}"]', "[]"), "logs"),
        (SETTINGS.replace("127.0.0.1:9", "127.0.0.1"), "listen"),
        (SETTINGS.replace("127.0.0.1", "0.0.0.0"), "certificate"),
        (SETTINGS + 'certificate = "a.pem"\n', "certificate"),
        (SETTINGS + "more = 1\n", "more"),
        (SETTINGS.replace("witness.example/1", "a b"), "name"),
    ],
)
def test_settings_that_are_wrong_name_their_field(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(ConfigurationError, match=field):
        read_witness_directory(write_settings(tmp_path, text))


def test_settings_that_are_missing_are_our_own_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="readable"):
        read_witness_directory(tmp_path)
