"""A malicious coordinator isolates a site: false keys, too few others, or two views of who survived.

Every attack is a function of the protocol under attack. It returns what the attacker learned, or ends with the refusal
of an honest site. `weaken` makes the copy without the check; `ours` is the protocol.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtwin_shared.secagg.message import MESSAGE_TYPE, Phase, ProtocolError, sign_message
from fedtwin_shared.secagg.terms import smallest_threshold
from fedtwin_shared.signing import canonical_json, sign_envelope
from tests.shared.secagg.assembly import Integers, random_vectors, signing_key
from tests.shared.secagg.attack import KEY, LENGTH, SEED, recover, strip
from tests.shared.secagg.weakening import ours, weaken

NO_SIGNATURES = (
    "message",
    "verified = verify_envelope(data[4 : 4 + length], payload_type=MESSAGE_TYPE, trusted=trusted)",
    "from fedtwin_shared.signing import _parse_envelope, VerifiedEnvelope as V\n"
    "        payload, kind, _, _ = _parse_envelope(data[4 : 4 + length])\n"
    "        import json\n"
    "        named = json.loads(payload)['sender']\n"
    "        verified = V(payload=payload, payload_type=kind, signer=dict((n, k) for k, n in trusted.items())[named])",
)
NO_MINIMUM = ("advertising", "    if count < fewest:", "    if False:")
NO_BOUND = ("terms", "        _require(2 * t > n + c,", "        _require(True or 2 * t > n + c,")
NO_AGREEMENT = (
    "unmasking",
    "        sender = verify_agreement(data, binding=state.binding, survivors=state.survivors, terms=seat.terms)",
    "        sender = verify_message(data, phase=Phase.AGREEMENT, context=state.binding, terms=seat.terms).sender",
)

# Key substitution: the coordinator plays everybody else to one site, with keys of its own.


def substitute_keys(world: Any) -> tuple[Integers, Integers]:
    setup = world.make_setup(world.make_terms(4))
    assembly = world.assemble(setup)
    victim, *others = assembly.members.values()
    for other in others:
        sign = functools.partial(sign_envelope, payload_type=MESSAGE_TYPE, key=signing_key("the-coordinator"))
        other.seat = world.Seat(setup=setup, name=other.name, sign=sign, draw=other.seat.draw)
    keys = [member.advertise() for member in assembly.members.values()]
    dealt = {name: member.share(keys) for name, member in assembly.members.items()}
    advertised = world.read_advertisements(setup, keys)
    committed = {name: world.verify_dealings(setup, advertised, name, dealings) for name, dealings in dealt.items()}
    assembly.roll = world.complete_setup(setup, advertised, committed)
    for name, member in assembly.members.items():
        member.receive([dealt[peer][name] for peer in dealt if peer != name])
    vectors = {name: np.zeros(LENGTH, dtype=np.int64) for name in assembly.members}
    vectors[victim.name] = np.array([11, -7, 5])
    _, total = world.run_step(assembly, world.make_step(length=LENGTH), vectors)
    return total, vectors[victim.name]


def test_key_substitution_works_without_signatures(tmp_path: Path) -> None:
    learned, secret = substitute_keys(weaken(tmp_path, NO_SIGNATURES))
    assert np.array_equal(learned, secret)


def test_key_substitution_is_refused() -> None:
    with pytest.raises(ProtocolError, match="keys: unknown sender: expected signatures: a trusted signer"):
        substitute_keys(ours())


# Isolation: a sum over fewer sites than the terms promise, and so with less noise.


def isolate(world: Any) -> tuple[Integers, Integers]:
    """Nobody is lost, but the coordinator names only t survivors: the sum of t - c honest ones, not of n - d - c."""
    terms = world.make_terms(9, dropouts=0, colluders=2)
    assembly = world.set_up(world.make_setup(terms))
    vectors = random_vectors(terms.names, LENGTH, seed=1)
    unmasked = frozenset(terms.names[terms.threshold :])
    survivors, total = world.run_step(assembly, world.make_step(length=LENGTH), vectors, unmasked=unmasked)
    assert len(survivors) == terms.threshold < terms.minimum
    return total, np.sum([vectors[name] for name in survivors], axis=0)


def isolate_from_the_start(world: Any) -> tuple[Integers, Integers]:
    """One site is shown a consortium of itself and t - 1 others."""
    terms = world.make_terms(9, dropouts=0, colluders=2)
    few = frozenset(terms.names[terms.threshold :])
    assembly = world.set_up(world.make_setup(terms), silent=few)
    vectors = random_vectors(terms.names, LENGTH, seed=1)
    survivors, total = world.run_step(assembly, world.make_step(length=LENGTH), vectors)
    return total, np.sum([vectors[name] for name in survivors], axis=0)


@pytest.mark.parametrize("attack", [isolate, isolate_from_the_start])
def test_isolation_works_without_the_minimum(
    attack: Callable[[Any], tuple[Integers, Integers]], tmp_path: Path
) -> None:
    learned, secret = attack(weaken(tmp_path, NO_MINIMUM))
    assert np.array_equal(learned, secret)


@pytest.mark.parametrize("attack", [isolate, isolate_from_the_start])
def test_isolation_is_refused_by_the_coordinators_own_code(
    attack: Callable[[Any], tuple[Integers, Integers]],
) -> None:
    with pytest.raises(ProtocolError, match="expected at least 9 sites, found 6"):
        attack(ours())


def test_isolation_is_refused_by_the_sites_themselves() -> None:
    world = ours()
    terms = world.make_terms(9, dropouts=0, colluders=2)
    assembly = world.assemble(world.make_setup(terms))
    members = list(assembly.members.values())
    keys = [member.advertise() for member in members]
    with pytest.raises(ProtocolError, match="keys: unknown sender: expected at least 9 sites, found 6"):
        members[0].share(keys[:6])
    dealt = [member.share(keys) for member in members]
    with pytest.raises(ProtocolError, match="shares: unknown sender: expected at least 9 sites, found 6"):
        members[0].receive([dealings["site-000"] for dealings in dealt[1:6]])
    assembly = world.set_up(world.make_setup(terms))
    for member in assembly.members.values():
        member.mask(world.make_step(), np.zeros(5, dtype=np.int64))
    with pytest.raises(ProtocolError, match="agreement: unknown sender: expected at least 9 sites, found 6"):
        assembly.members["site-000"].agree(terms.names[:6])


# Two survivor views: honest sites are asked about different survivors, and the colluders sign and tell everything.


class Split:
    """What the coordinator gets when it shows each honest site a view of its own."""

    def __init__(self, world: Any, terms: Any, *, views: Mapping[str, Sequence[str]], every_word: bool) -> None:
        self.terms, self.roll = terms, None
        step = world.make_step(length=LENGTH)
        assembly = world.set_up(world.make_setup(terms))
        self.roll, members = assembly.rolled, assembly.members
        self.vectors = random_vectors(terms.names, LENGTH, seed=2)
        state, self.masked = world.start_sum(self.roll, step), {}
        for name in terms.names:
            total, state = state.total, world.add_masked(state, members[name].mask(step, self.vectors[name]))
            self.masked[name] = state.total - total
        self.binding = state.binding
        hostile = [name for name in terms.names if name not in views]
        self.keys = {name: members[name].instances[0].key for name in hostile}
        self.shares: dict[tuple[str, int], dict[str, bytes]] = {}
        for name in hostile:
            for dealer, pair in members[name].masked.held.items():
                self.note(name, dealer, SEED, pair[SEED])
                self.note(name, dealer, KEY, pair[KEY])
        honest_words = {name: members[name].agree(view) for name, view in views.items()}
        for name, view in views.items():
            words = [word for peer, word in honest_words.items() if every_word or set(views[peer]) == set(view)]
            for one in hostile:
                sign = functools.partial(sign_envelope, payload_type=MESSAGE_TYPE, key=signing_key(one))
                body = canonical_json(sorted(view))
                words.append(sign_message(body, phase=Phase.AGREEMENT, sender=one, context=self.binding, sign=sign))
            body = members[name].reveal(words)[-36 * len(terms.names) :]
            for place, dealer in enumerate(terms.names):
                self.note(name, dealer, SEED if dealer in view else KEY, body[36 * place : 36 * (place + 1)])

    def note(self, holder: str, dealer: str, kind: int, share: bytes) -> None:
        self.shares.setdefault((dealer, kind), {})[holder] = share

    def secret(self, dealer: str, kind: int) -> bytes:
        return recover(self.shares[dealer, kind], self.terms.names, self.terms.threshold)

    def public(self, name: str) -> bytes:
        assert self.roll is not None
        key: bytes = self.roll.advertised[name].masks[0]
        return key


def learn_one(world: Any, terms: Any) -> tuple[Integers, Integers]:
    """Half of the honest sites believe that one site survived, the other half that it did not."""
    hostile, honest = terms.names[: terms.colluders], terms.names[terms.colluders :]
    victim, half = honest[0], len(honest) // 2
    without = tuple(name for name in terms.names if name != victim)
    views = {name: terms.names if place < half else without for place, name in enumerate(honest)}
    assert len(hostile) == terms.colluders
    seen = Split(world, terms, views=views, every_word=False)
    key = seen.secret(victim, KEY)
    learned = strip(
        seen.masked[victim],
        binding=seen.binding,
        seeds={victim: seen.secret(victim, SEED)},
        pairs={(victim, other): (key, seen.public(other)) for other in without},
    )
    return learned, seen.vectors[victim]


def learn_sum_of_two(world: Any, terms: Any) -> tuple[Integers, Integers]:
    """Every honest site sees n - d survivors, but only two of the honest ones are survivors to t sites."""
    honest = terms.names[terms.colluders :]
    victims, others = honest[:2], honest[2:]
    room = dict.fromkeys(honest, terms.dropouts)  # how many each may still be told are lost
    lost = {name: set[str]() for name in honest}
    for other in others:
        voters = sorted((name for name in honest if name != other), key=lambda name: -room[name])
        for voter in voters[: terms.threshold - terms.colluders]:
            assert room[voter] > 0
            room[voter] -= 1
            lost[voter].add(other)
    views = {name: tuple(peer for peer in terms.names if peer not in lost[name]) for name in honest}
    seen = Split(world, terms, views=views, every_word=True)
    keys = {**seen.keys, **{other: seen.secret(other, KEY) for other in others}}
    learned = strip(
        np.sum([seen.masked[name] for name in victims], axis=0),
        binding=seen.binding,
        seeds={name: seen.secret(name, SEED) for name in victims},
        pairs={(name, other): (key, seen.public(name)) for name in victims for other, key in keys.items()},
    )
    return learned, np.sum([seen.vectors[name] for name in victims], axis=0)


def unsafe_terms(world: Any, count: int) -> Any:
    """t = floor(2n/3) + 1 against ceil(n/3) colluders: 2t = n + c."""
    threshold = 2 * count // 3 + 1
    return world.Terms(
        members=world.members_of(count),
        threshold=threshold,
        dropouts=count - threshold,
        colluders=-(-count // 3),
        instances=1,
        largest=2**40,
    )


@pytest.mark.parametrize("count", [4, 7, 10])
def test_two_views_isolate_a_site_where_the_threshold_is_two_thirds(count: int, tmp_path: Path) -> None:
    world = weaken(tmp_path, NO_BOUND)
    learned, secret = learn_one(world, unsafe_terms(world, count))
    assert np.array_equal(learned, secret)


@pytest.mark.parametrize("count", [4, 7, 10])
def test_such_a_threshold_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="2 "):
        unsafe_terms(ours(), count)


@pytest.mark.parametrize("count", [5, 7, 10])
def test_two_views_are_refused(count: int) -> None:
    # The same coordinator against terms that hold: one of the two views lacks a signature.
    terms = ours().make_terms(count, colluders=(count - 1) // 3)
    with pytest.raises(ProtocolError, match=r"unmasking: unknown sender: expected \d+ agreements"):
        learn_one(ours(), terms)


def test_the_sum_of_two_is_learned_without_the_agreement(tmp_path: Path) -> None:
    # n = 10, t = 7, c = 3: 2t > n + c, so no site's seed and key are both revealed, and still this works.
    world = weaken(tmp_path, NO_AGREEMENT)
    learned, secret = learn_sum_of_two(world, world.make_terms(10, colluders=3))
    assert np.array_equal(learned, secret)


def test_different_views_are_refused_by_the_agreement() -> None:
    terms = ours().make_terms(10, colluders=3)
    assert terms.threshold == 7
    with pytest.raises(ProtocolError, match=r"agreement: site-00.: expected a survivor's word on them, found another"):
        learn_sum_of_two(ours(), terms)


def test_the_smallest_threshold_is_what_the_attacks_were_run_against() -> None:
    assert ours().make_terms(10, colluders=3).threshold == smallest_threshold(10, colluders=3) == 7
