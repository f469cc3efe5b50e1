"""The auditor's bundle: a zip archive that has one form only, so that every bit of it is either checked or refused.

Design note: the archive is an ordinary zip that any tool opens (PKWARE APPNOTE 6.3.10), but only stored files, sorted
by name, with one fixed time and no extra field, comment or directory. Reading takes the names and contents from where
that form has them, writes the form again and compares: whatever differs in one byte is another archive, and refused.
Only that reader is used, never a lenient one, so no tool can be shown other files than the verifier saw.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fedtwin_shared.errors import VerificationError

MAX_BUNDLE_BYTES: Final = 1 << 30  # a million entries take some 600 MB; prevents DoS, and needs no ZIP64
MAX_FILES: Final = 10_000
CHECKPOINT: Final = "checkpoint.txt"  # a signed note
ENTRIES: Final = "entries.jsonl"  # one entry a line
DOCUMENTS: Final = "documents"  # the folder of what entries name by digest
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}(/[a-z0-9][a-z0-9._-]{0,127})*")

# APPNOTE 4.3.7, 4.3.12, 4.3.16. Version 2.0, MS-DOS attributes, no flags, stored.
_LOCAL: Final = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL: Final = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END: Final = struct.Struct("<4sHHHHIIH")
_VERSION: Final = 20
_TIME, _DATE = 0, (1 << 5) | 1  # 1 January 1980, the earliest that the format has


def pack_bundle(files: Mapping[str, bytes]) -> bytes:
    """Return the one archive of these files. Raises `ValueError` for names or sizes that it does not hold."""
    if not 0 < len(files) <= MAX_FILES or not all(map(_is_name, files)):
        raise ValueError("a bundle holds files with plain names in lower case")
    body, directory = bytearray(), bytearray()
    for name, content in sorted(files.items()):
        encoded = name.encode("ascii")
        check, offset = zlib.crc32(content), len(body)
        same = (_VERSION, 0, 0, _TIME, _DATE, check, len(content), len(content), len(encoded), 0)
        body += _LOCAL.pack(b"PK\x03\x04", *same) + encoded
        body += content
        directory += _CENTRAL.pack(b"PK\x01\x02", _VERSION, *same, 0, 0, 0, 0, offset) + encoded
        if len(body) + len(directory) > MAX_BUNDLE_BYTES - _END.size:
            raise ValueError(f"a bundle has at most {MAX_BUNDLE_BYTES} bytes")
    end = _END.pack(b"PK\x05\x06", 0, 0, len(files), len(files), len(directory), len(body), 0)
    return bytes(body + directory + end)


def unpack_bundle(data: bytes) -> dict[str, bytes]:
    """Return the files of an archive.

    Raises `VerificationError` unless `data` is, byte for byte, what `pack_bundle` returns for these files.
    """
    other_form = VerificationError(field="bundle", expected="a canonical zip archive", found="another form")
    if len(data) > MAX_BUNDLE_BYTES:
        raise VerificationError(field="bundle", expected=f"at most {MAX_BUNDLE_BYTES} bytes", found=f"{len(data)}")
    files: dict[str, bytes] = {}
    place = 0
    while data[place : place + 4] == b"PK\x03\x04":
        if len(files) == MAX_FILES or len(data) - place < _LOCAL.size:
            raise other_form
        *_, size, name_bytes, _ = _LOCAL.unpack_from(data, place)
        start = place + _LOCAL.size + name_bytes
        name = data[place + _LOCAL.size : start].decode("latin-1")
        place = start + size
        if not _is_name(name) or name in files or place > len(data):
            raise other_form
        files[name] = data[start:place]
    try:
        if files and pack_bundle(files) == data:
            return files
    except ValueError as err:
        raise other_form from err
    raise other_form


@dataclass(frozen=True, slots=True, kw_only=True)
class LogExport:
    """One hospital's log as it travels: its cosigned checkpoint and the entries under it."""

    note: bytes
    entries: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditBundle:
    """What an auditor is given. Nothing in it is verified yet."""

    logs: Mapping[str, LogExport]  # by the name of the hospital
    documents: Mapping[str, bytes]  # what entries name by digest, by their SHA-256 in hexadecimal


def write_audit_bundle(bundle: AuditBundle) -> bytes:
    """Return the archive. Raises `ValueError` for names, digests or entries that it does not hold."""
    files: dict[str, bytes] = {}
    for name, export in bundle.logs.items():
        if "/" in name or name == DOCUMENTS or any(not entry or b"\n" in entry for entry in export.entries):
            raise ValueError("a log has a plain name, and each of its entries is one line")
        files[f"{name}/{CHECKPOINT}"] = export.note
        files[f"{name}/{ENTRIES}"] = b"".join(entry + b"\n" for entry in export.entries)
    for digest, content in bundle.documents.items():
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError("a document travels under its digest")
        files[f"{DOCUMENTS}/{digest}"] = content
    return pack_bundle(files)


def read_audit_bundle(data: bytes) -> AuditBundle:
    """Return what is in an archive. Raises `VerificationError` unless `write_audit_bundle` wrote it, byte for byte."""
    files = unpack_bundle(data)
    other = VerificationError(field="bundle", expected="the files of an audit bundle", found="other files")
    notes, lines, documents = dict[str, bytes](), dict[str, bytes](), dict[str, bytes]()
    for path, content in files.items():
        folder, _, name = path.partition("/")
        if folder == DOCUMENTS:
            if hashlib.sha256(content).hexdigest() != name:
                raise VerificationError(file=path, expected="the document of that digest", found="another")
            documents[name] = content
        elif name in (CHECKPOINT, ENTRIES):
            (notes if name == CHECKPOINT else lines)[folder] = content
        else:
            raise other
    if notes.keys() != lines.keys():
        raise other
    logs = {name: LogExport(note=notes[name], entries=_split_lines(name, lines[name])) for name in notes}
    return AuditBundle(logs=logs, documents=documents)


def _split_lines(log: str, data: bytes) -> tuple[bytes, ...]:
    if not data:
        return ()
    *entries, rest = data.split(b"\n")
    if rest or not all(entries):
        raise VerificationError(file=f"{log}/{ENTRIES}", expected="one entry on each line", found="an empty or cut one")
    return tuple(entries)


def _is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None
