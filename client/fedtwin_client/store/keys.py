"""The keys of a hospital's store: one for each patient, wrapped by the site's key, in files apart from the data.

    site-<id>.key    32 random bytes, the site's key. Never part of a backup of data.
    patients.keys    a header, then 78 bytes for each patient: kind, digest of the id, the patient's key, wrapped

Forgetting a patient writes patients.keys anew, without that key and wrapped by a new site key, and destroys the old
site key. So neither an older copy of patients.keys nor what a disk still holds of it opens anything: the one thing that
must exist once is the site's key. Whoever keeps a spare copy of it in a safe replaces that copy after every `forget`.
Its 32 bytes are overwritten in place and then unlinked; flash and copying filesystems may keep the old ones, so a
hospital encrypts the disk below this folder as well.

Backups: the database (SQLite's online backup, or the file of a closed store) and patients.keys go into ordinary ones,
the latter again after every `forget`; the site's key never does. A database from before, restored beside the keys of
today, is readable for everybody but the forgotten.

Design note: a nonce is 96 random bits. Under one key at most 2³² messages may be sealed so (NIST SP 800-38D, 8.3: a
repetition then has a chance below 2⁻³²). A patient's key seals one message for each append and each block: at ten a
second, without a pause, for 13 years. A counter would repeat after a backup is restored; random nonces do not.
A patient's digest is HMAC-SHA256 of the id under a secret of the store, 128 bits: two of a million patients share one
with a chance below 2⁻⁸⁸.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from fedtwin_client.file_journal import Disk, LocalDisk
from fedtwin_client.store.store import StoreError

KEYS: Final = "patients.keys"
SITE_PREFIX: Final = "site-"
KEY: Final = 32  # bytes: AES-256
NONCE: Final = 12
TAG: Final = 16
DIGEST: Final = 16

_MAGIC: Final = b"fedtwin keys 1\n"
_SITE_ID: Final = 8
_WRAPPED: Final = NONCE + KEY + TAG
_HEADER: Final = len(_MAGIC) + _SITE_ID + _WRAPPED
_KEPT, _FORGOTTEN = b"\x01", b"\x02"
_RECORD: Final = 1 + DIGEST + _WRAPPED + 1  # a line feed ends it: a torn record has none

Entropy = Callable[[int], bytes]


def seal(key: AESGCM, data: bytes | memoryview, bound: bytes, nonce: bytes) -> bytes:
    """Return nonce, ciphertext and tag. `bound` is authenticated and not stored."""
    return nonce + key.encrypt(nonce, data, bound)


def seal_now(key: AESGCM, data: bytes, bound: bytes) -> bytes:
    """Seal with a nonce from the operating system."""
    return seal(key, data, bound, os.urandom(NONCE))


def unseal(key: AESGCM, sealed: bytes, bound: bytes) -> bytes | None:
    """Return what was sealed; None when it was not sealed by this key with this `bound`."""
    view = memoryview(sealed)
    try:
        return key.decrypt(view[:NONCE], view[NONCE:], bound)
    except (InvalidTag, ValueError):
        return None


class KeyRing:
    """The keys in a folder of their own. Not safe across processes: the store's lock is held around it.

    - a key is on the disk before `create` returns
    - after `forget` no file of the folder holds the key in any form that the folder's site key opens
    - the patients.keys of before a `forget` cannot be opened with the site key of after it
    - a crash inside any method leaves the folder as it was before or as it is after
    """

    def __init__(self, folder: Path, *, disk: Disk | None = None, entropy: Entropy = os.urandom) -> None:
        self.folder, self._disk, self._entropy = folder, disk or LocalDisk(), entropy
        self._keys, self._forgotten = dict[bytes, bytes](), set[bytes]()
        self._ciphers = dict[bytes, AESGCM]()
        self.damaged = 0  # records that could not be unwrapped
        self._secret, self._name, self._site = b"", b"", AESGCM(bytes(KEY))
        with self._report_failure():
            if not folder.exists() or not any(folder.iterdir()):
                self._make()
            self._load()
        self._digest_key = self._derive(b"patient digest")
        self.names = AESGCM(self._derive(b"names"))

    def digest(self, patient: str) -> bytes:
        """Return what stands for the patient on the disk: 16 bytes."""
        return hmac.digest(self._digest_key, patient.encode(), "sha256")[:DIGEST]

    def cipher(self, digest: bytes) -> AESGCM | None:
        """Return the cipher of a patient's key; None for a patient without one."""
        found = self._ciphers.get(digest)
        if found is None and (key := self._keys.get(digest)) is not None:
            found = self._ciphers[digest] = AESGCM(key)
        return found

    def is_forgotten(self, digest: bytes) -> bool:
        """Whether the patient was forgotten and not admitted again."""
        return digest in self._forgotten

    @property
    def any_forgotten(self) -> bool:
        """Whether there is anybody who was forgotten."""
        return bool(self._forgotten)

    def create(self, digests: Iterable[bytes]) -> None:
        """Make a key for each that has none and was not forgotten."""
        made = {
            digest: self._entropy(KEY)
            for digest in digests
            if digest not in self._keys and digest not in self._forgotten
        }
        if not made:
            return
        data = b"".join(self._record(self._site, _KEPT, digest, key) for digest, key in made.items())
        with self._report_failure():
            descriptor = os.open(self.folder / KEYS, os.O_WRONLY | os.O_APPEND)
            try:
                length = os.fstat(descriptor).st_size
                try:
                    self._disk.append(descriptor, data)
                    self._disk.sync(descriptor)
                except OSError:
                    os.ftruncate(descriptor, length)  # half a record would hide every later one
                    raise
            finally:
                os.close(descriptor)
        self._keys.update(made)

    def forget(self, digest: bytes) -> bool:
        """Destroy a patient's key and the site key that wrapped it; whether there was one."""
        was = digest in self._keys
        self._rewrite({digest}, self._forgotten | {digest})
        return was

    def readmit(self, digest: bytes) -> bool:
        """Let a forgotten patient have a key again, a new one; whether they were forgotten."""
        was = digest in self._forgotten
        if was:
            self._rewrite(set(), self._forgotten - {digest})
        return was

    def _make(self) -> None:
        """Make the folder in one step: one that holds a site key and no patients' keys has lost them."""
        folder = self.folder
        self.folder = folder.with_name(f"{folder.name}.new")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(mode=0o700, parents=True)
        self._secret = self._entropy(KEY)
        self._rewrite(set(), set())
        self.folder = self.folder.rename(folder)
        _sync(folder.parent, self._disk)

    def _rewrite(self, without: set[bytes], forgotten: set[bytes]) -> None:
        """Write everything under a new site key and destroy the old one."""
        keys = {digest: key for digest, key in self._keys.items() if digest not in without}
        key, name = self._entropy(KEY), self._entropy(_SITE_ID)
        site = AESGCM(key)
        parts = [_MAGIC, name, self._wrap(site, self._secret, _MAGIC + name)]
        parts += [self._record(site, _KEPT, digest, kept) for digest, kept in keys.items()]
        parts += [self._record(site, _FORGOTTEN, digest, bytes(KEY)) for digest in sorted(forgotten)]
        fresh = self.folder / f"{KEYS}.new"
        with self._report_failure():
            self._put(self._site_file(name), key)
            self._put(fresh, b"".join(parts))
            # A crash before this leaves all as it was, and a site key that opens nothing; after it, the old site key
            # opens nothing that is still here, and the next start destroys it.
            fresh.replace(self.folder / KEYS)
            self._site, self._name, self._keys, self._forgotten = site, name, keys, forgotten
            for digest in without:
                self._ciphers.pop(digest, None)
            self._sync_folder()
            self._destroy_other_sites()

    def _put(self, path: Path, data: bytes) -> None:
        """Write a file in place of whatever its blocks held, durably."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            self._disk.append(descriptor, data)
            os.ftruncate(descriptor, len(data))
            self._disk.sync(descriptor)
        finally:
            os.close(descriptor)
        self._sync_folder()

    def _load(self) -> None:
        if not (self.folder / KEYS).exists():
            # To begin anew here would destroy the site key that a spare copy of the patients' keys needs.
            raise StoreError(file=self.folder / KEYS, expected="the patients' keys", found="no such file")
        content = (self.folder / KEYS).read_bytes()
        if len(content) < _HEADER or not content.startswith(_MAGIC):
            raise StoreError(file=self.folder / KEYS, expected="a file of patients' keys", found="another file")
        self._name = content[len(_MAGIC) : len(_MAGIC) + _SITE_ID]
        try:
            site = self._site_file(self._name).read_bytes()
        except FileNotFoundError:
            raise StoreError(
                file=self.folder / KEYS, expected="the site key that wrapped it", found="no such file"
            ) from None
        self._site = AESGCM(site)
        secret = unseal(self._site, content[len(_MAGIC) + _SITE_ID : _HEADER], _MAGIC + self._name)
        if secret is None:
            raise StoreError(file=self.folder / KEYS, expected="keys that the site's key opens", found="damage")
        self._secret = secret
        records = content[_HEADER:]
        if torn := len(records) % _RECORD:
            # Its patient's rows were never acknowledged: the key comes before them.
            os.truncate(self.folder / KEYS, len(content) - torn)
        for at in range(0, len(records) - torn, _RECORD):
            self._take(records[at : at + _RECORD])
        self._destroy_other_sites()

    def _take(self, record: bytes) -> None:
        kind, digest, wrapped = record[:1], record[1 : 1 + DIGEST], record[1 + DIGEST : -1]
        key = unseal(self._site, wrapped, kind + digest)
        if key is None:
            self.damaged += 1
        elif kind == _FORGOTTEN:
            self._forgotten.add(digest)
        else:
            self._keys[digest] = key

    def _destroy_other_sites(self) -> None:
        for path in sorted(self.folder.glob(f"{SITE_PREFIX}*.key")):
            if path != self._site_file(self._name):
                self._put(path, bytes(path.stat().st_size))
                path.unlink()
        (self.folder / f"{KEYS}.new").unlink(missing_ok=True)
        self._sync_folder()

    def _record(self, site: AESGCM, kind: bytes, digest: bytes, key: bytes) -> bytes:
        return kind + digest + self._wrap(site, key, kind + digest) + b"\n"

    def _wrap(self, site: AESGCM, key: bytes, bound: bytes) -> bytes:
        return seal(site, key, bound, self._entropy(NONCE))

    def _derive(self, purpose: bytes) -> bytes:
        return HKDFExpand(hashes.SHA256(), KEY, b"fedtwin store: " + purpose).derive(self._secret)  # RFC 5869

    def _site_file(self, name: bytes) -> Path:
        return self.folder / f"{SITE_PREFIX}{name.hex()}.key"

    def _sync_folder(self) -> None:
        _sync(self.folder, self._disk)

    @contextlib.contextmanager
    def _report_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            raise StoreError(
                file=self.folder, expected="a disk that reads and writes", found=err.strerror or type(err).__name__
            ) from err


def _sync(folder: Path, disk: Disk) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        disk.sync(descriptor)
    finally:
        os.close(descriptor)
