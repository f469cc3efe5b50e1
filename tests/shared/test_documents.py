from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedtwin_shared.documents import STUDY_TYPE, read_toml, sign_study, verify_study
from fedtwin_shared.errors import ConfigurationError, VerificationError
from fedtwin_shared.roster import Roster
from fedtwin_shared.signing import canonical_json, sign_envelope
from fedtwin_shared.study import Study
from tests.world import make_world

WORLD = make_world()


def test_a_signed_study_round_trips() -> None:
    envelope = sign_study(WORLD.study, WORLD.roster, WORLD.coordinator)
    verified = verify_study(envelope, coordinator=WORLD.coordinator_key)
    assert (verified.study, verified.roster) == (WORLD.study, WORLD.roster)


def test_a_study_signed_by_anybody_else_is_refused() -> None:
    envelope = sign_study(WORLD.study, WORLD.roster, Ed25519PrivateKey.generate())
    with pytest.raises(VerificationError, match="trusted signer"):
        verify_study(envelope, coordinator=WORLD.coordinator_key)


def test_a_study_for_another_roster_is_never_signed() -> None:
    with pytest.raises(VerificationError, match="roster"):
        sign_study(WORLD.study, make_world().roster, WORLD.coordinator)


def test_a_participant_that_the_roster_lacks_is_refused() -> None:
    roster = Roster(version=2, coordinator=WORLD.roster.coordinator, sites=WORLD.roster.sites[1:])
    study = WORLD.study.model_copy(update={"roster": roster.digest})
    with pytest.raises(VerificationError, match="participants"):
        sign_study(study, roster, WORLD.coordinator)


@pytest.mark.parametrize(
    "payload",
    [
        b"{}",
        b'{"roster":{},"study":{}}',
        b"[]",
        b"[1,2]",
        b"not json",
        b"\xff",
        b"[" * 50_000,
        b'{"roster":1.5,"study":{}}',
        canonical_json({"roster": WORLD.roster.model_dump(mode="json"), "study": WORLD.study.model_dump(mode="json")})
        + b" ",
    ],
)
def test_a_validly_signed_payload_of_another_form_is_refused(payload: bytes) -> None:
    envelope = sign_envelope(payload, payload_type=STUDY_TYPE, key=WORLD.coordinator)
    with pytest.raises(VerificationError):
        verify_study(envelope, coordinator=WORLD.coordinator_key)


def test_a_study_as_another_version_of_fedtwin_writes_it_is_refused() -> None:
    document = {"roster": WORLD.roster.model_dump(mode="json"), "study": WORLD.study.model_dump(mode="json")}
    del document["study"]["split"]["salt"]  # a field with a default that an older version did not know
    envelope = sign_envelope(canonical_json(document), payload_type=STUDY_TYPE, key=WORLD.coordinator)
    with pytest.raises(VerificationError, match="this version's own form"):
        verify_study(envelope, coordinator=WORLD.coordinator_key)


def test_a_coordinator_that_is_not_the_rosters_is_refused() -> None:
    other = Ed25519PrivateKey.generate()
    payload = canonical_json(
        {"roster": WORLD.roster.model_dump(mode="json"), "study": WORLD.study.model_dump(mode="json")}
    )
    from fedtwin_shared.signing import format_public_key

    with pytest.raises(VerificationError, match=r"roster\.coordinator"):
        verify_study(
            sign_envelope(payload, payload_type=STUDY_TYPE, key=other),
            coordinator=format_public_key(other.public_key()),
        )


@pytest.mark.parametrize(
    ("content", "field", "expected"),
    [
        ("name = ", "", "TOML"),
        ("version = 'x'", "name", "this field"),
        ('name = "x"\nversion = "1"', "version", "integer"),
    ],
)
def test_a_malformed_file_is_one_message_with_file_field_expected_found(
    tmp_path: Path, content: str, field: str, expected: str
) -> None:
    path = tmp_path / "study.toml"
    path.write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        read_toml(path, Study)
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)
    assert caught.value.field == field
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_file_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        read_toml(tmp_path / "none.toml", Study)
    (tmp_path / "binary.toml").write_bytes(b"\xff\x00")
    with pytest.raises(ConfigurationError, match="TOML"):
        read_toml(tmp_path / "binary.toml", Study)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 0", "a: expected at least 1, found 0"),
        ("a = 'x'", "a: expected a valid integer, found 'x'"),
        ("b = 1", "a: expected this field, found none"),
        ("a = 1\nb = 1", "b: expected no field of this name, found one"),
        ("a = 7", "expected an a that is allowed, found 7"),
        ("a = 8", "expected a < 8, found another"),
    ],
)
def test_messages_are_plain_words(tmp_path: Path, text: str, message: str) -> None:
    class Small(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        a: Annotated[int, Field(ge=1)]

        @model_validator(mode="after")
        def _check(self) -> Small:
            if self.a == 7:
                raise ValueError("expected an a that is allowed, found 7")
            if self.a == 8:
                raise ValueError("expected a < 8")
            return self

    file = tmp_path / "small.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        read_toml(file, Small)
    assert str(caught.value) == f"{file}: {message}"


def test_a_study_that_does_not_verify_names_its_file() -> None:
    with pytest.raises(VerificationError, match=r"^other\.json: envelope: "):
        verify_study(b"{}", coordinator=WORLD.coordinator_key, file="other.json")
