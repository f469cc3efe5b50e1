"""An honest bundle, and one for each attack on it. `python -m tests.shared.ledger.forge` writes the golden files.

Everything is made from fixed keys and times, so the golden files can be made again byte for byte; they are kept
because a verifier that changes must go on refusing what it refused. Their entries are a toy ledger of one account,
replayed by `replay_toy`: what real entries mean has tests of its own.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_shared.errors import VerificationError
from fedtwin_shared.ledger.bundle import AuditBundle, LogExport, unpack_bundle, write_audit_bundle
from fedtwin_shared.ledger.cosignature import cosign
from fedtwin_shared.ledger.merkle import compute_root
from fedtwin_shared.ledger.note import COSIGNATURE, Checkpoint, format_note, make_verifier_key, parse_note, sign_note
from fedtwin_shared.ledger.pins import PinnedKeys
from fedtwin_shared.signing import canonical_json, digest, parse_canonical

GOLDEN = Path(__file__).parents[2] / "vectors" / "ledger" / "golden"
SITE = "north"
ORIGIN = "north.example/ledger"
LOG_KEY = Ed25519PrivateKey.from_private_bytes(b"log key, public by being in here")
WITNESS_KEYS = [Ed25519PrivateKey.from_private_bytes(b"witness key, public, number %04d" % n) for n in range(5)]
WITNESSES = [
    make_verifier_key(f"witness.example/{number}", key, algorithm=COSIGNATURE)
    for number, key in enumerate(WITNESS_KEYS)
]
PINNED = PinnedKeys(
    version=1,
    logs={SITE: str(make_verifier_key(ORIGIN, LOG_KEY))},
    witnesses=tuple(map(str, WITNESSES)),
    faulty=1,  # so four of the five must cosign
)
QUORUM = (0, 1, 2, 3)
NOW = 1_800_000_000
DOCUMENT = b"the site's policy, as it was signed"


def charge(number: int, *, sigma: str = "1.1", key: str = "", total: int = 0) -> bytes:
    return canonical_json(
        {
            "key": key or f"study/run/{number}/1",
            "kind": "reserve",
            "policy": digest(DOCUMENT),
            "sigma": sigma,
            "spent": price(sigma),
            "total": total or (number + 1) * price(sigma),
        }
    )


def price(sigma: str) -> int:
    return round(1_000_000 / float(sigma))


def replay_toy(entries: Sequence[bytes]) -> int:
    """What a verifier of history does: every entry canonical, every key once, every total recomputed."""
    seen: set[str] = set()
    total = 0
    for entry in entries:
        record: Any = parse_canonical(entry)
        total += price(record["sigma"])
        if record["key"] in seen:
            raise VerificationError(field="key", expected="a new one", found="one that was used")
        if (record["spent"], record["total"]) != (price(record["sigma"]), total):
            raise VerificationError(field="total", expected=str(total), found=str(record["total"]))
        seen.add(record["key"])
    return total


def entries_of(size: int) -> list[bytes]:
    return [charge(number) for number in range(size)]


def note_of(
    entries: Sequence[bytes], *, witnesses: Sequence[int] = QUORUM, size: int | None = None, time: int = NOW
) -> bytes:
    text = Checkpoint(origin=ORIGIN, size=len(entries) if size is None else size, root=compute_root(entries)).text
    cosigned = [
        cosign(text, name=WITNESSES[number].name, key=WITNESS_KEYS[number], timestamp=time) for number in witnesses
    ]
    return format_note(text, [sign_note(text, name=ORIGIN, key=LOG_KEY), *cosigned])


def bundle_of(entries: Sequence[bytes], note: bytes, *, documents: Sequence[bytes] = (DOCUMENT,)) -> bytes:
    return write_audit_bundle(
        AuditBundle(
            logs={SITE: LogExport(note=note, entries=tuple(entries))},
            documents={digest(document): document for document in documents},
        )
    )


def forge_all() -> dict[str, bytes]:
    """Return each golden bundle by name. All but `honest` are attacks."""
    true = entries_of(12)
    note = note_of(true)
    other = [*true[:6], *(charge(number, sigma="2.0", total=1) for number in range(6, 12))]
    cheaper = [*true[:6], *_retotalled(true[6:], start=6)]
    reused = [*true[:11], charge(11, key="study/run/3/1")]
    extra = parse_note(note)
    return {
        "honest": bundle_of(true, note),
        "dropped-entry": bundle_of([*true[:5], *true[6:]], note),
        "swapped-entries": bundle_of([*true[:5], true[6], true[5], *true[7:]], note),
        "edited-sigma": bundle_of([*true[:5], true[5].replace(b'"1.1"', b'"9.9"'), *true[6:]], note),
        "edited-total": bundle_of([*true[:11], charge(11, total=1)], note),
        "edited-note": bundle_of(true[:6], note.replace(b"\n12\n", b"\n6\n")),
        # Witnesses see roots alone, so they cosign what breaks the ledger's rules; only the replay can tell.
        "reused-key": bundle_of(reused, note_of(reused)),
        "wrong-total-cosigned": bundle_of(other, note_of(other)),
        "fewer-witnesses": bundle_of(true, note_of(true, witnesses=(0, 1, 2))),
        "one-witness-many-times": bundle_of(true, note_of(true, witnesses=(0, 0, 0, 0))),
        # Restored from a backup of eight entries and signed anew: each signature is sound, but no witness is behind.
        "restored-backup": bundle_of(true[:8], note_of(true[:8], witnesses=())),
        "forked-history": bundle_of(cheaper, note_of(cheaper, witnesses=(4,))),
        # With one lying witness (4), the second view can have only it and the one that the first view left out.
        "two-views": bundle_of(cheaper, note_of(cheaper, witnesses=(0, 4))),
        "unpinned-signature": bundle_of(
            true, format_note(extra.text, [*extra.signatures, sign_note(extra.text, name="x", key=LOG_KEY)])
        ),
        "unnamed-document": bundle_of(true, note, documents=(DOCUMENT, b"a policy that no entry names")),
        "unknown-log": write_audit_bundle(
            AuditBundle(logs={"south": LogExport(note=note, entries=tuple(true))}, documents={})
        ),
        "zipped-by-another-tool": _zip_otherwise(bundle_of(true, note)),
    }


def _retotalled(entries: Sequence[bytes], *, start: int) -> list[bytes]:
    """The same rounds with more noise claimed and every total right: a history that replays, and never was."""
    total, found = start * price("1.1"), []
    for number in range(start, start + len(entries)):
        total += price("2.0")
        found.append(charge(number, sigma="2.0", total=total))
    return found


def _zip_otherwise(data: bytes) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
        for name, content in unpack_bundle(data).items():
            archive.writestr(zipfile.ZipInfo(name, date_time=(2026, 11, 22, 12, 0, 0)), content)
    return written.getvalue()


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for name, content in forge_all().items():
        (GOLDEN / f"{name}.zip").write_bytes(content)
    (GOLDEN / "pinned-keys.json").write_text(json.dumps(PINNED.model_dump(mode="json"), indent=2) + "\n")
