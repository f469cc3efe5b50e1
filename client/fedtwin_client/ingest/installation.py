"""Making a gateway's own folder: an authority for the hospital's devices, certificates, and the files that start it.

Private keys are made here and never leave, but for a device's own, which go to the device and are not kept.
"""

from __future__ import annotations

import datetime as dt
import getpass
import json
import os
import tomllib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import Final

from cryptography import x509

from fedtwin_client.config import CONFIG_FILE, HospitalDirectory, SiteConfig
from fedtwin_client.directory import Place, find_executable, quote_path
from fedtwin_client.ingest.broker import GATEWAY, BrokerFiles, write_broker
from fedtwin_client.ingest.registry import FILE, read_certificate, read_registry
from fedtwin_client.ingest.tls_files import TlsFiles
from fedtwin_shared.certificates import (
    Identity,
    create_authority,
    issue_client_certificate,
    issue_server_certificate,
    write_revocations,
)
from fedtwin_shared.documents import check_document
from fedtwin_shared.durable import replace_file
from fedtwin_shared.errors import ConfigurationError

FOLDER: Final = "gateway"
REPLACED: Final = "replaced"  # certificates that a device had before
UNIT_FILE: Final = "fedtwin-gateway.service"
COMPOSE_FILE: Final = "gateway-compose.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Doors:
    """What a hospital has to say once: the gateway's name on the network, and a port for each way in; 0: not opened.

    names: host names or addresses that devices know it by. listen: address to listen on. broker: `host:port`, or "".
    """

    names: tuple[str, ...]
    listen: str = "0.0.0.0"
    mllp: int = 2575  # registered with IANA for HL7
    fhir: int = 8443
    grpc: int = 50061
    broker: str = ""


def install_gateway(hospital: HospitalDirectory, doors: Doors, *, now: dt.datetime) -> None:
    """Make the folder, and add the tables to hospital.toml. Raises `ConfigurationError` where there is one already."""
    if hospital.config.gateway is not None:
        raise ConfigurationError(file=hospital.config_file, field="gateway", expected="none yet", found="one")
    tables = render_tables(doors)
    text = hospital.config_file.read_text(encoding="utf-8").rstrip("\n") + "\n\n" + tables
    check_document(tomllib.loads(text), SiteConfig, file=CONFIG_FILE)
    place = Place(
        directory=hospital.root,
        data=hospital.data,
        executable=find_executable(),
        user=getpass.getuser(),
        owner=f"{os.getuid()}:{os.getgid()}",
    )
    tls = TlsFiles(folder=hospital.root / FOLDER)
    issued(tls).mkdir(mode=0o700, parents=True)
    authority = authority_of(tls)
    create_authority(authority, name=f"{hospital.config.name} devices", now=now)
    server, client = certificates_of(tls)
    issue_server_certificate(server, authority, names=doors.names, now=now)
    issue_client_certificate(client, authority, name=GATEWAY, now=now)
    write_revocations(tls.revoked, authority, serials=(), now=now)
    if doors.broker:
        files = BrokerFiles(
            authority=tls.authority, certificate=tls.server[0], private_key=tls.server[1], revoked=tls.revoked
        )
        write_broker(tls.folder / "broker", files, host=doors.listen, port=int(doors.broker.rpartition(":")[2]))
    (hospital.root / UNIT_FILE).write_text(render_unit(hospital.config.name, place), encoding="utf-8")
    (hospital.root / COMPOSE_FILE).write_text(render_compose(doors, place), encoding="utf-8")
    replace_file(hospital.config_file, text.encode())


def renew_certificates(hospital: HospitalDirectory, *, now: dt.datetime) -> None:
    """Replace the gateway's own certificates and keys, for the names that they have; it shows them from its next start.

    Raises `ConfigurationError` without a gateway, or where its authority has come to its end.
    """
    tls = tls_of(hospital)
    server, client = certificates_of(tls)
    names = x509.load_pem_x509_certificate(server.certificate.read_bytes()).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    issue_server_certificate(server, authority_of(tls), names=[str(name.value) for name in names.value], now=now)
    issue_client_certificate(client, authority_of(tls), name=GATEWAY, now=now)


def issue_device(hospital: HospitalDirectory, name: str, folder: Path, *, now: dt.datetime) -> bytes:
    """Write `<name>.pem`, `<name>.key` and the authority's `ca.pem` into `folder`, for the device; return the DER."""
    tls = tls_of(hospital)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    identity = Identity(certificate=folder / f"{name}.pem", private_key=folder / f"{name}.key")
    issue_client_certificate(identity, authority_of(tls), name=name, now=now)
    (folder / "ca.pem").write_bytes(tls.authority.read_bytes())
    remember_certificate(hospital, name, identity.certificate)
    return read_certificate(identity.certificate)


def remember_certificate(hospital: HospitalDirectory, name: str, certificate: Path) -> None:
    """Keep a device's certificate, so that it can be revoked by its number; nothing where there is no authority.

    - one that it had before is kept among those that were replaced, which `list_revoked` revokes
    """
    if hospital.config.gateway is None or not issued(tls_of(hospital)).is_dir():
        return
    folder = issued(tls_of(hospital))
    kept = folder / f"{name}.pem"
    if kept.exists():
        (folder / REPLACED).mkdir(mode=0o700, exist_ok=True)
        kept.rename(folder / REPLACED / f"{_number_of(kept):x}.pem")
    replace_file(kept, certificate.read_bytes())


def list_revoked(hospital: HospitalDirectory, *, now: dt.datetime) -> bool:
    """Write the authority's list of certificates that are revoked or replaced; False where there is no authority.

    The gateway itself goes by the registry, from the next message on; the list is for the broker, which reads it when
    it is told to.
    """
    if hospital.config.gateway is None or not authority_of(tls_of(hospital)).private_key.exists():
        return False
    tls = tls_of(hospital)
    devices = read_registry(hospital.node / FILE).devices.values()
    files = [issued(tls) / f"{device.id}.pem" for device in devices if device.state == "revoked"]
    files += sorted((issued(tls) / REPLACED).glob("*.pem"))
    serials = [_number_of(file) for file in files if file.exists()]
    write_revocations(tls.revoked, authority_of(tls), serials=serials, now=now)
    return True


def _number_of(certificate: Path) -> int:
    return x509.load_pem_x509_certificate(certificate.read_bytes()).serial_number


def tls_of(hospital: HospitalDirectory) -> TlsFiles:
    """Return the gateway's certificates. Raises `ConfigurationError` without a gateway."""
    if hospital.config.gateway is None:
        raise ConfigurationError(file=hospital.config_file, field="gateway", expected="this table", found="none")
    return TlsFiles(folder=hospital.root / hospital.config.gateway.tls)


def authority_of(tls: TlsFiles) -> Identity:
    """Return the hospital's authority for devices."""
    return Identity(certificate=tls.authority, private_key=tls.folder / "ca.key")


def certificates_of(tls: TlsFiles) -> tuple[Identity, Identity]:
    """Return what the gateway shows to senders, and what it shows to a broker."""
    (server, server_key), (client, client_key) = tls.server, tls.client
    return Identity(certificate=server, private_key=server_key), Identity(certificate=client, private_key=client_key)


def issued(tls: TlsFiles) -> Path:
    """Return the folder of devices' certificates, without their keys."""
    return tls.folder / "issued"


def render_tables(doors: Doors) -> str:
    """Return the tables of hospital.toml."""

    def at(port: int) -> str:
        return json.dumps(f"{doors.listen}:{port}")

    lines = {
        "mllp": f"mllp = {at(doors.mllp)}" if doors.mllp else '# mllp = "0.0.0.0:2575"',
        "fhir": f"fhir = {at(doors.fhir)}" if doors.fhir else '# fhir = "0.0.0.0:8443"',
        "grpc": f"grpc = {at(doors.grpc)}" if doors.grpc else '# grpc = "0.0.0.0:50061"',
        "broker": f"broker = {json.dumps(doors.broker)}" if doors.broker else '# broker = "localhost:8883"',
    }
    return _render("gateway.toml", {"tls": json.dumps(FOLDER), **lines})


def render_unit(name: str, place: Place) -> str:
    """Return the systemd unit."""
    paths = {"executable": quote_path(str(place.executable)), "directory": quote_path(str(place.directory))}
    return _render(UNIT_FILE, {"name": name, "user": place.user, **paths})


def render_compose(doors: Doors, place: Place) -> str:
    """Return the compose file."""
    ports = [f"{port}:{port}" for port in (doors.mllp, doors.fhir, doors.grpc) if port]
    paths = {"directory": json.dumps(str(place.directory)), "owner": json.dumps(place.owner)}
    values = {key: value.replace("$", "$$") for key, value in paths.items()}  # $ starts a variable there
    return _render(COMPOSE_FILE, {**values, "ports": json.dumps(ports)})


def _render(template: str, values: dict[str, str]) -> str:
    text = (resources.files("fedtwin_client") / "templates" / template).read_text(encoding="utf-8")
    return Template(text).substitute(values)
