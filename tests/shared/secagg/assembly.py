"""Sites and an honest coordinator around the pure functions: for tests that need a whole set-up or a whole step."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_shared.secagg.advertising import Advertised, advertise_keys, read_advertisements
from fedtwin_shared.secagg.agreement import Agreed, agree, close_sum
from fedtwin_shared.secagg.masking import Masked, MaskedSum, add_masked, mask_input, start_sum
from fedtwin_shared.secagg.message import MESSAGE_TYPE, ProtocolError
from fedtwin_shared.secagg.sharing import (
    Dealt,
    Instance,
    Roll,
    complete_setup,
    receive_shares,
    share_keys,
    verify_dealings,
    verify_ready,
)
from fedtwin_shared.secagg.terms import Seat, Setup, Step, Terms, smallest_threshold
from fedtwin_shared.secagg.unmasking import reveal, unmask_sum, verify_reveal
from fedtwin_shared.signing import digest, format_public_key, sign_envelope

Integers = npt.NDArray[np.int64]
STUDY, RUN = digest(b"a study"), "0" * 32
PLAN, MODEL = digest(b"a plan"), digest(b"a model")
LARGEST = 2**40
REFUSED = ProtocolError  # of the protocol that is under attack, where a copy is


@functools.cache
def signing_key(name: str) -> Ed25519PrivateKey:
    """A site's pinned key, always the same one."""
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(digest(name.encode())))


def site_names(count: int) -> list[str]:
    return [f"site-{number:03d}" for number in range(count)]


def members_of(count: int) -> tuple[tuple[str, str], ...]:
    return tuple((name, format_public_key(signing_key(name).public_key())) for name in site_names(count))


def make_terms(count: int, *, dropouts: int | None = None, colluders: int = 1, instances: int = 1) -> Terms:
    """Terms with the smallest threshold, and as many dropouts as it allows unless told."""
    threshold = smallest_threshold(count, colluders=colluders)
    return Terms(
        members=members_of(count),
        threshold=threshold,
        dropouts=count - threshold if dropouts is None else dropouts,
        colluders=colluders,
        instances=instances,
        largest=LARGEST,
    )


def make_setup(terms: Terms, *, study: str = STUDY, run: str = RUN, number: int = 1) -> Setup:
    return Setup(terms=terms, study=study, run=run, number=number)


def make_seat(setup: Setup, name: str, *, draw: Callable[[int], bytes] = os.urandom) -> Seat:
    sign = functools.partial(sign_envelope, payload_type=MESSAGE_TYPE, key=signing_key(name))
    return Seat(setup=setup, name=name, sign=sign, draw=draw)


def make_step(*, instance: int = 0, length: int = 5, model: str = MODEL, plan: str = PLAN) -> Step:
    return Step(instance=instance, round=instance + 1, attempt=1, plan=plan, model=model, length=length)


@dataclass(slots=True)
class Uses:
    """A use record in memory."""

    bindings: dict[int, str] = field(default_factory=dict)

    def use(self, masked: Masked) -> None:
        if masked.number in self.bindings:
            raise RuntimeError("used before")
        self.bindings[masked.number] = masked.binding


@dataclass(slots=True, kw_only=True)
class Member:
    """One site: its seat, what it remembers, and the message that it sent last."""

    seat: Seat
    uses: Uses = field(default_factory=Uses)
    advertised: Advertised | None = None
    keys: bytes = b""
    dealt: Dealt | None = None
    instances: tuple[Instance, ...] = ()
    masked: Masked | None = None
    agreed: Agreed | None = None

    @property
    def name(self) -> str:
        return self.seat.name

    def advertise(self) -> bytes:
        self.advertised, self.keys = advertise_keys(self.seat)
        return self.keys

    def share(self, messages: Iterable[bytes]) -> dict[str, bytes]:
        assert self.advertised is not None
        self.dealt, dealings = share_keys(self.seat, self.advertised, messages)
        return dealings

    def receive(self, dealings: Iterable[bytes]) -> bytes:
        assert self.dealt is not None
        self.instances, ready = receive_shares(self.seat, self.dealt, dealings)
        return ready

    def mask(self, step: Step, vector: Integers) -> bytes:
        self.masked, message = mask_input(self.seat, self.instances[step.instance], step, vector, uses=self.uses)
        return message

    def agree(self, survivors: Iterable[str]) -> bytes:
        assert self.masked is not None
        self.agreed, message = agree(self.seat, self.masked, list(survivors))
        return message

    def reveal(self, agreements: Iterable[bytes]) -> bytes:
        assert self.agreed is not None
        agreed, self.agreed, self.masked = self.agreed, None, None
        return reveal(self.seat, agreed, agreements)


@dataclass(slots=True, kw_only=True)
class Assembly:
    """All members of a set-up, and the coordinator's roll once it is complete."""

    setup: Setup
    members: dict[str, Member]
    roll: Roll | None = None

    @property
    def rolled(self) -> Roll:
        assert self.roll is not None
        return self.roll


def assemble(setup: Setup, *, draw: Callable[[int], bytes] = os.urandom) -> Assembly:
    members = {name: Member(seat=make_seat(setup, name, draw=draw)) for name in setup.terms.names}
    return Assembly(setup=setup, members=members)


def set_up(
    setup: Setup,
    *,
    silent: frozenset[str] = frozenset(),
    undealt: frozenset[str] = frozenset(),
    deaf: frozenset[str] = frozenset(),
    draw: Callable[[int], bytes] = os.urandom,
) -> Assembly:
    """A complete set-up. silent: lost before their keys; undealt: before their shares; deaf: before the others'."""
    assembly = assemble(setup, draw=draw)
    members = assembly.members
    keys = [member.advertise() for name, member in members.items() if name not in silent]
    advertised = read_advertisements(setup, keys)
    dealt = {name: members[name].share(keys) for name in advertised if name not in undealt}
    committed = {name: verify_dealings(setup, advertised, name, dealings) for name, dealings in dealt.items()}
    assembly.roll = complete_setup(setup, advertised, committed)
    for name in assembly.roll.members:
        if name not in deaf:
            ready = members[name].receive([dealt[peer][name] for peer in assembly.roll.members if peer != name])
            assert verify_ready(assembly.roll, ready) == name
    return assembly


def run_step(
    assembly: Assembly,
    step: Step,
    vectors: Mapping[str, Integers],
    *,
    unmasked: frozenset[str] = frozenset(),
    disagreeing: frozenset[str] = frozenset(),
    unrevealing: frozenset[str] = frozenset(),
) -> tuple[tuple[str, ...], Integers]:
    """One honest step. The sets name who is lost before masking, before agreeing, before revealing."""
    members, state = assembly.members, start_sum(assembly.rolled, step)
    for name in assembly.rolled.members:
        if name not in unmasked and members[name].instances:
            state = add_masked(state, members[name].mask(step, vectors[name]))
    survivors = close_sum(state)
    alive = [name for name in survivors if name not in disagreeing]
    words = [members[name].agree(survivors) for name in alive]
    alive = [name for name in alive if name not in unrevealing]
    return survivors, unmask_sum(state, [verify_reveal(state, members[name].reveal(words)) for name in alive])


def masked_sum(assembly: Assembly, step: Step, vectors: Mapping[str, Integers]) -> MaskedSum:
    """The coordinator's sum of everybody's vectors, before the agreement."""
    state = start_sum(assembly.rolled, step)
    for name in assembly.rolled.members:
        state = add_masked(state, assembly.members[name].mask(step, vectors[name]))
    return state


def random_vectors(names: Iterable[str], length: int, *, seed: int) -> dict[str, Integers]:
    generator = np.random.default_rng(seed)
    return {name: generator.integers(-LARGEST, LARGEST, length, endpoint=True) for name in names}
