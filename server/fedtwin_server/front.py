"""The coordinator's public door: TLS outside, and only the paths that a hospital's SuperNode needs inside.

Design note: Flower serves the Fleet API (for hospitals), the Control API (start a run, register a node; no user
authentication) and the Runtime API (task results) on one port. That port therefore listens on loopback, and this front
is what hospitals dial. It is an allow-list at every level: method, exact path bytes, headers, size, time. What it
forwards it writes anew, so nothing of the client's framing reaches the SuperLink. It adds no authority of its own:
SuperNodes authenticate to the SuperLink with their own keys, in headers that are passed through.

Nodes are registered by the coordinator, so the Fleet paths for anonymous registration are not passed either.
Neither bodies nor headers are ever logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from fedtwin_server.errors import FrontError
from fedtwin_server.prompt_protocol import PromptProtocol
from fedtwin_shared.release import RELEASE_FILE, WEIGHTS_FILE

FLEET_PATHS: Final = frozenset(
    b"/v1/fleet/" + name
    for name in (
        b"activate-node",
        b"confirm-message-received",
        b"deactivate-node",
        b"get-fab",
        b"get-run",
        b"pull-messages",
        b"pull-object",
        b"push-messages",
        b"push-object",
        b"send-node-heartbeat",
    )
)
HEALTH_PATH: Final = b"/health"
_KNOWN_PATHS: Final = FLEET_PATHS | {HEALTH_PATH}
# A signed release and its weights, under the digest of the signed study, which only those who have the study know.
RELEASE_PATTERN: Final = f"/v1/release/([0-9a-f]{{64}})/({re.escape(RELEASE_FILE)}|{re.escape(WEIGHTS_FILE)})"
_RELEASE_PATH: Final = re.compile(RELEASE_PATTERN.encode())

# What the Fleet API reads: its media type, the signed node identity, and the version of the peer.
PASSED_REQUEST_HEADERS: Final = frozenset(
    {
        b"accept",
        b"content-type",
        b"flwr-public-key",
        b"flwr-timestamp",
        b"flwr-signature",
        b"flwr-package-name",
        b"flwr-package-version",
        b"flwr-component-name",
    }
)
PASSED_RESPONSE_HEADERS: Final = frozenset(
    {b"content-length", b"content-type", b"flwr-version-incompatibility-message", b"retry-after"}
)

# Flower cuts arrays into objects of 5 MiB, but a configuration record travels whole, and a signed update is one.
BODY_BYTES: Final = 64 * 1024 * 1024
HEADER_BYTES: Final = 16 * 1024  # a SuperNode sends about 1 KiB
REQUEST_SECONDS: Final = 120.0  # one body at 64 MiB over a slow hospital line; ends a client that drips bytes
UPSTREAM_SECONDS: Final = 30.0
HEALTH_SECONDS: Final = 2.0
UPSTREAM_IDLE_SECONDS: Final = 3.0  # below uvicorn's 5 s, so that the SuperLink never closes what is about to be used
IDLE_SECONDS: Final = 30  # above a SuperNode's slowest poll, so that it keeps its connection
CONNECTIONS: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontSettings:
    """Where the front listens, with which certificate, and where the SuperLink is."""

    host: str
    port: int
    certificate: Path  # PEM, what hospitals verify
    private_key: Path
    upstream: str  # https://127.0.0.1:PORT of the SuperLink
    certificate_authority: Path  # PEM, what the front verifies the SuperLink with
    releases: Path | None = None  # a folder of released models, one folder each


def make_front(
    upstream: str, certificate_authority: Path, *, releases: Path | None = None, body_bytes: int = BODY_BYTES
) -> Starlette:
    """The application that forwards Fleet calls to `upstream` (https://host:port), verified by the given authority.

    Guarantees:
      - only POST to one of FLEET_PATHS, byte for byte and without a query, reaches the SuperLink
      - only PASSED_REQUEST_HEADERS reach it, each at most once, and only PASSED_RESPONSE_HEADERS come back
      - a body above `body_bytes` is refused (413), announced or not
      - a SuperLink that is away or not the one certified is 502; nothing is retried
      - GET /health is 200 while the SuperLink answers, 503 otherwise
      - GET of the two files of a release is answered from `releases`, and no other file of it is
    """
    if not upstream.startswith("https://"):
        raise FrontError(field="upstream", expected="an https:// address", found=upstream)
    try:
        verification = ssl.create_default_context(cafile=str(certificate_authority))
    except (OSError, ssl.SSLError) as error:
        raise FrontError(
            file=certificate_authority, expected="a readable PEM certificate", found=type(error).__name__
        ) from error
    # Not httpx's client: it keeps cookies, and so would carry one hospital's answer into another's request.
    transport = httpx.AsyncHTTPTransport(
        verify=verification,
        trust_env=False,
        limits=httpx.Limits(max_connections=CONNECTIONS, keepalive_expiry=UPSTREAM_IDLE_SECONDS),
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with transport:
            yield

    application = Starlette(lifespan=lifespan)
    # Not `Route`: Starlette routes the decoded path, and %66leet must not be fleet.
    application.router.default = _Gate(upstream.rstrip("/"), transport, releases=releases, body_bytes=body_bytes)
    return application


def serve_front(settings: FrontSettings) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight have three seconds to end."""
    uvicorn.Server(front_configuration(settings)).run()


def front_configuration(settings: FrontSettings) -> uvicorn.Config:
    """How the front is served: TLS, HTTP/1.1 by the strict parser, headers in time, no WebSocket, no access log."""
    return uvicorn.Config(
        make_front(settings.upstream, settings.certificate_authority, releases=settings.releases),
        host=settings.host,
        port=settings.port,
        ssl_certfile=str(settings.certificate),
        ssl_keyfile=str(settings.private_key),
        http=PromptProtocol,  # on h11, the strict parser; it also keeps the path as it was sent
        ws="none",
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=3,
        limit_concurrency=CONNECTIONS,
        access_log=False,
        server_header=False,
        log_level="warning",
    )


class _TooLargeError(Exception):
    """A body went on past its limit."""


class _Gate:
    """The one endpoint: decides, then forwards."""

    def __init__(
        self, upstream: str, transport: httpx.AsyncHTTPTransport, *, releases: Path | None, body_bytes: int
    ) -> None:
        self._upstream = upstream
        self._transport = transport
        self._releases = releases
        self._body_bytes = body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await Response(status_code=403)(scope, receive, send)
            return
        response = await self._answer(Request(scope, receive))
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        path: bytes = request.scope["raw_path"]
        if request.scope["query_string"]:
            return _refusal(404)
        if released := _RELEASE_PATH.fullmatch(path):
            return self._release(*released.groups()) if request.method == "GET" else _refusal(405)
        if path not in _KNOWN_PATHS:
            return _refusal(404)
        if path == HEALTH_PATH:
            return await self._health() if request.method == "GET" else _refusal(405)
        if request.method != "POST":
            return _refusal(405)
        try:
            headers = _passed_headers(request.scope["headers"], body_bytes=self._body_bytes)
        except _TooLargeError:
            return _refusal(413)
        except ValueError:
            return _refusal(400)
        return await self._forward(path, headers, request)

    def _release(self, study: bytes, name: bytes) -> Response:
        file = None if self._releases is None else self._releases / study.decode() / name.decode()
        return FileResponse(file) if file is not None and file.is_file() else _refusal(404)

    async def _health(self) -> Response:
        """Public, so it says no more than yes or no."""
        try:
            answer = await self._transport.handle_async_request(self._request("GET", HEALTH_PATH, HEALTH_SECONDS))
            await answer.aclose()
        except httpx.HTTPError:
            return _refusal(503)
        return JSONResponse({"status": "ok"}) if answer.status_code == 200 else _refusal(503)

    def _request(
        self,
        method: str,
        path: bytes,
        seconds: float,
        *,
        headers: list[tuple[bytes, bytes]] | None = None,
        content: AsyncIterator[bytes] | None = None,
    ) -> httpx.Request:
        return httpx.Request(
            method,
            self._upstream + path.decode("ascii"),
            headers=headers,
            content=content,
            extensions={"timeout": httpx.Timeout(seconds).as_dict()},
        )

    async def _forward(self, path: bytes, headers: list[tuple[bytes, bytes]], request: Request) -> Response:
        body = _limited(request, self._body_bytes)
        outgoing = self._request("POST", path, UPSTREAM_SECONDS, headers=headers, content=body)
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                answer = await self._transport.handle_async_request(outgoing)
        except _TooLargeError:
            return _refusal(413)
        except TimeoutError:
            return _refusal(408)
        except ClientDisconnect:
            return _refusal(400)
        except httpx.HTTPError:
            return _refusal(502)
        response = StreamingResponse(
            _pieces(answer), status_code=answer.status_code, background=BackgroundTask(answer.aclose)
        )
        response.raw_headers = [(k.lower(), v) for k, v in answer.headers.raw if k.lower() in PASSED_RESPONSE_HEADERS]
        return response


def _passed_headers(received: Iterable[tuple[bytes, bytes]], *, body_bytes: int) -> list[tuple[bytes, bytes]]:
    """The headers to forward. Raises ValueError where two readers of the request could see two requests."""
    headers = [(name.lower(), value) for name, value in received]
    names = [name for name, _ in headers]
    framing = [name for name in names if name in (b"content-length", b"transfer-encoding")]
    repeated = {name for name in names if names.count(name) > 1} & (PASSED_REQUEST_HEADERS | {b"host"})
    if len(framing) > 1 or repeated or b"upgrade" in names or b"expect" in names:
        raise ValueError("ambiguous request")
    length = dict(headers).get(b"content-length")
    if length is not None and int(length) > body_bytes:
        raise _TooLargeError
    passed = [(name, value) for name, value in headers if name in PASSED_REQUEST_HEADERS]
    passed.append((b"accept-encoding", b"identity"))
    if length is not None:
        passed.append((b"content-length", length))  # otherwise httpx sends chunks
    return passed


async def _limited(request: Request, body_bytes: int) -> AsyncIterator[bytes]:
    """The body in pieces, never more than the limit in all."""
    total = 0
    async for piece in request.stream():
        total += len(piece)
        if total > body_bytes:
            raise _TooLargeError
        if piece:
            yield piece


async def _pieces(answer: httpx.Response) -> AsyncIterator[bytes]:
    """The answer as it comes. A hospital that goes away half-way must not keep a connection to the SuperLink."""
    try:
        async for piece in answer.aiter_raw():
            yield piece
    finally:
        await answer.aclose()


def _refusal(status: int) -> Response:
    """No reason is given: who is allowed in does not need one, and who is not should not have one."""
    return Response(status_code=status)
