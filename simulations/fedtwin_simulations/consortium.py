"""Everybody's keys in one place, which only a simulation may hold."""

from __future__ import annotations

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


def make_consortium(sites: Iterable[str]) -> Consortium:
    """Return a consortium of `sites` with new keys."""
    coordinator = Ed25519PrivateKey.generate()
    keys = {name: Ed25519PrivateKey.generate() for name in sites}
    roster = Roster(
        version=1,
        coordinator=Site(name="coordinator", public_key=format_public_key(coordinator.public_key())),
        sites=tuple(Site(name=name, public_key=format_public_key(key.public_key())) for name, key in keys.items()),
    )
    return Consortium(coordinator=coordinator, sites=keys, roster=roster)
