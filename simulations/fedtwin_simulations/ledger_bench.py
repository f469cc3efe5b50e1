"""What the privacy ledger costs: an entry beside the disk's own sync, a round, an auditor's check, a proof."""

from __future__ import annotations

import os
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_client.journal import SealedAnswer, Spend, TaskKey
from fedtwin_client.ledger_journal import LedgerJournal, LifetimeClaim, Membership, Surroundings
from fedtwin_client.witnessing import Witnessing
from fedtwin_shared.ledger.bundle import AuditBundle, LogExport, write_audit_bundle
from fedtwin_shared.ledger.cosignature import cosign
from fedtwin_shared.ledger.encoding import encode_entry
from fedtwin_shared.ledger.entry import (
    CohortDigest,
    Enrolment,
    Entry,
    Epoch,
    Part,
    Policy,
    Release,
    Reserve,
    Seal,
    Start,
)
from fedtwin_shared.ledger.mechanism import PoissonGaussian, Use
from fedtwin_shared.ledger.merkle import compute_root, hash_leaf, verify_inclusion
from fedtwin_shared.ledger.note import (
    COSIGNATURE,
    Checkpoint,
    format_note,
    make_verifier_key,
    parse_verifier_key,
    sign_note,
)
from fedtwin_shared.ledger.pins import PinnedKeys
from fedtwin_shared.ledger.renyi import ORDERS, price_uses
from fedtwin_shared.ledger.state import History, verify_history
from fedtwin_shared.ledger.store import LogWriter, NewEntry
from fedtwin_shared.ledger.study_programme import StudyProgramme
from fedtwin_shared.ledger.verification import VerifiedBundle, verify_bundle
from fedtwin_shared.ledger.witness_client import WitnessContact, send_over_http
from fedtwin_shared.ledger.witnesses import Witnesses
from fedtwin_shared.round import Task
from fedtwin_shared.signing import digest, format_public_key
from fedtwin_simulations.deployment import free_ports
from fedtwin_simulations.ledgers import make_witness, witnesses_running
from fedtwin_simulations.results import Bench, BenchRow

SYNC_GOAL_SHARE = 0.8  # of the disk's own rate of synced writes
ROUND_GOAL_MILLISECONDS = 50.0
VERIFY_GOAL_SECONDS = 2.5  # 100,000 entries
LINEAR_GOAL = 1.25  # cost of an entry among a million over that among a hundred thousand
PROOF_GOAL_MILLISECONDS = 1.0

PAGE = 4096  # bytes; the least that a disk writes
SLICES = 40  # ours and the disk's own by turns, so that a busy disk slows both
SLICE = 25  # synced writes
SMALL, LARGE = 100_000, 1_000_000  # entries
WITNESSES = 5
ROUND_WITNESSES = 3  # as in the demo
ROUND_SYNCS = 4  # charge, seal with the answer, a witness's memory, release with the checkpoint
PARAMETERS = 10_000  # of the model that an answer holds
ORIGIN = "hospital.example/ledger"
RUN = "0" * 32
STUDY = digest(b"a study")
RECIPIENT = format_public_key(Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key())  # nothing is sent to it
NOISE = Use(mechanism=PoissonGaussian(sampling_rate=Decimal("0.001"), noise_multiplier=Decimal(20)))


def bench_ledger(say: Callable[[str], None]) -> Bench:
    """Measure durable entries beside raw synced writes, a round's entries, verification and inclusion proofs."""
    with tempfile.TemporaryDirectory(prefix="fedtwin-") as folder:
        say(f"{SLICES * SLICE} durable entries, and as many raw synced writes by turns")
        ours, raw = time_synced_writes(Path(folder))
        say(f"rounds of a hospital, with {ROUND_WITNESSES} witnesses over HTTP")
        a_round = time_witnessed_rounds(Path(folder))
        say(f"proofs among {SMALL:,} entries")
        entries = list(make_entries(SMALL))
        proof = time_proofs(Path(folder), entries)
    say(f"verifying {SMALL:,} entries")
    small = min(time_verification(entries) for _ in range(3))
    say(f"verifying {LARGE:,} entries")
    large = time_verification(list(make_entries(LARGE)))
    growth = large / small / (LARGE / SMALL)
    return Bench(
        bench="ledger",
        rows=(
            BenchRow(
                case="durable single entries, each in its own transaction",
                ours=ours,
                baseline=raw,
                baseline_name=f"fsync after each {PAGE} bytes appended to a file on the same disk",
                unit="entries/s",
                goal=f"at least {SYNC_GOAL_SHARE:g} of the baseline",
                holds=ours >= SYNC_GOAL_SHARE * raw,
            ),
            BenchRow(
                case=f"a round: charge, seal, {ROUND_WITNESSES} witnesses over HTTP, release, proof: median",
                ours=a_round,
                baseline=ROUND_SYNCS * 1000 / raw,
                baseline_name=f"{ROUND_SYNCS} raw synced writes",
                unit="ms",
                goal=f"at most {ROUND_GOAL_MILLISECONDS:g} ms",
                holds=a_round <= ROUND_GOAL_MILLISECONDS,
            ),
            BenchRow(
                case=f"verifying a bundle of {SMALL:,} entries, offline, one core: best of 3",
                ours=small,
                baseline=None,
                baseline_name="",
                unit="s",
                goal=f"at most {VERIFY_GOAL_SECONDS:g} s",
                holds=small <= VERIFY_GOAL_SECONDS,
            ),
            BenchRow(
                case=f"an entry's share of verifying {LARGE:,} entries over its share among {SMALL:,}",
                ours=growth,
                baseline=None,
                baseline_name="",
                unit="×",
                goal=f"at most {LINEAR_GOAL:g}: linear",
                holds=growth <= LINEAR_GOAL,
            ),
            BenchRow(
                case=f"an inclusion proof among {SMALL:,} entries, made from disk and verified: median",
                ours=proof,
                baseline=None,
                baseline_name="",
                unit="ms",
                goal=f"at most {PROOF_GOAL_MILLISECONDS:g} ms",
                holds=proof <= PROOF_GOAL_MILLISECONDS,
            ),
        ),
    )


def time_synced_writes(folder: Path, *, slices: int = SLICES) -> tuple[float, float]:
    """Return durable entries per second, and raw synced writes per second of the same disk at the same time."""
    body, page = b"x" * 400, bytes(PAGE)
    ours: list[float] = []
    raw: list[float] = []
    descriptor = os.open(folder / "raw", os.O_WRONLY | os.O_CREAT, 0o600)
    with LogWriter(folder / "entries.sqlite") as log:
        for _ in range(slices):
            began = time.perf_counter()
            for _ in range(SLICE):
                log.append([NewEntry(key=secrets.token_hex(40), kind="seal", body=body)])
            middle = time.perf_counter()
            for _ in range(SLICE):
                os.write(descriptor, page)
                os.fsync(descriptor)
            ours.append(middle - began)
            raw.append(time.perf_counter() - middle)
    os.close(descriptor)
    return slices * SLICE / sum(ours), slices * SLICE / sum(raw)


def time_witnessed_rounds(folder: Path) -> float:
    """Return `time_rounds` with witnesses that are processes of their own."""
    key = Ed25519PrivateKey.generate()
    logs = {"hospital": str(make_verifier_key(ORIGIN, key))}
    ports = free_ports(ROUND_WITNESSES)
    witnesses = [
        make_witness(f"keeper{number}", "server", folder / f"witness{number}", port=port, logs=logs)
        for number, port in enumerate(ports)
    ]
    contacts = tuple(
        WitnessContact(key=parse_verifier_key(one.key), send=send_over_http(one.address)) for one in witnesses
    )
    with witnesses_running(witnesses, logs=folder / "logs"):
        return time_rounds(folder, Witnesses(contacts=contacts, faulty=1), key=key)


def time_rounds(folder: Path, witnesses: Witnesses, *, key: Ed25519PrivateKey, rounds: int = 40) -> float:
    """Return milliseconds of a round's ledger at a hospital: everything between a checked plan and a proven answer."""
    programme = StudyProgramme(
        plan=digest(b"plan"),
        training=NOISE.mechanism,
        evaluation=NOISE.mechanism,
        parts=(Part(name="train", programme=(Use(mechanism=NOISE.mechanism, count=LARGE),)),),
    )
    claim = LifetimeClaim(
        epsilon=Decimal(8),
        delta=Decimal("0.000001"),
        order=4,
        programme=programme.parts[0].programme,
        signer=format_public_key(key.public_key()),
        site_policy=digest(b"policy"),
    )
    surroundings = Surroundings(
        find_programme=lambda _: programme,
        find_membership=lambda task: Membership(cohort=digest(b"cohort"), blocks=digest(b"map")),
        code=digest(b"code"),
        recipient=RECIPIENT,
        clock=time.time,
        draw=secrets.token_bytes,
        witnessing=Witnessing(origin=ORIGIN, sign=partial(sign_note, name=ORIGIN, key=key), witnesses=witnesses),
    )
    model = {"weights": np.zeros(PARAMETERS, dtype=np.float32)}
    answer = SealedAnswer(plan=digest(b"round plan"), envelope=b"the signed answer", arrays=model)
    found = []
    with LedgerJournal(folder / "ledger", claim=claim, surroundings=surroundings) as journal:
        for number in range(rounds + 1):
            task = TaskKey(study=STUDY, run=RUN, round=number, attempt=1, task=Task.TRAIN)
            began = time.perf_counter()
            if journal.charge(task, Spend(steps=1), limit=Spend(steps=LARGE)) is not None:
                raise RuntimeError("a round that was just made is refused")
            journal.seal(task, answer)
            journal.release(task)
            found.append(time.perf_counter() - began)
    return statistics.median(found[1:]) * 1000  # the first one enrols the study


def time_proofs(folder: Path, entries: list[bytes], *, proofs: int = 200) -> float:
    """Return milliseconds of an inclusion proof at random places, made from disk and verified."""
    found = []
    with LogWriter(folder / "proofs.sqlite") as log:
        log.append([NewEntry(key=str(number), kind="entry", body=body) for number, body in enumerate(entries)])
        size, root = log.size, log.root()
        for _ in range(proofs):
            position = secrets.randbelow(size)
            began = time.perf_counter()
            proof = log.prove_inclusion(position, size)
            verify_inclusion(hash_leaf(entries[position]), index=position, size=size, proof=proof, root=root)
            found.append(time.perf_counter() - began)
    return statistics.median(found) * 1000


def time_verification(entries: list[bytes]) -> float:
    """Return seconds of one core, which waits for no disk, to verify a bundle of these entries.

    Raises `RuntimeError` where it does not hold.
    """
    log = Ed25519PrivateKey.generate()
    keys = {f"witness.example/{number}": Ed25519PrivateKey.generate() for number in range(WITNESSES)}
    text = Checkpoint(origin=ORIGIN, size=len(entries), root=compute_root(entries)).text
    cosigned = [cosign(text, name=name, key=key, timestamp=1) for name, key in keys.items()]
    note = format_note(text, [sign_note(text, name=ORIGIN, key=log), *cosigned])
    export = LogExport(note=note, entries=tuple(entries))
    data = write_audit_bundle(AuditBundle(logs={"hospital": export}, documents={}))
    pinned = PinnedKeys(
        version=1,
        logs={"hospital": str(make_verifier_key(ORIGIN, log))},
        witnesses=tuple(str(make_verifier_key(name, key, algorithm=COSIGNATURE)) for name, key in keys.items()),
        faulty=1,
    )
    began = time.process_time()
    found = verify_bundle(data, pinned=pinned, replay=verify_history)
    seconds = time.process_time() - began
    if not isinstance(found, VerifiedBundle):
        raise RuntimeError(f"a bundle that was just made does not hold: {found[0]}")
    return seconds


def make_entries(count: int) -> Iterator[bytes]:
    """Yield the bytes of a history of that many entries."""
    return map(encode_entry, make_history(count))


def make_history(count: int) -> Iterator[Entry]:
    """Yield a ledger of one study whose rounds each are five entries, up to that many."""
    history = _opening()
    opened = History()
    for position, entry in enumerate(history):
        opened.add(entry)
        if position < count:
            yield entry
    blocks = opened.state.members(STUDY)
    curve = price_uses((NOISE,))
    assert curve is not None
    price = curve[ORDERS.index(opened.state.in_force.order)]
    made = len(history)
    for number in range(1, count):
        for entry in _round(number, blocks, price):
            if made == count:
                return
            made += 1
            yield entry


def _opening() -> tuple[Entry, ...]:
    signer = format_public_key(Ed25519PrivateKey.generate().public_key())
    programme = (Use(mechanism=NOISE.mechanism, count=LARGE),)
    policy = Policy(
        time=1,
        salt="0" * 32,
        epsilon=Decimal(8),
        delta=Decimal("0.000001"),
        order=4,
        programme=programme,
        signer=signer,
        site_policy=digest(b"policy"),
    )
    part = Part(name="train", programme=programme)
    enrolment = Enrolment(time=1, salt="2" * 32, study=STUDY, plan=digest(b"plan"), parts=(part,))
    return policy, Epoch(time=1, salt="1" * 32, number=0), enrolment


def _round(number: int, blocks: tuple[str, ...], price: int) -> tuple[Entry, ...]:
    task, salt = f"{STUDY}/{RUN}/{number}/1/train", f"{number:032x}"
    return (
        CohortDigest(time=2, salt=salt, round=f"{STUDY}/{RUN}/{number}", cohort=digest(salt.encode())),
        Reserve(
            time=2,
            salt=salt,
            task=task,
            blocks=blocks,
            uses=(NOISE,),
            price=price,
            membership=digest(b"membership"),
        ),
        Start(time=2, salt=salt, task=task),
        Seal(
            time=2, salt=salt, task=task, plan=digest(b"round plan"), output=digest(salt.encode()), code=digest(b"code")
        ),
        Release(time=2, salt=salt, task=task, recipient=RECIPIENT, checkpoint=number),
    )
