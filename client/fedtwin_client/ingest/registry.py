"""The file of devices that may speak to this node: `devices.json` in the node's directory, for the hospital's eyes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import BaseModel, ConfigDict, Field, field_validator

from fedtwin_client.ingest.device import Device, State, identity_of
from fedtwin_shared.documents import check_document
from fedtwin_shared.durable import replace_file
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.signal import SIGNALS

FILE: Final = "devices.json"
NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"  # also a level of an MQTT topic, which / + and # would break


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: Annotated[str, Field(pattern=NAME)]
    identity: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    patients: list[Annotated[str, Field(min_length=1)]] | None
    signals: list[str] | None
    rate: Annotated[float, Field(gt=0, le=1e7)]
    burst: Annotated[int, Field(ge=1, le=10_000_000)]
    oldest: Annotated[int, Field(ge=1)]
    clock: int
    zone: str
    state: State

    @field_validator("signals")
    @classmethod
    def _know_signals(cls, keys: list[str] | None) -> list[str] | None:
        if keys is not None and not set(keys) <= set(SIGNALS):
            raise ValueError("expected keys of the Signal table")
        return keys

    @field_validator("zone")
    @classmethod
    def _know_zone(cls, name: str) -> str:
        try:
            return name and ZoneInfo(name).key
        except (ZoneInfoNotFoundError, ValueError) as err:
            raise ValueError("expected an IANA time zone or nothing") from err


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    devices: list[_Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """The devices by id.

    - two devices never share an identity, unless one of them is revoked
    """

    devices: Mapping[str, Device]

    def find(self, secret: bytes) -> Device | None:
        """Return the device that shows this certificate (DER) or key; None: it is not registered, or revoked."""
        identity = identity_of(secret)
        found = (one for one in self.devices.values() if one.identity == identity and one.state != "revoked")
        return next(found, None) if secret else None

    def get(self, name: str) -> Device | None:
        """Return the device of an id that a broker vouches for; None: it is not registered, or revoked."""
        device = self.devices.get(name)
        return None if device is None or device.state == "revoked" else device


def read_registry(path: Path) -> Registry:
    """Return the devices of a file, none where there is no file. Raises `ConfigurationError`."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return Registry(devices=MappingProxyType({}))
    except (OSError, ValueError, RecursionError) as err:
        raise ConfigurationError(file=path, expected="a readable JSON file", found=type(err).__name__) from err
    registry = Registry(devices=MappingProxyType({}))
    for row in check_document(document, _File, file=path).devices:
        registry = add_device(registry, _device(row), file=path)
    return registry


def write_registry(path: Path, registry: Registry) -> None:
    """Write the devices, whole or not at all, readable by their owner only."""
    rows = [_row(device).model_dump() for device in registry.devices.values()]
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(path, json.dumps({"devices": rows}, indent=1).encode())


def add_device(registry: Registry, device: Device, *, file: Path | str = "") -> Registry:
    """Return the registry with one device more. Raises `ConfigurationError` for an id or identity that is taken."""
    check_document(_row(device).model_dump(), _Row, file=file)
    if device.id in registry.devices:
        raise ConfigurationError(file=file, field=device.id, expected="an id that is not taken", found="a device")
    taken = (one for one in registry.devices.values() if one.identity == device.identity and one.state != "revoked")
    if device.state != "revoked" and (holder := next(taken, None)) is not None:
        raise ConfigurationError(file=file, field=device.id, expected="an identity of its own", found=holder.id)
    return Registry(devices=MappingProxyType({**registry.devices, device.id: device}))


def set_state(registry: Registry, name: str, state: State, *, file: Path | str = "") -> Registry:
    """Return the registry with a device's state changed. Raises `ConfigurationError`; a revoked one stays revoked."""
    device = registry.devices.get(name)
    if device is None:
        raise ConfigurationError(file=file, field=name, expected="a registered device", found="none of this id")
    if device.state == "revoked" and state != "revoked":
        raise ConfigurationError(file=file, field=name, expected="a device that is not revoked", found="revoked")
    return Registry(devices=MappingProxyType({**registry.devices, name: replace(device, state=state)}))


def set_identity(registry: Registry, name: str, identity: str, *, file: Path | str = "") -> Registry:
    """Return the registry with a device known by another certificate or key. Raises `ConfigurationError`."""
    device = registry.devices.get(name)
    if device is None or device.state == "revoked":
        raise ConfigurationError(file=file, field=name, expected="a registered device", found="none of this id")
    others = Registry(devices={key: one for key, one in registry.devices.items() if key != name})
    return add_device(others, replace(device, identity=identity), file=file)


def forget_patients(registry: Registry, ids: Iterable[str]) -> Registry:
    """Return the registry with nobody of these ids among those whom a device may speak for."""
    gone = frozenset(ids)
    devices = {
        name: device if device.patients is None else replace(device, patients=device.patients - gone)
        for name, device in registry.devices.items()
    }
    return Registry(devices=MappingProxyType(devices))


def read_certificate(path: Path) -> bytes:
    """Return a PEM certificate's DER. Raises `ConfigurationError`."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)
    except (OSError, ValueError) as err:
        raise ConfigurationError(file=path, expected="a certificate in PEM", found=type(err).__name__) from err


def is_name(text: str) -> bool:
    """Return whether the text can be a device's id."""
    return re.match(NAME, text) is not None and not text.endswith("\n")


def _device(row: _Row) -> Device:
    return Device(
        id=row.id,
        identity=row.identity,
        patients=None if row.patients is None else frozenset(row.patients),
        signals=None if row.signals is None else frozenset(row.signals),
        rate=row.rate,
        burst=row.burst,
        oldest=row.oldest,
        clock=row.clock,
        zone=row.zone,
        state=row.state,
    )


def _row(device: Device) -> _Row:
    """Return the row unchecked: whatever reads it checks it."""
    return _Row.model_construct(
        id=device.id,
        identity=device.identity,
        patients=None if device.patients is None else sorted(device.patients),
        signals=None if device.signals is None else sorted(device.signals),
        rate=device.rate,
        burst=device.burst,
        oldest=device.oldest,
        clock=device.clock,
        zone=device.zone,
        state=device.state,
    )
