"""A whole study over many simulated hospitals: in this process, in worker processes, and resumed where it stopped.

Design note: the same ServerApp, ClientApp and `Hospital` as in a real deployment, with everything that is passed in
replaced by its simulated kind: clock, store, keys, journals, patients. Signatures are made and checked, budgets are
charged.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedtwin_client.client_app import make_client_app
from fedtwin_client.hospital import Hospital
from fedtwin_client.journal import Spend
from fedtwin_server.errors import RunError
from fedtwin_server.rounds import RoundRecord, RunState, start_run
from fedtwin_server.run_store import CHECKPOINT, FileRunStore, MemoryRunStore, RunStore
from fedtwin_server.server_app import Run, make_server_app
from fedtwin_shared.documents import SignedStudy, sign_study, verify_study
from fedtwin_shared.models import Parameters
from fedtwin_shared.round import RoundPlan
from fedtwin_shared.signing import format_public_key
from fedtwin_simulations.engine.memory import check_memory, foresee_memory
from fedtwin_simulations.engine.plans import read_plan
from fedtwin_simulations.engine.site_tasks import Ground, SiteTasks
from fedtwin_simulations.engine.virtual_time import VirtualClock
from fedtwin_simulations.engine.workers import Workers
from fedtwin_simulations.local_grid import ABSENT, Delay, Fault, read_envelope, read_place, run_local

OnRound = Callable[[int, int], None]  # rounds done, rounds planned
Absent = Callable[[str, RoundPlan], bool]  # site, plan: whether the site cannot be reached
Slow = Callable[[str, RoundPlan], float]  # site, plan: seconds until its answer is there


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What happens to hospitals in a simulation; nothing, unless said."""

    absent: Absent | None = None
    slow: Slow | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """What a run left: the coordinator's last state, what each site has charged, and the simulated seconds."""

    state: RunState
    spent: Mapping[str, Spend]
    waited_seconds: float


def simulate(
    ground: Ground,
    *,
    workers: int = 0,
    folder: Path | None = None,
    world: World = World(),
    on_round: OnRound = lambda done, planned: None,
) -> Simulated:
    """Run the study of `ground` to its end and return what is left.

    workers: processes that play the hospitals; 0: this one. folder: where every round is checkpointed; a run that was
    interrupted goes on from there.
    Raises `ConfigurationError` before anything is run when the memory is not there or `folder` holds another run,
    `RunError` when too few sites answer, and what a hospital raised.

    - the same seed gives the same bytes in this process and in workers, interrupted or not
    - sites that are trained together agree with sites alone within 1e-5
    """
    study, consortium = ground.study, ground.consortium
    check_memory(foresee_memory(study, ground.data, together=ground.together, workers=workers))
    logging.getLogger("flwr").setLevel(logging.ERROR)  # it says at every round how many replies came
    signed = sign_ground(ground)
    clock, sites = VirtualClock(), ground.data.sites
    with ExitStack() as stack:
        store = _Followed(_open_store(ground, folder), study.training.rounds, on_round)
        run_tasks = stack.enter_context(Workers(ground, workers)) if workers else SiteTasks(ground)
        run_local(
            make_server_app(
                lambda context: Run(
                    signed=signed, key=consortium.coordinator, store=store, clock=clock, sleep=clock.sleep
                )
            ),
            make_client_app(_nobody),
            [{"site": site} for site in sites],
            fault=_fault(world, sites),
            delay=_delay(world, sites),
            run_tasks=lambda tasks: _raise_first(run_tasks(tasks)),
            clock=clock,
        )
        spent = run_tasks.spent()
    return Simulated(state=store.state, spent=spent, waited_seconds=clock())


def sign_ground(ground: Ground) -> SignedStudy:
    """Return the study as its coordinator signs it."""
    consortium = ground.consortium
    return verify_study(
        sign_study(ground.study, consortium.roster, consortium.coordinator),
        coordinator=format_public_key(consortium.coordinator.public_key()),
    )


def start_ground(ground: Ground) -> RunState:
    """Return the state in which a run begins; its id follows from the seed."""
    return start_run(ground.study, run=hashlib.sha256(f"run {ground.seed}".encode()).hexdigest()[:32])


def _open_store(ground: Ground, folder: Path | None) -> RunStore:
    state = start_ground(ground)
    if folder is None:
        return MemoryRunStore(state)
    store = FileRunStore(folder)
    if not (folder / CHECKPOINT).exists():
        store.save(state)
    elif (found := store.load()).study != state.study or found.run != state.run:
        store.close()
        raise RunError(file=folder, expected="a run of this study under this seed", found="another one")
    return store


class _Followed:
    """A store that also tells how far the run is, and keeps the last state for whoever started it."""

    def __init__(self, store: RunStore, rounds: int, on_round: OnRound) -> None:
        self._store, self._rounds, self._on_round = store, rounds, on_round
        self.state = store.load()

    def load(self) -> RunState:
        return self._store.load()

    def save(self, state: RunState) -> None:
        self._store.save(state)
        self.state = state
        self._on_round(state.rounds_done, self._rounds)

    def note(self, entry: Mapping[str, Any]) -> None:
        self._store.note(entry)

    def prove(self, plan: RoundPlan, evidence: Mapping[str, bytes]) -> None:
        self._store.prove(plan, evidence)

    def read_evidence(self, record: RoundRecord) -> Mapping[str, bytes]:
        return self._store.read_evidence(record)

    def release(self, parameters: Parameters, report: Mapping[str, Any]) -> None:
        self._store.release(parameters, report)

    def close(self) -> None:
        self._store.close()


def _raise_first(replies: Sequence[bytes | Exception]) -> Sequence[bytes | Exception]:
    """A simulated hospital has no other reader of its errors."""
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    return replies


def _nobody(context: object) -> Hospital:
    """Tasks are run by `run_tasks`; the grid's own app is never called."""
    raise RuntimeError("expected tasks to be run elsewhere")


def _fault(world: World, sites: tuple[str, ...]) -> Fault | None:
    absent = world.absent
    if absent is None:
        return None
    return lambda message: ABSENT if absent(sites[read_place(message)], read_plan(read_envelope(message))) else None


def _delay(world: World, sites: tuple[str, ...]) -> Delay | None:
    slow = world.slow
    if slow is None:
        return None
    return lambda message: slow(sites[read_place(message)], read_plan(read_envelope(message)))
