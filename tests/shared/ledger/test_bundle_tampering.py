"""No bit of a bundle is free: whatever is changed ends with exit code 1 and a numbered reason, never a traceback."""

from __future__ import annotations

import io
import random
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtwin_shared.cli import main
from fedtwin_shared.ledger.account import LedgerState
from fedtwin_shared.ledger.bundle import read_audit_bundle, unpack_bundle
from fedtwin_shared.ledger.second_opinion import recompute_history
from fedtwin_shared.ledger.verification import Finding, VerifiedBundle, verify_bundle
from tests.shared.ledger.forge import GOLDEN, PINNED, SITE, bundle_of, note_of, write_book
from tests.soak import SOAK

KEYS = GOLDEN / "pinned-keys.json"
ENTRIES = write_book(1)
SMALL = bundle_of(ENTRIES, note_of(ENTRIES))


def verify(data: bytes) -> VerifiedBundle[LedgerState] | tuple[Finding, ...]:
    return verify_bundle(data, pinned=PINNED, replay=recompute_history)


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_every_bit_of_a_small_bundle_matters() -> None:
    assert isinstance(verify(SMALL), VerifiedBundle)
    for bit in range(len(SMALL) * 8):
        found = verify(flip(SMALL, bit))
        assert isinstance(found, tuple), bit
        assert [finding.check for finding in found] == ["bundle"]


@given(st.data())
def test_any_bits_at_random_positions_of_a_larger_bundle_matter(data: st.DataObject) -> None:
    honest = (GOLDEN / "honest.zip").read_bytes()
    places = data.draw(st.sets(st.integers(0, len(honest) * 8 - 1), min_size=1, max_size=5))
    changed = honest
    for bit in places:
        changed = flip(changed, bit)
    assert isinstance(verify(changed), tuple)


def remade() -> Iterator[Callable[[], bytes]]:
    """Each bit of the small bundle's note and entries, flipped in an archive that has the form: past its checksum."""
    export = read_audit_bundle(SMALL).logs[SITE]
    for bit in range(len(export.note) * 8):
        yield lambda bit=bit: bundle_of(export.entries, flip(export.note, bit))  # type: ignore[misc]
    for place, entry in enumerate(export.entries):
        for bit in range(len(entry) * 8):
            changed = flip(entry, bit)
            if b"\n" not in changed:  # else it is another number of entries, in no form that can be written
                entries = [*export.entries[:place], changed, *export.entries[place + 1 :]]
                yield lambda entries=entries: bundle_of(entries, export.note)  # type: ignore[misc]


def test_every_bit_matters_even_where_the_archive_is_made_anew() -> None:
    """All of them under soak, a sample otherwise."""
    archives = list(remade())
    for make in archives if SOAK else random.Random(5).sample(archives, 150):
        found = verify(make())
        assert isinstance(found, tuple)
        assert all(finding.reason for finding in found)


def zipped(data: bytes, change: Callable[[zipfile.ZipFile], object] = lambda _: None, **options: int) -> bytes:
    """The same files written by the standard library, with every choice that it allows made like the canonical one."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", **options) as archive:  # type: ignore[call-overload]  # compression alone
        for name, content in unpack_bundle(data).items():
            member = zipfile.ZipInfo(name)
            member.compress_type, member.create_system = archive.compression, 0
            archive.writestr(member, content)
            member.external_attr = 0  # only the directory has it, which is written at the end
        change(archive)
    return written.getvalue()


def with_member_comment(archive: zipfile.ZipFile) -> None:
    archive.filelist[0].comment = b"c"


def with_extra_field(archive: zipfile.ZipFile) -> None:
    archive.filelist[0].extra = b"\xff\xff\x00\x00"


def with_other_order(archive: zipfile.ZipFile) -> None:
    archive.filelist.reverse()


def with_a_folder(archive: zipfile.ZipFile) -> None:
    archive.writestr(zipfile.ZipInfo("north/"), b"")


def member(data: bytes, name: str) -> bytes:
    content, encoded = unpack_bundle(data)[name], name.encode()
    sizes = (len(content), len(content), len(encoded), 0)
    return struct.pack("<4sHHHHHIIIHH", b"PK\x03\x04", 20, 0, 0, 0, 33, zlib.crc32(content), *sizes) + encoded + content


FORMS: dict[str, Callable[[], bytes]] = {
    "deflated": lambda: zipped(SMALL, compression=zipfile.ZIP_DEFLATED),
    "bzip2": lambda: zipped(SMALL, compression=zipfile.ZIP_BZIP2),
    "lzma": lambda: zipped(SMALL, compression=zipfile.ZIP_LZMA),
    "archive comment": lambda: zipped(SMALL, lambda archive: setattr(archive, "comment", b"c")),
    "member comment": lambda: zipped(SMALL, with_member_comment),
    "extra field": lambda: zipped(SMALL, with_extra_field),
    "other order": lambda: zipped(SMALL, with_other_order),
    "a folder": lambda: zipped(SMALL, with_a_folder),
    "trailing byte": lambda: SMALL + b"\n",
    "leading byte": lambda: b"\n" + SMALL,
    "twice": lambda: SMALL + SMALL,
    "cut by one": lambda: SMALL[:-1],
    "cut in half": lambda: SMALL[: len(SMALL) // 2],
    "without directory": lambda: SMALL[: SMALL.index(b"PK\x01\x02")],
    "first member twice": lambda: member(SMALL, sorted(unpack_bundle(SMALL))[0]) + SMALL,
    "last member twice": lambda: (
        SMALL[: SMALL.index(b"PK\x01\x02")]
        + member(SMALL, sorted(unpack_bundle(SMALL))[-1])
        + SMALL[SMALL.index(b"PK\x01\x02") :]
    ),
    "empty": lambda: b"",
}


def run(bundle: Path, *options: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["audit", "verify", str(bundle), "--keys", str(KEYS), *options])
    return int(ended.value.code or 0)


def test_the_standard_library_can_write_the_form_itself() -> None:
    """So each of the other forms differs in what its name says, and in nothing else."""
    assert zipped(SMALL) == SMALL
    assert member(SMALL, sorted(unpack_bundle(SMALL))[0]) == SMALL[: SMALL.index(b"PK\x03\x04", 4)]


@pytest.mark.parametrize("form", FORMS)
def test_any_other_form_ends_with_1_and_a_numbered_reason(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle.zip"
    bundle.write_bytes(FORMS[form]())
    assert run(bundle) == 1
    shown = capsys.readouterr()
    assert re.fullmatch(r"bundle\.zip: does not hold\n1\. bundle: [^\n]+\n", shown.out)
    assert shown.err == ""


def test_every_cut_of_a_bundle_is_refused() -> None:
    for length in range(0, len(SMALL), 7):
        assert isinstance(verify(SMALL[:length]), tuple)


def test_a_flipped_bit_ends_the_command_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, draw = tmp_path / "bundle.zip", random.Random(7)
    for place in (0, len(SMALL) * 8 - 1, *(draw.randrange(len(SMALL) * 8) for _ in range(20))):
        bundle.write_bytes(flip(SMALL, place))
        assert run(bundle) == 1
        shown = capsys.readouterr()
        assert shown.out.startswith("bundle.zip: does not hold\n1. ")
        assert shown.err == ""


def test_a_terminal_without_greek_letters_gets_an_answer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run(GOLDEN / "honest.zip") == 0
    terminal.flush()
    assert b"everything holds" in terminal.buffer.getvalue()
