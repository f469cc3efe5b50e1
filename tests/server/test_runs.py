"""Runs in a directory: one for each study, found by fedtwin's own id, resumed only when that makes sense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from fedtwin_server.config import DIRECTORY_VARIABLE, CoordinatorDirectory
from fedtwin_server.errors import RunError
from fedtwin_server.following import describe_entry, follow_run, new_run_id
from fedtwin_server.run_store import FileRunStore
from fedtwin_server.runs import prepare_resume, prepare_run, read_progress, run_directory, summarise_run, summarise_runs
from fedtwin_server.server_app import app, conduct, open_run
from fedtwin_shared.errors import ConfigurationError, FedtwinError
from tests.server.consortium import Node, SilentGrid, StillClock, honest, honest_nodes
from tests.server.directories import SignedWorld, make_directory, sign_short_study

RUN = "ab" * 16


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CoordinatorDirectory:
    directory = make_directory(tmp_path / "consortium", "ward-a", "ward-b")
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(directory.root))
    return directory


@pytest.fixture
def study(directory: CoordinatorDirectory) -> SignedWorld:
    return sign_short_study(directory)


def context(run: str) -> Context:
    return Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={"run": run}, series_id=1)


def test_a_new_run_id_is_128_random_bits() -> None:
    first, second = new_run_id(), new_run_id()
    assert len(bytes.fromhex(first)) == 16
    assert first != second


def test_the_installed_app_conducts_the_run_of_its_context(directory: CoordinatorDirectory, study: SignedWorld) -> None:
    folder = prepare_run(directory, study.signed, run=RUN)
    assert summarise_run(directory, RUN).status == "interrupted"
    app(SilentGrid(honest_nodes(study.world), StillClock()), context(RUN))
    (summary,) = summarise_runs(directory)
    assert (summary.run, summary.rounds_done, summary.rounds_planned, summary.status) == (RUN, 2, 2, "finished")
    report = json.loads((folder / "release" / "report.json").read_text())
    assert (report["run"], report["complete"]) == (RUN, True)
    lines: list[str] = []
    assert follow_run(directory, RUN, flower_run=0, offset=0, say=lines.append) == "finished"
    assert [line.split(",")[0] for line in lines] == ["evaluate 0", "train 1", "train 2", "evaluate 2"]
    with pytest.raises(RunError, match="a complete one"):
        prepare_resume(directory, RUN)


def test_a_study_has_one_run(directory: CoordinatorDirectory, study: SignedWorld) -> None:
    prepare_run(directory, study.signed, run=RUN)
    with pytest.raises(RunError, match=f"its run {RUN}: resume that"):
        prepare_run(directory, study.signed, run=new_run_id())
    prepare_run(directory, sign_short_study(directory, "another").signed, run="cd" * 16)
    assert [summary.run for summary in summarise_runs(directory)] == [RUN, "cd" * 16]


def test_a_failed_run_says_so_and_is_resumed_under_its_own_id(
    directory: CoordinatorDirectory, study: SignedWorld
) -> None:
    prepare_run(directory, study.signed, run=RUN)
    clock = StillClock()
    run = open_run(context(RUN))
    assert isinstance(run.store, FileRunStore)
    assert summarise_run(directory, RUN).status == "under way"
    with pytest.raises(RunError, match="under way"):
        prepare_resume(directory, RUN)
    alone = SilentGrid({1: Node(behaviour=honest(study.world, "ward-a"))}, clock)
    with pytest.raises(RunError, match="found 1 within 600 s"):
        conduct(type(run)(signed=run.signed, key=run.key, store=run.store, clock=clock, sleep=clock.sleep), alone)
    run.store.close()
    assert summarise_run(directory, RUN).status == "failed"
    lines: list[str] = []
    assert follow_run(directory, RUN, flower_run=0, offset=0, say=lines.append) == "failed"
    assert lines[-1].endswith("too few: the run has failed")

    assert prepare_resume(directory, RUN).study.digest == study.signed.study.digest
    assert summarise_run(directory, RUN).status == "interrupted"
    app(SilentGrid(honest_nodes(study.world), StillClock()), context(RUN))
    assert summarise_run(directory, RUN).status == "finished"


@pytest.mark.parametrize("run", ["", "../../etc", "AB" * 16, "a" * 31, "a" * 33, "a" * 32 + "\n", "0" * 32])
def test_what_is_not_the_id_of_a_run_is_refused(directory: CoordinatorDirectory, run: str) -> None:
    with pytest.raises(RunError, match="run: expected"):
        run_directory(directory, run)
    with pytest.raises(RunError, match="run: expected"):
        open_run(context(run))


def test_the_app_needs_a_directory_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DIRECTORY_VARIABLE, raising=False)
    with pytest.raises(ConfigurationError, match=DIRECTORY_VARIABLE):
        open_run(context(RUN))


def test_a_changed_study_file_stops_a_run(directory: CoordinatorDirectory, study: SignedWorld) -> None:
    folder = prepare_run(directory, study.signed, run=RUN)
    file = folder / "study.signed.json"
    file.write_bytes(file.read_bytes().replace(b'"sig":"', b'"sig":"A'))
    with pytest.raises(FedtwinError, match=r"study\.signed\.json|envelope"):
        open_run(context(RUN))


def test_progress_is_read_in_whole_lines_from_where_it_was_left(tmp_path: Path) -> None:
    assert read_progress(tmp_path) == ([], 0)
    file = tmp_path / "progress.jsonl"
    file.write_bytes(b'{"round": 1}\n{"round"')
    first, offset = read_progress(tmp_path)
    file.write_bytes(b'{"round": 1}\n{"round": 2}\ntorn\n{"round": 3}\n')
    second, _ = read_progress(tmp_path, offset=offset)
    assert first + second == [{"round": 1}, {"round": 2}, {"round": 3}]


def test_a_line_of_progress_in_words() -> None:
    entry = {
        "task": "evaluate",
        "round": 2,
        "attempt": 2,
        "seconds": 1.25,
        "sites": ["a", "b"],
        "refusals": {"c": "policy"},
        "errors": {"node-unavailable": 1},
        "unverified": 1,
        "counts": True,
        "metrics": {"overall": {"everybody": {"auroc": 0.8123}}},
    }
    assert describe_entry(entry) == (
        "evaluate 2, attempt 2, 2 sites in 1.25 s, c refused: policy, 1 × node-unavailable, "
        "1 answers that did not verify, AUROC 0.812"
    )
