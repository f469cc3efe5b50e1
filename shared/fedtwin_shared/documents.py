"""Reading what people wrote (TOML), and freezing it: a study together with its roster, signed by the coordinator."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel, ValidationError

from fedtwin_shared.countersigning import merge_signatures, read_document, sign_document
from fedtwin_shared.errors import ConfigurationError, VerificationError
from fedtwin_shared.fields import CROSS_FIELD
from fedtwin_shared.roster import Roster
from fedtwin_shared.signing import canonical_json, parse_canonical, sign_envelope
from fedtwin_shared.study import Study

STUDY_TYPE = "application/vnd.fedtwin.study+json"

# Pydantic's wording -> ours.
_PLAIN = MappingProxyType(
    {
        "Input should be greater than or equal to": "at least",
        "Input should be less than or equal to": "at most",
        "Input should be greater than": "above",
        "Input should be less than": "below",
        "Input should be ": "",
        "String should match pattern": "text that matches",
    }
)

Kind = TypeVar("Kind", bound=BaseModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedStudy:
    """A study and its roster, verified, the envelope that they came in, and the sites that signed it as well."""

    study: Study
    roster: Roster
    envelope: bytes
    signers: frozenset[str] = frozenset()


def read_toml(path: Path, kind: type[Kind]) -> Kind:
    """Return the file as a checked record.

    Raises `ConfigurationError` naming the file, the first wrong field, what was expected and what was found.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigurationError(file=path, expected="a readable file", found=err.strerror or "none") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise ConfigurationError(file=path, expected="TOML", found=str(err)) from err
    return check_document(document, kind, file=path)


def check_document(document: object, kind: type[Kind], *, file: Path | str) -> Kind:
    """Return `document` as a record of `kind`. Raises `ConfigurationError` as `read_toml` does."""
    try:
        return kind.model_validate(document)
    except ValidationError as err:
        first = err.errors()[0]
        field = ".".join(map(str, first["loc"]))
        if first["type"] == CROSS_FIELD:
            context = first["ctx"]
            field, expected, found = f"{field}.{context['field']}".strip("."), context["expected"], context["found"]
        else:
            expected, found = _describe(first["type"], first["msg"], first["input"])
        raise ConfigurationError(file=file, field=field, expected=expected, found=found) from err


def _describe(kind: str, message: str, value: object) -> tuple[str, str]:
    """Return what was expected and what was found, in plain words: pydantic's own speak of inputs and extras."""
    if kind == "missing":
        return "this field", "none"
    if kind == "extra_forbidden":
        return "no field of this name", "one"
    # A check of our own may say what it found; a whole table says nothing to whoever reads one line.
    words, _, said = message.removeprefix("Value error, ").rpartition(", found ")
    words = (words or said).rpartition("expected ")[2]
    for wordy, plain in _PLAIN.items():
        words = words.replace(wordy, plain)
    if isinstance(value, Mapping | list | tuple):
        return words, said if said != message.removeprefix("Value error, ") else "another"
    found = repr(value)
    return words, found if len(found) <= 80 else f"{found[:77]}…"


def sign_study(study: Study, roster: Roster, key: Ed25519PrivateKey) -> bytes:
    """Return the envelope of the study and its roster, signed by the coordinator.

    Raises `VerificationError` when the study names another roster or a participant that the roster lacks.
    """
    check_agreement(study, roster)
    return sign_envelope(_payload(study, roster), payload_type=STUDY_TYPE, key=key)


def _payload(study: Study, roster: Roster) -> bytes:
    return canonical_json({"roster": roster.model_dump(mode="json"), "study": study.model_dump(mode="json")})


def verify_study(envelope: bytes, *, coordinator: str, file: Path | str = "") -> SignedStudy:
    """Return the study and roster in `envelope`.

    Raises `VerificationError` unless
      (1) the holder of the public key `coordinator` signed it;
      (2) its payload is canonical, is a valid study and roster, and is what this version of fedtwin would write for
          them (a version that knows other fields would give the study another digest);
      (3) the study names this roster, every participant is in it, and its coordinator is the signer;
      (4) every other signature is valid, and of a site that takes part under the key of the roster.
    """
    # (1)
    try:
        verified = read_document(envelope, payload_type=STUDY_TYPE)
        verified.verify(coordinator)
    except VerificationError as err:
        raise VerificationError(file=file, field=err.field, expected=err.expected, found=err.found) from err
    # (2)
    document = parse_canonical(verified.payload)
    if not isinstance(document, dict) or set(document) != {"roster", "study"}:
        raise VerificationError(file=file, field="payload", expected="a study and its roster", found="another form")
    try:
        roster = check_document(document["roster"], Roster, file=file)
        study = check_document(document["study"], Study, file=file)
    except ConfigurationError as err:
        raise VerificationError(file=file, field=err.field, expected=err.expected, found=err.found) from err
    if _payload(study, roster) != verified.payload:
        raise VerificationError(file=file, field="payload", expected="this version's own form", found="another form")
    # (3)
    check_agreement(study, roster)
    if roster.coordinator.public_key != coordinator:
        raise VerificationError(file=file, field="roster.coordinator", expected="the signer", found="another key")
    # (4)
    names = {key: name for key, name in roster.keys().items() if study.participant(name) is not None}
    try:
        signed = verified.verify_all({**names, coordinator: ""})
    except VerificationError as err:
        raise VerificationError(file=file, field=err.field, expected=err.expected, found=err.found) from err
    return SignedStudy(study=study, roster=roster, envelope=envelope, signers=signed - {""})


def countersign_study(signed: SignedStudy, key: Ed25519PrivateKey) -> bytes:
    """Return the envelope with the signature of one more site. Raises `VerificationError` for one that takes no part.

    - the study, and so its digest, stays the same
    """
    envelope = sign_document(read_document(signed.envelope, payload_type=STUDY_TYPE), key).envelope()
    verify_study(envelope, coordinator=signed.roster.coordinator.public_key)
    return envelope


def merge_studies(signed: Sequence[SignedStudy]) -> bytes:
    """Return one envelope with all signatures. Raises `VerificationError` where they are not the same study."""
    return merge_signatures(read_document(one.envelope, payload_type=STUDY_TYPE) for one in signed).envelope()


def check_agreement(study: Study, roster: Roster) -> None:
    """Raise `VerificationError` unless the study names this roster and only sites of it."""
    if study.roster != roster.digest:
        raise VerificationError(field="study.roster", expected=roster.digest, found=study.roster)
    known = {site.name for site in roster.sites}
    for part in study.participants:
        if part.site not in known:
            raise VerificationError(field="study.participants", expected="sites of the roster", found=part.site)
