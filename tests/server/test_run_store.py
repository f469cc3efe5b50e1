"""One contract for every store, and what only files can do: survive a crash, refuse a second process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fedtwin_server.checkpoint import Arrays, decode_state, encode_state
from fedtwin_server.errors import RunError
from fedtwin_server.rounds import GlobalModel, RoundRecord, RunState
from fedtwin_server.run_store import FileRunStore, MemoryRunStore, RunStore, is_under_way, read_state
from fedtwin_server.server_app import conduct
from fedtwin_shared.models import digest_parameters
from fedtwin_shared.round import RefusalCode, Task
from tests.server.consortium import RUN, SilentGrid, StillClock, honest_nodes, make_run, start
from tests.world import SITES, make_world

WORLD = make_world()
Open = Callable[[RunState], RunStore]


@pytest.fixture(params=["memory", "files"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    def open_one(state: RunState) -> RunStore:
        if request.param == "memory":
            return MemoryRunStore(state)
        store = FileRunStore(tmp_path / "run")
        store.save(state)
        return store

    return open_one


def assert_same(found: RunState, expected: RunState) -> None:
    assert encode_state(found) == encode_state(expected)


def test_what_was_saved_last_is_loaded(open_store: Open) -> None:
    first = start(WORLD)
    store = open_store(first)
    assert_same(store.load(), first)
    second = RunState(run=RUN, study=first.study, model=first.model, rounds_done=1, attempt=2)
    store.save(second)
    assert_same(store.load(), second)


def test_every_store_conducts_a_run_to_the_same_release(open_store: Open) -> None:
    clock, store = StillClock(), open_store(start(WORLD))
    state = conduct(make_run(WORLD, clock, store), SilentGrid(honest_nodes(WORLD), clock))
    reference = MemoryRunStore(start(WORLD))
    clock = StillClock()
    expected = conduct(make_run(WORLD, clock, reference), SilentGrid(honest_nodes(WORLD), clock))
    assert_same(state, expected)
    assert_same(store.load(), expected)


names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)
numbers = arrays.arrays(np.float32, arrays.array_shapes(max_dims=3, max_side=3))
sums = arrays.arrays(np.float64, arrays.array_shapes(max_dims=3, max_side=3))
records = st.builds(
    RoundRecord,
    task=st.sampled_from(Task),
    round=st.integers(0, 9),
    attempt=st.integers(1, 3),
    sites=st.lists(st.sampled_from(SITES), unique=True).map(tuple),
    refusals=st.dictionaries(st.sampled_from(SITES), st.sampled_from(RefusalCode)),
    errors=st.dictionaries(names, st.integers(1, 9)),
    unverified=st.integers(0, 9),
)
states = st.builds(
    RunState,
    run=st.just(RUN),
    study=st.just("0" * 64),
    model=st.builds(
        GlobalModel,
        parameters=st.dictionaries(names, numbers),
        first_moment=st.dictionaries(names, numbers),
        second_moment=st.dictionaries(names, numbers),
    ),
    rounds_done=st.integers(0, 9),
    attempt=st.integers(1, 3),
    total=st.dictionaries(names, sums),
    histograms=st.dictionaries(
        st.integers(0, 9), st.dictionaries(st.sampled_from(SITES), sums, min_size=1), max_size=3
    ),
    history=st.lists(records, max_size=3).map(tuple),
    failed=st.none() | records,
)


@given(states)
@settings(max_examples=50, deadline=None)
def test_every_array_has_the_bits_that_it_had(state: RunState) -> None:
    found = decode_state(encode_state(state))
    pairs: list[tuple[Arrays, Arrays]] = [
        (found.model.parameters, state.model.parameters),
        (found.model.first_moment, state.model.first_moment),
        (found.model.second_moment, state.model.second_moment),
        (found.total, state.total),
        *((found.histograms[number], state.histograms[number]) for number in state.histograms),
    ]
    for ours, theirs in pairs:
        assert list(ours) == list(theirs)
        assert digest_parameters(ours) == digest_parameters(theirs)
    assert set(found.histograms) == set(state.histograms)
    assert (found.history, found.failed) == (state.history, state.failed)
    assert (found.run, found.study, found.rounds_done, found.attempt) == (
        state.run,
        state.study,
        state.rounds_done,
        state.attempt,
    )


@given(data=st.binary(max_size=60) | st.just(encode_state(start(WORLD))[:-40]))
def test_a_damaged_checkpoint_is_our_own_error(data: bytes) -> None:
    with pytest.raises(RunError, match="checkpoint"):
        decode_state(data)


def test_a_missing_checkpoint_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"checkpoint\.npz: expected a checkpoint"):
        read_state(tmp_path)


def test_a_crash_while_writing_leaves_the_old_state(tmp_path: Path) -> None:
    with FileRunStore(tmp_path) as store:
        store.save(start(WORLD))
        (tmp_path / ".checkpoint.npz.new").write_bytes(b"half a checkp")  # what a kill in the middle leaves
        assert_same(store.load(), start(WORLD))
        store.save(start(WORLD))
        assert not (tmp_path / ".checkpoint.npz.new").exists()


def test_only_the_owner_can_read_a_run(tmp_path: Path) -> None:
    with FileRunStore(tmp_path / "run") as store:
        store.save(start(WORLD))
        store.note({"round": 1})
        store.release({}, {})
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) == 5
    assert {path.stat().st_mode & 0o077 for path in [tmp_path / "run", *files]} == {0}


def test_a_torn_line_of_progress_does_not_spoil_the_next(tmp_path: Path) -> None:
    with FileRunStore(tmp_path) as store:
        store.note({"round": 1})
        with (tmp_path / "progress.jsonl").open("ab") as file:
            file.write(b'{"round": 2, "si')
        store.note({"round": 3})
    lines = (tmp_path / "progress.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in (lines[0], lines[2])] == [{"round": 1}, {"round": 3}]


def test_a_run_has_one_process_at_a_time_and_is_free_when_it_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time, pathlib\n"
        "from fedtwin_server.run_store import FileRunStore\n"
        "store = FileRunStore(pathlib.Path(sys.argv[1]))\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        assert is_under_way(tmp_path)
        with pytest.raises(RunError, match="under way"):
            FileRunStore(tmp_path)
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
    assert not is_under_way(tmp_path)
    assert os.path.exists(tmp_path / "lock")
