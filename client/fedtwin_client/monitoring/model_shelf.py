"""Released models at a hospital: verified, in the shadow of the one at work, promoted, rolled back.

Design note: a release and its weights are kept under the release's digest; which one is what stands in one small file
that is replaced atomically. A crash leaves either the old or the new arrangement. A release that was verified once is
verified again whenever it is read, so that a changed file is noticed and never used.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from fedtwin_shared.documents import SignedStudy
from fedtwin_shared.durable import replace_file
from fedtwin_shared.errors import FedtwinError, VerificationError
from fedtwin_shared.release import Release, read_release, verify_release, verify_weights
from fedtwin_shared.signing import digest

STATE: Final = "models.json"
ENVELOPE, WEIGHTS = "{0}.release.json", "{0}.weights"


class ShelfError(FedtwinError):
    """There is no model for what was asked, or the shelf's own file is not as it must be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """Digests of one study's releases. earlier: at work before, the last one last; newest: the last that was taken."""

    at_work: str = ""
    shadow: str = ""
    newest: str = ""
    earlier: tuple[str, ...] = ()


def place_in_shadow(before: Arrangement, release: str) -> Arrangement:
    """Return the arrangement with a new release beside the one at work."""
    return replace(before, shadow=release, newest=release)


def promote(before: Arrangement) -> Arrangement:
    """Return the shadow at work. Raises `ShelfError` where there is none."""
    if not before.shadow:
        raise ShelfError(expected="a release in the shadow", found="none")
    earlier = (*before.earlier, before.at_work) if before.at_work else before.earlier
    return replace(before, at_work=before.shadow, shadow="", earlier=earlier)


def roll_back(before: Arrangement) -> Arrangement:
    """Return the release before the one at work; that one is in the shadow again. Raises `ShelfError`."""
    if not before.earlier:
        raise ShelfError(expected="a release that was at work before", found="none")
    return replace(before, at_work=before.earlier[-1], shadow=before.at_work, earlier=before.earlier[:-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class ShelvedModel:
    """A verified release and the bytes of its weights."""

    release: Release
    weights: bytes


class ModelShelf:
    """The models of one study at one hospital, in a folder of their own."""

    def __init__(self, folder: Path, *, signed: SignedStudy) -> None:
        """`signed`: the study as this hospital knows it."""
        self._folder, self._signed = folder, signed

    def take(self, envelope: bytes, weights: bytes) -> Release:
        """Verify a release against the study and every earlier one, and put it in the shadow.

        Raises `VerificationError` for one that is unsigned, of an unknown key, of another study, older than one that
        was taken before, or with other weights; then nothing changes.
        """
        arrangement = self.arrangement()
        current = self._read(arrangement.newest).release if arrangement.newest else None
        release = verify_release(envelope, signed=self._signed, current=current)
        verify_weights(release, weights)
        name = digest(envelope)
        self._folder.mkdir(parents=True, exist_ok=True)
        replace_file(self._folder / WEIGHTS.format(name), weights)
        replace_file(self._folder / ENVELOPE.format(name), envelope)
        # A crash before this line leaves two files that nothing names.
        self._arrange(place_in_shadow(arrangement, name))
        return release

    def promote(self) -> Release:
        """Put the shadow to work. Raises `ShelfError`, or `VerificationError` where its files have changed."""
        after = promote(self.arrangement())
        model = self._read(after.at_work)
        self._arrange(after)
        return model.release

    def roll_back(self) -> Release:
        """Put the one before to work. Raises `ShelfError`, or `VerificationError` where its files have changed."""
        after = roll_back(self.arrangement())
        model = self._read(after.at_work)
        self._arrange(after)
        return model.release

    def at_work(self) -> ShelvedModel | None:
        """Return the model in use; None before the first promotion. Raises `VerificationError`."""
        name = self.arrangement().at_work
        return self._read(name) if name else None

    def shadow(self) -> ShelvedModel | None:
        """Return the model that runs beside it; None where there is none. Raises `VerificationError`."""
        name = self.arrangement().shadow
        return self._read(name) if name else None

    def arrangement(self) -> Arrangement:
        """Return which release is what. Raises `ShelfError` for a file that is not one of ours."""
        path = self._folder / STATE
        if not path.exists():
            return Arrangement()
        try:
            found = json.loads(path.read_bytes())
            return Arrangement(**{**found, "earlier": tuple(found["earlier"])})
        except (OSError, ValueError, TypeError, KeyError) as err:
            raise ShelfError(file=path, expected="which release is what", found=type(err).__name__) from err

    def _read(self, name: str) -> ShelvedModel:
        path = self._folder / ENVELOPE.format(name)
        try:
            envelope = path.read_bytes()
            weights = (self._folder / WEIGHTS.format(name)).read_bytes()
        except OSError as err:
            raise VerificationError(file=path, expected="a release that was taken", found=type(err).__name__) from err
        if digest(envelope) != name:
            raise VerificationError(file=path, field="digest", expected=name, found=digest(envelope))
        release = read_release(envelope, coordinator=self._signed.roster.coordinator.public_key, file=path)
        return ShelvedModel(release=release, weights=verify_weights(release, weights, file=path))

    def _arrange(self, arrangement: Arrangement) -> None:
        replace_file(self._folder / STATE, json.dumps(asdict(arrangement)).encode())
