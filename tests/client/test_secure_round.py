"""A site that remembers: it restarts, is killed, is asked again, and never says two things."""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedtwin_client.secure_round import SecureRounds
from fedtwin_client.secure_store import (
    DATABASE,
    Kept,
    SecureStoreError,
    SqliteInstanceStore,
    Status,
    decode_state,
    encode_state,
)
from fedtwin_shared.secagg.advertising import read_advertisements
from fedtwin_shared.secagg.masking import add_masked, start_sum
from fedtwin_shared.secagg.message import MESSAGE_TYPE, ProtocolError
from fedtwin_shared.secagg.sharing import complete_setup, verify_dealings, verify_ready
from fedtwin_shared.secagg.unmasking import unmask_sum, verify_reveal
from fedtwin_shared.signing import sign_envelope
from tests.shared.secagg.assembly import (
    Assembly,
    Integers,
    assemble,
    make_setup,
    make_step,
    make_terms,
    random_vectors,
    signing_key,
)

OWN = "site-001"
SIGN = functools.partial(sign_envelope, payload_type=MESSAGE_TYPE, key=signing_key(OWN))
SETUP = make_setup(make_terms(4, dropouts=1, instances=3))
NAMES = SETUP.terms.names
VECTORS = random_vectors(NAMES, 5, seed=8)
SUM = np.sum(list(VECTORS.values()), axis=0)


class Site:
    """One site on a real folder, which can be restarted."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.computed = folder, 0
        self.reopen()

    def restart(self) -> None:
        self.store.close()
        self.reopen()

    def reopen(self) -> None:
        self.store = SqliteInstanceStore(self.folder)
        self.rounds = SecureRounds(name=OWN, sign=SIGN, store=self.store)

    def compute(self) -> Integers:
        self.computed += 1
        return VECTORS[OWN]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "secure")


def set_up_with(site: Site) -> Assembly:
    """A set-up of three sites in memory and the one on disk."""
    assembly = assemble(SETUP)
    members = assembly.members
    keys = {name: site.rounds.advertise(SETUP) if name == OWN else members[name].advertise() for name in NAMES}
    advertised = read_advertisements(SETUP, keys.values())
    dealt = {
        name: site.rounds.share(SETUP, keys.values()) if name == OWN else members[name].share(keys.values())
        for name in NAMES
    }
    committed = {name: verify_dealings(SETUP, advertised, name, dealings) for name, dealings in dealt.items()}
    assembly.roll = complete_setup(SETUP, advertised, committed)
    for name in NAMES:
        dealings = [dealt[peer][name] for peer in NAMES if peer != name]
        ready = site.rounds.receive(SETUP, dealings) if name == OWN else members[name].receive(dealings)
        assert verify_ready(assembly.roll, ready) == name
    return assembly


def finish(
    assembly: Assembly, site: Site, *, instance: int = 0, between: Callable[[], None] = lambda: None
) -> Integers:
    """A whole step with everybody, and something that happens to the site between any two messages."""
    members, step = assembly.members, make_step(instance=instance)
    state = start_sum(assembly.rolled, step)
    for name in NAMES:
        between()
        data = site.rounds.mask(SETUP, step, site.compute) if name == OWN else members[name].mask(step, VECTORS[name])
        state = add_masked(state, data)
    between()
    words = [site.rounds.agree(SETUP, instance, NAMES) if name == OWN else members[name].agree(NAMES) for name in NAMES]
    between()
    shares = [
        site.rounds.reveal(SETUP, instance, words) if name == OWN else members[name].reveal(words) for name in NAMES
    ]
    return unmask_sum(state, [verify_reveal(state, data) for data in shares])


def test_a_site_that_restarts_between_any_two_messages_finishes_its_step(site: Site) -> None:
    assembly = set_up_with(site)
    for instance in range(3):
        assert np.array_equal(finish(assembly, site, instance=instance, between=site.restart), SUM)
    assert site.computed == 3


def test_the_same_request_gets_the_same_bytes_and_computes_nothing(site: Site) -> None:
    assembly = set_up_with(site)
    step, others = make_step(), [name for name in NAMES if name != OWN]
    masked = site.rounds.mask(SETUP, step, site.compute)
    assert site.rounds.mask(SETUP, step, site.compute) == masked
    assert site.computed == 1
    site.restart()
    with pytest.raises(ProtocolError, match="masked: coordinator: expected an unused instance"):
        site.rounds.mask(SETUP, step, site.compute)
    for name in others:
        assembly.members[name].mask(step, VECTORS[name])
    word = site.rounds.agree(SETUP, 0, NAMES)
    site.restart()
    assert site.rounds.agree(SETUP, 0, NAMES[::-1]) == word
    words = [word, *(assembly.members[name].agree(NAMES) for name in others)]
    shares = site.rounds.reveal(SETUP, 0, words)
    site.restart()
    assert site.rounds.reveal(SETUP, 0, words[::-1]) == shares


def test_a_second_vector_survivor_set_or_unmasking_is_refused(site: Site) -> None:
    assembly = set_up_with(site)
    step = make_step()
    members = assembly.members
    with pytest.raises(
        ProtocolError, match="agreement: coordinator: expected a masked vector, found one that is unused"
    ):
        site.rounds.agree(SETUP, 0, NAMES)
    site.rounds.mask(SETUP, step, site.compute)
    with pytest.raises(
        ProtocolError, match="masked: coordinator: expected an unused instance, found one that is masked"
    ):
        site.rounds.mask(SETUP, make_step(model="0" * 64), site.compute)
    with pytest.raises(ProtocolError, match="unmasking: coordinator: expected an agreement, found one that is masked"):
        site.rounds.reveal(SETUP, 0, [])
    for name in NAMES:
        if name != OWN:
            members[name].mask(step, VECTORS[name])
    word = site.rounds.agree(SETUP, 0, NAMES)
    with pytest.raises(ProtocolError, match="agreement: coordinator"):
        site.rounds.agree(SETUP, 0, NAMES[:3])
    words = [word, *(members[name].agree(NAMES) for name in NAMES if name != OWN)]
    site.rounds.reveal(SETUP, 0, words)
    site.restart()
    with pytest.raises(
        ProtocolError, match="unmasking: coordinator: expected an agreement, found one that is revealed"
    ):
        site.rounds.reveal(SETUP, 0, words[:3])
    with pytest.raises(ProtocolError, match="found one that is revealed"):
        site.rounds.agree(SETUP, 0, NAMES)
    with pytest.raises(ProtocolError, match="found one that is revealed"):
        site.rounds.mask(SETUP, step, site.compute)
    assert site.computed == 1


def test_a_site_without_memory_can_be_unmasked_a_second_time(site: Site) -> None:
    # The weakened copy: the same functions, and nobody who keeps what was said.
    assembly = set_up_with(site)
    members, step = assembly.members, make_step()
    for name in NAMES:
        if name != OWN:
            members[name].mask(step, VECTORS[name])
    forgetful = members["site-000"]
    before = forgetful.masked
    first = forgetful.agree(NAMES)
    forgetful.masked = before
    assert forgetful.agree(("site-000", "site-002", "site-003")) != first


def test_what_is_refused_changes_nothing(site: Site) -> None:
    assembly = set_up_with(site)
    site.rounds.mask(SETUP, make_step(), site.compute)
    before = site.store.find(SETUP.digest, 0)
    for named in (NAMES[:2], (*NAMES, "site-000"), ("site-000", "site-002", "site-003")):
        with pytest.raises(ProtocolError):
            site.rounds.agree(SETUP, 0, named)
    with pytest.raises(ProtocolError, match="an instance of a complete set-up, found none"):
        site.rounds.agree(SETUP, 9, NAMES)
    assert site.store.find(SETUP.digest, 0) == before
    assert assembly.rolled.members == NAMES


def test_a_set_up_is_begun_once_and_in_order(site: Site) -> None:
    with pytest.raises(ProtocolError, match="shares: coordinator: expected keys that were advertised, found none"):
        site.rounds.share(SETUP, [])
    with pytest.raises(ProtocolError, match="ready: coordinator: expected shares that were dealt, found none"):
        site.rounds.receive(SETUP, [])
    site.rounds.advertise(SETUP)
    for _ in range(2):
        with pytest.raises(ProtocolError, match="keys: coordinator: expected a new set-up"):
            site.rounds.advertise(SETUP)
        site.restart()
    with pytest.raises(ProtocolError, match="expected keys that were advertised"):
        site.rounds.share(SETUP, [])  # it restarted, and what it had advertised is gone


def test_another_step_ends_the_one_before(site: Site) -> None:
    set_up_with(site)
    site.rounds.mask(SETUP, make_step(), site.compute)
    site.rounds.mask(SETUP, make_step(instance=1), site.compute)
    with pytest.raises(
        ProtocolError, match="agreement: coordinator: expected a masked vector, found one that is ended"
    ):
        site.rounds.agree(SETUP, 0, NAMES)
    assert site.store.find(SETUP.digest, 0) == Kept(status=Status.ENDED)


def test_a_computation_that_fails_uses_nothing(site: Site) -> None:
    set_up_with(site)

    def fail() -> Integers:
        raise OSError("the data cannot be read")

    with pytest.raises(OSError, match="data"):
        site.rounds.mask(SETUP, make_step(), fail)
    kept = site.store.find(SETUP.digest, 0)
    assert kept is not None
    assert kept.status is Status.UNUSED


def test_a_second_process_cannot_open_the_store(site: Site) -> None:
    with pytest.raises(SecureStoreError, match="no other process"):
        SqliteInstanceStore(site.folder)


def test_a_write_that_fails_stops_the_site_before_anything_is_masked(site: Site) -> None:
    set_up_with(site)
    site.store._connection.execute("CREATE TRIGGER full BEFORE UPDATE ON instance BEGIN SELECT raise(ABORT, 'x'); END")
    with pytest.raises(SecureStoreError, match="a disk that reads and writes"):
        site.rounds.mask(SETUP, make_step(), site.compute)
    with pytest.raises(SecureStoreError, match="to be opened again"):
        site.rounds.mask(SETUP, make_step(), site.compute)


def test_secrets_are_gone_from_the_disk_when_a_step_is_over(site: Site) -> None:
    assembly = set_up_with(site)
    kept = site.store.find(SETUP.digest, 0)
    assert kept is not None
    instance = kept.state
    assert instance is not None
    seeds = [share.hex().encode() for pair in instance.held.values() for share in pair]
    own = [instance.seed.hex().encode(), instance.key.hex().encode()]  # type: ignore[union-attr]  # it is unused

    def on_disk() -> bytes:
        return b"".join(path.read_bytes() for path in sorted(site.folder.iterdir()))

    assert all(secret in on_disk() for secret in (*own, *seeds))
    finish(assembly, site)
    assert not any(secret in on_disk() for secret in (*own, *seeds))
    later = site.store.find(SETUP.digest, 1)
    assert later is not None
    assert later.state is not None
    held = next(iter(later.state.held.values()))[0].hex().encode()
    assert held in on_disk()
    site.rounds.forget(SETUP)
    assert held not in on_disk()
    assert (site.folder / DATABASE).stat().st_mode & 0o777 == 0o600


def test_every_state_is_read_back_as_it_was(site: Site) -> None:
    assembly = set_up_with(site)
    member = assembly.members["site-000"]
    assert decode_state(encode_state(member.instances[2])) == member.instances[2]
    member.mask(make_step(), VECTORS["site-000"])
    assert member.masked is not None
    assert decode_state(encode_state(member.masked)) == member.masked
    member.agree(NAMES)
    assert member.agreed is not None
    assert decode_state(encode_state(member.agreed)) == member.agreed


STATEMENTS = 14  # that SQLite runs in one step


@pytest.mark.parametrize("statement", range(STATEMENTS + 1))
def test_a_kill_at_any_statement_leaves_a_step_to_finish_or_to_leave(
    site: Site, statement: int, tmp_path: Path
) -> None:
    """SIGKILL before the n-th statement; what was said before it and what is said after it are one story."""
    assembly = set_up_with(site)
    told = tmp_path / "told"
    told.mkdir()
    for name in NAMES:
        if name != OWN:
            assembly.members[name].mask(make_step(), VECTORS[name])
    words = [assembly.members[name].agree(NAMES) for name in NAMES if name != OWN]
    site.store.close()
    context = multiprocessing.get_context("fork")
    child = context.Process(target=take_part, args=(site.folder, told, words, statement))
    child.start()
    child.join(timeout=30)
    assert child.exitcode == (0 if statement == STATEMENTS else -signal.SIGKILL)
    site.reopen()
    said = {path.name: path.read_bytes() for path in told.iterdir()}
    for name, request in requests(site.rounds, words):
        with contextlib.suppress(ProtocolError):
            answer = request()
            assert said.setdefault(name, answer) == answer
    # It takes part to the end; or no vector has left and none ever will, so that no coordinator can count it.
    assert sorted(said) in (["agreement", "masked", "shares"], ["agreement", "shares"])


def take_part(folder: Path, told: Path, words: list[bytes], statement: int) -> None:
    """The child: a whole step, each answer written down when it has left."""
    store, left = SqliteInstanceStore(folder), itertools.count(statement, -1)

    def count(_: str) -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    store._connection.set_trace_callback(count)
    for name, request in requests(SecureRounds(name=OWN, sign=SIGN, store=store), words):
        (told / name).write_bytes(request())
    os._exit(0)


def requests(rounds: SecureRounds, words: list[bytes]) -> list[tuple[str, Callable[[], bytes]]]:
    """What a coordinator asks for in one step, in order."""
    return [
        ("masked", lambda: rounds.mask(SETUP, make_step(), lambda: VECTORS[OWN])),
        ("agreement", lambda: rounds.agree(SETUP, 0, NAMES)),
        ("shares", lambda: rounds.reveal(SETUP, 0, words)),
    ]
