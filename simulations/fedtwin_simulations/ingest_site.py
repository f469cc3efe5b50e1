"""A site for the benchmarks of ingest: certificates, a registry of one device, and a gateway that hands on."""

from __future__ import annotations

import contextlib
import multiprocessing
import ssl
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fedtwin_client.ingest.broker import GATEWAY
from fedtwin_client.ingest.device import Device, Progress, identity_of
from fedtwin_client.ingest.gateway import Gateway
from fedtwin_client.ingest.intake import Intake
from fedtwin_client.ingest.registry import Registry, add_device, read_certificate, write_registry
from fedtwin_client.observation_batch import ObservationBatch
from fedtwin_shared.certificates import (
    Identity,
    create_authority,
    issue_client_certificate,
    issue_server_certificate,
)
from fedtwin_simulations.results import BenchRow

DEVICE: Final = "device"
TOGETHER: Final = 256
HOST: Final = "localhost"
PATIENCE: Final = 60.0  # seconds

RESULTS: Final = (
    ("8867-4", "80", "/min"),
    ("9279-1", "16", "/min"),
    ("59408-5", "97", "%"),
    ("8310-5", "36.8", "Cel"),
    ("8480-6", "120", "mm[Hg]"),
    ("8478-0", "90", "mm[Hg]"),
)


def rate_row(
    case: str, ours: float, goal: float, unit: str = "obs/s", *, baseline: float | None = None, named: str = ""
) -> BenchRow:
    """Return a rate with its goal."""
    return BenchRow(
        case=case,
        ours=ours,
        baseline=baseline,
        baseline_name=named,
        unit=unit,
        goal=f"at least {goal:,.0f} {unit}",
        holds=ours >= goal,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A folder with an authority, certificates by name, and a registry of one device."""

    folder: Path

    def file(self, name: str) -> Path:
        """Return a file of the site."""
        return self.folder / name

    def tls(self, name: str) -> ssl.SSLContext:
        """Return a client's context with the certificate of that name."""
        context = ssl.create_default_context(cafile=str(self.file("ca.pem")))
        context.load_cert_chain(self.file(f"{name}.pem"), self.file(f"{name}.key"))
        return context


def make_site(folder: Path) -> Site:
    """Make certificates for the gateway, the server and one device, and register the device."""
    site, moment = Site(folder=folder), datetime.now(UTC)

    def identity(name: str) -> Identity:
        return Identity(certificate=site.file(f"{name}.pem"), private_key=site.file(f"{name}.key"))

    create_authority(identity("ca"), name="ward", now=moment)
    issue_server_certificate(identity(HOST), identity("ca"), names=(HOST,), now=moment)
    for name in (GATEWAY, DEVICE):
        issue_client_certificate(identity(name), identity("ca"), name=name, now=moment)
    secret = identity_of(read_certificate(site.file(f"{DEVICE}.pem")))
    device = Device(id=DEVICE, identity=secret, patients=None, signals=None, rate=1e7, burst=10_000_000)
    write_registry(site.file("devices.json"), add_device(Registry(devices={}), device))
    return site


def now() -> int:
    """Milliseconds since 1970 UTC."""
    return time.time_ns() // 1_000_000


class _Handed:
    """A keeper that hands accepted observations on and knows nothing of before."""

    def __init__(self, hand_on: Callable[[ObservationBatch], None]) -> None:
        self._hand_on = hand_on

    def keep(self, intake: Intake) -> None:
        self._hand_on(intake.batch)

    def progress(self) -> Mapping[str, Progress]:
        return {}

    def forgotten(self, patients: Iterable[str]) -> Collection[str]:
        return ()


def open_gateway(site: Site, keep: Callable[[ObservationBatch], None]) -> Gateway:
    """Return a gateway of the site's registry that hands accepted observations to `keep`."""
    return Gateway(site.file("devices.json"), _Handed(keep), clock=now)


@contextlib.contextmanager
def beside(target: Callable[..., None], *arguments: object) -> Iterator[None]:
    """Run a load generator in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.join(PATIENCE)
        if process.is_alive():
            process.kill()
