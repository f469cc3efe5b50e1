"""Drafting a study for the consortium's own roster, and signing it."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Final

from fedtwin_server.config import CoordinatorDirectory
from fedtwin_server.installation import TEMPLATES, public_key, quote_toml, read_roster
from fedtwin_shared.documents import SignedStudy, check_document, merge_studies, read_toml, sign_study, verify_study
from fedtwin_shared.durable import replace_file
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.roster import Roster
from fedtwin_shared.signing import load_signing_key
from fedtwin_shared.study import Study

STUDY_FILE: Final = "study.toml"
SIGNED_SUFFIX: Final = ".signed.json"
PATIENTS: Final = 300  # of each hospital in a draft, to be replaced
TEMPLATE_NAMES: Final = tuple(sorted(path.stem for path in (TEMPLATES / "studies").glob("*.toml")))

_HEADER: Final = """\
# A study of this consortium. Change what has to be changed, then: fedtwin server study sign DIRECTORY FILE
# Every number that could depend on a patient is a constant that all hospitals approve; none is computed from patients.
format = 1
name = $name
# A changed study needs a higher version.
version = 1
# Digest of the roster that this study is for: `fedtwin server enrol` changes it.
roster = $roster
# patients: public nominal number of training patients, the denominator of every mean of gradients. The true number
# never leaves a hospital. weight: public weight of its model, divided by the sum over those that answered.
participants = [
$participants
]
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedFile:
    """A study that was just signed, and where."""

    signed: SignedStudy
    file: Path


def draft_study(directory: CoordinatorDirectory, *, name: str, template: str) -> Path:
    """Write an explained study for the roster as it is now; the file. `template` is a packaged name or a path.

    Raises `ConfigurationError`; an existing draft is never overwritten.
    """
    roster = read_roster(directory)
    packaged = TEMPLATES / "studies" / f"{template}.toml"
    source = packaged if template in TEMPLATE_NAMES else Path(template)
    try:
        text = source.read_text(encoding="utf-8")
    except OSError as err:
        expected = f"a path or one of {', '.join(TEMPLATE_NAMES)}"
        raise ConfigurationError(field="template", expected=expected, found=template) from err
    # A hospital must be able to be away: one fewer than all, but never fewer than two where there are two.
    minimum = max(min(2, len(roster.sites)), len(roster.sites) - 1)
    values = {
        "name": quote_toml(name),
        "roster": quote_toml(roster.digest),
        "participants": "\n".join(
            f"  {{ site = {quote_toml(site.name)}, patients = {PATIENTS}, weight = 1.0 }}," for site in roster.sites
        ),
        "minimum_sites": str(minimum),
    }
    text = Template(_HEADER + text).safe_substitute(values)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise ConfigurationError(file=source, expected="TOML after the draft's own header", found=str(err)) from err
    study = check_document(document, Study, file=source)  # its name is now safe as part of a path
    file = directory.studies / study.name / STUDY_FILE
    if file.exists():
        raise ConfigurationError(file=file, expected="a new study", found="a draft of that name")
    file.parent.mkdir(exist_ok=True, mode=0o700)
    replace_file(file, text.encode())
    return file


def sign_file(directory: CoordinatorDirectory, file: Path) -> SignedFile:
    """Check a study and sign it with the roster; the signed study lies beside it.

    Raises `ConfigurationError` or `VerificationError`: a study that is malformed, that costs more than its own budget,
    that is for another roster, or that changes a signed one without a new version.
    """
    study, roster = read_toml(file, Study), read_roster(directory)
    _check_roster(study, roster, file)
    target = file.with_suffix(SIGNED_SUFFIX)
    if target.exists():
        earlier = read_signed(directory, target).study
        if earlier.digest != study.digest and earlier.version >= study.version:
            raise ConfigurationError(
                file=file, field="version", expected=f"above {earlier.version}", found=str(study.version)
            )
    envelope = sign_study(study, roster, load_signing_key(directory.signing_key))
    replace_file(target, envelope)
    target.chmod(0o644)  # every hospital gets it
    return SignedFile(signed=SignedStudy(study=study, roster=roster, envelope=envelope), file=target)


def read_signed(directory: CoordinatorDirectory, file: Path) -> SignedStudy:
    """Return a study that this coordinator signed. Raises `ConfigurationError`, `VerificationError`."""
    try:
        envelope = file.read_bytes()
    except OSError as err:
        raise ConfigurationError(file=file, expected="a signed study", found=err.strerror or "none") from err
    return verify_study(envelope, coordinator=public_key(directory), file=file)


def collect_signatures(directory: CoordinatorDirectory, file: Path, countersigned: Sequence[Path]) -> SignedStudy:
    """Add the hospitals' signatures to a signed study, in its own file; hospitals approve that file again.

    Raises `ConfigurationError`, `VerificationError`: then the file stays as it was.

    - the study, and so its digest, stays the same
    """
    signed = [read_signed(directory, one) for one in (file, *countersigned)]
    merged = verify_study(merge_studies(signed), coordinator=public_key(directory), file=file)
    replace_file(file, merged.envelope)
    file.chmod(0o644)  # every hospital gets it
    return merged


def _check_roster(study: Study, roster: Roster, file: Path) -> None:
    if study.roster != roster.digest:
        raise ConfigurationError(file=file, field="roster", expected=roster.digest, found=study.roster)
    known = {site.name for site in roster.sites}
    for part in study.participants:
        if part.site not in known:
            raise ConfigurationError(file=file, field="participants", expected="enrolled hospitals", found=part.site)
