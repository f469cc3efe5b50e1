"""Making a hospital's directory: its keys, its configuration with every key explained, and the files that start it.

Design note: the same templates make the examples in deploy/hospital. Everything is rendered and checked before the
first file is written. Private keys are made here, on the hospital's own machine, and never leave it.
"""

from __future__ import annotations

import getpass
import json
import os
import shutil
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from importlib import resources
from pathlib import Path
from string import Template
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedtwin_client.config import CONFIG_FILE, HospitalDirectory, SiteConfig
from fedtwin_client.gate import Gate
from fedtwin_client.policy_signature import sign_policy
from fedtwin_shared.documents import check_document
from fedtwin_shared.durable import create_file
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.signing import create_signing_key

UNIT_FILE: Final = "fedtwin-hospital.service"
COMPOSE_FILE: Final = "compose.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a hospital has to say once, at `init`; everything else has a value that suits most."""

    name: str
    superlink: str
    coordinator_key: str
    valid_until: date
    data: str = "data"
    maximum_epsilon: float = 3.0
    maximum_epsilon_year: float | None = None  # twice that of one study
    maximum_epsilon_lifetime: float | None = None  # three times that of one study
    maximum_delta: float = 1e-4
    minimum_patients: int = 20
    allowed_bundles: tuple[str, ...] = ()
    runtime_port: int = 9094
    health_port: int = 8181


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKeys:
    """What the hospital tells the coordinator by another channel than the network."""

    signing: str  # ed25519:…, for the roster
    node: str  # one OpenSSH line, for the coordinator's link


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the node of a directory runs: absolute paths, and the account."""

    directory: Path
    data: Path
    executable: Path
    user: str
    owner: str  # uid:gid


def create_directory(root: Path, answers: Answers, *, authority: Path) -> PublicKeys:
    """Make the hospital's directory and return its public keys; `authority` is the coordinator's certificate in PEM.

    Raises `ConfigurationError` before anything is written for a bad answer or a directory that holds something.

    - the directory is 0700, private keys are 0600, and no key is ever overwritten
    """
    root = root.resolve()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ConfigurationError(file=root, expected="a new or empty directory", found="something in it")
    certificate = _read_certificate(authority)
    config = render_config(answers)
    checked = check_document(tomllib.loads(config), SiteConfig, file=root / CONFIG_FILE)
    place = Place(
        directory=root,
        data=(root / answers.data).resolve(),
        executable=find_executable(),
        user=getpass.getuser(),
        owner=f"{os.getuid()}:{os.getgid()}",
    )
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    root.chmod(0o700)
    place.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    gate = Gate(site=answers.name, key=create_signing_key(root / "signing.key"))
    keys = PublicKeys(
        signing=gate.public_key,
        node=create_node_key(root / "node.key", comment=answers.name),
    )
    (root / "ca.pem").write_bytes(certificate)
    (root / "signing.pub").write_text(keys.signing + "\n")
    (root / "node.pub").write_text(keys.node + "\n")
    (root / UNIT_FILE).write_text(render_unit(answers.name, place))
    (root / COMPOSE_FILE).write_text(render_compose(answers.health_port, place))
    (root / CONFIG_FILE).write_text(config)
    sign_policy(HospitalDirectory(root=root, config=checked), gate)
    return keys


def create_node_key(path: Path, *, comment: str) -> str:
    """Write a new NIST P-256 key in OpenSSH form, 0600, never over another; return its public line.

    Flower's SuperNode authentication takes NIST curves; every request is signed, and this one signs fastest.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    create_file(path, private)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return f"{public.decode()} {comment}"


def render_config(answers: Answers) -> str:
    """Return hospital.toml."""
    return _render(
        CONFIG_FILE,
        {
            "name": json.dumps(answers.name),
            "data": json.dumps(answers.data),
            "superlink": json.dumps(answers.superlink),
            "coordinator_key": json.dumps(answers.coordinator_key),
            "maximum_epsilon": repr(answers.maximum_epsilon),
            "maximum_epsilon_year": repr(_or(answers.maximum_epsilon_year, 2 * answers.maximum_epsilon)),
            "maximum_epsilon_lifetime": repr(_or(answers.maximum_epsilon_lifetime, 3 * answers.maximum_epsilon)),
            "maximum_delta": repr(answers.maximum_delta),
            "valid_until": answers.valid_until.isoformat(),
            "minimum_patients": repr(answers.minimum_patients),
            "allowed_bundles": json.dumps(list(answers.allowed_bundles)),
            "runtime_port": repr(answers.runtime_port),
            "health_port": repr(answers.health_port),
        },
    )


def render_unit(name: str, place: Place) -> str:
    """Return the systemd unit."""
    # A leading "-": systemd starts the unit also while the folder is not there, and `check` says so in better words.
    paths = {"directory": str(place.directory), "data": f"-{place.data}", "executable": str(place.executable)}
    return _render(
        UNIT_FILE, {"name": name, "user": place.user, **{key: quote_path(path) for key, path in paths.items()}}
    )


def render_compose(health_port: int, place: Place) -> str:
    """Return the compose file."""
    paths = {"directory": str(place.directory), "data": str(place.data), "owner": place.owner}
    values = {key: json.dumps(value).replace("$", "$$") for key, value in paths.items()}  # $ starts a variable there
    return _render(COMPOSE_FILE, {"health_port": str(health_port), **values})


def find_executable() -> Path:
    """Return the `fedtwin` command of the running interpreter's environment."""
    beside = Path(sys.executable).with_name("fedtwin")
    return beside if beside.exists() else Path(shutil.which("fedtwin") or beside)


def _or(given: float | None, otherwise: float) -> float:
    return otherwise if given is None else given


def quote_path(path: str) -> str:
    """Return a path as systemd reads it: % starts a specifier, a space ends a word."""
    text = path.replace("%", "%%")
    return json.dumps(text) if any(character in text for character in " \"'\\") else text


def _render(template: str, values: Mapping[str, str]) -> str:
    text = (resources.files("fedtwin_client") / "templates" / template).read_text(encoding="utf-8")
    return Template(text).substitute(values)


def _read_certificate(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        x509.load_pem_x509_certificates(content)
    except OSError as err:
        raise ConfigurationError(file=path, expected="a certificate in PEM", found=err.strerror or "no file") from err
    except ValueError as err:
        raise ConfigurationError(file=path, expected="a certificate in PEM", found="something else") from err
    return content
