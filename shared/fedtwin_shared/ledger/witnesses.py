"""Which witnesses count, how many of them may lie, and where they are: `witnesses.toml`, of whoever relies on them.

Design note: a hospital, the coordinator and an auditor each keep a file of their own, checked by another channel;
nobody takes another's word for who must have seen a ledger.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field

from fedtwin_shared.documents import read_toml
from fedtwin_shared.errors import ConfigurationError, FedtwinError
from fedtwin_shared.fields import Section
from fedtwin_shared.ledger.cosignature import check_witnesses, quorum
from fedtwin_shared.ledger.note import ED25519, VerifierKey, parse_verifier_key
from fedtwin_shared.ledger.witness_client import WitnessContact, send_over_http
from fedtwin_shared.signing import parse_public_key

WITNESSES: Final = "witnesses.toml"


class WitnessTable(Section):
    """One witness: its vkey, and where it takes checkpoints. authority: PEM beside the file; the system's if absent."""

    key: str
    address: str
    authority: Path | None = Field(default=None, strict=False)


class WitnessesConfig(Section):
    """The whole of `witnesses.toml`. faulty: f of the quorum ⌊(N+f)/2⌋+1."""

    faulty: Annotated[int, Field(ge=0)]
    witness: Annotated[tuple[WitnessTable, ...], Field(min_length=1, strict=False)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Witnesses:
    """The witnesses that count. faulty: how many of them may lie."""

    contacts: tuple[WitnessContact, ...]
    faulty: int

    @property
    def keys(self) -> tuple[VerifierKey, ...]:
        """Their keys."""
        return tuple(contact.key for contact in self.contacts)

    @property
    def required(self) -> int:
        """How many of them must have cosigned."""
        return quorum(len(self.contacts), faulty=self.faulty)


def read_witnesses(file: Path) -> Witnesses | None:
    """Return the witnesses of a file; None where there is none. Raises `ConfigurationError`."""
    if not file.exists():
        return None
    config = read_toml(file, WitnessesConfig)
    contacts = tuple(_contact(file, place, table) for place, table in enumerate(config.witness))
    found = Witnesses(contacts=contacts, faulty=config.faulty)
    try:
        check_witnesses(found.keys)
        quorum(len(contacts), faulty=config.faulty)
    except ConfigurationError as err:
        raise ConfigurationError(file=file, field=err.field, expected=err.expected, found=err.found) from err
    return found


def hospital_log_key(site: str, public_key: str) -> VerifierKey:
    """Return the key that signs a hospital's checkpoints: its signing key, as in the roster, under its ledger's name.

    Raises `VerificationError` for anything but a public key.
    """
    raw = parse_public_key(public_key).public_bytes_raw()
    return VerifierKey(name=f"{site}/ledger", algorithm=ED25519, public=raw)


def _contact(file: Path, place: int, table: WitnessTable) -> WitnessContact:
    try:
        context = None
        if table.authority is not None:
            context = ssl.create_default_context(cafile=str(file.parent / table.authority))
        return WitnessContact(key=parse_verifier_key(table.key), send=send_over_http(table.address, context=context))
    except FedtwinError as err:
        raise ConfigurationError(
            file=file, field=f"witness.{place}.{err.field}", expected=err.expected, found=err.found
        ) from err
    except OSError as err:
        raise ConfigurationError(
            file=file, field=f"witness.{place}.authority", expected="certificates in PEM", found=type(err).__name__
        ) from err
