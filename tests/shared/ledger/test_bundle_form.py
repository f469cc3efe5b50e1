from __future__ import annotations

import io
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger.bundle import (
    AuditBundle,
    LogExport,
    pack_bundle,
    read_audit_bundle,
    unpack_bundle,
    write_audit_bundle,
)
from fedtwin_shared.signing import digest

FILES = {"north/checkpoint.txt": b"note\n", "north/entries.jsonl": b"{}\n", "documents/aa": b"", "a": bytes(300)}
names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,5}(/[a-z0-9][a-z0-9._-]{0,5}){0,2}", fullmatch=True)


@given(st.dictionaries(names, st.binary(max_size=50), min_size=1, max_size=5))
def test_a_bundle_round_trips_and_any_tool_opens_it(files: dict[str, bytes]) -> None:
    packed = pack_bundle(files)
    assert unpack_bundle(packed) == files
    assert pack_bundle(dict(reversed(files.items()))) == packed
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == files


def test_every_bit_of_the_form_matters() -> None:
    """A flipped bit is another form, or other files: never the same files again."""
    packed = pack_bundle(FILES)
    for bit in range(len(packed) * 8):
        changed = bytearray(packed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(VerificationError):
            unpack_bundle(bytes(changed))  # CRC-32 finds every single bit in contents too


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_of_another_tool_is_refused(compression: int) -> None:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", compression) as archive:
        archive.writestr("a", b"content")
    with pytest.raises(VerificationError):
        unpack_bundle(written.getvalue())


@given(st.binary(max_size=400))
def test_whatever_is_not_a_bundle_is_our_own_error(data: bytes) -> None:
    for candidate in (data, pack_bundle(FILES) + data + b".", data + b"." + pack_bundle(FILES), b"PK\x03\x04" + data):
        with pytest.raises(VerificationError):
            unpack_bundle(candidate)


@given(st.integers(0, len(pack_bundle(FILES)) - 1))
def test_a_cut_bundle_is_refused(length: int) -> None:
    with pytest.raises(VerificationError):
        unpack_bundle(pack_bundle(FILES)[:length])


@pytest.mark.parametrize("name", ["", "/a", "../a", "A", "a/", "a//b", "a b", "é", "a\n", ".a", "a" * 65])
def test_a_name_that_a_bundle_does_not_hold_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        pack_bundle({name: b""})


def test_a_repeated_name_is_refused() -> None:
    one = pack_bundle({"a": b"1"})
    local = one[: one.index(b"PK\x01\x02")]
    with pytest.raises(VerificationError):
        unpack_bundle(local + one)


def test_an_audit_bundle_round_trips() -> None:
    bundle = AuditBundle(
        logs={"north": LogExport(note=b"n", entries=(b"1", b"2")), "south": LogExport(note=b"s", entries=())},
        documents={digest(b"policy"): b"policy"},
    )
    assert read_audit_bundle(write_audit_bundle(bundle)) == bundle


@pytest.mark.parametrize(
    "files",
    [
        {"north/checkpoint.txt": b""},
        {"north/entries.jsonl": b""},
        {"north/checkpoint.txt": b"", "north/entries.jsonl": b"{}"},
        {"north/checkpoint.txt": b"", "north/entries.jsonl": b"{}\n\n"},
        {"north/checkpoint.txt": b"", "north/entries.jsonl": b"\n"},
        {"north/checkpoint.txt": b"", "north/entries.jsonl": b"", "north/more": b""},
        {"north/checkpoint.txt": b"", "north/entries.jsonl": b"", f"documents/{digest(b'a')}": b"b"},
        {"a": b""},
    ],
)
def test_other_files_are_no_audit_bundle(files: dict[str, bytes]) -> None:
    with pytest.raises(VerificationError):
        read_audit_bundle(pack_bundle(files))


@pytest.mark.parametrize(
    "bundle",
    [
        AuditBundle(logs={"north": LogExport(note=b"", entries=(b"a\nb",))}, documents={}),
        AuditBundle(logs={"north": LogExport(note=b"", entries=(b"",))}, documents={}),
        AuditBundle(logs={"documents": LogExport(note=b"", entries=())}, documents={}),
        AuditBundle(logs={"a/b": LogExport(note=b"", entries=())}, documents={}),
        AuditBundle(logs={}, documents={digest(b"a"): b"b"}),
    ],
)
def test_what_would_not_be_read_back_is_not_written(bundle: AuditBundle) -> None:
    with pytest.raises(ValueError):
        write_audit_bundle(bundle)
