"""The studies that this hospital approved: in memory for simulations, in a folder for a real hospital.

Design note: approval is a folder named by the study's digest, with the signed study, the hospital's own attestation
that enough patients stand behind it, and the study under the hospital's own signature, which the coordinator collects.
Withdrawing is removing the folder: it takes effect with the next task. A refusal is kept beside the folders.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

from fedtwin_client.config import HospitalDirectory
from fedtwin_client.gate import Approver, Gate
from fedtwin_client.policy import SitePolicy
from fedtwin_shared.documents import SignedStudy, verify_study
from fedtwin_shared.durable import create_file, replace_file
from fedtwin_shared.errors import ConfigurationError, VerificationError
from fedtwin_shared.roster import Roster
from fedtwin_shared.round import RefusalCode
from fedtwin_shared.study import Study

STUDY_FILE: Final = "study.signed.json"
ATTESTATION_FILE: Final = "attestation.json"
COUNTERSIGNED_FILE: Final = "countersigned.json"  # for the coordinator: the study with this hospital's signature
REFUSALS: Final = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovedStudy:
    """A verified study that this hospital approved.

    attested: the hospital says that enough patients stand behind it. complete: everybody whose signature the policy
    asks for has signed it.
    """

    study: Study
    roster: Roster
    attested: bool
    complete: bool = True


FindStudy = Callable[[str], ApprovedStudy | None]  # by digest


class StudyFolder:
    """Approved studies on disk; each is verified once in the life of a process, and again when it is approved again.

    - a removed folder is a withdrawn study, from the next call on
    - a study whose attestation is missing, not this hospital's own or not by an approver of `approvers` is found, but
      not attested
    - a study that lacks a signature that `is_complete` asks for is found, but not complete
    """

    def __init__(
        self,
        folder: Path,
        *,
        coordinator: str,
        gate: Gate,
        is_complete: Callable[[SignedStudy], bool] = lambda _: True,
        approvers: Collection[Approver] = get_args(Approver),
    ) -> None:
        self._folder, self._coordinator, self._gate = folder, coordinator, gate
        self._is_complete, self._approvers = is_complete, approvers
        self._verified: dict[str, tuple[tuple[int, int], ApprovedStudy]] = {}  # with the file that was read

    def find(self, digest: str) -> ApprovedStudy | None:
        """Return the approved study of this digest, or None. Raises `VerificationError` for a damaged one."""
        try:
            found = (self._folder / digest / STUDY_FILE).stat()
        except OSError:
            self._verified.pop(digest, None)
            return None
        file = found.st_ino, found.st_mtime_ns
        known, approved = self._verified.get(digest, (None, None))
        if approved is None or known != file:
            approved = self._verify(digest)
            self._verified[digest] = file, approved
        return approved

    def digests(self) -> tuple[str, ...]:
        """Return the digest of every approved study, in order."""
        return approved_digests(self._folder)

    def add(self, signed: SignedStudy, *, by: Approver = "command") -> None:
        """Approve a verified study and attest its cohort: all of it, or nothing."""
        digest = signed.study.digest
        final, drafted = self._folder / digest, self._folder / f".{digest}"
        if (final / STUDY_FILE).exists():
            shutil.rmtree(final)
        if drafted.exists():
            shutil.rmtree(drafted)
        drafted.mkdir(mode=0o700, parents=True)
        create_file(drafted / ATTESTATION_FILE, self._gate.attest(digest, by=by))
        create_file(drafted / COUNTERSIGNED_FILE, self._gate.countersign(signed))
        create_file(drafted / STUDY_FILE, signed.envelope)
        drafted.rename(final)
        self._refusal(digest).unlink(missing_ok=True)  # a crash before this leaves an approved study, which it is
        self._verified.pop(digest, None)

    def refuse(self, signed: SignedStudy) -> Path:
        """Sign a refusal of a verified study and keep it, durably; an approval of it ends first. Return its file."""
        digest = signed.study.digest
        shutil.rmtree(self._folder / digest, ignore_errors=True)
        self._verified.pop(digest, None)
        file = self._refusal(digest)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(file, self._gate.refuse(signed.envelope, RefusalCode.STUDY_REFUSED))
        return file

    def is_refused(self, digest: str) -> bool:
        """Return whether this hospital refused the study and did not approve it since."""
        return self._refusal(digest).is_file()

    def _refusal(self, digest: str) -> Path:
        return self._folder / REFUSALS / f"{digest}.json"

    def _verify(self, digest: str) -> ApprovedStudy:
        file = self._folder / digest / STUDY_FILE
        signed = verify_study(file.read_bytes(), coordinator=self._coordinator, file=file)
        if signed.study.digest != digest:
            raise VerificationError(file=file, field="digest", expected=digest, found=signed.study.digest)
        attested = False
        with contextlib.suppress(OSError, VerificationError):
            by = self._gate.verify_attestation((file.parent / ATTESTATION_FILE).read_bytes(), digest)
            attested = by in self._approvers
        return ApprovedStudy(
            study=signed.study, roster=signed.roster, attested=attested, complete=self._is_complete(signed)
        )


def open_studies(directory: HospitalDirectory, gate: Gate) -> StudyFolder:
    """Return the studies that this hospital approved."""
    policy = directory.config.policy
    return StudyFolder(
        directory.studies,
        coordinator=directory.config.coordinator.public_key,
        gate=gate,
        is_complete=lambda signed: not missing_signatures(signed, policy, site=gate.site),
        approvers=("person",) if policy.human_approval else get_args(Approver),
    )


def missing_signatures(signed: SignedStudy, policy: SitePolicy, *, site: str) -> tuple[str, ...]:
    """Return the sites whose signature the policy asks for and the study lacks.

    - with `every-site`, a participant counts only under a name and key that this hospital verified itself
    """
    if policy.plan_signatures == "coordinator":
        return ()
    counted = signed.signers & (signed.roster.verified(policy.trusted_peers) | {site})
    return tuple(part.site for part in signed.study.participants if part.site not in counted)


def approved_digests(folder: Path) -> tuple[str, ...]:
    """Return the digest of every approved study in `folder`, in order, without verifying anything."""
    found = (path.parent.name for path in folder.glob(f"*/{STUDY_FILE}"))
    return tuple(sorted(name for name in found if not name.startswith(".")))


def read_study(file: Path, *, coordinator: str) -> SignedStudy:
    """Return the signed study in `file`. Raises `ConfigurationError`, `VerificationError`."""
    try:
        envelope = file.read_bytes()
    except OSError as err:
        raise ConfigurationError(file=file, expected="a signed study", found=err.strerror or "no file") from err
    return verify_study(envelope, coordinator=coordinator, file=file)
