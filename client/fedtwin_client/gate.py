"""The one door out: the only module that signs with the hospital's key.

Design note: an answer is an update with exactly the arrays that the study declares, or a refusal with a code of a fixed
list. Neither has a field for a sample size, a loss, a time or a text. An attestation stays in the hospital.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, cast, get_args

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_client.config import HospitalDirectory
from fedtwin_shared.documents import SignedStudy, countersign_study
from fedtwin_shared.errors import VerificationError
from fedtwin_shared.models import digest_parameters, verify_parameters
from fedtwin_shared.round import (
    REFUSAL_TYPE,
    UPDATE_TYPE,
    Arrays,
    Refusal,
    RefusalCode,
    Task,
    UpdateStatement,
    declared_arrays,
)
from fedtwin_shared.signing import (
    canonical_json,
    digest,
    format_public_key,
    load_signing_key,
    sign_envelope,
    verify_envelope,
)
from fedtwin_shared.study import Study

ATTESTATION_TYPE: Final = "application/vnd.fedtwin.attestation+json"
Approver = Literal["person", "command"]  # somebody who was asked at a terminal, or a script
POLICY_TYPE: Final = "application/vnd.fedtwin.site-policy+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The hospital's name and its signing key, which nothing else holds."""

    site: str
    key: Ed25519PrivateKey = field(repr=False)

    @property
    def public_key(self) -> str:
        """The public half, as the roster writes it."""
        return format_public_key(self.key.public_key())

    def release(self, plan: bytes, study: Study, task: Task, arrays: Arrays) -> bytes:
        """Return the signed statement that lets `arrays` leave in answer to `plan` (the envelope as received).

        - Raises `VerificationError` unless the arrays are exactly the declared ones, and finite
        """
        checked = verify_parameters(arrays, declared_arrays(study, task))
        statement = UpdateStatement(site=self.site, plan=digest(plan), arrays=digest_parameters(checked))
        return sign_envelope(canonical_json(statement.model_dump(mode="json")), payload_type=UPDATE_TYPE, key=self.key)

    def refuse(self, plan: bytes, code: RefusalCode) -> bytes:
        """Return the signed "no" to `plan`, whatever those bytes are."""
        refusal = Refusal(site=self.site, plan=digest(plan), code=code)
        return sign_envelope(canonical_json(refusal.model_dump(mode="json")), payload_type=REFUSAL_TYPE, key=self.key)

    def attest(self, study: str, *, by: Approver = "command") -> bytes:
        """Return the hospital's own signed note that enough patients stand behind a study, and who approved it."""
        return sign_envelope(self._attestation(study, by), payload_type=ATTESTATION_TYPE, key=self.key)

    def verify_attestation(self, envelope: bytes, study: str) -> Approver:
        """Return who approved the study of this digest.

        Raises `VerificationError` unless `envelope` is this hospital's attestation of it.
        """
        own = {self.public_key: self.site}
        verified = verify_envelope(envelope, payload_type=ATTESTATION_TYPE, trusted=own)
        for by in get_args(Approver):
            if verified.payload == self._attestation(study, by):
                return cast(Approver, by)
        raise VerificationError(field="attestation", expected="this study and this site", found="another")

    def countersign(self, signed: SignedStudy) -> bytes:
        """Return the study's envelope with this hospital's signature among the others."""
        return countersign_study(signed, self.key)

    def sign_policy(self, statement: bytes) -> bytes:
        """Return the hospital's policy under its own signature; it stays in the hospital, but for its digest."""
        return sign_envelope(statement, payload_type=POLICY_TYPE, key=self.key)

    def verify_policy(self, envelope: bytes, statement: bytes) -> None:
        """Raise `VerificationError` unless `envelope` is this hospital's signature over this very policy."""
        verified = verify_envelope(envelope, payload_type=POLICY_TYPE, trusted={self.public_key: self.site})
        if verified.payload != statement:
            raise VerificationError(field="policy", expected="the policy that was signed", found="another")

    def _attestation(self, study: str, by: Approver) -> bytes:
        return canonical_json({"approved_by": by, "cohort": "attested", "site": self.site, "study": study})


def open_gate(directory: HospitalDirectory) -> Gate:
    """Return the hospital's gate. Raises `ConfigurationError` for a key that is missing or that others may read."""
    return Gate(site=directory.config.name, key=load_signing_key(directory.signing_key))
