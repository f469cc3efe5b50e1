"""The front over real sockets: a TLS client that sends bytes, the front, and a TLS upstream that notes what arrives."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from fedtwin_server.errors import FrontError
from fedtwin_server.front import (
    BODY_BYTES,
    FLEET_PATHS,
    FrontSettings,
    front_configuration,
    make_front,
)
from fedtwin_shared.supervision import wait_until
from tests.authority import ServerIdentity, free_ports, make_server_identity

PULL = b"/v1/fleet/pull-messages"
PUSH = b"/v1/fleet/push-object"


@dataclass
class Upstream:
    """Stands where the SuperLink does: answers everything with 200 and remembers it."""

    seen: list[tuple[str, bytes, dict[bytes, bytes], bytes]] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        self.seen.append((request.method, scope["raw_path"], dict(scope["headers"]), body))
        headers = {"content-type": "application/protobuf", "set-cookie": "a=b", "x-inside": "1"}
        await Response(b"answer:" + body, headers=headers)(scope, receive, send)

    @property
    def fleet(self) -> list[tuple[str, bytes, dict[bytes, bytes], bytes]]:
        return [call for call in self.seen if call[1] != b"/health"]


@dataclass(frozen=True, slots=True)
class Setting:
    port: int
    identity: ServerIdentity
    upstream: Upstream


@contextmanager
def serving(config: uvicorn.Config) -> Iterator[None]:
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started, what="server", deadline_seconds=10, interval_seconds=0.02)
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def upstream_configuration(upstream: Upstream, port: int, identity: ServerIdentity) -> uvicorn.Config:
    return uvicorn.Config(
        upstream,
        host="127.0.0.1",
        port=port,
        ssl_certfile=str(identity.certificate),
        ssl_keyfile=str(identity.private_key),
        log_level="error",
        lifespan="off",
        timeout_graceful_shutdown=1,
    )


def settings_for(
    port: int, upstream_port: int, identity: ServerIdentity, authority: Path | None = None
) -> FrontSettings:
    return FrontSettings(
        host="127.0.0.1",
        port=port,
        certificate=identity.certificate,
        private_key=identity.private_key,
        upstream=f"https://127.0.0.1:{upstream_port}",
        certificate_authority=authority or identity.certificate_authority,
        releases=identity.certificate_authority.parent / "releases",
    )


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> ServerIdentity:
    return make_server_identity(tmp_path_factory.mktemp("identity"))


@pytest.fixture(scope="module")
def module_setting(identity: ServerIdentity) -> Iterator[Setting]:
    port, upstream_port = free_ports(2)
    upstream = Upstream()
    with (
        serving(upstream_configuration(upstream, upstream_port, identity)),
        serving(front_configuration(settings_for(port, upstream_port, identity))),
    ):
        yield Setting(port, identity, upstream)


@pytest.fixture
def setting(module_setting: Setting) -> Setting:
    module_setting.upstream.seen.clear()
    return module_setting


def send(setting: Setting, request: bytes) -> bytes:
    """Write bytes to the front over TLS; everything it answers until it closes."""
    context = ssl.create_default_context(cafile=str(setting.identity.certificate_authority))
    with (
        socket.create_connection(("127.0.0.1", setting.port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        tls.settimeout(10)
        answer = bytearray()
        try:
            tls.sendall(request)
            while piece := tls.recv(65536):
                answer += piece
        except (ConnectionError, ssl.SSLError):
            pass  # the front may close on what it refuses, before it has read it all
        return bytes(answer)


def post(target: bytes, *headers: bytes, body: bytes = b"body", method: bytes = b"POST") -> bytes:
    lines = [
        method + b" " + target + b" HTTP/1.1",
        b"host: localhost",
        b"content-type: application/protobuf",
        b"connection: close",
        b"content-length: " + str(len(body)).encode(),
        *headers,
    ]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize("path", sorted(FLEET_PATHS))
def test_every_fleet_path_that_a_supernode_needs_is_forwarded(setting: Setting, path: bytes) -> None:
    answer = send(setting, post(path))
    assert status(answer) == 200
    assert answer.endswith(b"answer:body")
    assert [(method, raw, body) for method, raw, _, body in setting.upstream.fleet] == [("POST", path, b"body")]


@pytest.mark.parametrize(
    "path",
    [
        b"/v1/control/start-run",
        b"/v1/control/register-node",
        b"/v1/control/list-nodes",
        b"/v1/runtime/acquire-task",
        b"/v1/runtime/pull-task-input",
        b"/v1/fleet/register-node",
        b"/v1/fleet/unregister-node",
        b"/docs",
        b"/openapi.json",
        b"/",
        b"*",
    ],
)
def test_control_runtime_and_everything_else_stay_outside(setting: Setting, path: bytes) -> None:
    assert status(send(setting, post(path))) in (400, 404)
    assert setting.upstream.fleet == []


@pytest.mark.parametrize(
    "target",
    [
        b"/v1/fleet/../control/start-run",
        b"/v1/fleet/%2e%2e/control/start-run",
        b"/v1/fleet/%2E%2E%2Fcontrol%2Fstart-run",
        b"/v1/fleet%2fpull-messages",
        b"/v1/%66leet/pull-messages",
        b"//v1/fleet/pull-messages",
        b"/v1//fleet/pull-messages",
        b"/v1/fleet/pull-messages/",
        b"/v1/fleet/pull-messages;x=1",
        b"/v1/fleet/pull-messages?x=1",
        b"/v1/fleet/pull-messages#/v1/control/start-run",
        b"/v1/fleet/pull-messages%00",
        b"/v1/fleet/pull-messages%0d%0aX:1",
        b"/v1/fleet/pull-messages/../../control/start-run",
        b"/V1/FLEET/PULL-MESSAGES",
        b"/./v1/fleet/pull-messages",
        b"\\v1\\fleet\\pull-messages",
        b"https://localhost/v1/control/start-run",
        b"https://localhost/v1/fleet/pull-messages",
        b"http://127.0.0.1:22/v1/fleet/pull-messages",
    ],
)
def test_only_the_exact_bytes_of_a_path_pass(setting: Setting, target: bytes) -> None:
    assert status(send(setting, post(target))) in (400, 404)
    assert setting.upstream.fleet == []


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"CONNECT"])
def test_only_post_passes(setting: Setting, method: bytes) -> None:
    assert status(send(setting, post(PULL, method=method))) in (400, 404, 405)
    assert status(send(setting, post(PULL, b"x-http-method-override: GET", method=method))) in (400, 404, 405)
    assert setting.upstream.fleet == []


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(PULL, b"transfer-encoding: chunked", body=b"0\r\n\r\nPOST /v1/control/start-run HTTP/1.1\r\n\r\n"),
        post(PULL, b"content-length: 0"),
        post(PULL, b"transfer-encoding: gzip, chunked"),
        post(PULL, b"transfer-encoding : chunked"),
        post(PULL, b"flwr-public-key: a", b"flwr-public-key: b"),
        post(PULL, b"content-type: text/plain"),
        post(PULL, b"host: elsewhere"),
        post(PULL, b"expect: 100-continue"),
        post(PULL, b"upgrade: websocket", b"sec-websocket-key: x", b"sec-websocket-version: 13"),
        post(PULL, b"upgrade: h2c"),
        post(PULL, b"content-length: -1"),
    ],
)
def test_a_request_that_two_readers_could_read_differently_is_refused(setting: Setting, request_bytes: bytes) -> None:
    assert status(send(setting, request_bytes)) in (400, 501)
    assert setting.upstream.fleet == []


def test_a_websocket_handshake_is_refused(setting: Setting) -> None:
    handshake = post(
        PULL, b"upgrade: websocket", b"sec-websocket-key: eA==", b"sec-websocket-version: 13", body=b"", method=b"GET"
    )
    assert status(send(setting, handshake)) in (400, 403, 404, 405)
    assert setting.upstream.fleet == []


def test_a_second_request_on_one_connection_is_judged_by_itself(setting: Setting) -> None:
    first = post(PULL).replace(b"connection: close\r\n", b"")
    answers = send(setting, first + post(b"/v1/control/start-run"))
    assert answers.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 404" in answers
    assert [raw for _, raw, _, _ in setting.upstream.fleet] == [PULL]


def test_only_named_headers_reach_the_superlink_and_only_named_headers_come_back(setting: Setting) -> None:
    answer = send(
        setting,
        post(
            PULL,
            b"flwr-public-key: key",
            b"FLWR-Signature: signed",
            b"flwr-timestamp: now",
            b"flwr-task-token: stolen",
            b"flwr-superexec-signature: forged",
            b"authorization: Bearer x",
            b"cookie: a=b",
            b"x-forwarded-for: 10.0.0.1",
            b"proxy-connection: keep-alive",
            b"te: trailers",
        ),
    )
    (_, _, headers, _), *_ = setting.upstream.fleet
    assert headers[b"flwr-public-key"] == b"key"
    assert headers[b"flwr-signature"] == b"signed"
    assert set(headers) <= {
        *(b"host", b"connection", b"accept-encoding", b"content-length", b"user-agent", b"accept"),
        *(b"content-type", b"flwr-public-key", b"flwr-signature", b"flwr-timestamp"),
    }
    head = answer.split(b"\r\n\r\n")[0].lower()
    assert b"set-cookie" not in head
    assert b"x-inside" not in head
    assert b"server:" not in head


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_passes_whole_in_both_directions(setting: Setting, chunked: bool) -> None:
    body = os.urandom(6 * 1024 * 1024)  # above Flower's 5 MiB objects
    request = post(PUSH, body=body)
    if chunked:
        head = post(PUSH, b"transfer-encoding: chunked", body=b"").replace(b"content-length: 0\r\n", b"")
        pieces = (body[at : at + 100_000] for at in range(0, len(body), 100_000))
        request = head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    answer = send(setting, request)
    assert setting.upstream.fleet[0][3] == body
    assert answer.endswith(b"answer:" + body)


def test_a_body_above_the_limit_is_refused_announced_or_not(identity: ServerIdentity) -> None:
    port, upstream_port = free_ports(2)
    upstream = Upstream()
    settings = settings_for(port, upstream_port, identity)
    config = front_configuration(settings)
    config.app = make_front(settings.upstream, settings.certificate_authority, body_bytes=1000)
    with serving(upstream_configuration(upstream, upstream_port, identity)), serving(config):
        small = Setting(port, identity, upstream)
        assert status(send(small, post(PUSH, body=b"x" * 1000))) == 200
        assert status(send(small, post(PUSH, body=b"x" * 1001))) == 413
        head = post(PUSH, b"transfer-encoding: chunked", body=b"").replace(b"content-length: 0\r\n", b"")
        assert status(send(small, head + b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n")) == 413
        assert len(upstream.fleet) == 1
        assert status(send(small, post(PUSH))) == 200  # and the front still serves
    assert BODY_BYTES > 6 * 1024 * 1024


def test_headers_above_the_limit_are_refused(setting: Setting) -> None:
    assert status(send(setting, post(PULL, b"x-long: " + b"x" * 100_000))) in (400, 431)
    assert setting.upstream.fleet == []


def test_health_is_200_while_the_superlink_answers_and_503_otherwise(setting: Setting) -> None:
    assert status(send(setting, post(b"/health", method=b"GET", body=b""))) == 200
    assert status(send(setting, post(b"/health"))) == 405
    (nobody,) = free_ports(1)
    (port,) = free_ports(1)
    with serving(front_configuration(settings_for(port, nobody, setting.identity))):
        away = Setting(port, setting.identity, setting.upstream)
        assert status(send(away, post(b"/health", method=b"GET", body=b""))) == 503
        assert status(send(away, post(PULL))) == 502


def test_a_superlink_of_another_authority_is_502(identity: ServerIdentity, tmp_path: Path) -> None:
    port, upstream_port = free_ports(2)
    upstream = Upstream()
    other = make_server_identity(tmp_path / "other")
    settings = settings_for(port, upstream_port, identity, authority=other.certificate_authority)
    with (
        serving(upstream_configuration(upstream, upstream_port, identity)),
        serving(front_configuration(settings)),
    ):
        assert status(send(Setting(port, identity, upstream), post(PULL))) == 502
    assert upstream.seen == []


def test_a_plain_http_upstream_or_a_missing_authority_is_refused(identity: ServerIdentity, tmp_path: Path) -> None:
    with pytest.raises(FrontError, match="upstream: expected an https:// address"):
        make_front("http://127.0.0.1:1", identity.certificate_authority)
    with pytest.raises(FrontError, match="expected a readable PEM certificate"):
        make_front("https://127.0.0.1:1", tmp_path / "missing.pem")


def test_as_a_process_it_ends_cleanly_on_sigterm_and_logs_neither_bodies_nor_headers(
    identity: ServerIdentity, tmp_path: Path
) -> None:
    port, upstream_port = free_ports(2)
    upstream, log = Upstream(), tmp_path / "front.log"
    program = (
        "import sys; from pathlib import Path; from fedtwin_server.front import FrontSettings, serve_front;"
        "serve_front(FrontSettings(host='127.0.0.1', port=int(sys.argv[1]), certificate=Path(sys.argv[2]),"
        "private_key=Path(sys.argv[3]), upstream=sys.argv[4], certificate_authority=Path(sys.argv[5])))"
    )
    arguments = [str(port), str(identity.certificate), str(identity.private_key), f"https://127.0.0.1:{upstream_port}"]
    with log.open("wb") as file, serving(upstream_configuration(upstream, upstream_port, identity)):
        front = subprocess.Popen(
            [sys.executable, "-c", program, *arguments, str(identity.certificate_authority)], stdout=file, stderr=file
        )
        try:
            here = Setting(port, identity, upstream)
            wait_until(lambda: listens(port), what="front", deadline_seconds=20)
            assert status(send(here, post(PULL, b"flwr-signature: SECRET-HEADER", body=b"SECRET-BODY"))) == 200
            assert status(send(here, post(b"/v1/control/start-run", body=b"SECRET-BODY"))) == 404
            front.send_signal(signal.SIGTERM)
            assert front.wait(timeout=10) in (0, -signal.SIGTERM)
        finally:
            front.kill()
            front.wait()
    assert "SECRET" not in log.read_text()
    assert "Traceback" not in log.read_text()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def get(target: bytes) -> bytes:
    return b"GET " + target + b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


def test_a_release_is_served_under_the_digest_of_its_study_and_nothing_beside_it(setting: Setting) -> None:
    releases = setting.identity.certificate_authority.parent / "releases"
    study, absent = "ab" * 32, "cd" * 32
    (releases / study).mkdir(parents=True)
    for name in ("release.signed.json", "weights.npz", "other", ".weights.npz.new"):
        (releases / study / name).write_bytes(b"content of " + name.encode())
    for name in ("release.signed.json", "weights.npz"):
        target = f"/v1/release/{study}/{name}".encode()
        answer = send(setting, get(target))
        assert status(answer) == 200
        assert answer.endswith(b"content of " + name.encode())
        assert status(send(setting, post(target))) == 405
    for path in (
        f"{study}/other",
        f"{study}/.weights.npz.new",
        f"{study}/",
        study,
        f"{absent}/weights.npz",
        f"{study.upper()}/weights.npz",
        f"../releases/{study}/weights.npz",
        f"{study}/../{study}/weights.npz",
        f"{study}/weights.npz?x",
        f"{study}/weights%2Enpz",
        f"{study}/weights.npz.bak",
    ):
        assert status(send(setting, get(f"/v1/release/{path}".encode()))) == 404
    assert setting.upstream.fleet == []
