"""A hospital's ledger with witnesses in this process, which a test can send away."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path

from fedtwin_client.ledger_journal import LedgerJournal, LifetimeClaim, Membership, Surroundings
from fedtwin_client.witnessing import Witnessing
from fedtwin_shared.ledger.note import VerifierKey, sign_note
from fedtwin_shared.ledger.store import LogWriter
from fedtwin_shared.ledger.study_programme import plan_programme
from fedtwin_shared.ledger.witness import Answer
from fedtwin_shared.ledger.witness_client import Send, WitnessContact
from fedtwin_shared.ledger.witness_store import WitnessStore
from fedtwin_shared.ledger.witnesses import Witnesses, hospital_log_key
from fedtwin_shared.signing import digest, format_public_key
from fedtwin_shared.study import Study
from tests.world import World

CLOCK = itertools.count(1_800_000_000)


@dataclass(kw_only=True)
class Watch:
    """Witnesses of some ledgers. away: names of those that do not answer now."""

    stores: tuple[WitnessStore, ...]
    faulty: int
    away: set[str] = field(default_factory=set)

    @property
    def witnesses(self) -> Witnesses:
        contacts = tuple(WitnessContact(key=store.verifier_key, send=self._send(store)) for store in self.stores)
        return Witnesses(contacts=contacts, faulty=self.faulty)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(store.verifier_key.name for store in self.stores)

    def _send(self, store: WitnessStore) -> Send:
        def send(body: bytes) -> Answer:
            if store.verifier_key.name in self.away:
                raise ConnectionRefusedError("connection refused")
            return store.add_checkpoint(body, clock=CLOCK.__next__)

        return send


def log_key(world: World, site: str) -> VerifierKey:
    return hospital_log_key(site, format_public_key(world.sites[site].public_key()))


def make_watch(folder: Path, logs: Iterable[VerifierKey], *, count: int = 4, faulty: int = 1) -> Watch:
    """Return that many witnesses: of 4, with f = 1, three must cosign, so one may be away."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {log.name: log for log in logs}
    stores = tuple(
        WitnessStore.create(folder / f"{number}.sqlite", name=f"witness/{number}", logs=known)
        for number in range(count)
    )
    return Watch(stores=stores, faulty=faulty)


def open_ledger(
    folder: Path,
    world: World,
    site: str,
    watch: Watch | None,
    *,
    asks: Study | None = None,
    open_log: Callable[[Path], LogWriter] = LogWriter,
) -> LedgerJournal:
    """Open a hospital's ledger of a lifetime of ε = 100 for the world's study. asks: another one that is approved."""
    programme = plan_programme(world.study, plan=digest(b"signed study"))
    claim = LifetimeClaim(
        epsilon=Decimal(100),
        delta=Decimal("0.00001"),
        order=4,
        programme=programme.parts[0].programme,
        signer=format_public_key(world.sites[site].public_key()),
        site_policy=digest(b"policy"),
    )
    origin = log_key(world, site).name
    sign = partial(sign_note, name=origin, key=world.sites[site])
    surroundings = Surroundings(
        find_programme=lambda _: plan_programme(asks or world.study, plan=digest(b"signed study")),
        find_membership=lambda key: Membership(cohort=digest(str(key).encode()), blocks=digest(b"map")),
        code=digest(b"code"),
        recipient=world.coordinator_key,
        clock=CLOCK.__next__,
        draw=os.urandom,
        witnessing=None if watch is None else Witnessing(origin=origin, sign=sign, witnesses=watch.witnesses),
        open_log=open_log,
    )
    return LedgerJournal(folder, claim=claim, surroundings=surroundings)
