"""A hospital's directory with files of its own, for tests of everything that reads one."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from fedtwin_client.config import HospitalDirectory, read_directory
from fedtwin_client.directory import Answers, create_directory
from fedtwin_client.gate import open_gate
from fedtwin_client.policy_signature import sign_policy
from fedtwin_shared.documents import sign_study
from tests.authority import free_ports, make_server_identity
from tests.client.setting import SITE
from tests.world import World

SECRET_PATIENT = "patient-4711"  # must not appear in anything but the hospital's own files


def make_premises(root: Path, world: World, *, patients: int = 60, bundles: tuple[str, ...] = ()) -> HospitalDirectory:
    """Return a new directory of the hospital `north`, with data and with the key that the world's roster names."""
    runtime_port, health_port = free_ports(2)
    authority = make_server_identity(root.parent / "identity").certificate_authority
    answers = Answers(
        name=SITE,
        superlink="localhost:1",
        coordinator_key=world.coordinator_key,
        valid_until=datetime.now(UTC).date() + timedelta(days=1),
        maximum_epsilon=8.0,
        minimum_patients=10,
        allowed_bundles=bundles,
        runtime_port=runtime_port,
        health_port=health_port,
    )
    create_directory(root, answers, authority=authority)
    pem = world.sites[SITE].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (root / "signing.key").write_bytes(pem)
    write_data(root / "data", patients=patients)
    directory = read_directory(root)
    sign_policy(directory, open_gate(directory))  # with the key of the world's roster
    return directory


def write_data(folder: Path, *, patients: int) -> None:
    """Write the two files of a hospital: half of the patients deteriorate, their hearts beat faster."""
    rows, observed = ["patient,admitted,age,sex,deteriorated"], ["patient,time,signal,value,unit"]
    for number in range(patients):
        name, sick = (SECRET_PATIENT if number == 0 else f"patient-{number}"), number % 2
        rows.append(f"{name},2026-01-01T00:00:00Z,{40 + number % 40},{'female' if number % 3 else 'male'},{sick}")
        observed.append(f"{name},2026-01-01T03:00:00Z,heart_rate,{70 + 40 * sick},/min")
    (folder / "patients.csv").write_text("\n".join(rows) + "\n")
    (folder / "observations.csv").write_text("\n".join(observed) + "\n")


def write_study(folder: Path, world: World) -> Path:
    """Write the world's study as the coordinator sends it."""
    file = folder / "study.signed.json"
    file.write_bytes(sign_study(world.study, world.roster, world.coordinator))
    return file
