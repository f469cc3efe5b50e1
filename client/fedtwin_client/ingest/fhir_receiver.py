"""A small FHIR REST receiver: resources and Bundles are posted to it, NDJSON too; it serves nothing.

POST / with a Bundle, POST /<type> or PUT /<type>/<id> with a resource, POST /$import-lines with NDJSON. Whoever sends
shows a registered key (`Authorization: Bearer …`). 200: safe, what was set aside is counted in the OperationOutcome;
400: unreadable; 401: not registered; 413: too large; 429: above the agreed rate; 503: not stored, send again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Final

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from fedtwin_client.ingest import fhir
from fedtwin_client.ingest.device import Device
from fedtwin_client.ingest.document import TOO_LARGE, Document
from fedtwin_client.ingest.gateway import Gateway
from fedtwin_client.ingest.intake import NOT_REGISTERED, NOT_STORED, RATE, Receipt
from fedtwin_client.ingest.readings import Draft

_STATUS: Final = {NOT_REGISTERED: 401, RATE: 429, NOT_STORED: 503, TOO_LARGE.refused: 413}
_CODE: Final = {401: "login", 413: "too-long", 429: "throttled", 503: "transient"}  # IssueType of FHIR
_TYPE: Final = "application/fhir+json"


def make_receiver(gateway: Gateway, executor: Executor) -> Starlette:
    """Return the application; `executor` is where the gateway may block."""

    def answer(read: Callable[[bytes, Draft], Document]) -> Callable[[Request], object]:
        async def receive(request: Request) -> JSONResponse:
            scheme, _, key = request.headers.get("authorization", "").partition(" ")
            device = gateway.registry().find(key.encode()) if scheme.lower() == "bearer" else None
            if device is None:
                return _outcome(gateway.refuse(NOT_REGISTERED))
            data = await _read_body(request)
            if data is None:
                return _outcome(gateway.refuse(TOO_LARGE.refused))
            loop = asyncio.get_running_loop()
            return _outcome(await loop.run_in_executor(executor, _take, gateway, device, read, data))

        return receive

    one, lines = answer(fhir.read_message), answer(fhir.read_ndjson)
    return Starlette(
        routes=[
            Route("/$import-lines", lines, methods=["POST"]),
            Route("/", one, methods=["POST"]),
            Route("/{type:str}", one, methods=["POST"]),
            Route("/{type:str}/{id:str}", one, methods=["PUT"]),
        ]
    )


def _take(gateway: Gateway, device: Device, read: Callable[[bytes, Draft], Document], data: bytes) -> Receipt:
    draft = Draft()
    document = read(data, draft)
    if document.refused:
        return gateway.refuse(document.refused)
    return gateway.take(device, draft.readings(), document.records, digest=hashlib.sha256(data).digest())


async def _read_body(request: Request) -> bytes | None:
    """Return the body, None when it is larger than a message may be: no more than that is ever held."""
    parts, size = list[bytes](), 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > fhir.MAXIMUM_BYTES:
                return None
            parts.append(part)
    except ClientDisconnect:
        return b""
    return b"".join(parts)


def _outcome(receipt: Receipt) -> JSONResponse:
    if not receipt.refused:
        words = (
            f"accepted {receipt.accepted}, set aside {receipt.set_aside}, known {receipt.duplicate}, "
            f"forgotten {receipt.forgotten}, records {receipt.records}"
        )
        issue = {"severity": "information", "code": "informational", "diagnostics": words}
        status = 200
    else:
        status = _STATUS.get(receipt.refused, 400)
        issue = {"severity": "error", "code": _CODE.get(status, "structure"), "diagnostics": receipt.refused}
    headers = {"Retry-After": "5"} if status in (429, 503) else {}
    body = {"resourceType": "OperationOutcome", "issue": [issue]}
    return JSONResponse(body, status_code=status, headers=headers, media_type=_TYPE)
