"""An honest bundle, and one for each attack on it. `python -m tests.shared.ledger.forge` writes the golden files.

Everything is made from fixed keys, salts and times, so the golden files can be made again byte for byte; they are kept
because a verifier that changes must go on refusing what it refused, for the same reason.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_shared.documents import SignedStudy, sign_study, verify_study
from fedtwin_shared.ledger.bundle import AuditBundle, LogExport, unpack_bundle, write_audit_bundle
from fedtwin_shared.ledger.cosignature import cosign
from fedtwin_shared.ledger.entry import Enrolment, Part
from fedtwin_shared.ledger.mechanism import Use
from fedtwin_shared.ledger.merkle import compute_root
from fedtwin_shared.ledger.note import COSIGNATURE, Checkpoint, format_note, make_verifier_key, parse_note, sign_note
from fedtwin_shared.ledger.pins import PinnedKeys
from fedtwin_shared.ledger.study_programme import TRAIN, plan_programme, task_uses
from fedtwin_shared.roster import Roster, Site
from fedtwin_shared.round import Task
from fedtwin_shared.signing import Json, canonical_json, digest, format_public_key, parse_canonical
from fedtwin_shared.study import Study
from tests.shared.ledger.book import STUDY_A, TRAIN_A, gaussian, opened, sampled, task_key
from tests.world import study_document

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
DOCUMENT = b"site policy"  # whose digest is in the ledger's first entry
STEP = sampled("0.05", "1", 10)


def write_book(rounds: int) -> list[bytes]:
    """A site's policy, one study, and rounds of it: cohort, reserve, start, seal, release."""
    book = opened()
    book.enrol(STUDY_A, train=[TRAIN_A])
    blocks = book.state.members(STUDY_A)
    for number in range(1, rounds + 1):
        key = task_key(STUDY_A, number)
        book.reserve(STUDY_A, STEP, blocks=blocks, round_=number)
        book.start(key)
        book.seal(key)
        book.release(key)
    return book.written


def sign_planned() -> SignedStudy:
    """A study whose rounds are two private steps each, signed by its coordinator."""
    key = Ed25519PrivateKey.from_private_bytes(b"study key, public by being here!")
    north = Site(name=SITE, public_key=format_public_key(LOG_KEY.public_key()))
    coordinator = Site(name="consortium", public_key=format_public_key(key.public_key()))
    roster = Roster(version=1, coordinator=coordinator, sites=(north,))
    training = {"rounds": 3, "learning_rate": 1.0, "minimum_sites": 1, "local_steps": 2}
    privacy = {"epsilon": 8.0, "delta": 1e-5, "noise_multiplier": 4.5, "sampling_rate": 0.1}
    study = Study.model_validate(study_document(roster, (SITE,)) | {"training": training, "privacy": privacy})
    return verify_study(sign_study(study, roster, key), coordinator=coordinator.public_key)


def write_planned(
    signed: SignedStudy,
    *,
    plan: bytes = b"",
    study: str = "",
    parts: Sequence[Part] = (),
    uses: Sequence[Use] = (),
    first: int = 0,
) -> list[bytes]:
    """One round of a signed study. All but `signed` is what a hospital may lie about; first: block that is charged."""
    plan, study = plan or signed.envelope, study or signed.study.digest
    book = opened()
    time, salt = book.stamp()
    enrolled = tuple(parts) or plan_programme(signed.study, plan=digest(plan)).parts
    book.write(Enrolment(time=time, salt=salt, study=study, plan=digest(plan), parts=enrolled))
    blocks = [name for name in book.state.members(study) if name.endswith(TRAIN)]
    book.reserve(study, *(uses or task_uses(signed.study, Task.TRAIN)), blocks=blocks[first:])
    for step in (book.start, book.seal, book.release):
        step(task_key(study))
    return book.written


def forge_planned() -> dict[str, bytes]:
    """Bundles with the signed study in them: an honest one, and ledgers of something else."""
    signed = sign_planned()
    (step,) = task_uses(signed.study, Task.TRAIN)
    cheap = sampled("0.000000001", "1000", 20)
    parts = (Part(name="test", programme=(gaussian("999999", 3),)), Part(name=TRAIN, programme=(cheap,)))
    written = {
        "honest-with-study": write_planned(signed),
        "less-enrolled": write_planned(signed, parts=parts, uses=[replace(cheap, count=2)]),
        "less-reserved": write_planned(signed, uses=[replace(step, count=1)]),
        "fewer-blocks": write_planned(signed, first=1),
        "another-study-enrolled": write_planned(signed, study=STUDY_A),
    }
    nonsense = b"no study at all"
    bundles = {name: bundle_of(book, note_of(book), documents=(signed.envelope,)) for name, book in written.items()}
    book = write_planned(signed, plan=nonsense)
    return bundles | {"no-study-named": bundle_of(book, note_of(book), documents=(nonsense,))}


def edit(entry: bytes, **changes: Json) -> bytes:
    """An entry with other values, in canonical form."""
    fields: Any = parse_canonical(entry)
    assert fields.keys() >= changes.keys()
    return canonical_json(fields | changes)


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
    """Return each golden bundle by name. All but `honest` and `honest-with-study` are attacks."""
    true = write_book(3)
    note = note_of(true)
    reserve = next(place for place, entry in enumerate(true) if b'"type":"reserve"' in entry)
    fields: Any = parse_canonical(true[reserve])
    more_noise = edit(true[reserve], uses=[use | {"noise_multiplier": "2"} for use in fields["uses"]])
    cheaper = edit(true[reserve], price=fields["price"] - 1)
    cheap = [*true[:reserve], cheaper, *true[reserve + 1 :]]
    reused = [*true, edit(true[reserve], salt="f" * 32, time=1_900_000_000)]
    other = write_refusals(true)
    extra = parse_note(note)
    return {
        "honest": bundle_of(true, note),
        "dropped-entry": bundle_of([*true[:5], *true[6:]], note),
        "swapped-entries": bundle_of([*true[:5], true[6], true[5], *true[7:]], note),
        "edited-sigma": bundle_of([*true[:reserve], more_noise, *true[reserve + 1 :]], note),
        "edited-total": bundle_of(cheap, note),
        "edited-note": bundle_of(true[:6], note.replace(b"\n%d\n" % len(true), b"\n6\n")),
        # Witnesses see roots alone, so they cosign what breaks the ledger's rules; only the replay can tell.
        "wrong-total-cosigned": bundle_of(cheap, note_of(cheap)),
        "reused-key": bundle_of(reused, note_of(reused)),
        "fewer-witnesses": bundle_of(true, note_of(true, witnesses=(0, 1, 2))),
        "one-witness-many-times": bundle_of(true, note_of(true, witnesses=(0, 0, 0, 0))),
        # Restored from a backup and signed anew: each signature is sound, but no witness is behind it.
        "restored-backup": bundle_of(true[:8], note_of(true[:8], witnesses=())),
        "forked-history": bundle_of(other, note_of(other, witnesses=(4,))),
        # With one lying witness (4), the second view can have only it and the one that the first view left out.
        "two-views": bundle_of(other, note_of(other, witnesses=(0, 4))),
        "unpinned-signature": bundle_of(
            true, format_note(extra.text, [*extra.signatures, sign_note(extra.text, name="x", key=LOG_KEY)])
        ),
        "unnamed-document": bundle_of(true, note, documents=(DOCUMENT, b"a policy that no entry names")),
        "unknown-log": write_audit_bundle(
            AuditBundle(logs={"south": LogExport(note=note, entries=tuple(true))}, documents={})
        ),
        "zipped-by-another-tool": _zip_otherwise(bundle_of(true, note)),
        **forge_planned(),
    }


def write_refusals(true: Sequence[bytes]) -> list[bytes]:
    """As long a history in which the later rounds never were: it replays, every total is right, and it is a lie."""
    book = opened()
    book.enrol(STUDY_A, train=[TRAIN_A])
    while len(book.written) < len(true):
        book.refuse()
    return book.written


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
