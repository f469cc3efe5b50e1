"""A released model: which weights, what they may tell about a patient, and the ledgers that prove it; signed.

Design note: a release is a statement about a run that is over. Everything in it that follows from the signed study is
worked out again by whoever verifies it, so a coordinator can only sign a guarantee that the study has. The weights
travel beside it, named by the digest of their file; nothing is unpacked before that digest was compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import Field

from fedtwin_shared.documents import SignedStudy, check_document
from fedtwin_shared.errors import ConfigurationError, FedtwinError, VerificationError
from fedtwin_shared.fields import Count, Number, Positive, Section, Words
from fedtwin_shared.ledger.cosignature import verify_cosignatures
from fedtwin_shared.ledger.note import (
    MAX_NOTE_BYTES,
    Checkpoint,
    VerifierKey,
    parse_checkpoint,
    parse_note,
    verify_checkpoint,
)
from fedtwin_shared.ledger.statement import format_time
from fedtwin_shared.ledger.witnesses import hospital_log_key
from fedtwin_shared.privacy import CAVEAT
from fedtwin_shared.roster import Name
from fedtwin_shared.signing import canonical_json, digest, parse_canonical, sign_envelope, verify_envelope
from fedtwin_shared.study import Study

RELEASE_FILE: Final = "release.signed.json"
WEIGHTS_FILE: Final = "weights.npz"
RELEASE_TYPE: Final = "application/vnd.fedtwin.release+json"
UNIT: Final = "one patient, with all of their records at one hospital, added or removed"
RELATIVE_TOLERANCE: Final = 1e-6  # of ε worked out on another machine: floating point, not another guarantee

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Natural = Annotated[int, Field(ge=0)]


class Guarantee(Section):
    """What the run cost one patient at most: what ran, its ε, and both in words. Spare rounds that ran are counted."""

    unit: Literal["one patient, with all of their records at one hospital, added or removed"] = UNIT
    training_steps: Natural
    histograms: Natural
    epsilon: Annotated[Number, Field(ge=0)]
    delta: Positive
    words: Words


class Release(Section):
    """The released model of the one run that a study has. It replaces those of the study's earlier versions.

    weights: SHA-256 of the file. model: `models.digest_parameters`. time: Unix seconds. sites: whose updates were added
    up. checkpoints: of a site's ledger, the last that came with an update of it, a signed note.
    """

    format: Literal[1] = 1
    study: Digest
    name: Name
    version: Count
    run: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    weights: Digest
    model: Digest
    time: Annotated[int, Field(ge=0, lt=2**53)]
    sites: Annotated[tuple[Name, ...], Field(min_length=1, strict=False)]
    guarantee: Guarantee
    checkpoints: dict[Name, Annotated[str, Field(max_length=MAX_NOTE_BYTES)]]


def state_guarantee(study: Study, *, steps: int, histograms: int) -> Guarantee:
    """Return what so many steps and histograms of a study cost one patient at most.

    Raises `VerificationError` for a study without noise, which guarantees nothing, and for more than it planned or less
    than a run takes that is over.
    """
    if study.privacy.mode == "none":
        raise VerificationError(field="privacy.mode", expected="a study with noise", found="none: no guarantee")
    fewest = (study.training.local_steps * study.training.rounds, len(study.evaluation.rounds) + 1)
    most = (study.planned_steps, study.planned_evaluations)
    if not (fewest[0] <= steps <= most[0] and fewest[1] <= histograms <= most[1]):
        expected = f"{fewest[0]} to {most[0]} steps and {fewest[1]} to {most[1]} histograms"
        raise VerificationError(field="guarantee", expected=expected, found=f"{steps} and {histograms}")
    epsilon, delta = study.spent(steps=steps, releases=histograms), study.privacy.delta
    return Guarantee(
        training_steps=steps,
        histograms=histograms,
        epsilon=epsilon,
        delta=delta,
        words=_words(study, steps=steps, histograms=histograms, epsilon=epsilon),
    )


def _words(study: Study, *, steps: int, histograms: int, epsilon: float) -> str:
    shown = math.ceil(epsilon * 1000) / 1000
    return (
        f"This model and all else that the study {study.name}, version {study.version}, released at one hospital "
        f"({steps} private training steps, {histograms} noised histograms) is together "
        f"(ε = {shown:.3f}, δ = {study.privacy.delta:g})-differentially private; unit: {UNIT}; {CAVEAT}. "
        "A patient known to several hospitals pays at each; what a hospital released in other studies is not included."
    )


def describe_release(release: Release) -> dict[str, object]:
    """Return a verified release in words and numbers, for a person."""
    notes = {site: parse_note(note.encode()) for site, note in release.checkpoints.items()}
    return {
        "study": f"{release.name} version {release.version}",
        "digest": release.study,
        "run": release.run,
        "signed": format_time(release.time),
        "guarantee": release.guarantee.words,
        "weights": release.weights,
        "model": release.model,
        "hospitals": list(release.sites),
        "ledgers": {
            site: f"{parse_checkpoint(note.text).size} entries, {len(note.signatures) - 1} cosignatures"
            for site, note in notes.items()
        },
    }


def sign_release(release: Release, key: Ed25519PrivateKey) -> bytes:
    """Return the release's envelope, signed by the coordinator."""
    return sign_envelope(_payload(release), payload_type=RELEASE_TYPE, key=key)


def verify_release(
    envelope: bytes,
    *,
    signed: SignedStudy,
    current: Release | None = None,
    witnesses: Sequence[VerifierKey] = (),
    required: int = 0,
    file: Path | str = "",
) -> Release:
    """Return the release in `envelope`.

    signed: the study that the reader knows. current: the newest release of it that the reader has accepted before.
    witnesses, required: those whose cosignatures the reader demands of every site's ledger; none: sites need no ledger.

    Raises `VerificationError` unless
      (1) the coordinator of that study's roster signed it;
      (2) its payload is canonical and a release, in this version's own form;
      (3) it is of that study, of sites that take part in it, and enough of them;
      (4) it is not older than `current`, nor another one of the same version;
      (5) its guarantee is what the study has for the steps and histograms that it names;
      (6) each checkpoint is signed by that site's own ledger and, where witnesses are given, every site has one that
          enough of them cosigned.
    """
    study, roster = signed.study, signed.roster
    # (1), (2)
    release = read_release(envelope, coordinator=roster.coordinator.public_key, file=file)
    # (3)
    if (release.study, release.name, release.version) != (study.digest, study.name, study.version):
        raise VerificationError(file=file, field="study", expected=study.digest, found=release.study)
    known = {part.site for part in study.participants}
    if list(release.sites) != sorted(known & set(release.sites)) or len(release.sites) < study.training.minimum_sites:
        raise VerificationError(
            file=file, field="sites", expected="enough sites of the study, in order", found="others"
        )
    # (4)
    _check_order(release, current, file=file)
    # (5)
    _check_guarantee(release.guarantee, study, file=file)
    # (6)
    keys = {site.name: hospital_log_key(site.name, site.public_key) for site in roster.sites}
    if not release.checkpoints.keys() <= set(release.sites):
        raise VerificationError(file=file, field="checkpoints", expected="ledgers of its sites", found="others")
    if witnesses and release.checkpoints.keys() != set(release.sites):
        raise VerificationError(file=file, field="checkpoints", expected="one of every site", found="fewer")
    for site, note in release.checkpoints.items():
        _check_note(note, keys[site], witnesses, required, file=file, site=site)
    return release


def release_path(study: str) -> str:
    """Return where a coordinator's front has the release of the study of that digest."""
    return f"/v1/release/{study}"


def verify_weights(release: Release, data: bytes, *, file: Path | str = "") -> bytes:
    """Return `data` when it is the released file. Raises `VerificationError`."""
    found = digest(data)
    if found != release.weights:
        raise VerificationError(file=file, field="weights", expected=release.weights, found=found)
    return data


def read_release(envelope: bytes, *, coordinator: str, file: Path | str = "") -> Release:
    """Return the release that a coordinator signed, of whatever study. Raises `VerificationError`.

    What it says is checked by `verify_release`, which knows the study.
    """
    try:
        verified = verify_envelope(envelope, payload_type=RELEASE_TYPE, trusted={coordinator: "coordinator"})
        release = check_document(parse_canonical(verified.payload), Release, file=file)
    except (VerificationError, ConfigurationError) as err:
        raise VerificationError(file=file, field=err.field, expected=err.expected, found=err.found) from err
    if _payload(release) != verified.payload:
        raise VerificationError(file=file, field="payload", expected="this version's own form", found="another form")
    return release


def _check_order(release: Release, current: Release | None, *, file: Path | str) -> None:
    if current is None:
        return
    if current.name != release.name:
        raise VerificationError(file=file, field="name", expected=current.name, found=release.name)
    if release.version < current.version or (release.version == current.version and release != current):
        expected = f"the release of version {current.version} or of a later one"
        raise VerificationError(file=file, field="version", expected=expected, found=f"another of {release.version}")


def _check_guarantee(guarantee: Guarantee, study: Study, *, file: Path | str) -> None:
    own = state_guarantee(study, steps=guarantee.training_steps, histograms=guarantee.histograms)
    if not abs(guarantee.epsilon - own.epsilon) <= RELATIVE_TOLERANCE * own.epsilon:
        raise VerificationError(
            file=file, field="guarantee.epsilon", expected=f"{own.epsilon:.6f}", found=f"{guarantee.epsilon:.6f}"
        )
    same = (guarantee.delta, guarantee.words) == (study.privacy.delta, _words_of(guarantee, study))
    if not same:
        raise VerificationError(file=file, field="guarantee.words", expected="the words of its numbers", found="others")


def _words_of(guarantee: Guarantee, study: Study) -> str:
    # With the signed number, which may differ in its last digits from ours: the words must be of what was signed.
    steps, histograms = guarantee.training_steps, guarantee.histograms
    return _words(study, steps=steps, histograms=histograms, epsilon=guarantee.epsilon)


def _check_note(
    text: str, log: VerifierKey, witnesses: Sequence[VerifierKey], required: int, *, file: Path | str, site: str
) -> Checkpoint:
    try:
        note = parse_note(text.encode())
        checkpoint = verify_checkpoint(note, log)
        if witnesses:
            verify_cosignatures(note, witnesses, required=required)
    except (FedtwinError, UnicodeEncodeError) as err:
        expected, found = (err.expected, err.found) if isinstance(err, FedtwinError) else ("text", "another")
        raise VerificationError(file=file, field=f"checkpoints.{site}", expected=expected, found=found) from err
    return checkpoint


def _payload(release: Release) -> bytes:
    return canonical_json(release.model_dump(mode="json"))
