"""Taking over a released model: fetched, verified against what this hospital itself approved, and only then kept.

Design note: nothing that the coordinator says is believed but what it signed about a study that this hospital approved;
the witnesses that must have seen every hospital's ledger are this hospital's own; and where the release names this
hospital's ledger, it must be a tree that the ledger on this disk really had. The new release is in force once its own
file is replaced, which happens last.
"""

from __future__ import annotations

import http.client
import ssl
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedtwin_client.config import HospitalDirectory
from fedtwin_client.ledger_journal import LEDGER
from fedtwin_client.studies import STUDY_FILE, approved_digests
from fedtwin_shared.documents import SignedStudy, verify_study
from fedtwin_shared.durable import replace_file
from fedtwin_shared.errors import ConfigurationError, FedtwinError, VerificationError
from fedtwin_shared.ledger.note import parse_checkpoint, parse_note
from fedtwin_shared.ledger.store import LogReader
from fedtwin_shared.ledger.witnesses import WITNESSES, read_witnesses
from fedtwin_shared.release import (
    RELEASE_FILE,
    WEIGHTS_FILE,
    Release,
    read_release,
    release_path,
    verify_release,
    verify_weights,
)
from fedtwin_shared.signing import MAX_ENVELOPE_BYTES

MAX_WEIGHTS_BYTES: Final = 256 * 1024 * 1024  # far above every model of the registry; prevents DoS
CALL_SECONDS: Final = 60.0
PIECE: Final = 1024 * 1024

Fetch = Callable[[str, int], bytes]  # (path at the coordinator's front, most bytes) -> body; raises `FetchError`


class FetchError(FedtwinError):
    """The coordinator's front gave no such file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRelease:
    """A verified release, its file, and the file of its weights, which is named by their digest."""

    release: Release
    file: Path
    weights: Path


def take_release(directory: HospitalDirectory, name: str, *, fetch: Fetch) -> KeptRelease:
    """Fetch, verify and keep the release of the newest version of a study that this hospital approved.

    Raises `ConfigurationError` for a study that it did not approve, `FetchError`, and `VerificationError` as
    `verify_release` and `verify_weights` do.

    - a release that is not kept changes nothing
    - an older release never replaces a newer one
    """
    signed = _find_study(directory, name)
    folder = directory.root / "releases" / signed.study.name
    path = release_path(signed.study.digest)
    envelope = fetch(f"{path}/{RELEASE_FILE}", MAX_ENVELOPE_BYTES)
    witnesses = read_witnesses(directory.root / WITNESSES)
    release = verify_release(
        envelope,
        signed=signed,
        current=_current(directory, folder / RELEASE_FILE),
        witnesses=() if witnesses is None else witnesses.keys,
        required=0 if witnesses is None else witnesses.required,
    )
    _check_own_ledger(directory, release)
    weights = verify_weights(release, fetch(f"{path}/{WEIGHTS_FILE}", MAX_WEIGHTS_BYTES))
    kept = KeptRelease(release=release, file=folder / RELEASE_FILE, weights=folder / f"{release.weights}.npz")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    replace_file(kept.weights, weights)
    # A crash before this line leaves the old release in force, with its own weights.
    replace_file(kept.file, envelope)
    return kept


def fetch_over_https(address: str, authority: Path) -> Fetch:
    """Return how to fetch from the coordinator's front, `host:port`, certified by `authority` and nobody else."""
    try:
        context = ssl.create_default_context(cafile=str(authority))
    except (OSError, ssl.SSLError) as err:
        raise ConfigurationError(file=authority, expected="certificates in PEM", found=type(err).__name__) from err
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))

    def fetch(path: str, most: int) -> bytes:
        body = bytearray()
        try:
            with opener.open(f"https://{address}{path}", timeout=CALL_SECONDS) as response:
                while len(body) <= most and (piece := response.read(PIECE)):
                    body += piece
        except (OSError, http.client.HTTPException) as err:  # an answer that is no 200 is an OSError too
            raise FetchError(file=address, field=path, expected="a file", found=str(err) or type(err).__name__) from err
        if len(body) > most:
            raise FetchError(file=address, field=path, expected=f"at most {most} bytes", found="more")
        return bytes(body)

    return fetch


def _find_study(directory: HospitalDirectory, name: str) -> SignedStudy:
    found = []
    for digest in approved_digests(directory.studies):
        file = directory.studies / digest / STUDY_FILE
        signed = verify_study(file.read_bytes(), coordinator=directory.config.coordinator.public_key, file=file)
        found += [signed] if signed.study.name == name else []
    if not found:
        raise ConfigurationError(field="study", expected="a study that this hospital approved", found=repr(name[:64]))
    return max(found, key=lambda signed: signed.study.version)


def _current(directory: HospitalDirectory, file: Path) -> Release | None:
    if not file.exists():
        return None
    return read_release(file.read_bytes(), coordinator=directory.config.coordinator.public_key, file=file)


def _check_own_ledger(directory: HospitalDirectory, release: Release) -> None:
    note = release.checkpoints.get(directory.config.name)
    if note is None:
        return
    told = parse_checkpoint(parse_note(note.encode()).text)
    with LogReader(directory.ledger / LEDGER) as log:
        if not (told.size <= log.size and log.root(told.size) == told.root):
            raise VerificationError(
                field="checkpoints", expected="a tree of this hospital's own ledger", found="another"
            )
