"""A coordinator's directory with enrolled hospitals and a signed study, for tests that need one."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_server.config import CoordinatorDirectory
from fedtwin_server.installation import create_coordinator, enrol_site, read_roster
from fedtwin_server.studies import draft_study, sign_file
from fedtwin_shared.documents import SignedStudy
from fedtwin_shared.signing import create_signing_key, format_public_key, load_signing_key
from tests.authority import make_node_identity
from tests.world import World

SHORTER = {"rounds = 30": "rounds = 2", "average_from_round = 15": "average_from_round = 0", "[0, 15]": "[0]"}


def make_directory(root: Path, *sites: str, front: int = 9443, link: int = 9092) -> CoordinatorDirectory:
    """Return a new coordinator's directory in which `sites` are enrolled; their keys lie beside it."""
    address = f"127.0.0.1:{front}"
    directory = create_coordinator(
        root, name="consortium", address=address, listen=address, link_port=link, now=dt.datetime.now(dt.UTC)
    )
    for site in sites:
        add_site(directory, site)
    return directory


def add_site(directory: CoordinatorDirectory, site: str) -> None:
    """Enrol one more hospital."""
    home = site_home(directory, site)
    node = make_node_identity(home)
    key = format_public_key(create_signing_key(home / "signing.key").public_key())
    enrol_site(directory, name=site, signing_key=key, node_key=node.public_key)


def site_home(directory: CoordinatorDirectory, site: str) -> Path:
    """Return where the keys of a hospital lie."""
    return directory.root.parent / f"{directory.root.name}-{site}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedWorld:
    """A signed study of a coordinator's directory, its file, and everybody's keys."""

    file: Path
    signed: SignedStudy
    world: World


def sign_short_study(directory: CoordinatorDirectory, name: str = "deterioration") -> SignedWorld:
    """Return a study of two rounds and one evaluation before them, for the enrolled hospitals."""
    file = draft_study(directory, name=name, template="first-day")
    text = file.read_text()
    for old, new in SHORTER.items():
        text = text.replace(old, new)
    file.write_text(text)
    result = sign_file(directory, file)
    keys: dict[str, Ed25519PrivateKey] = {
        site.name: load_signing_key(site_home(directory, site.name) / "signing.key")
        for site in read_roster(directory).sites
    }
    world = World(
        coordinator=load_signing_key(directory.signing_key),
        sites=keys,
        roster=result.signed.roster,
        study=result.signed.study,
    )
    return SignedWorld(file=result.file, signed=result.signed, world=world)
