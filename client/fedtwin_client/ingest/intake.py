"""What the gateway is given, what it keeps at once, and who does the keeping.

No record of this module prints its contents.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from fedtwin_client.ingest.device import Device, Progress
from fedtwin_client.ingest.readings import NO_READINGS, Readings, SetAside
from fedtwin_client.ingest.records import Record
from fedtwin_client.observation_batch import ObservationBatch

NOT_REGISTERED: Final = "not registered or revoked"
RATE: Final = "more than the agreed rate, send again later"
NOT_STORED: Final = "could not be stored, send again"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Message:
    """What one device sent at once; device None: nobody who is registered.

    digest: names the message where the transport repeats messages without numbering readings: the same again is a
    duplicate, which is no refusal, because its sender only missed our answer.
    """

    device: Device | None
    readings: Readings = NO_READINGS
    records: Sequence[Record] = ()
    digest: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of one message: the four numbers add up to its readings, or it was refused whole with fixed words.

    duplicate: taken before. forgotten: of patients who are erased, and so not kept in any form.
    """

    accepted: int = 0
    set_aside: int = 0
    duplicate: int = 0
    forgotten: int = 0
    records: int = 0
    refused: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Since the start: accepted + set aside + duplicate + refused = received.

    received: readings, and one for each message that was refused whole; refused: those messages, and the readings of
    patients who were forgotten. records: what was kept besides; commits: how often something was kept.
    """

    received: int = 0
    accepted: int = 0
    set_aside: int = 0
    duplicate: int = 0
    refused: int = 0
    records: int = 0
    commits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Intake:
    """What one commit keeps. progress: of every device that it is of. time: of arrival, milliseconds since 1970 UTC."""

    batch: ObservationBatch
    aside: Sequence[SetAside]
    records: Sequence[Record]
    progress: Mapping[str, Progress]
    time: int


class Keeper(Protocol):
    """Where everything goes; every method raises `OSError` or `FedtwinError` where it cannot.

    - what `keep` was given is durable when it returns, all of it; when it raises, none is
    """

    def keep(self, intake: Intake) -> None:
        """Keep it; nothing of a forgotten patient is."""

    def progress(self) -> Mapping[str, Progress]:
        """Return how far each device had come in what was kept."""

    def forgotten(self, patients: Iterable[str]) -> Collection[str]:
        """Return those of whom nothing is kept any more."""


class Subscriber(Protocol):
    """Whoever wants every accepted observation, such as a ward's twins. Called on one thread, in the order of commits.

    - an observation is durable before it comes here
    - after a restart only what is new comes; the store has the rest
    """

    def receive(self, batch: ObservationBatch, *, missed: int) -> None:
        """Take a batch. missed: observations since the last call that were not waited with; the store has them."""

    def forget(self, patient: str) -> None:
        """Drop everything about a patient, who was erased."""
