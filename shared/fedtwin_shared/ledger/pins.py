"""The keys that an auditor obtained by another channel: `pinned-keys.json`, which nothing in a bundle can change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from fedtwin_shared.errors import ConfigurationError, FedtwinError
from fedtwin_shared.fields import Section
from fedtwin_shared.ledger.bundle import DOCUMENTS
from fedtwin_shared.ledger.cosignature import check_witnesses, quorum
from fedtwin_shared.ledger.note import ED25519, VerifierKey, parse_verifier_key
from fedtwin_shared.roster import Name

MAX_PINNED_BYTES = 1024 * 1024  # a thousand hospitals take 150 KB; prevents DoS


class PinnedKeys(Section):
    """Which logs must be there, which witnesses count, and how many of those may lie.

    - every name and every public key appears once
    - log keys sign notes (type 0x01), witness keys cosign them (type 0x04)
    """

    version: Literal[1]
    logs: Annotated[dict[Name, str], Field(min_length=1)]  # hospital -> vkey of its ledger
    witnesses: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]  # vkeys
    faulty: Annotated[int, Field(ge=0)]  # f of ⌊(N+f)/2⌋+1

    @field_validator("logs")
    @classmethod
    def _check_logs(cls, logs: dict[str, str]) -> dict[str, str]:
        keys = [_parse(text) for text in logs.values()]
        if any(key.algorithm != ED25519 for key in keys) or DOCUMENTS in logs:
            raise ValueError("expected keys that sign notes (type 0x01)")
        if len({key.name for key in keys}) != len(keys):
            raise ValueError("expected one origin for each log")
        return logs

    @model_validator(mode="after")
    def _check_unique(self) -> PinnedKeys:
        try:
            check_witnesses(self.witness_keys)
            quorum(len(self.witnesses), faulty=self.faulty)
        except FedtwinError as err:
            raise ValueError(str(err)) from err
        keys = [*self.log_keys.values(), *self.witness_keys]
        if len({key.public for key in keys}) != len(keys):
            raise ValueError("expected every public key once")
        return self

    @property
    def log_keys(self) -> dict[str, VerifierKey]:
        """Each hospital's ledger key."""
        return {name: _parse(text) for name, text in self.logs.items()}

    @property
    def witness_keys(self) -> tuple[VerifierKey, ...]:
        """The witnesses that count."""
        return tuple(_parse(text) for text in self.witnesses)

    @property
    def required(self) -> int:
        """How many of them must have cosigned."""
        return quorum(len(self.witnesses), faulty=self.faulty)


def read_pinned_keys(path: Path) -> PinnedKeys:
    """Read the auditor's own file. Raises `ConfigurationError` where it is missing or malformed."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PINNED_BYTES + 1)
    except OSError as err:
        raise ConfigurationError(file=path, expected="a readable file", found=err.strerror or "none") from err
    try:
        if len(data) <= MAX_PINNED_BYTES:
            return PinnedKeys.model_validate(json.loads(data))
    except ValidationError as err:
        first = err.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ConfigurationError(file=path, field=place, expected="pinned keys", found=first["msg"]) from err
    except (ValueError, RecursionError) as err:
        raise ConfigurationError(file=path, expected="JSON", found="something else") from err
    raise ConfigurationError(file=path, expected=f"at most {MAX_PINNED_BYTES} bytes", found="more")


def _parse(text: str) -> VerifierKey:
    try:
        return parse_verifier_key(text)
    except FedtwinError as err:
        raise ValueError(str(err)) from err
