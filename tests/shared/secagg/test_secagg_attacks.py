"""A malicious coordinator, and sites that collude with it: each attack works where one check is missing, only there.

Every attack is a function of the protocol under attack. It returns what the attacker learned, or ends with the refusal
of an honest site. `weaken` makes the copy without the check; `ours` is the protocol.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtwin_shared.secagg import sharing
from fedtwin_shared.secagg.masking import mask_pair, mask_seed
from fedtwin_shared.secagg.masks import add_masks
from fedtwin_shared.secagg.message import MESSAGE_TYPE, Phase, ProtocolError, sign_message
from fedtwin_shared.secagg.shamir import read_share, recover_secrets
from fedtwin_shared.secagg.terms import smallest_threshold
from fedtwin_shared.signing import canonical_json, digest, sign_envelope
from tests.shared.secagg.assembly import Integers, random_vectors, signing_key, site_names
from tests.shared.secagg.weakening import ours, weaken

LENGTH = 3
SEED, KEY = 0, 1

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
NO_MODEL = ("terms", '"step": asdict(self)', '"step": {**asdict(self), "model": ""}')
NO_CONTEXT = ("message", "    if found != wanted:", '    if found | {"context": context} != wanted:')
NO_DIGEST = ("message", "    if hashlib.sha256(body).hexdigest() != signed:", "    if False:")
NO_COMMITMENTS = (
    "unmasking",
    "(dealer != sender and not _is_committed(state, share, dealer=dealer, holder=sender))",
    "False",
)


def recover(shares: Mapping[str, bytes], names: Sequence[str], threshold: int) -> bytes:
    """A secret, from what some holders have of it."""
    holders = sorted(shares)[:threshold]
    rows = [read_share(shares[name]) for name in holders]
    secret = recover_secrets(rows, [names.index(name) for name in holders])[0]
    assert secret is not None
    return secret


def strip(
    total: Any, *, binding: str, seeds: Mapping[str, bytes], pairs: Mapping[tuple[str, str], tuple[bytes, bytes]]
) -> Integers:
    """The sum of some sites' vectors, from their masked ones, their seeds, and either end of each mask that is left.

    pairs: by site inside the sum and site outside it, a private key of one and the public key of the other.
    """
    added = list[bytes]()
    subtracted = [mask_seed(seed, binding=binding, owner=name) for name, seed in seeds.items()]
    for (inside, outside), (private, public) in pairs.items():
        key = mask_pair(private, public, binding=binding, names=(inside, outside))
        (subtracted if inside < outside else added).append(key)
    stripped = total.copy()
    add_masks(stripped, added=added, subtracted=subtracted)
    found: Integers = stripped.view(np.int64)
    return found


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


# Replay: what was said in another step, run or study.


def replay_vector(world: Any) -> tuple[Integers, Integers]:
    """One site's vector of the step before is counted again."""
    assembly = world.set_up(world.make_setup(world.make_terms(4, dropouts=1, instances=2)))
    members, vectors = assembly.members, random_vectors(site_names(4), LENGTH, seed=3)
    old = {name: member.mask(world.make_step(length=LENGTH), vectors[name]) for name, member in members.items()}
    state = world.start_sum(assembly.rolled, world.make_step(instance=1, length=LENGTH))
    before = state.total
    state = world.add_masked(state, old["site-001"])
    return (state.total - before).view(np.int64), np.frombuffer(old["site-001"][-8 * LENGTH :], dtype=np.int64)


def replay_word(world: Any) -> tuple[Integers, Integers]:
    """The agreements of the step before stand in for those of this one."""
    terms = world.make_terms(4, dropouts=1, instances=2)
    assembly = world.set_up(world.make_setup(terms))
    members, vectors = assembly.members, random_vectors(site_names(4), LENGTH, seed=3)
    words = []
    for instance in range(2):
        for name, member in members.items():
            member.mask(world.make_step(instance=instance, length=LENGTH), vectors[name])
        words.append([member.agree(terms.names) for member in members.values()])
    members["site-000"].reveal(words[0])
    return np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)


def replay_keys(world: Any) -> tuple[Integers, Integers]:
    """Keys of another study's set-up, whose secrets may be known by now, in this one."""
    terms = world.make_terms(4, dropouts=1)
    old = world.assemble(world.make_setup(terms, study="0" * 64))
    new = world.assemble(world.make_setup(terms))
    keys = [old.members["site-001"].advertise()]
    keys += [member.advertise() for name, member in new.members.items() if name != "site-001"]
    new.members["site-000"].share(keys)
    return np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)


REPLAYS = [(replay_vector, "masked: site-001"), (replay_word, "agreement: site-000"), (replay_keys, "keys: site-001")]


@pytest.mark.parametrize(("attack", "where"), REPLAYS, ids=["vector", "word", "keys"])
def test_a_replay_works_without_the_context(
    attack: Callable[[Any], tuple[Integers, Integers]], where: str, tmp_path: Path
) -> None:
    learned, secret = attack(weaken(tmp_path, NO_CONTEXT))
    assert np.array_equal(learned, secret)


@pytest.mark.parametrize(("attack", "where"), REPLAYS, ids=["vector", "word", "keys"])
def test_a_replay_is_refused(attack: Callable[[Any], tuple[Integers, Integers]], where: str) -> None:
    with pytest.raises(ProtocolError, match=f"{where}: expected this phase, context and recipient, found other"):
        attack(ours())


# One secret for two steps: what an instance is for.


def lose_one_later(world: Any) -> tuple[Integers, Integers]:
    """A site takes part in one step and is lost in the next: its key is rebuilt, with all the masks of the first."""
    terms = world.make_terms(4, dropouts=1, instances=2)
    assembly = world.set_up(world.make_setup(terms))
    members, vectors = assembly.members, random_vectors(terms.names, LENGTH, seed=4)
    first, second = (world.make_step(instance=instance, length=LENGTH) for instance in range(2))
    seen = world.start_sum(assembly.rolled, first)
    seen = world.add_masked(seen, members["site-003"].mask(first, vectors["site-003"]))
    rest = frozenset({"site-003"})
    state = world.start_sum(assembly.rolled, second)
    for name in terms.names:
        if name not in rest:
            state = world.add_masked(state, members[name].mask(second, vectors[name]))
    words = [members[name].agree(state.survivors) for name in state.survivors]
    shares = {name: members[name].reveal(words)[-36:] for name in state.survivors}  # of site-003, the last one
    key = recover(shares, terms.names, terms.threshold)
    binding = seen.binding
    seeds = {"site-003": members["site-003"].instances[0].seed}  # would be revealed when the first step ends
    pairs = {("site-003", name): (key, assembly.rolled.advertised[name].masks[0]) for name in state.survivors}
    return strip(seen.total, binding=binding, seeds=seeds, pairs=pairs), vectors["site-003"]


ONE_KEY = (
    "advertising",
    "keys = seat.draw(KEY_BYTES), tuple(seat.draw(KEY_BYTES) for _ in range(count))",
    "keys = seat.draw(KEY_BYTES), (seat.draw(KEY_BYTES),) * count",
)
SAME_KEY_TWICE = (
    "advertising",
    "            if coordinate in SMALL_ORDER or coordinate in seen:",
    "            if False:",
)


def test_a_key_for_two_steps_unmasks_the_first_when_its_site_is_lost_in_the_second(tmp_path: Path) -> None:
    learned, secret = lose_one_later(weaken(tmp_path, ONE_KEY, SAME_KEY_TWICE))
    assert np.array_equal(learned, secret)


def test_a_site_that_is_lost_in_one_step_loses_nothing_of_another() -> None:
    learned, secret = lose_one_later(ours())
    assert not (learned == secret).any()


# Overlapping requests: the share of the seed and the share of the key of one peer.

BOTH_KINDS = (
    "unmasking",
    "state.held[name][SEED if name in state.survivors else KEY] for name in state.members",
    "state.held[name][SEED] + state.held[name][KEY] for name in state.members",
)


def ask_for_both(world: Any) -> tuple[Integers, Integers]:
    """As in Flower 1.41, where lists of the active and of the dead may overlap and clients answer both."""
    terms = world.make_terms(4, dropouts=1)
    assembly = world.set_up(world.make_setup(terms))
    members, vectors = assembly.members, random_vectors(terms.names, LENGTH, seed=5)
    step, victim = world.make_step(length=LENGTH), "site-000"
    state = world.start_sum(assembly.rolled, step)
    for name, member in members.items():
        state = world.add_masked(state, member.mask(step, vectors[name]))
        if name == victim:
            masked = state.total
    words = [member.agree(terms.names) for member in members.values()]
    answers = {name: member.reveal(words) for name, member in members.items()}
    shares = {name: body[4 + int.from_bytes(body[:4], "big") :] for name, body in answers.items()}
    if any(len(share) != 2 * 36 * len(terms.names) for share in shares.values()):
        for name, share in shares.items():  # a share of each survivor's seed, and nothing else
            held = [receive[SEED] for receive in members[name].instances[0].held.values()]
            assert share == b"".join(held)
        raise LookupError
    seed = recover({name: share[:36] for name, share in shares.items()}, terms.names, terms.threshold)
    key = recover({name: share[36:72] for name, share in shares.items()}, terms.names, terms.threshold)
    pairs = {(victim, name): (key, assembly.rolled.advertised[name].masks[0]) for name in terms.names if name != victim}
    return strip(masked, binding=state.binding, seeds={victim: seed}, pairs=pairs), vectors[victim]


def test_both_shares_of_a_survivor_unmask_it(tmp_path: Path) -> None:
    learned, secret = ask_for_both(weaken(tmp_path, BOTH_KINDS))
    assert np.array_equal(learned, secret)


def test_one_share_of_each_member_is_all_there_is() -> None:
    with pytest.raises(LookupError):
        ask_for_both(ours())


@pytest.mark.parametrize(
    "named", [("site-000",) * 4, ("site-000", "site-000", "site-001", "site-002"), ("site-001", "site-002", "site-003")]
)
def test_survivors_that_are_not_distinct_members_with_oneself_are_refused(named: tuple[str, ...]) -> None:
    world = ours()
    terms = world.make_terms(4, dropouts=1)
    assembly = world.set_up(world.make_setup(terms))
    for member in assembly.members.values():
        member.mask(world.make_step(), np.zeros(5, dtype=np.int64))
    with pytest.raises(ProtocolError, match="agreement: unknown sender: expected members, each once"):
        assembly.members["site-000"].agree(named)
    assert assembly.members["site-000"].agree(terms.names)  # nothing has changed


# Flipped bits, where nothing signs the body.


def flip_a_bit(world: Any) -> tuple[Integers, Integers]:
    terms = world.make_terms(4, dropouts=1)
    assembly = world.set_up(world.make_setup(terms))
    step = world.make_step(length=LENGTH)
    state = world.start_sum(assembly.rolled, step)
    for name, member in assembly.members.items():
        data = bytearray(member.mask(step, np.zeros(LENGTH, dtype=np.int64)))
        data[-1] ^= (name == "site-002") << 7
        state = world.add_masked(state, bytes(data))
    words = [member.agree(terms.names) for member in assembly.members.values()]
    revealed = [world.verify_reveal(state, member.reveal(words)) for member in assembly.members.values()]
    return world.unmask_sum(state, revealed), np.array([0, 0, -(2**63)])


def test_a_flipped_bit_changes_the_sum_where_the_body_is_not_signed(tmp_path: Path) -> None:
    learned, secret = flip_a_bit(weaken(tmp_path, NO_DIGEST))
    assert np.array_equal(learned, secret)


def test_a_flipped_bit_of_a_vector_is_refused() -> None:
    with pytest.raises(ProtocolError, match="masked: site-002: expected the body that was signed"):
        flip_a_bit(ours())


# A site that lies about its shares.


def lie(world: Any, liar: str, *, about: str) -> tuple[Integers, Integers]:
    """One site reveals a wrong share of one member's seed."""
    terms = world.make_terms(5, dropouts=1)
    assembly = world.set_up(world.make_setup(terms))
    members, vectors = assembly.members, random_vectors(terms.names, LENGTH, seed=6)
    state = world.masked_sum(assembly, world.make_step(length=LENGTH), vectors)
    words = [member.agree(terms.names) for member in members.values()]
    held = dict(members[liar].agreed.held)
    held[about] = (bytes(36), held[about][KEY])
    members[liar].agreed = replace(members[liar].agreed, held=held)
    revealed = [world.verify_reveal(state, members[name].reveal(words)) for name in terms.names]
    return world.unmask_sum(state, revealed), np.sum(list(vectors.values()), axis=0)


def test_a_wrong_share_puts_the_blame_on_its_dealer_where_nobody_committed_to_it(tmp_path: Path) -> None:
    world = weaken(tmp_path, NO_COMMITMENTS)
    with pytest.raises(world.REFUSED, match="unmasking: site-004: expected shares of what was advertised"):
        lie(world, "site-001", about="site-004")


def test_a_site_that_lies_about_its_shares_is_named() -> None:
    with pytest.raises(ProtocolError, match="unmasking: site-001: expected the share that site-004 dealt") as refused:
        lie(ours(), "site-001", about="site-004")
    assert refused.value.sender == "site-001"


def test_a_site_that_lies_about_its_own_seed_is_named() -> None:
    with pytest.raises(ProtocolError, match="unmasking: site-001: expected shares of what was advertised"):
        lie(ours(), "site-001", about="site-001")


def test_without_the_liar_the_sum_is_right() -> None:
    world = ours()
    terms = world.make_terms(5, dropouts=1)
    assembly = world.set_up(world.make_setup(terms))
    vectors = random_vectors(terms.names, LENGTH, seed=6)
    _, total = world.run_step(assembly, world.make_step(length=LENGTH), vectors, unrevealing=frozenset({"site-001"}))
    assert np.array_equal(total, np.sum(list(vectors.values()), axis=0))


def test_a_dealer_who_shares_another_secret_than_it_advertised_is_named() -> None:
    # It commits to what it deals, and everybody reveals what they got.
    world = ours()
    terms = world.make_terms(4, dropouts=1)
    setup = world.make_setup(terms)
    assembly = world.assemble(setup)
    members = assembly.members
    keys = [member.advertise() for member in members.values()]
    dealer = members["site-002"]
    honest = dealer.advertised
    dealer.advertised = replace(honest, seeds=(bytes(32),))  # another seed than the one it committed to
    dealt = {name: member.share(keys) for name, member in members.items()}
    advertised = world.read_advertisements(setup, keys)
    committed = {name: world.verify_dealings(setup, advertised, name, dealings) for name, dealings in dealt.items()}
    assembly.roll = world.complete_setup(setup, advertised, committed)
    for name, member in members.items():
        member.receive([dealt[peer][name] for peer in dealt if peer != name])
    with pytest.raises(ProtocolError, match="unmasking: site-002: expected shares of what was advertised"):
        world.run_step(assembly, world.make_step(length=LENGTH), random_vectors(terms.names, LENGTH, seed=7))


def test_a_dealing_that_does_not_match_its_own_commitments_names_its_dealer(monkeypatch: pytest.MonkeyPatch) -> None:
    world = ours()
    setup = world.make_setup(world.make_terms(4, dropouts=1))
    assembly = world.assemble(setup)
    members = assembly.members
    keys = [member.advertise() for member in members.values()]
    dealt = {name: member.share(keys) for name, member in members.items() if name != "site-002"}
    with monkeypatch.context() as changed:
        changed.setattr(sharing, "commit_shares", lambda shares, **_: bytes(64))
        dealt["site-002"] = members["site-002"].share(keys)
    dealings = [dealt[peer]["site-000"] for peer in dealt if peer != "site-000"]
    with pytest.raises(ProtocolError, match="shares: site-002: expected the shares that were committed to"):
        members["site-000"].receive(dealings)


# A model of its own for one site: built so that its gradient holds single patients.


def send_one_another_model(world: Any) -> tuple[Integers, Integers]:
    terms = world.make_terms(4, dropouts=1)
    assembly = world.set_up(world.make_setup(terms))
    members, victim = assembly.members, "site-002"
    usual = world.make_step(length=LENGTH)
    imprint = replace(usual, model=digest(b"a model that prints patients into its gradient"))
    state, imprinted = world.start_sum(assembly.rolled, usual), np.array([1000, 2000, 3000])
    for name, member in members.items():
        data = member.mask(imprint, imprinted) if name == victim else member.mask(usual, np.array([1, 0, -1]))
        state = world.add_masked(state, data)
    words = [member.agree(terms.names) for member in members.values()]
    revealed = [world.verify_reveal(state, member.reveal(words)) for member in members.values()]
    return world.unmask_sum(state, revealed) - np.array([3, 0, -3]), imprinted


def test_another_model_for_one_site_works_where_the_model_is_not_bound(tmp_path: Path) -> None:
    learned, secret = send_one_another_model(weaken(tmp_path, NO_MODEL))
    assert np.array_equal(learned, secret)


def test_another_model_for_one_site_is_refused() -> None:
    with pytest.raises(ProtocolError, match="masked: site-002: expected this phase, context and recipient"):
        send_one_another_model(ours())


def test_another_model_for_one_site_is_refused_by_the_other_sites() -> None:
    # A coordinator that checks nothing itself: no site takes the word of one with another model.
    world = ours()
    terms = world.make_terms(4, dropouts=0)
    assembly = world.set_up(world.make_setup(terms))
    members = assembly.members
    usual = world.make_step(length=LENGTH)
    imprint = replace(usual, model=digest(b"another"))
    for name, member in members.items():
        member.mask(imprint if name == "site-002" else usual, np.zeros(LENGTH, dtype=np.int64))
    words = [member.agree(terms.names) for member in members.values()]
    for member in members.values():
        with pytest.raises(ProtocolError, match=r"agreement: site-00.: expected this phase, context"):
            member.reveal(words)


def test_the_smallest_threshold_is_what_the_attacks_were_run_against() -> None:
    assert ours().make_terms(10, colluders=3).threshold == smallest_threshold(10, colluders=3) == 7
