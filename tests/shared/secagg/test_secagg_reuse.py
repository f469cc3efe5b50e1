"""A malicious coordinator uses what was said elsewhere: another step, run or study, or more shares than one.

Every attack is a function of the protocol under attack. It returns what the attacker learned, or ends with the refusal
of an honest site. `weaken` makes the copy without the check; `ours` is the protocol.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtwin_shared.secagg.message import ProtocolError
from tests.shared.secagg.assembly import Integers, random_vectors, site_names
from tests.shared.secagg.attack import LENGTH, SEED, recover, strip
from tests.shared.secagg.weakening import ours, weaken

NO_CONTEXT = ("message", "    if found != wanted:", '    if found | {"context": context} != wanted:')

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
