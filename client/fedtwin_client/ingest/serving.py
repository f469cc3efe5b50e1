"""`fedtwin client gateway`: every door that `hospital.toml` names, one gateway behind them, and the store.

Design note: a process of its own, so that what comes in from devices waits for no training and no coordinator. It alone
has the store open; whoever wants something of the store while it runs asks it (`control`). Once a second it writes what
it has counted to a file, without ids. Killed at any instant it loses nothing that it acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import uvicorn
from starlette.applications import Starlette

from fedtwin_client.config import GatewayTable, HospitalDirectory
from fedtwin_client.consent_store import ConsentStore
from fedtwin_client.ingest import control, grpc_stream, hl7_listener
from fedtwin_client.ingest.device import Gap
from fedtwin_client.ingest.feed import Feed
from fedtwin_client.ingest.fhir_receiver import make_receiver
from fedtwin_client.ingest.gateway import Gateway
from fedtwin_client.ingest.intake import Subscriber
from fedtwin_client.ingest.keeping import StoreKeeper
from fedtwin_client.ingest.mqtt import Broker
from fedtwin_client.ingest.mqtt import Subscriber as MqttSubscriber
from fedtwin_client.ingest.registry import FILE
from fedtwin_client.ingest.state import LOCK
from fedtwin_client.ingest.tls_files import TlsFiles
from fedtwin_client.store.export import export_patient
from fedtwin_client.store.opening import open_hospital_store
from fedtwin_client.store.store import EntryKind
from fedtwin_shared.durable import replace_file, take_lock
from fedtwin_shared.errors import ConfigurationError, FedtwinError

THREADS: Final = 16  # messages of so many senders are judged and kept together
CONNECTIONS: Final = 1000  # of FHIR senders at once; who comes beyond is told 503
STATE_SECONDS: Final = 1.0
RETENTION_SECONDS: Final = 3600.0
DAY: Final = 86_400_000  # milliseconds
STOP_SECONDS: Final = 5.0

_log = logging.getLogger(__name__)


def run_gateway(directory: HospitalDirectory, *, subscribers: Sequence[Subscriber] = ()) -> None:
    """Run until SIGTERM or SIGINT; main thread only. Accepted observations go to `subscribers` once they are durable.

    Raises `ConfigurationError` or `StoreError` before anything listens.
    """
    settings = directory.config.gateway
    if settings is None:
        raise ConfigurationError(file=directory.config_file, field="gateway", expected="this table", found="none")
    with contextlib.ExitStack() as stack:
        directory.node.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = take_lock(directory.node / LOCK)
        if lock is None:
            raise ConfigurationError(file=directory.root, expected="no other gateway of it", found="one that runs")
        stack.callback(os.close, lock)
        keeper = StoreKeeper(
            lambda check: open_hospital_store(directory, check=check),
            keep_consents=ConsentStore(directory.consent).take,
        )
        stack.callback(keeper.close)
        feed = Feed(subscribers)
        feed.start()
        stack.callback(feed.stop)
        running = _Running(directory, settings, keeper, feed)
        asyncio.run(running.serve())


class _Running:
    """The gateway while it runs."""

    def __init__(self, directory: HospitalDirectory, settings: GatewayTable, keeper: StoreKeeper, feed: Feed) -> None:
        self._directory, self._settings, self._keeper, self._feed = directory, settings, keeper, feed
        self._tls = TlsFiles(folder=directory.root / settings.tls)
        self._gaps = 0
        self._subscriber: MqttSubscriber | None = None
        self._started = _now()
        self._gateway = Gateway(directory.node / FILE, keeper, clock=_now, on_kept=feed.offer, on_gaps=self._tell_gaps)

    async def serve(self) -> None:
        """Open every door, until a signal comes."""
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        async with contextlib.AsyncExitStack() as stack:
            executor = stack.enter_context(ThreadPoolExecutor(THREADS, "door"))
            apart = stack.enter_context(ThreadPoolExecutor(1, "control"))
            try:
                await self._open_doors(stack, executor)
                line = await control.listen(self._directory.node, self._obey, apart)
                stack.push_async_callback(_close, line)
                self._write_state()
                await self._watch(stop, apart)
            finally:
                self._write_state()

    async def _open_doors(self, stack: contextlib.AsyncExitStack, executor: Executor) -> None:
        settings, tls = self._settings, self._tls
        with _report_tls(tls):
            context = tls.listening()
            if settings.broker is not None:
                host, port = _split(settings.broker)
                self._subscriber = MqttSubscriber(self._gateway, Broker(host=host, port=port, tls=tls.dialling()))
                self._subscriber.start()
                stack.callback(self._subscriber.stop)
        if settings.mllp is not None:
            host, port = _split(settings.mllp)
            secure = context if settings.mllp_feed is None else None
            with _report_address("gateway.mllp", settings.mllp):
                listener = await hl7_listener.listen(
                    self._gateway, executor, host=host, port=port, tls=secure, feed=settings.mllp_feed or ""
                )
            stack.push_async_callback(_close, listener)
        if settings.grpc is not None:
            certificate, key = tls.server
            with _report_address("gateway.grpc", settings.grpc):
                server, _ = await grpc_stream.listen(
                    self._gateway,
                    executor,
                    address=settings.grpc,
                    authority=tls.authority.read_bytes(),
                    certificate=certificate.read_bytes(),
                    private_key=key.read_bytes(),
                )
            stack.push_async_callback(server.stop, STOP_SECONDS)
        if settings.fhir is not None:
            with _report_address("gateway.fhir", settings.fhir):
                door = socket.create_server(_split(settings.fhir))
            app = make_receiver(self._gateway, executor)
            await stack.enter_async_context(_serving_http(app, door, tls))

    async def _watch(self, stop: asyncio.Event, apart: Executor) -> None:
        """Write the state and keep to the retention, until told to stop."""
        loop, due = asyncio.get_running_loop(), time.monotonic() + STATE_SECONDS
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), STATE_SECONDS)
            self._write_state()
            if time.monotonic() >= due:
                due = time.monotonic() + RETENTION_SECONDS
                await loop.run_in_executor(apart, self._drop_old)

    def _drop_old(self) -> None:
        now, settings = _now(), self._settings
        try:
            store = self._keeper.store()
            store.drop_entries(EntryKind.ASIDE, now - settings.keep_aside_days * DAY)
            dropped = store.drop_before(now - settings.keep_days * DAY)
        except FedtwinError as err:
            _log.warning("nothing was dropped: %s", type(err).__name__)
            return
        if dropped:
            _log.info("observations older than %d days dropped: %d", settings.keep_days, dropped)

    def _obey(self, request: Mapping[str, Any]) -> int:
        """Do what somebody asked for who may open the node's folder."""
        if "forget" in request:
            ids = [str(one) for one in request["forget"]]
            with self._gateway.hold():
                known = sum(self._keeper.store().forget(one) for one in ids)
            for one in ids:
                self._feed.forget(one)
            return known
        if "export" in request:
            output = Path(str(request["output"]))
            return export_patient(self._keeper.store(), str(request["export"]), output, now=datetime.now(UTC))
        raise FedtwinError(expected="forget or export", found="something else")

    def _tell_gaps(self, gaps: Sequence[Gap]) -> None:
        self._gaps += len(gaps)
        for gap in gaps:
            _log.warning("device %s: numbers %d to %d have not come", gap.device, gap.first, gap.last)

    def _write_state(self) -> None:
        state = {
            "process": os.getpid(),
            "started": self._started,
            "written": _now(),
            "store": self._keeper.is_well(),
            "openings": self._keeper.openings,
            "broker": None if self._subscriber is None else self._subscriber.is_connected(),
            "totals": asdict(self._gateway.totals),
            "reasons": self._gateway.reasons,
            "gaps": self._gaps,
            "missed": self._feed.missed,
        }
        with contextlib.suppress(OSError):  # a full disk stops no observation that it has room for
            replace_file(self._directory.gateway_state, json.dumps(state, indent=1).encode())


class _Quiet(uvicorn.Server):
    """uvicorn without signal handlers: the process has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


@contextlib.asynccontextmanager
async def _serving_http(app: Starlette, door: socket.socket, tls: TlsFiles) -> AsyncIterator[None]:
    certificate, key = tls.server
    configuration = uvicorn.Config(
        app,
        ssl_certfile=str(certificate),
        ssl_keyfile=str(key),
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=int(STOP_SECONDS),
    )
    server = _Quiet(configuration)
    task = asyncio.create_task(server.serve(sockets=[door]))
    try:
        yield
    finally:
        server.should_exit = True
        await task


async def _close(server: asyncio.Server) -> None:
    server.close()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(server.wait_closed(), STOP_SECONDS)


@contextlib.contextmanager
def _report_tls(tls: TlsFiles) -> Iterator[None]:
    try:
        yield
    except (OSError, ssl.SSLError) as err:
        raise ConfigurationError(
            file=tls.folder, expected="ca.pem, server.pem, gateway.pem and their keys", found=type(err).__name__
        ) from err


@contextlib.contextmanager
def _report_address(field: str, address: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as err:
        raise ConfigurationError(field=field, expected="an address that is free here", found=address) from err


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def _now() -> int:
    return time.time_ns() // 1_000_000
