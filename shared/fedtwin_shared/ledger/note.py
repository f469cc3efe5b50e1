"""Signed notes and checkpoints after C2SP (signed-note, tlog-checkpoint): the text of a tree's head, and who signed it.

Design note: a note is accepted only in the one byte form that `format_note` writes; a second form of the same
signature would be a second set of bytes for one statement. What a signature type means (which bytes are signed, how
long key and signature are) is a row of `ALGORITHMS`; ML-DSA-44 (0x06) is another row and no other change.
A checkpoint here has no extension lines: C2SP advises against them, for nobody can audit them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger.merkle import HASH_BYTES

ED25519: Final = 0x01  # C2SP signed-note, "Signature types"
COSIGNATURE: Final = 0x04  # timestamped Ed25519, C2SP tlog-cosignature
KEY_ID_BYTES: Final = 4
MAX_NOTE_BYTES: Final = 64 * 1024  # a checkpoint with 100 cosignatures is under 20 KiB; prevents DoS
MAX_SIGNATURES: Final = 100  # C2SP: at least 16; Go's sumdb/note accepts 100
MAX_TREE_SIZE: Final = 2**62  # what 63 proof hashes can reach
MAX_TIMESTAMP: Final = 2**63 - 1  # C2SP tlog-cosignature
_DASH: Final = "— "
_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifierKey:
    """A public key, its holder's name and the kind of signature it makes: what a verifier pins."""

    name: str
    algorithm: int  # first byte of the key in a vkey
    public: bytes  # raw

    @property
    def key_id(self) -> bytes:
        """SHA-256(name, newline, algorithm, public key), its first four bytes (C2SP signed-note, "Signatures")."""
        return hashlib.sha256(self.name.encode() + b"\n" + bytes([self.algorithm]) + self.public).digest()[:4]

    def __str__(self) -> str:
        """Return the vkey: name, key id in hexadecimal and key in base64, joined by plus signs."""
        return f"{self.name}+{self.key_id.hex()}+{_encode(bytes([self.algorithm]) + self.public)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteSignature:
    """One signature line of a note."""

    name: str
    key_id: bytes
    signature: bytes  # with the timestamp in front where the algorithm has one

    def __str__(self) -> str:
        """Return the line with its newline."""
        return f"{_DASH}{self.name} {_encode(self.key_id + self.signature)}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A text and its signatures, verified by nobody yet."""

    text: str  # ends in a newline
    signatures: tuple[NoteSignature, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The head of a log's tree."""

    origin: str  # names the log, and its key
    size: int  # leaves
    root: bytes

    @property
    def text(self) -> str:
        """Return the note text (C2SP tlog-checkpoint)."""
        return f"{self.origin}\n{self.size}\n{_encode(self.root)}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """What a signature type is: lengths in bytes, and how one is checked against a text."""

    public_bytes: int
    signature_bytes: int
    verify: Callable[[bytes, bytes, str], None]  # (public key, signature, text); raises InvalidSignature


def _verify_ed25519(public: bytes, signature: bytes, text: str) -> None:
    Ed25519PublicKey.from_public_bytes(public).verify(signature, text.encode())


def _verify_cosignature(public: bytes, signature: bytes, text: str) -> None:
    (timestamp,) = struct.unpack(">Q", signature[:8])
    if timestamp > MAX_TIMESTAMP:
        raise InvalidSignature
    _verify_ed25519(public, signature[8:], cosigned_text(text, timestamp=timestamp))


ALGORITHMS: Mapping[int, Algorithm] = MappingProxyType(
    {
        ED25519: Algorithm(public_bytes=32, signature_bytes=64, verify=_verify_ed25519),
        COSIGNATURE: Algorithm(public_bytes=32, signature_bytes=8 + 64, verify=_verify_cosignature),
    }
)


def cosigned_text(text: str, *, timestamp: int) -> str:
    """Return what a cosigner signs (C2SP tlog-cosignature, "Ed25519 signed message"); seconds since the epoch."""
    return f"cosignature/v1\ntime {timestamp}\n{text}"


def make_verifier_key(name: str, key: Ed25519PrivateKey, *, algorithm: int = ED25519) -> VerifierKey:
    """Return the public half of a signing key under that name. Raises `ValueError` for a name that no note can hold."""
    if not _is_name(name):
        raise ValueError("a key name is not empty and holds no space, plus or control character")
    raw = key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return VerifierKey(name=name, algorithm=algorithm, public=raw)


def parse_verifier_key(text: str) -> VerifierKey:
    """Return the key of a vkey string. Raises `VerificationError` unless it is exactly what `str(key)` writes.

    >>> parse_verifier_key("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW").name
    'PeterNeumann'
    """
    malformed = VerificationError(field="vkey", expected="name+key id+base64 of a known key type", found="another form")
    name, _, rest = text.partition("+")
    _, _, material = rest.partition("+")
    raw = _decode(material)
    if not raw or not _is_name(name) or raw[0] not in ALGORITHMS:
        raise malformed
    key = VerifierKey(name=name, algorithm=raw[0], public=raw[1:])
    if len(key.public) != ALGORITHMS[key.algorithm].public_bytes or str(key) != text:
        raise malformed
    return key


def sign_note(text: str, *, name: str, key: Ed25519PrivateKey) -> NoteSignature:
    """Return the Ed25519 signature of a note's text (C2SP signed-note, "Ed25519 signatures")."""
    return NoteSignature(name=name, key_id=make_verifier_key(name, key).key_id, signature=key.sign(text.encode()))


def format_note(text: str, signatures: Iterable[NoteSignature]) -> bytes:
    """Return the note. Raises `ValueError` for a text that no note can hold."""
    if not text.endswith("\n") or not _is_clean(text):
        raise ValueError("a note's text ends in a newline and holds no other control character")
    return (text + "\n" + "".join(map(str, signatures))).encode()


def parse_note(data: bytes) -> Note:
    """Return a note's text and signatures, none of them verified.

    Raises `VerificationError` unless `data` is exactly what `format_note` writes, with at least one signature.
    """
    malformed = VerificationError(field="note", expected="a signed note", found="another form")
    if len(data) > MAX_NOTE_BYTES:
        raise VerificationError(field="note", expected=f"at most {MAX_NOTE_BYTES} bytes", found=str(len(data)))
    try:
        written = data.decode()
    except UnicodeDecodeError as err:
        raise malformed from err
    text, separator, block = written.rpartition("\n\n")
    if not separator or not block.endswith("\n") or not _is_clean(written):
        raise malformed
    lines = block[:-1].split("\n")
    if len(lines) > MAX_SIGNATURES:
        raise VerificationError(field="note", expected=f"at most {MAX_SIGNATURES} signatures", found=str(len(lines)))
    return Note(text=text + "\n", signatures=tuple(parse_signature(line) for line in lines))


def parse_signature(line: str) -> NoteSignature:
    """Return one signature line, given without its newline. Raises `VerificationError` for another form."""
    malformed = VerificationError(field="note", expected="a signature line", found="another form")
    if not line.startswith(_DASH):
        raise malformed
    name, space, encoded = line.removeprefix(_DASH).partition(" ")
    raw = _decode(encoded)
    if not space or not _is_name(name) or raw is None or len(raw) <= KEY_ID_BYTES:
        raise malformed
    return NoteSignature(name=name, key_id=raw[:KEY_ID_BYTES], signature=raw[KEY_ID_BYTES:])


def verify_note(note: Note, keys: Sequence[VerifierKey]) -> dict[VerifierKey, NoteSignature]:
    """Return which of the keys signed the note, each with its signature.

    - signatures of unknown keys are ignored; a name or a key id alone does not make a key known
    - a wrong signature of a known key rejects the whole note (`VerificationError`)
    - a key counts once, however often it signed
    """
    known = {(key.name, key.key_id): key for key in keys}
    if len(known) != len(keys):
        raise VerificationError(field="keys", expected="keys that a note can tell apart", found="the same one twice")
    found: dict[VerifierKey, NoteSignature] = {}
    for signature in note.signatures:
        key = known.get((signature.name, signature.key_id))
        if key is None:
            continue
        invalid = VerificationError(field="note", expected=f"a valid signature of {key.name}", found="an invalid one")
        algorithm = ALGORITHMS[key.algorithm]
        if len(signature.signature) != algorithm.signature_bytes:
            raise invalid
        try:
            algorithm.verify(key.public, signature.signature, note.text)
        except (InvalidSignature, ValueError) as err:
            raise invalid from err
        found.setdefault(key, signature)
    return found


def parse_checkpoint(text: str) -> Checkpoint:
    """Return the head that a note's text states. Raises `VerificationError` unless it is exactly its three lines."""
    malformed = VerificationError(field="checkpoint", expected="origin, size and root, a line each", found="other text")
    lines = text.split("\n")
    if len(lines) != 4 or lines[3] or not lines[0] or not _DECIMAL.fullmatch(lines[1]):
        raise malformed
    root = _decode(lines[2])
    checkpoint = Checkpoint(origin=lines[0], size=int(lines[1]), root=root or b"")
    if len(checkpoint.root) != HASH_BYTES or checkpoint.size > MAX_TREE_SIZE:
        raise malformed
    return checkpoint


def verify_checkpoint(note: Note, log: VerifierKey) -> Checkpoint:
    """Return the checkpoint that the log signed under its own name. Raises `VerificationError` otherwise."""
    checkpoint = parse_checkpoint(note.text)
    if checkpoint.origin != log.name:
        raise VerificationError(field="checkpoint", expected=f"origin {log.name}", found="another origin")
    if log not in verify_note(note, [log]):
        raise VerificationError(field="checkpoint", expected=f"a signature of {log.name}", found="none")
    return checkpoint


def _is_clean(text: str) -> bool:
    return all(character >= " " or character == "\n" for character in text)


def _is_name(name: str) -> bool:
    return bool(name) and "+" not in name and _is_clean(name) and not any(map(str.isspace, name))


def _encode(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _decode(text: str) -> bytes | None:
    """The bytes of canonical base64, or None: base64 that decodes but is not what those bytes encode to is refused."""
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if _encode(raw) == text else None
