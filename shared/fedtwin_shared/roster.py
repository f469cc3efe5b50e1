"""Who takes part: sites known by name and pinned Ed25519 key, and the coordinator they listen to."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.fields import require
from fedtwin_shared.signing import canonical_json, digest, parse_public_key

# Names appear in paths, certificates and reports; RFC 1123 labels are safe in all of them.
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]


def _check_key(text: str) -> str:
    try:
        parse_public_key(text)
    except VerificationError as err:
        raise ValueError(str(err)) from err
    return text


PublicKey = Annotated[str, AfterValidator(_check_key)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Site(_Record):
    """A hospital, known by name and by the key that signs its answers."""

    name: Name
    public_key: PublicKey


class Roster(_Record):
    """The versioned list of sites and of the one coordinator that they listen to.

    - every name and every key appears once
    """

    version: Annotated[int, Field(ge=1)]
    coordinator: Site
    sites: Annotated[tuple[Site, ...], Field(min_length=1, strict=False)]

    @model_validator(mode="after")
    def _check_unique(self) -> Roster:
        seen: set[str] = {self.coordinator.name, self.coordinator.public_key}
        for position, site in enumerate(self.sites):
            for field, value in (("name", site.name), ("public_key", site.public_key)):
                place = f"sites.{position}.{field}"
                require(value not in seen, field=place, expected="every name and every key once", found=value)
                seen.add(value)
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of the roster's canonical JSON."""
        return digest(canonical_json(self.model_dump(mode="json")))

    def verified(self, trusted: Mapping[str, str]) -> frozenset[str]:
        """Return the names of the sites whose name and key somebody verified: `trusted` maps such names to keys.

        - a coordinator that enrols hospitals of its own invention adds nothing
        """
        return frozenset(site.name for site in self.sites if trusted.get(site.name) == site.public_key)

    def keys(self) -> Mapping[str, str]:
        """Map each site's public key to its name."""
        indexed, names = self._names
        return names if indexed is self.sites else _index(self.sites)  # `model_copy` takes an old index along

    @functools.cached_property
    def _names(self) -> tuple[tuple[Site, ...], Mapping[str, str]]:
        return self.sites, _index(self.sites)


def _index(sites: tuple[Site, ...]) -> Mapping[str, str]:
    return {site.public_key: site.name for site in sites}
