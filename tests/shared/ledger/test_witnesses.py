"""`witnesses.toml`: who must have seen a ledger, as whoever relies on it wrote it down."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_shared.errors import ConfigurationError, VerificationError
from fedtwin_shared.ledger.note import COSIGNATURE, make_verifier_key
from fedtwin_shared.ledger.witnesses import WITNESSES, hospital_log_key, read_witnesses
from fedtwin_shared.signing import format_public_key
from tests.authority import make_server_identity

KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(4)]
VKEYS = [str(make_verifier_key(f"keeper{n}/witness", key, algorithm=COSIGNATURE)) for n, key in enumerate(KEYS)]


def write(folder: Path, *witnesses: str, faulty: int = 1) -> Path:
    tables = "".join(f"[[witness]]\n{one}\n" for one in witnesses)
    (folder / WITNESSES).write_text(f"faulty = {faulty}\n{tables}", encoding="utf-8")
    return folder / WITNESSES


def table(number: int, *, address: str = "https://keeper.example") -> str:
    return f'key = "{VKEYS[number]}"\naddress = "{address}"'


def test_the_quorum_follows_from_how_many_there_are_and_may_lie(tmp_path: Path) -> None:
    found = read_witnesses(write(tmp_path, *map(table, range(4))))
    assert found is not None
    assert [str(key) for key in found.keys] == VKEYS
    assert found.required == 3


def test_no_file_is_no_witness(tmp_path: Path) -> None:
    assert read_witnesses(tmp_path / WITNESSES) is None


def test_an_authority_lies_beside_the_file(tmp_path: Path) -> None:
    identity = make_server_identity(tmp_path)
    name = identity.certificate_authority.relative_to(tmp_path)
    assert read_witnesses(write(tmp_path, f'{table(0)}\nauthority = "{name}"', faulty=0)) is not None
    with pytest.raises(ConfigurationError, match=r"witness\.0\.authority"):
        read_witnesses(write(tmp_path, f'{table(0)}\nauthority = "absent.pem"', faulty=0))


@pytest.mark.parametrize(
    ("witnesses", "faulty", "field"),
    [
        ((table(0), table(0)), 0, "witnesses"),
        ((table(0), table(1)), 2, "witnesses"),
        ((table(0),), -1, "faulty"),
        ((), 0, "witness"),
        ((table(0).replace("keeper0", "other"),), 0, r"witness\.0\.vkey"),
        ((table(0, address="http://keeper.example"),), 0, r"witness\.0\.witness"),
        ((table(0) + "\nmore = 1",), 0, "more"),
        ((f'key = "{make_verifier_key("log", KEYS[0])}"\naddress = "https://keeper.example"',), 0, "witnesses"),
    ],
)
def test_settings_that_are_wrong_name_their_field(
    tmp_path: Path, witnesses: tuple[str, ...], faulty: int, field: str
) -> None:
    with pytest.raises(ConfigurationError, match=field):
        read_witnesses(write(tmp_path, *witnesses, faulty=faulty))


def test_a_hospitals_checkpoints_are_signed_by_the_key_of_the_roster() -> None:
    key = hospital_log_key("north", format_public_key(KEYS[0].public_key()))
    assert key == make_verifier_key("north/ledger", KEYS[0])
    with pytest.raises(VerificationError):
        hospital_log_key("north", "ed25519:nonsense")
