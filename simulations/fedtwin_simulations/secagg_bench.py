"""`fedtwin simulate bench secagg`: what a secure aggregation costs a site and the coordinator, on one core.

Sites run one after the other in this process, so that a site's figure is its own CPU time: real messages, real
signatures, every site's store on the disk, the coordinator's own code. The sum of every step is checked.

The whole round is one step over the local Grid, beside a round of the same Grid in which every site sends its numbers
as float32, signed as an ordinary update is, and the coordinator verifies and adds them: both in this process, by turns.
"""

from __future__ import annotations

import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_client.client_app import make_secure_app
from fedtwin_client.secure_round import Compute, SecureRounds
from fedtwin_client.secure_site import AnswersOrders, SecureSite
from fedtwin_client.secure_store import SqliteInstanceStore
from fedtwin_server.secagg_workflow import FlowerExchange
from fedtwin_server.secure_rounds import SecureCoordinator
from fedtwin_shared.secagg.advertising import read_advertisements
from fedtwin_shared.secagg.agreement import close_sum, verify_agreement
from fedtwin_shared.secagg.masking import add_masked, start_sum
from fedtwin_shared.secagg.message import MESSAGE_TYPE, Phase, sign_message, verify_message
from fedtwin_shared.secagg.order import Answer, Order, decode_answer, decode_order, encode_answer, encode_order
from fedtwin_shared.secagg.sharing import Roll, complete_setup, verify_dealings, verify_ready
from fedtwin_shared.secagg.terms import Setup, Sign, Step, Terms, smallest_threshold
from fedtwin_shared.secagg.unmasking import unmask_sum, verify_reveal
from fedtwin_shared.signing import digest, sign_envelope
from fedtwin_simulations.local_grid import LocalGrid
from fedtwin_simulations.results import Bench, BenchRow
from fedtwin_simulations.secure_superlink import time_superlink_rounds

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
GRID_SITES: Final = 20
GRID_LENGTH: Final = 2_500_000  # numbers: 10 MB as float32, 20 MB as masked integers
GRID_ROUNDS: Final = 3
GRID_GOAL: Final = 4.0
LINK_SITES: Final = 7
LINK_LENGTH: Final = 250_000  # numbers: 1 MB as float32
LINK_ROUNDS: Final = 6
LINK_GOAL_SECONDS: Final = 3.0


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
        signers = make_signers(SITES)
        setup, sites = make_setup(signers, instances=INSTANCES), open_sites(Path(folder), signers)
        roll, uploaded = run_setup(setup, sites, clock)
        say(f"one step of {LENGTH * 8 / 1e6:g} MB, {LOST} sites lost")
        ratio = run_step(roll, sites, clock, length=LENGTH, lost=setup.terms.names[:LOST])
        say(f"{GRID_SITES} sites of {GRID_LENGTH * 4 / 1e6:g} MB on the local Grid, secure and plain by turns")
        secure, plain = time_grid(Path(folder) / "grid", sites=GRID_SITES, length=GRID_LENGTH, rounds=GRID_ROUNDS)
        say(f"{LINK_SITES} sites of {LINK_LENGTH * 4 / 1e6:g} MB as processes on a real SuperLink")
        link = statistics.median(
            time_superlink_rounds(Path(folder) / "link", sites=LINK_SITES, length=LINK_LENGTH, rounds=LINK_ROUNDS)
        )
    return Bench(
        bench="secagg",
        rows=(
            _row(f"a site's set-up for {INSTANCES} steps at {SITES} sites (CPU)", clock.median("set-up"), "s"),
            _row(f"a site's upload in that set-up, over {INSTANCES} steps", uploaded / 1e6, "MB"),
            _row(f"a site masks 10 MB at {SITES} sites (CPU)", clock.median("mask"), "s", MASK_GOAL_SECONDS),
            _row(f"a site agrees and reveals at {SITES} sites (CPU)", clock.median("agree"), "s"),
            _row(f"the coordinator unmasks 10 MB, {LOST} lost (CPU)", clock.median("unmask"), "s", UNMASK_GOAL_SECONDS),
            _row("a site's upload in a step ÷ float32", ratio, "×", UPLOAD_GOAL),
            BenchRow(
                case=f"a round on the local Grid, {GRID_SITES} sites × {GRID_LENGTH * 4 / 1e6:g} MB of float32 (CPU)",
                ours=secure,
                baseline=plain,
                baseline_name="plain summation of signed float32 updates",
                unit="s",
                goal=f"at most {GRID_GOAL:g} × the baseline",
                holds=secure <= GRID_GOAL * plain,
            ),
            _row(
                f"a round on a real SuperLink, {LINK_SITES} sites × {LINK_LENGTH * 4 / 1e6:g} MB, after set-up",
                link,
                "s",
                LINK_GOAL_SECONDS,
            ),
        ),
    )


def make_signers(count: int) -> dict[str, Sign]:
    """Return sites by name, each with the signature of a key of its own."""
    keys = (Ed25519PrivateKey.generate() for _ in range(count))
    return {
        f"site-{number:03d}": functools.partial(sign_envelope, payload_type=MESSAGE_TYPE, key=key)
        for number, key in enumerate(keys)
    }


def make_setup(signers: Mapping[str, Sign], *, instances: int) -> Setup:
    """Return a set-up in which one site in ten may be lost and one in three collude."""
    count = len(signers)
    colluders = COLLUDERS * count // SITES
    # The signer's key stands in whatever it signs.
    keys = {name: json.loads(sign(b"{}"))["signatures"][0]["keyid"] for name, sign in signers.items()}
    terms = Terms(
        members=tuple(keys.items()),
        threshold=smallest_threshold(count, colluders=colluders),
        dropouts=count // 10,
        colluders=colluders,
        instances=instances,
        largest=2**52,
    )
    return Setup(terms=terms, study=digest(b"benchmark"), run="0" * 32, number=1)


def open_sites(folder: Path, signers: Mapping[str, Sign]) -> dict[str, SecureRounds]:
    """Return the sites, each with a store of its own in `folder`."""
    return {
        name: SecureRounds(name=name, sign=sign, store=SqliteInstanceStore(folder / name))
        for name, sign in signers.items()
    }


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainSite:
    """A site that checks what it is sent, signs its numbers and sends them as they are."""

    name: str
    sign: Sign
    context: str
    numbers: npt.NDArray[np.float32]

    def answer(self, data: bytes) -> bytes:
        """Return the signed numbers."""
        plan, model = decode_order(data).parts
        body = self.numbers.data.cast("B")
        message = sign_message(
            body,
            phase=Phase.MASKED,
            sender=self.name,
            context=self.context + digest(plan) + digest(model),
            sign=self.sign,
        )
        return encode_answer(Answer(parts=(message,)))


def time_grid(folder: Path, *, sites: int, length: int, rounds: int) -> tuple[float, float]:
    """Return CPU seconds of a secure round after its set-up, and of a plain one on the same Grid: medians."""
    signers, chance = make_signers(sites), np.random.default_rng(1)
    setup, opened = make_setup(signers, instances=rounds + 1), open_sites(folder, signers)
    numbers = {name: chance.standard_normal(length).astype(np.float32) for name in signers}
    integers = {name: np.rint(array.astype(np.float64) * 2**24).astype(np.int64) for name, array in numbers.items()}
    secure_sites = {name: _secure_site(setup, opened[name], integers[name]) for name in signers}
    plain_sites = {
        name: PlainSite(name=name, sign=sign, context=setup.digest, numbers=numbers[name])
        for name, sign in signers.items()
    }
    secure, plain = _exchange(secure_sites), _exchange(plain_sites)
    coordinator = SecureCoordinator(terms=setup.terms, study=setup.study, run=setup.run, exchange=secure)
    expected, model, clock = np.sum(list(integers.values()), axis=0), bytes(4 * length), Clock({})

    def sum_securely() -> npt.NDArray[np.int64]:
        make_step = functools.partial(_make_step, plan=b"plan", model=model, length=length)
        return coordinator.aggregate(make_step=make_step, plan=b"plan", model=model).total

    for _ in range(rounds + 1):
        total = clock.time("secure", sum_securely)
        near = clock.time("plain", functools.partial(sum_plainly, plain, setup, plan=b"plan", model=model))
        if not np.array_equal(total, expected) or not np.allclose(near * 2**24, expected, atol=2**10):
            raise RuntimeError("a sum is wrong, so what it cost says nothing")
    securely, plainly = (statistics.median(clock.seconds[what][1:]) for what in ("secure", "plain"))
    return securely, plainly  # without the first turn, which has a set-up


def sum_plainly(exchange: FlowerExchange, setup: Setup, *, plan: bytes, model: bytes) -> npt.NDArray[np.float64]:
    """Return the sum of what every site sends as it is; each message is verified."""
    total, context = np.zeros(len(model) // 4), setup.digest + digest(plan) + digest(model)

    def take(node: int, data: bytes) -> bool:
        (message,) = decode_answer(data).parts
        verified = verify_message(message, phase=Phase.MASKED, context=context, terms=setup.terms)
        np.add(total, np.frombuffer(verified.body, dtype="<f4"), out=total)
        return True

    order = encode_order(Order(phase=Phase.MASKED, study=setup.study, run=setup.run, number=1, parts=(plan, model)))
    nodes = exchange.online()
    exchange.ask(dict.fromkeys(nodes, order), phase=Phase.MASKED, take=take, enough=len(nodes))
    return total


def _secure_site(setup: Setup, rounds: SecureRounds, vector: npt.NDArray[np.int64]) -> SecureSite:
    def prepare(setup: Setup, instance: int, plan: bytes, model: bytes) -> tuple[Step, Compute]:
        return _make_step(instance, plan=plan, model=model, length=len(vector)), lambda: vector

    def find(study: str, run: str, number: int) -> Setup:
        return replace(setup, number=number)

    return SecureSite(rounds=rounds, find_setup=find, prepare_step=prepare)


def _make_step(instance: int, *, plan: bytes, model: bytes, length: int) -> Step:
    return Step(instance=instance, round=1, attempt=1, plan=digest(plan), model=digest(model), length=length)


def _exchange(sites: Mapping[str, AnswersOrders]) -> FlowerExchange:
    app = make_secure_app(lambda context: sites[str(context.node_config["site"])])
    grid = LocalGrid(app, [{"site": name} for name in sites])
    return FlowerExchange(grid, patience_seconds=60.0, deadline_seconds=600.0)


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
