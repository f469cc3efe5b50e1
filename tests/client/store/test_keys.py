"""Keys are durable before they are used, gone once forgotten, and never half written."""

from __future__ import annotations

import contextlib
import errno
import shutil
from pathlib import Path

import pytest

from fedtwin_client.file_journal import LocalDisk
from fedtwin_client.store.keys import DIGEST, KEY, KEYS, NONCE, KeyRing, seal_now, unseal
from fedtwin_client.store.store import StoreError

RECORD = 1 + DIGEST + NONCE + KEY + 16 + 1


class FailingDisk(LocalDisk):
    """Every call works until `left` of them have been made; the next one writes half and raises, as all later do."""

    def __init__(self, left: int) -> None:
        self.left = left

    def append(self, descriptor: int, data: bytes) -> None:
        if self.left <= 0:
            super().append(descriptor, data[: len(data) // 2])
        self._count()
        super().append(descriptor, data)

    def sync(self, descriptor: int) -> None:
        self._count()
        super().sync(descriptor)

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")


def digests(ring: KeyRing, *patients: str) -> list[bytes]:
    return [ring.digest(patient) for patient in patients]


def test_a_digest_is_the_same_for_ever_and_different_in_every_store(tmp_path: Path) -> None:
    first = KeyRing(tmp_path / "one").digest("Ada")
    assert len(first) == DIGEST
    again = KeyRing(tmp_path / "one")
    assert again.digest("Ada") == first
    again.forget(first)
    assert KeyRing(tmp_path / "one").digest("Ada") == first
    assert KeyRing(tmp_path / "two").digest("Ada") != first


def test_a_key_is_on_the_disk_before_create_returns(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path)
    ada, bo = digests(ring, "Ada", "Bo")
    ring.create([ada, bo, ada])
    cipher = ring.cipher(ada)
    assert cipher is not None
    sealed = seal_now(cipher, b"value", b"place")
    again = KeyRing(tmp_path)
    for digest, opens in ((ada, b"value"), (bo, None)):
        found = again.cipher(digest)
        assert found is not None
        assert unseal(found, sealed, b"place") == opens
    assert unseal(cipher, sealed, b"elsewhere") is None
    assert (tmp_path / KEYS).read_bytes().count(ada) == 1


def test_forgetting_destroys_the_key_and_the_site_key_that_wrapped_it(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path)
    ada, bo = digests(ring, "Ada", "Bo")
    ring.create([ada, bo])
    (site,) = tmp_path.glob("site-*.key")
    old = site.read_bytes()
    assert ring.forget(ada)
    assert not ring.forget(ada)
    assert not site.exists()
    (now,) = tmp_path.glob("site-*.key")
    assert now.read_bytes() != old
    for found in (ring, KeyRing(tmp_path)):
        assert found.cipher(ada) is None
        assert found.is_forgotten(ada)
        assert found.cipher(bo) is not None
        found.create([ada])
        assert found.cipher(ada) is None


def test_a_torn_record_is_dropped_at_every_length(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path)
    ada, bo = digests(ring, "Ada", "Bo")
    ring.create([ada])
    whole = (tmp_path / KEYS).read_bytes()
    ring.create([bo])
    content = (tmp_path / KEYS).read_bytes()
    assert len(content) == len(whole) + RECORD
    for length in range(len(whole), len(content), 7):
        (tmp_path / KEYS).write_bytes(content[:length])
        again = KeyRing(tmp_path)
        assert again.cipher(ada) is not None
        assert again.cipher(bo) is None
        again.create([bo])
        assert KeyRing(tmp_path).cipher(bo) is not None


def test_a_damaged_record_costs_its_patient_and_is_counted(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path)
    ada, bo = digests(ring, "Ada", "Bo")
    ring.create([ada])
    ring.create([bo])
    content = bytearray((tmp_path / KEYS).read_bytes())
    content[-2 * RECORD + 40] ^= 1
    (tmp_path / KEYS).write_bytes(content)
    again = KeyRing(tmp_path)
    assert (again.damaged, again.cipher(ada)) == (1, None)
    assert again.cipher(bo) is not None
    content[20] ^= 1
    (tmp_path / KEYS).write_bytes(content)
    with pytest.raises(StoreError):
        KeyRing(tmp_path)


@pytest.mark.parametrize("calls", range(14))
def test_a_full_disk_leaves_the_keys_as_they_were_or_as_they_shall_be(tmp_path: Path, calls: int) -> None:
    ring = KeyRing(tmp_path / "keys")
    ada, bo, new = digests(ring, "Ada", "Bo", "new")
    ring.create([ada, bo])
    failing = KeyRing(tmp_path / "keys", disk=(disk := FailingDisk(1000)))
    disk.left = calls
    forgotten = False
    with contextlib.suppress(StoreError):
        failing.forget(ada)
        forgotten = True
    with_room = KeyRing(tmp_path / "keys")
    assert with_room.cipher(bo) is not None
    if forgotten:
        assert with_room.cipher(ada) is None
    # Whoever goes on in the same process sees what the disk holds.
    assert (failing.cipher(ada) is None) == (with_room.cipher(ada) is None)
    disk.left = 1000
    failing = KeyRing(tmp_path / "keys", disk=disk)
    disk.left = min(calls, 1)
    with pytest.raises(StoreError, match="No space left on device"):
        failing.create([new])
    assert failing.cipher(new) is None
    disk.left = 1000
    failing.create([new])
    assert KeyRing(tmp_path / "keys").cipher(new) is not None
    shutil.rmtree(tmp_path / "keys")


def test_the_most_that_a_forget_asks_of_the_disk_is_covered_above(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path, disk=(disk := FailingDisk(1000)))
    ring.create(digests(ring, "Ada"))
    before = disk.left
    ring.forget(ring.digest("Ada"))
    assert before - disk.left <= 13


def test_lost_patients_keys_are_named_and_the_site_key_stays(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path / "keys")
    ring.create(digests(ring, "Ada"))
    spare = (tmp_path / "keys" / KEYS).read_bytes()
    (tmp_path / "keys" / KEYS).unlink()
    with pytest.raises(StoreError, match="expected the patients' keys"):
        KeyRing(tmp_path / "keys")
    (tmp_path / "keys" / KEYS).write_bytes(spare)
    again = KeyRing(tmp_path / "keys")
    assert again.cipher(again.digest("Ada")) is not None


@pytest.mark.parametrize("calls", range(8))
def test_a_folder_that_was_half_made_is_made_again(tmp_path: Path, calls: int) -> None:
    with contextlib.suppress(StoreError):
        KeyRing(tmp_path / "keys", disk=FailingDisk(calls))
    ring = KeyRing(tmp_path / "keys")
    ring.create(digests(ring, "Ada"))
    assert KeyRing(tmp_path / "keys").cipher(ring.digest("Ada")) is not None
