"""Real rounds of a real hospital that is killed again and again: at every named step, and at random instants.

The coordinator is the real one (`conduct`, and `retry_round` where it resumes), on a clock that stands still while it
waits. The hospital is a process of its own: the real `Hospital`, its training, its ledger on disk and its witnesses,
whose memory dies with it. Killed means SIGKILL. A life ends by one kill, the last one of an episode by nobody's.

Named steps come in pairs: killed when the step failed and nothing of it is on disk, and when all of it is.

Usage: kill_campaign.py FOLDER KILLS [SEED]. Prints what `Tally` holds.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import torch
from flwr.app import Message, RecordDict

from fedtwin_client.evaluation import release_histogram
from fedtwin_client.gate import Gate
from fedtwin_client.hospital import Hospital
from fedtwin_client.installation import load_cohort
from fedtwin_client.ledger_journal import LEDGER, LedgerJournal, read_ledger
from fedtwin_client.randomness import SystemRandomness
from fedtwin_client.studies import ApprovedStudy
from fedtwin_client.training import train
from fedtwin_server.errors import RunError
from fedtwin_server.rounds import next_task, retry_round
from fedtwin_server.run_store import FileRunStore
from fedtwin_server.server_app import Run, conduct
from fedtwin_shared.documents import sign_study, verify_study
from fedtwin_shared.ledger.account import Phase
from fedtwin_shared.ledger.encoding import parse_entry
from fedtwin_shared.ledger.entry import Release, Reserve, Seal
from fedtwin_shared.ledger.second_opinion import verify_prices
from fedtwin_shared.ledger.store import LogReader, LogWriter, NewEntry
from fedtwin_shared.ledger.witness import Answer
from fedtwin_shared.ledger.witness_client import WitnessContact
from fedtwin_shared.ledger.witness_store import WitnessStore
from fedtwin_shared.ledger.witnesses import Witnesses
from fedtwin_shared.models import initialise
from fedtwin_shared.round import verify_round_plan
from fedtwin_shared.wire import decode_arrays, encode_arrays, pack, unpack
from tests.client.premises import make_premises
from tests.client.setting import POLICY, SITE
from tests.server.consortium import Node, SilentGrid, StillClock, start
from tests.witnessed import CLOCK, Watch, log_key, make_watch, open_ledger
from tests.world import World, make_world

STEPS: Final = ("reserve", "train", "seal", "cosign", "release", "send")
POINTS: Final = tuple((step, persisted) for step in STEPS for persisted in (False, True))
KILLS_EACH: Final = 8  # of one episode: a run of 3 rounds and 2 evaluations, which may repeat as many
LONGEST_SECONDS: Final = 0.06  # of a random instant after a task arrived; a task takes a third of it
FEWEST_WITNESSES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """How a life ends: at a named step, the n-th time it is reached, or so long after a task arrived."""

    step: str = ""
    persisted: bool = False
    times: int = 1
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"{self.step} {'persisted' if self.persisted else 'not persisted'}" if self.step else "random instant"


@dataclass(slots=True, kw_only=True)
class Reaper:
    """Kills its own process when its step is reached."""

    death: Death | None
    left: int = 0

    def __post_init__(self) -> None:
        self.left = 0 if self.death is None else self.death.times

    def at(self, step: str, *, persisted: bool) -> None:
        death = self.death
        if death is None or (death.step, death.persisted) != (step, persisted):
            return
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class DeadlyLog(LogWriter):
    """The ledger's disk."""

    reaper: Reaper

    def append(self, entries: Sequence[NewEntry], **beside: Any) -> tuple[int, ...]:
        kinds = {entry.kind for entry in entries} & {"reserve", "seal", "release"}
        for kind in kinds:
            self.reaper.at(kind, persisted=False)
        positions = super().append(entries, **beside)
        for kind in kinds:
            self.reaper.at(kind, persisted=True)
        return positions


@dataclass(frozen=True, slots=True, kw_only=True)
class Premises:
    """What an episode's lives share: the folder, the consortium, and the hospital's cohort."""

    folder: Path
    world: World
    load: Callable[..., object]

    @property
    def touched(self) -> Path:
        return self.folder / "touched"

    @property
    def ledger(self) -> Path:
        return self.folder / "ledger"

    def open(self, reaper: Reaper) -> LedgerJournal:
        """Open the ledger and its witnesses' memories, all of them under the reaper's eyes."""
        logs = {log.name: log for log in (log_key(self.world, SITE),)}
        stores = tuple(WitnessStore(path, logs=logs) for path in sorted((self.folder / "witnesses").glob("*.sqlite")))
        watch = DeadlyWatch(stores=stores, faulty=0, reaper=reaper)
        opened = type("OpenedLog", (DeadlyLog,), {"reaper": reaper})
        return open_ledger(self.ledger, self.world, SITE, watch, open_log=opened)


@dataclass(kw_only=True)
class DeadlyWatch(Watch):
    """Witnesses, whose cosigning is a step."""

    reaper: Reaper

    @property
    def witnesses(self) -> Witnesses:
        contacts = tuple(
            WitnessContact(key=store.verifier_key, send=partial(self._ask, store)) for store in self.stores
        )
        return Witnesses(contacts=contacts, faulty=self.faulty)

    def _ask(self, store: WitnessStore, body: bytes) -> Answer:
        first = store is self.stores[0]
        if first:
            self.reaper.at("cosign", persisted=False)
        answer = store.add_checkpoint(body, clock=CLOCK.__next__)
        if first:
            self.reaper.at("cosign", persisted=True)
        return answer


def live(premises: Premises, pipe: Connection, death: Death | None) -> None:
    """One life of the hospital: answer whatever comes through the pipe until killed, or until it is closed."""
    reaper, world, now = Reaper(death=death), premises.world, [""]
    study = ApprovedStudy(study=world.study, roster=world.roster, attested=True)

    def touch(*arguments: object) -> object:
        reaper.at("train", persisted=False)
        with premises.touched.open("a", encoding="ascii") as file:
            file.write(f"{now[0]}\n")
        trained = train(*arguments)  # type: ignore[arg-type]  # passed on as they came
        reaper.at("train", persisted=True)
        return trained

    def score(*arguments: object) -> object:
        with premises.touched.open("a", encoding="ascii") as file:
            file.write(f"{now[0]}\n")
        return release_histogram(*arguments)  # type: ignore[arg-type]  # passed on as they came

    with premises.open(reaper) as journal:
        hospital = Hospital(
            gate=Gate(site=SITE, key=world.sites[SITE]),
            coordinator=world.coordinator_key,
            find_study={world.study.digest: study}.get,
            policy=POLICY,
            journal=journal,
            randomness=SystemRandomness(),
            load_cohort=premises.load,  # type: ignore[arg-type]  # read once, before the fork
            train=touch,  # type: ignore[arg-type]  # `train` itself inside
            release_histogram=score,  # type: ignore[arg-type]  # `release_histogram` itself inside
        )
        while True:
            envelope, arrays = pipe.recv_bytes(), decode_arrays(pipe.recv_bytes())
            plan = verify_round_plan(envelope, coordinator=world.coordinator_key)
            now[0] = f"{plan.study}/{plan.run}/{plan.round}/{plan.attempt}/{plan.task}"
            answer = hospital.answer(envelope, arrays)
            reaper.at("send", persisted=False)
            pipe.send_bytes(answer[0])
            pipe.send_bytes(encode_arrays(answer[1]))
            pipe.send_bytes(answer[2])
            reaper.at("send", persisted=True)


@dataclass(slots=True, kw_only=True)
class Tally:
    """What a campaign did and saw."""

    kills: int = 0
    episodes: int = 0
    tasks: int = 0  # that were charged
    touched: int = 0  # that read patients
    released: int = 0
    resumed: int = 0  # how often the coordinator had to go on after a round without an answer
    deaths: Counter[str] = field(default_factory=Counter)


class Site:
    """The hospital as the coordinator's link sees it: it answers, or it is gone and comes back."""

    def __init__(self, premises: Premises, deaths: Iterator[Death | None], tally: Tally) -> None:
        self._premises, self._deaths, self._tally = premises, deaths, tally
        self._process: int | None = None
        self._pipe: Connection | None = None
        self._death: Death | None = None

    def answer(self, message: Message) -> RecordDict | None:
        """Return the site's answer, or None when it died on it."""
        pipe = self._pipe if self._pipe is not None else self._be_born()
        envelope, arrays = unpack(message.content)
        try:
            pipe.send_bytes(envelope)
            pipe.send_bytes(encode_arrays(arrays))
            if self._death is not None and not self._death.step:
                time.sleep(self._death.seconds)
                self._kill()
            found = [pipe.recv_bytes() for _ in range(3)]
        except (EOFError, OSError):
            self._bury()
            return None
        return pack(found[0], decode_arrays(found[1]), found[2])

    def close(self) -> None:
        """End the life that is left."""
        if self._process is not None:
            self._kill()
            self._bury(counts=False)

    def _be_born(self) -> Connection:
        self._death = next(self._deaths)
        here, there = Pipe()
        child = os.fork()
        if child == 0:
            try:
                here.close()
                live(self._premises, there, self._death)
            except EOFError:
                os._exit(0)
            except BaseException as err:
                print(f"a life ended by itself: {err!r}", file=sys.stderr, flush=True)
            os._exit(1)
        there.close()
        self._process, self._pipe = child, here
        return here

    def _kill(self) -> None:
        assert self._process is not None
        os.kill(self._process, signal.SIGKILL)

    def _bury(self, *, counts: bool = True) -> None:
        assert self._process is not None
        assert self._pipe is not None
        self._pipe.close()
        _, status = os.waitpid(self._process, 0)
        assert os.WIFSIGNALED(status), f"exit code {os.waitstatus_to_exitcode(status)} instead of a kill"
        self._process = self._pipe = None
        if counts:
            self._tally.kills += 1
            self._tally.deaths[str(self._death)] += 1
            check_touched(self._premises)


def check_touched(premises: Premises) -> int:
    """Whatever read patients is charged, and nothing did so twice under one key; how many did."""
    lines = premises.touched.read_text(encoding="ascii").split() if premises.touched.exists() else []
    state = read_ledger(premises.ledger)
    charged = set() if state is None else set(state.tasks)
    assert len(lines) == len(set(lines)), "a task ran twice under one key"
    assert set(lines) <= charged, "a task ran that is not charged"
    return len(lines)


def run_episode(premises: Premises, deaths: Sequence[Death], tally: Tally) -> None:
    """Conduct one run to its end, whatever kills come on the way; then check the ledger as an auditor does."""
    world, folder = premises.world, premises.folder
    folder.mkdir(parents=True)
    watch = make_watch(folder / "witnesses", [log_key(world, SITE)], count=FEWEST_WITNESSES, faulty=0)
    signed = verify_study(sign_study(world.study, world.roster, world.coordinator), coordinator=world.coordinator_key)
    site, clock = Site(premises, itertools.chain(deaths, itertools.repeat(None)), tally), StillClock()
    store = FileRunStore(folder / "run")
    store.save(start(world))
    run = Run(
        signed=signed, key=world.coordinator, store=store, witnesses=watch.witnesses, clock=clock, sleep=clock.sleep
    )
    try:
        for _ in range(4 * KILLS_EACH):
            try:
                state = conduct(run, SilentGrid({1: Node(behaviour=site.answer)}, clock))
                break
            except RunError:
                tally.resumed += 1
                store.save(retry_round(world.study, store.load()))
        else:
            raise AssertionError("the run does not end")
    finally:
        site.close()
        store.close()
        for witness in watch.stores:
            witness.close()
    assert next_task(world.study, state) is None
    assert all(record.unverified == 0 for record in state.history)
    tally.episodes += 1
    audit(premises, tally)


def audit(premises: Premises, tally: Tally) -> None:
    """What must hold of a ledger after any number of kills."""
    tally.touched += check_touched(premises)
    state = read_ledger(premises.ledger)
    assert state is not None
    verify_prices(state)
    with LogReader(premises.ledger / LEDGER) as log:
        entries = [parse_entry(data) for data in log.entries()]
    sealed = {entry.task for entry in entries if isinstance(entry, Seal)}
    released = {entry.task for entry in entries if isinstance(entry, Release)}
    assert released <= sealed
    assert all(entry.checkpoint > 0 for entry in entries if isinstance(entry, Release))
    assert {task for task, kept in state.tasks.items() if kept.phase is Phase.RELEASED} == released
    tally.tasks += sum(isinstance(entry, Reserve) for entry in entries)
    tally.released += len(released)


def make_template(folder: Path) -> tuple[World, Callable[..., object]]:
    """Return a consortium of one hospital, and its cohort, read once from real files."""
    # A spare round for every kill: a crash between charge and seal costs one.
    privacy = {"epsilon": 8.0, "delta": 1e-5, "noise_multiplier": 8.0, "spare_rounds": KILLS_EACH}
    world = make_world(
        sites=(SITE,),
        training={"rounds": 3, "learning_rate": 1.0, "minimum_sites": 1},
        privacy=privacy,
        evaluation={"noise_multiplier": 8.0, "rounds": [1]},
    )
    directory = make_premises(folder, world)
    cohort = load_cohort(directory, world.study, SITE)
    # What a process does once (it checks its engine, and compiles) is done before the first fork, not in every life.
    torch.set_num_threads(1)
    participant, model = world.study.participants[0], initialise(world.study)
    train(world.study, participant, model, cohort.train, SystemRandomness())
    release_histogram(world.study, model, cohort.test, SystemRandomness())
    return world, lambda study, site: cohort


def plan_deaths(kills: int, chance: random.Random) -> Iterator[Death]:
    """Yield that many deaths: every named point in turn, as often as random instants."""
    points = itertools.cycle(POINTS)
    for number in range(kills):
        if number % 2:
            yield Death(seconds=chance.uniform(0, LONGEST_SECONDS))
        else:
            step, persisted = next(points)
            yield Death(step=step, persisted=persisted, times=chance.choice((1, 1, 2)))


def run_campaign(folder: Path, *, kills: int, seed: int = 0) -> Tally:
    """Kill a hospital at least that often, over as many runs as it takes. Raises `AssertionError`."""
    chance, tally = random.Random(seed), Tally()
    world, load = make_template(folder / "hospital")
    premises = Premises(folder=folder / "episode", world=world, load=load)
    deaths = list(plan_deaths(2 * kills, chance))
    for number in itertools.count():
        if tally.kills >= kills:
            return tally
        # A death at a step that the run does not reach any more does not happen.
        chosen = [deaths[(number * KILLS_EACH + place) % len(deaths)] for place in range(KILLS_EACH)]
        run_episode(premises, chosen, tally)
        shutil.rmtree(premises.folder)
    raise AssertionError


if __name__ == "__main__":
    began = time.monotonic()
    found = run_campaign(Path(sys.argv[1]), kills=int(sys.argv[2]), seed=int(sys.argv[3]) if len(sys.argv) > 3 else 0)
    print(found, f"{time.monotonic() - began:.0f} s")
