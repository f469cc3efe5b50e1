"""`fedtwin simulate bench secagg`: what a secure aggregation costs a site and the coordinator, on one core.

Sites run one after the other in this process, so that a site's figure is its own CPU time: real messages, real
signatures, every site's store on the disk, the coordinator's own code. The sum of every step is checked.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_client.secure_round import SecureRounds
from fedtwin_client.secure_store import SqliteInstanceStore
from fedtwin_shared.secagg.advertising import read_advertisements
from fedtwin_shared.secagg.agreement import close_sum, verify_agreement
from fedtwin_shared.secagg.masking import add_masked, start_sum
from fedtwin_shared.secagg.message import MESSAGE_TYPE
from fedtwin_shared.secagg.sharing import Roll, complete_setup, verify_dealings, verify_ready
from fedtwin_shared.secagg.terms import Setup, Step, Terms, smallest_threshold
from fedtwin_shared.secagg.unmasking import unmask_sum, verify_reveal
from fedtwin_shared.signing import digest, format_public_key, sign_envelope
from fedtwin_simulations.results import Bench, BenchRow

Result = TypeVar("Result")
Say = Callable[[str], None]

SITES: Final = 50
LENGTH: Final = 1_250_000  # numbers of 8 bytes: 10 MB
INSTANCES: Final = 100
LOST: Final = 2
COLLUDERS: Final = 17
MASK_GOAL_SECONDS: Final = 0.25
UNMASK_GOAL_SECONDS: Final = 0.8
UPLOAD_GOAL: Final = 2.05


@dataclass(slots=True)
class Clock:
    """CPU seconds of this process, by what was done."""

    seconds: dict[str, list[float]]

    def time(self, what: str, work: Callable[[], Result]) -> Result:
        """Do the work and note what it took."""
        began = time.process_time()
        result = work()
        self.seconds.setdefault(what, []).append(time.process_time() - began)
        return result

    def median(self, what: str) -> float:
        """Return the median of everything that was noted."""
        return statistics.median(self.seconds[what])


def bench_secagg(say: Say) -> Bench:
    """Measure set-up, masking, agreement and unmasking at 50 sites of 10 MB with 2 lost."""
    clock = Clock({})
    with tempfile.TemporaryDirectory(prefix="fedtwin-") as folder:
        say(f"{SITES} sites: a set-up for {INSTANCES} steps")
        setup, sites = open_sites(Path(folder), SITES, instances=INSTANCES)
        roll, uploaded = run_setup(setup, sites, clock)
        say(f"one step of {LENGTH * 8 / 1e6:g} MB, {LOST} sites lost")
        ratio = run_step(roll, sites, clock, length=LENGTH, lost=setup.terms.names[:LOST])
    return Bench(
        bench="secagg",
        rows=(
            _row(f"a site's set-up for {INSTANCES} steps at {SITES} sites (CPU)", clock.median("set-up"), "s"),
            _row(f"a site's upload in that set-up, over {INSTANCES} steps", uploaded / 1e6, "MB"),
            _row(f"a site masks 10 MB at {SITES} sites (CPU)", clock.median("mask"), "s", MASK_GOAL_SECONDS),
            _row(f"a site agrees and reveals at {SITES} sites (CPU)", clock.median("agree"), "s"),
            _row(f"the coordinator unmasks 10 MB, {LOST} lost (CPU)", clock.median("unmask"), "s", UNMASK_GOAL_SECONDS),
            _row("a site's upload in a step ÷ float32", ratio, "×", UPLOAD_GOAL),
        ),
    )


def open_sites(folder: Path, count: int, *, instances: int) -> tuple[Setup, dict[str, SecureRounds]]:
    """Return a set-up and its sites, each with a store of its own in `folder`."""
    keys = {f"site-{number:03d}": Ed25519PrivateKey.generate() for number in range(count)}
    colluders = COLLUDERS * count // SITES
    terms = Terms(
        members=tuple((name, format_public_key(key.public_key())) for name, key in keys.items()),
        threshold=smallest_threshold(count, colluders=colluders),
        dropouts=count // 10,
        colluders=colluders,
        instances=instances,
        largest=2**52,
    )
    setup = Setup(terms=terms, study=digest(b"benchmark"), run="0" * 32, number=1)
    sites = {
        name: SecureRounds(
            name=name,
            sign=functools.partial(sign_envelope, payload_type=MESSAGE_TYPE, key=key),
            store=SqliteInstanceStore(folder / name),
        )
        for name, key in keys.items()
    }
    return setup, sites


def run_setup(setup: Setup, sites: Mapping[str, SecureRounds], clock: Clock) -> tuple[Roll, int]:
    """Return the roll, and how many bytes a site uploads."""
    spent = dict.fromkeys(sites, 0.0)

    def timed(name: str, work: Callable[[], Result]) -> Result:
        began = time.process_time()
        result = work()
        spent[name] += time.process_time() - began
        return result

    keys = {name: timed(name, functools.partial(site.advertise, setup)) for name, site in sites.items()}
    advertised = read_advertisements(setup, keys.values())
    dealt = {name: timed(name, functools.partial(site.share, setup, keys.values())) for name, site in sites.items()}
    committed = {name: verify_dealings(setup, advertised, name, dealings) for name, dealings in dealt.items()}
    roll = complete_setup(setup, advertised, committed)
    for name, site in sites.items():
        dealings = [dealt[peer][name] for peer in sites if peer != name]
        verify_ready(roll, timed(name, functools.partial(site.receive, setup, dealings)))
    clock.seconds["set-up"] = list(spent.values())
    first = next(iter(sites))
    return roll, len(keys[first]) + sum(map(len, dealt[first].values()))


def run_step(roll: Roll, sites: Mapping[str, SecureRounds], clock: Clock, *, length: int, lost: Iterable[str]) -> float:
    """Return a site's upload ÷ the same numbers in float32; the sum is checked."""
    setup, gone = roll.setup, set(lost)
    step = Step(instance=0, round=1, attempt=1, plan=digest(b"plan"), model=digest(b"model"), length=length)
    chance, expected = np.random.default_rng(0), np.zeros(length, dtype=np.int64)
    state, uploaded = start_sum(roll, step), 0
    for name, site in sites.items():
        if name not in gone:
            vector: npt.NDArray[np.int64] = chance.integers(-(2**40), 2**40, length)
            expected += vector
            masking = functools.partial(site.mask, setup, step, functools.partial(np.copy, vector))
            data = clock.time("mask", masking)
            state, uploaded = add_masked(state, data), len(data)
    survivors = close_sum(state)
    words, revealed = [], []
    for name in survivors:
        words.append(clock.time("agree", functools.partial(sites[name].agree, setup, 0, survivors)))
    for word in words:
        verify_agreement(word, binding=state.binding, survivors=survivors, terms=setup.terms)
    for place, name in enumerate(survivors):
        shares = clock.time("reveal", functools.partial(sites[name].reveal, setup, 0, words))
        clock.seconds["agree"][place] += clock.seconds["reveal"][place]
        uploaded += len(shares) + len(words[place]) if place == 0 else 0
        revealed.append(verify_reveal(state, shares))
    total = clock.time("unmask", lambda: unmask_sum(state, revealed))
    if not np.array_equal(total, expected):
        raise RuntimeError("the sum is wrong, so what it cost says nothing")
    return uploaded / (4 * length)


def _row(case: str, ours: float, unit: str, goal: float | None = None) -> BenchRow:
    words = "" if goal is None else f"at most {goal:g} {unit}"
    return BenchRow(
        case=case,
        ours=ours,
        baseline=None,
        baseline_name="",
        unit=unit,
        goal=words,
        holds=goal is None or ours <= goal,
    )
