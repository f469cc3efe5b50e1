"""A witness over HTTP, after C2SP tlog-witness: `POST /add-checkpoint`, and nothing else but health.

Design note: who may ask is decided by the signature on the checkpoint, not by the connection, so there is no login.
Bodies are bounded before they are read; a refusal says no more than the protocol asks. The store decides, persists
and answers; this is only its door. A consortium runs one, and so may every hospital, whose own witness then is the one
that may lie (f of the quorum) for its own ledger.
"""

from __future__ import annotations

import asyncio
import re
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import uvicorn
from pydantic import Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from fedtwin_shared.errors import ConfigurationError, FedtwinError
from fedtwin_shared.fields import Address, Section, split_address
from fedtwin_shared.ledger.note import ED25519, VerifierKey, parse_verifier_key
from fedtwin_shared.ledger.witness import MAX_REQUEST_BYTES, Answer
from fedtwin_shared.ledger.witness_store import WitnessStore

SETTINGS: Final = "witness.toml"
MEMORY: Final = "witness.sqlite"
REQUEST_SECONDS: Final = 10.0  # a request has at most 70 KB; ends a client that drips bytes
HEADER_BYTES: Final = 16 * 1024
CONNECTIONS: Final = 64


class WitnessConfig(Section):
    """`witness.toml`: who this witness is, where it listens, and the logs that it watches."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._/-]{0,127}$")]  # as in vkeys: witness.example/1
    listen: Address
    certificate: Path | None = Field(default=None, strict=False)  # PEM; plain HTTP on loopback without
    private_key: Path | None = Field(default=None, strict=False)
    logs: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]  # vkeys of hospitals' ledgers


@dataclass(frozen=True, slots=True, kw_only=True)
class WitnessDirectory:
    """A witness's settings, checked, and where its memory is."""

    config: WitnessConfig
    memory: Path
    logs: dict[str, VerifierKey]  # by origin


def read_witness_directory(directory: Path) -> WitnessDirectory:
    """Read `witness.toml`. Raises `ConfigurationError` where it is missing or malformed."""
    file = directory / SETTINGS
    try:
        config = WitnessConfig.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
    except OSError as err:
        raise ConfigurationError(file=file, expected="a readable file", found=err.strerror or "none") from err
    except ValidationError as err:
        first = err.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigurationError(file=file, field=place, expected="a witness's settings", found=first["msg"]) from err
    except ValueError as err:
        raise ConfigurationError(file=file, expected="TOML", found=str(err)) from err
    host, _ = split_address(config.listen)
    if (config.certificate is None) != (config.private_key is None):
        raise ConfigurationError(file=file, expected="certificate and private_key, or neither", found="one of them")
    if config.certificate is None and not re.fullmatch(r"127\.0\.0\.1|localhost", host):
        raise ConfigurationError(file=file, field="certificate", expected="one unless on loopback", found="none")
    return WitnessDirectory(config=config, memory=directory / MEMORY, logs=_read_logs(file, config))


def _read_logs(file: Path, config: WitnessConfig) -> dict[str, VerifierKey]:
    logs: dict[str, VerifierKey] = {}
    for place, text in enumerate(config.logs):
        try:
            key = parse_verifier_key(text)
        except FedtwinError as err:
            raise ConfigurationError(
                file=file, field=f"logs.{place}", expected=err.expected, found="another form"
            ) from err
        if key.algorithm != ED25519 or key.name in logs:
            raise ConfigurationError(
                file=file, field=f"logs.{place}", expected="one note key for each log", found=key.name
            )
        logs[key.name] = key
    return logs


def open_witness(directory: WitnessDirectory, *, new: bool) -> WitnessStore:
    """Open a witness's memory, or make it with a new key.

    A witness without its memory must not start again under its old name: raises unless `new` says that it is one.
    """
    if new:
        return WitnessStore.create(directory.memory, name=directory.config.name, logs=directory.logs)
    return WitnessStore(directory.memory, logs=directory.logs)


def make_witness(store: WitnessStore) -> Starlette:
    """Return the application around a witness's memory.

    Guarantees:
      - a body above MAX_REQUEST_BYTES is refused (413), announced or not, and a slow one after REQUEST_SECONDS (408)
      - what is answered to add-checkpoint was durable before; where it cannot be made so, 500 and no cosignature
    """

    async def add_checkpoint(request: Request) -> Response:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                body = await _read_body(request)
        except TimeoutError:
            return Response(status_code=408)
        except ClientDisconnect:
            return Response(status_code=400)
        if body is None:
            return Response(status_code=413)
        try:
            answer: Answer = await run_in_threadpool(store.add_checkpoint, body, clock=_now)
        except FedtwinError:
            return Response(status_code=500)
        return Response(answer.body, answer.status, headers={"content-type": answer.media_type})

    async def health(_: Request) -> Response:
        return Response(str(store.verifier_key) + "\n", media_type="text/plain")

    return Starlette(
        routes=[Route("/add-checkpoint", add_checkpoint, methods=["POST"]), Route("/health", health, methods=["GET"])]
    )


def run_witness(directory: Path, *, new: bool, say: Callable[[str], None]) -> None:
    """Make a witness and say what others pin, or serve one until SIGTERM or SIGINT. Raises as its parts do."""
    found = read_witness_directory(directory)
    store = open_witness(found, new=new)
    if new:
        say(f"a hospital and an auditor pin: {store.verifier_key}")
    else:
        serve_witness(found, store)


def serve_witness(directory: WitnessDirectory, store: WitnessStore) -> None:
    """Serve until SIGTERM or SIGINT; requests in flight have three seconds to end."""
    host, port = split_address(directory.config.listen)
    settings = uvicorn.Config(
        make_witness(store),
        host=host,
        port=port,
        ssl_certfile=str(directory.config.certificate) if directory.config.certificate else None,
        ssl_keyfile=str(directory.config.private_key) if directory.config.private_key else None,
        http="h11",
        ws="none",
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_graceful_shutdown=3,
        limit_concurrency=CONNECTIONS,
        access_log=False,
        server_header=False,
        log_level="warning",
    )
    uvicorn.Server(settings).run()


async def _read_body(request: Request) -> bytes | None:
    data = bytearray()
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_REQUEST_BYTES:
            return None
    return bytes(data)


def _now() -> int:
    return int(time.time())
