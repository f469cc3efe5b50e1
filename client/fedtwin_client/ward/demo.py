"""`fedtwin client demo`: a ward's devices send by every way at once, while broker, gateway and store are killed.

What it shows, by counts: everything that the node acknowledged is in its store, or set aside there with a reason; and
once a patient is forgotten, no file of the node, and no backup, can be read for them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from fedtwin_client.ingest.state import read_state
from fedtwin_client.store.sqlite_database import DATABASE
from fedtwin_client.ward import senders
from fedtwin_client.ward.erasure import Erasure, erase_and_look
from fedtwin_client.ward.premises import ENGINE, RECORDS_KEY, Ward, broker_settings, make_ward
from fedtwin_client.ward.series import Stay
from fedtwin_client.ward.tally import Tally, tally_ward
from fedtwin_shared.errors import FedtwinError
from fedtwin_shared.supervision import Command, RestartPolicy, Supervisor, wait_until

BROKER, GATEWAY, STORE = "broker", "gateway", "store"
LANES: Final = 4  # connections of the HL7 engine, and of the record system
READY_SECONDS: Final = 40.0
PATIENCE: Final = 90.0  # seconds after which what is not acknowledged is given up
STEP_SECONDS: Final = 0.1
SETTLE_SECONDS: Final = 1.8  # until the broker, which does it every second, has written its file anew

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the demo found. seconds: from the first reading to the last acknowledgement. kills: what, and when."""

    tallies: tuple[Tally, ...]
    kills: tuple[tuple[str, float], ...]
    seconds: float
    totals: dict[str, int]
    erasure: Erasure
    store_whole: bool

    @property
    def holds(self) -> bool:
        """Whether nothing that was acknowledged is lost, everything was, and nothing of the erased can be read."""
        return (
            self.store_whole
            and self.erasure.holds
            and all(tally.lost == 0 and tally.acknowledged == tally.sent for tally in self.tallies)
        )


def run_demo(
    root: Path,
    stays: Sequence[Stay],
    *,
    seconds: float,
    say: Say,
    with_broker: bool = True,
    outage: float | None = None,
) -> Outcome:
    """Run it in `root`, a new folder, and return what it found; main thread only. Raises `FedtwinError`.

    `outage`: seconds for which the store's file is held by somebody else.
    """
    say(f"{len(stays)} patients, {sum(map(len, stays)):,} readings; certificates for every device")
    ward = make_ward(root, stays, seconds=seconds, with_broker=with_broker)
    say("broker: mosquitto with TLS" if ward.broker else "no broker: gRPC, HL7 and FHIR only")
    supervisor = Supervisor(_commands(ward), policy=RestartPolicy(first_delay_seconds=0.5))
    with supervisor:
        _wait_until_ready(ward, supervisor, since=0)
        say("gateway: listens")
        began = time.monotonic()
        held = max(1.0, seconds / 4) if outage is None else outage
        kills = asyncio.run(_replay(ward, supervisor, seconds=seconds, outage=held, say=say))
        took = time.monotonic() - began
        time.sleep(SETTLE_SECONDS)
        supervisor.step()
        totals: dict[str, int] = dict((read_state(ward.hospital) or {}).get("totals", {}))
        victim = ward.all_beds[0]
        say("one patient is exported, then forgotten, while the gateway runs")
        erasure = erase_and_look(ward, victim, settle=SETTLE_SECONDS)
    say("the store is opened and compared with what was acknowledged")
    tallies, whole = tally_ward(ward, erased=victim, exported=erasure.exported)
    return Outcome(tallies=tallies, kills=kills, seconds=took, totals=totals, erasure=erasure, store_whole=whole)


def describe(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome as JSON has it."""
    return {"holds": outcome.holds, **asdict(outcome)}


def _commands(ward: Ward) -> list[Command]:
    import sys

    arguments = (sys.executable, "-c", "from fedtwin_shared.cli import main; main()", "client", "gateway")
    gateway = Command(
        name=GATEWAY,
        arguments=(*arguments, str(ward.hospital.root)),
        log_file=ward.hospital.logs / "gateway.log",
    )
    if ward.broker is None:
        return [gateway]
    settings = broker_settings(ward)
    if os.geteuid() == 0:  # else it becomes a user who may not read this folder
        settings.write_text(f"{settings.read_text(encoding='utf-8')}user root\n", encoding="utf-8")
    broker = Command(
        name=BROKER,
        arguments=(str(ward.broker), "-c", str(settings)),
        log_file=ward.hospital.logs / "broker.log",
    )
    return [broker, gateway]


def _wait_until_ready(ward: Ward, supervisor: Supervisor, *, since: int) -> None:
    """Wait until the gateway has written what it is, after the time `since` (ms UTC), and has reached the broker."""

    def ready() -> bool:
        supervisor.step()
        state = read_state(ward.hospital)
        return bool(state and state["running"] and state["written"] > since and state["broker"] is not False)

    wait_until(ready, what="gateway", deadline_seconds=READY_SECONDS)


async def _replay(
    ward: Ward, supervisor: Supervisor, *, seconds: float, outage: float, say: Say
) -> tuple[tuple[str, float], ...]:
    loop = asyncio.get_running_loop()
    began = loop.time()
    for bed in ward.all_beds:
        bed.started = began
    tasks = [asyncio.create_task(one) for one in _senders(ward)]
    events = [event for event in (BROKER, GATEWAY, STORE) if event != BROKER or ward.broker]
    due = [(began + seconds * (at + 1) / (len(events) + 1), event) for at, event in enumerate(events)]
    kills: list[tuple[str, float]] = []
    told = began
    try:
        while not all(task.done() for task in tasks):
            supervisor.step()
            now = loop.time()
            if due and now >= due[0][0]:
                event = due.pop(0)[1]
                kills.append((event, round(now - began, 2)))
                say(f"{_acknowledged(ward)}; now the {event} {_KILLS[event]}")
                await _kill(event, ward, supervisor, outage)
            elif now - told >= 5:
                told = now
                say(_acknowledged(ward))
            if now - began > seconds + PATIENCE:
                say("given up waiting")
                break
            await asyncio.sleep(STEP_SECONDS)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
    say(_acknowledged(ward))
    return tuple(kills)


_KILLS: Final = {
    BROKER: "is killed (SIGKILL)",
    GATEWAY: "is killed (SIGKILL)",
    STORE: "cannot be written: somebody else holds its file",
}


def _senders(ward: Ward) -> list[Any]:
    found: list[Any] = [senders.send_mqtt(bed, ward.ways["mqtt"]) for bed in ward.beds.get("mqtt", ())]
    found += [senders.send_grpc(bed, ward.ways["grpc"]) for bed in ward.beds["grpc"]]
    for lane in range(LANES):
        found.append(senders.send_hl7(ward.beds["hl7"][lane::LANES], ward.ways["hl7"], ENGINE))
        found.append(senders.send_fhir(ward.beds["fhir"][lane::LANES], ward.ways["fhir"], RECORDS_KEY))
    return found


async def _kill(event: str, ward: Ward, supervisor: Supervisor, outage: float) -> None:
    if event == STORE:
        await asyncio.to_thread(_hold_store, ward.hospital.store / DATABASE, outage)
        return
    (process,) = [child.process_id for child in supervisor.status() if child.name == event]
    if process is None:
        raise FedtwinError(field=event, expected="a process to kill", found="none")
    os.kill(process, signal.SIGKILL)


def _hold_store(path: Path, seconds: float) -> None:
    """Hold the file's write lock: every commit of the gateway waits, and fails when it has waited long enough."""
    connection = sqlite3.connect(path, timeout=30.0, isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        time.sleep(seconds)
        connection.execute("ROLLBACK")
    finally:
        connection.close()


def _acknowledged(ward: Ward) -> str:
    kept = sum(int(bed.kept.sum()) for bed in ward.all_beds)
    return f"acknowledged {kept:,} of {sum(len(bed.stay) for bed in ward.all_beds):,} readings"
