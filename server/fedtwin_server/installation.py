"""A coordinator's directory: made once by `create_coordinator`, joined by hospitals through `enrol_site`.

Design note: everything that a consortium owns lies in one directory: move it and the consortium has moved. Private
keys are made here, with mode 0600, and never leave it.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import pwd
import secrets
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from fedtwin_server.config import CONFIG_FILE, CoordinatorDirectory, read_directory
from fedtwin_shared.certificates import create_authority, issue_server_certificate
from fedtwin_shared.documents import check_document, read_toml
from fedtwin_shared.durable import replace_file
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.fields import split_address
from fedtwin_shared.flower_environment import flower_program
from fedtwin_shared.roster import Roster, Site
from fedtwin_shared.signing import create_signing_key, format_public_key, load_signing_key

TEMPLATES: Final = Path(__file__).with_name("templates")
UNIT_FILE: Final = "fedtwin-coordinator.service"
COMPOSE_FILE: Final = "compose.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where and as whom a coordinator runs on this machine."""

    program: str  # path of the `fedtwin` command
    user: str
    owner: str  # user and group number, as containers know them


def find_place() -> Place:
    """Return the place of this very process: its installation and its account."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # an account without a name, as in a container
        user = str(os.getuid())
    return Place(program=flower_program("fedtwin"), user=user, owner=f"{os.getuid()}:{os.getgid()}")


def create_coordinator(
    root: Path, *, name: str, address: str, listen: str, link_port: int, now: dt.datetime
) -> CoordinatorDirectory:
    """Make a coordinator's directory: configuration, signing key, authority, certificate, unit and compose file.

    Raises `ConfigurationError` for a wrong value, and for a directory that is not empty: nothing is ever overwritten.
    """
    root = root.resolve()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigurationError(file=root, expected="a new or empty directory", found="files in it")
    new = not root.exists()
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    config = render_config(name=name, address=address, listen=listen, link_port=link_port)
    replace_file(root / CONFIG_FILE, config)
    try:
        directory = read_directory(root)  # says which value is wrong, before any key is made
    except ConfigurationError:
        (root / CONFIG_FILE).unlink()
        if new:
            root.rmdir()
        raise
    for folder in ("keys", "tls", "link", "nodes", "studies", "runs"):
        (root / folder).mkdir(mode=0o700)
    create_signing_key(directory.signing_key)
    create_authority(directory.authority, name=name, now=now)
    renew_certificate(directory, now=now)
    replace_file(directory.superlink.secret_file, secrets.token_hex(32).encode())
    place = find_place()
    (root / UNIT_FILE).write_bytes(render_unit(directory, place))
    (root / COMPOSE_FILE).write_bytes(render_compose(directory, place))
    return directory


def renew_certificate(directory: CoordinatorDirectory, *, now: dt.datetime) -> None:
    """Give front and link a new certificate of the consortium's authority; in use from the next start."""
    issue_server_certificate(directory.server, directory.authority, names=directory.certificate_names, now=now)


def public_key(directory: CoordinatorDirectory) -> str:
    """Return the coordinator's public key, which every hospital pins."""
    return format_public_key(load_signing_key(directory.signing_key).public_key())


def read_roster(directory: CoordinatorDirectory) -> Roster:
    """Return the roster. Raises `ConfigurationError`, also before the first hospital is enrolled."""
    if not directory.roster.exists():
        raise ConfigurationError(file=directory.roster, expected="at least one enrolled hospital", found="no roster")
    roster = read_toml(directory.roster, Roster)
    own = public_key(directory)
    if roster.coordinator.public_key != own:
        raise ConfigurationError(file=directory.roster, field="coordinator", expected=own, found="another key")
    return roster


def enrol_site(directory: CoordinatorDirectory, *, name: str, signing_key: str, node_key: Path) -> Roster:
    """Add a hospital to the roster and keep its node's public key; the roster as it is then.

    Raises `ConfigurationError` for a malformed or second key. A hospital that is enrolled already, with the same keys,
    changes nothing.

    - the roster's version rises by one for each hospital that is added
    - a crash leaves either the hospital out of the roster or everything in place
    """
    site = check_document({"name": name, "public_key": signing_key}, Site, file="")
    node = read_node_key(node_key)
    sites = read_roster(directory).sites if directory.roster.exists() else ()
    known = {path.stem: path.read_bytes() for path in directory.nodes.glob("*.pub")}
    if site in sites and known.get(name) == node:
        return read_roster(directory)
    holder = next((other for other, key in known.items() if key == node and other != name), None)
    if holder is not None:
        raise ConfigurationError(file=node_key, expected="a node key of its own", found=f"that of {holder}")
    if name in {one.name for one in sites}:
        raise ConfigurationError(file=directory.roster, field=name, expected="a new hospital", found="an enrolled one")
    version = read_roster(directory).version + 1 if sites else 1
    coordinator = {"name": directory.config.name, "public_key": public_key(directory)}
    document = {
        "version": version,
        "coordinator": coordinator,
        "sites": [one.model_dump() for one in (*sites, site)],
    }
    roster = check_document(document, Roster, file=directory.roster)
    replace_file(directory.nodes / f"{name}.pub", node)
    replace_file(directory.roster, format_roster(roster).encode())
    return roster


def read_node_key(file: Path) -> bytes:
    """Return a node's public key as one OpenSSH line. Raises `ConfigurationError` unless it is on a NIST curve."""
    try:
        key = load_ssh_public_key(file.read_bytes())
    except OSError as err:
        raise ConfigurationError(file=file, expected="a node's public key", found=err.strerror or "none") from err
    except (ValueError, UnsupportedAlgorithm) as err:
        raise ConfigurationError(file=file, expected="a public key as ssh-keygen writes it", found="another") from err
    if not isinstance(key, EllipticCurvePublicKey):
        raise ConfigurationError(file=file, expected="an ECDSA key (NIST curve)", found=type(key).__name__)
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"


def format_roster(roster: Roster) -> str:
    """Return the roster as TOML, which `read_toml` reads back."""
    lines = ["# Who takes part. Written by `fedtwin server enrol`.", f"version = {roster.version}", ""]
    for heading, site in (("[coordinator]", roster.coordinator), *(("[[sites]]", site) for site in roster.sites)):
        lines += [heading, f"name = {quote_toml(site.name)}", f"public_key = {quote_toml(site.public_key)}", ""]
    return "\n".join(lines)


def render_config(*, name: str, address: str, listen: str, link_port: int) -> bytes:
    """Return `coordinator.toml` with every key explained."""
    values: dict[str, str | int] = {"name": name, "address": address, "listen": listen, "link_port": link_port}
    return render(CONFIG_FILE, {key: quote_toml(value) for key, value in values.items()})


def render_unit(directory: CoordinatorDirectory, place: Place) -> bytes:
    """Return the systemd unit of the coordinator in `directory`."""
    values = {"program": _quote_unit(place.program), "directory": _quote_unit(str(directory.root))}
    return render(UNIT_FILE, values | {"name": directory.config.name, "user": place.user})


def render_compose(directory: CoordinatorDirectory, place: Place) -> bytes:
    """Return the compose file of the coordinator in `directory`."""
    _, published = split_address(directory.config.front.address)
    _, port = split_address(directory.config.front.listen)
    quoted = json.dumps(str(directory.root)).replace("$", "$$")  # compose reads $ as a variable
    values = {"directory": quoted, "owner": place.owner, "published": str(published), "port": str(port)}
    return render(COMPOSE_FILE, values)


def render(name: str, values: dict[str, str]) -> bytes:
    """Return the packaged template with its placeholders filled."""
    return Template((TEMPLATES / name).read_text(encoding="utf-8")).substitute(values).encode()


def quote_toml(value: str | int) -> str:
    """Return a TOML basic string or integer; JSON's escapes are a subset of TOML's."""
    return json.dumps(value)


def _quote_unit(text: str) -> str:
    # systemd.service(5) "Command lines", systemd.unit(5) "Specifiers"
    escaped = text.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$").replace('"', '\\"')
    return f'"{escaped}"' if any(character.isspace() for character in text) else escaped
