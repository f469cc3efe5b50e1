"""A gateway on a registry of three devices, whose sinks remember what they were given and can be made to fail."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedtwin_client.ingest.device import Device, Gap, Progress, identity_of
from fedtwin_client.ingest.gateway import Gateway
from fedtwin_client.ingest.intake import Intake
from fedtwin_client.ingest.readings import SetAside
from fedtwin_client.ingest.records import Record
from fedtwin_client.ingest.registry import Registry, add_device, write_registry
from fedtwin_client.observation_batch import ObservationBatch

NOW = 1_795_345_200_000  # 2026-11-22T11:00:00Z


@dataclass
class Kept:
    """A keeper in memory; `broken` makes it fail as a full disk does."""

    batches: list[ObservationBatch] = field(default_factory=list)
    aside: list[SetAside] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    durable: dict[str, Progress] = field(default_factory=dict)
    erased: set[str] = field(default_factory=set)
    broken: bool = False

    def keep(self, intake: Intake) -> None:
        if self.broken:
            raise OSError(28, "No space left on device")
        if len(intake.batch):
            self.batches.append(intake.batch)
        self.aside += intake.aside
        self.records += intake.records
        self.durable |= intake.progress

    def progress(self) -> Mapping[str, Progress]:
        return dict(self.durable)

    def forgotten(self, patients: Iterable[str]) -> Collection[str]:
        return self.erased & set(patients)

    def values(self) -> list[float]:
        return [value for batch in self.batches for value in batch.value.tolist()]


def make_device(name: str, secret: bytes, patients: frozenset[str] | None = None) -> Device:
    return Device(id=name, identity=identity_of(secret), patients=patients, signals=None, rate=1e6, burst=100_000)


def make_gateway(folder: Path, kept: Kept, *devices: Device) -> Gateway:
    registry = Registry(devices={})
    for device in devices:
        registry = add_device(registry, device)
    write_registry(folder / "devices.json", registry)
    return Gateway(folder / "devices.json", kept, clock=lambda: NOW, on_gaps=kept.gaps.extend)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """A PEM certificate and key of a device, and its certificate in DER."""

    certificate: Path
    private_key: Path
    der: bytes


class Authority:
    """A hospital's own authority for its devices, in a folder of PEM files."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.certificate = folder / "ca.pem"
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name("ward authority")
        built = _builder(self._name, self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.certificate.write_bytes(built.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def certify(self, name: str) -> Certified:
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        certificate = _builder(_name(name), self._name, key).add_extension(names, critical=False)
        signed = certificate.sign(self._key, hashes.SHA256())
        found = Certified(
            certificate=self.folder / f"{name}.pem",
            private_key=self.folder / f"{name}.key",
            der=signed.public_bytes(serialization.Encoding.DER),
        )
        found.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        found.private_key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return found


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + dt.timedelta(hours=1))
    )
