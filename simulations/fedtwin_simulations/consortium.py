"""Everybody's keys in one place, which only a simulation may hold."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_shared.roster import Roster, Site
from fedtwin_shared.signing import format_public_key


@dataclass(frozen=True, slots=True, kw_only=True)
class Consortium:
    """A coordinator, hospitals and the roster that names them."""

    coordinator: Ed25519PrivateKey = field(repr=False)
    sites: Mapping[str, Ed25519PrivateKey] = field(repr=False)
    roster: Roster

    def __reduce__(self) -> tuple[object, ...]:
        # Keys know no pickling; worker processes of a simulation need them.
        keys = {name: key.private_bytes_raw() for name, key in self.sites.items()}
        return _rebuild, (self.coordinator.private_bytes_raw(), keys, self.roster)


def make_consortium(sites: Iterable[str], *, seed: int | None = None) -> Consortium:
    """Return a consortium of `sites` with new keys, or with those that follow from `seed`."""

    def make_key(role: str) -> Ed25519PrivateKey:
        if seed is None:
            return Ed25519PrivateKey.generate()
        return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"key {seed} {role}".encode()).digest())

    coordinator = make_key("coordinator")
    keys = {name: make_key(f"site {name}") for name in sites}
    roster = Roster(
        version=1,
        coordinator=Site(name="coordinator", public_key=format_public_key(coordinator.public_key())),
        sites=tuple(Site(name=name, public_key=format_public_key(key.public_key())) for name, key in keys.items()),
    )
    return Consortium(coordinator=coordinator, sites=keys, roster=roster)


def _rebuild(coordinator: bytes, sites: Mapping[str, bytes], roster: Roster) -> Consortium:
    return Consortium(
        coordinator=Ed25519PrivateKey.from_private_bytes(coordinator),
        sites={name: Ed25519PrivateKey.from_private_bytes(key) for name, key in sites.items()},
        roster=roster,
    )
