"""Bytes that changed, sites that lie, and one site that gets another model: seen, and the liar named.

Every attack is a function of the protocol under attack. It returns what the attacker learned, or ends with the refusal
of an honest site. `weaken` makes the copy without the check; `ours` is the protocol.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedtwin_shared.secagg import sharing
from fedtwin_shared.secagg.message import ProtocolError
from fedtwin_shared.signing import digest
from tests.shared.secagg.assembly import Integers, random_vectors
from tests.shared.secagg.attack import KEY, LENGTH
from tests.shared.secagg.weakening import ours, weaken

NO_MODEL = ("terms", '"step": asdict(self)', '"step": {**asdict(self), "model": ""}')
NO_DIGEST = ("message", "    if hashlib.sha256(body).hexdigest() != signed:", "    if False:")
NO_COMMITMENTS = (
    "unmasking",
    "(dealer != sender and not _is_committed(state, share, dealer=dealer, holder=sender))",
    "False",
)

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
