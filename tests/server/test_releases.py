"""Releasing a finished run: signed once, beside its weights, with the largest checkpoint of each site's ledger."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from fedtwin_server.config import DIRECTORY_VARIABLE, CoordinatorDirectory
from fedtwin_server.errors import RunError
from fedtwin_server.releases import release_study
from fedtwin_server.run_store import EVIDENCE, MODEL, RELEASE
from fedtwin_server.runs import prepare_run, run_directory
from fedtwin_server.server_app import conduct, open_run
from fedtwin_shared.cli import main
from fedtwin_shared.ledger.evidence import Evidence, ProvenEntry
from fedtwin_shared.ledger.note import Checkpoint, format_note, sign_note
from fedtwin_shared.release import verify_release, verify_weights
from tests.server.consortium import SilentGrid, StillClock, honest_nodes
from tests.server.directories import SignedWorld, make_directory, sign_short_study
from tests.server.test_runs import RUN, context

SITES = ("ward-a", "ward-b")


def now() -> float:
    return 1_800_000_000.5


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CoordinatorDirectory:
    directory = make_directory(tmp_path / "consortium", *SITES)
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(directory.root))
    return directory


@pytest.fixture
def finished(directory: CoordinatorDirectory) -> SignedWorld:
    study = sign_short_study(directory)
    prepare_run(directory, study.signed, run=RUN)
    run = open_run(context(RUN))
    conduct(run, SilentGrid(honest_nodes(study.world), StillClock()))
    run.store.close()
    return study


def add_evidence(directory: CoordinatorDirectory, study: SignedWorld, name: str, sizes: dict[str, int]) -> None:
    """As the run keeps it: notes of growing ledgers; what they prove was verified when it came."""
    entry = ProvenEntry(entry=b"{}", position=0, proof=())
    evidence = {}
    for site, size in sizes.items():
        text = Checkpoint(origin=f"{site}/ledger", size=size, root=bytes(32)).text
        note = format_note(text, [sign_note(text, name=f"{site}/ledger", key=study.world.sites[site])])
        evidence[site] = Evidence(note=note, reserve=entry, seal=entry).encode().decode()
    folder = run_directory(directory, RUN) / EVIDENCE
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(evidence))


def test_a_finished_run_is_released_once_and_verifies(directory: CoordinatorDirectory, finished: SignedWorld) -> None:
    released = release_study(directory, "deterioration", clock=now)
    assert released.file == directory.releases / finished.signed.study.digest / "release.signed.json"
    release = verify_release(released.file.read_bytes(), signed=finished.signed)
    assert (release.run, release.sites, release.time, release.checkpoints) == (RUN, SITES, 1_800_000_000, {})
    study = finished.signed.study
    assert release.guarantee.training_steps == study.training.local_steps * 2
    assert release.guarantee.histograms == 2
    report = json.loads((run_directory(directory, RUN) / RELEASE / "report.json").read_text())
    assert release.model == report["model"]["digest"]
    assert release.guarantee.epsilon == report["privacy"]["spent_epsilon"]
    verify_weights(release, (released.file.parent / "weights.npz").read_bytes())
    again = release_study(directory, "deterioration", clock=lambda: now() + 60)
    assert again == released


def test_the_largest_checkpoint_of_each_site_is_in_it(directory: CoordinatorDirectory, finished: SignedWorld) -> None:
    add_evidence(directory, finished, "train-1-1", {"ward-a": 90, "ward-b": 8})
    add_evidence(directory, finished, "train-2-1", {"ward-a": 11, "ward-b": 12})
    release = release_study(directory, "deterioration", clock=now).release
    sizes = {site: int(note.split("\n")[1]) for site, note in release.checkpoints.items()}
    assert sizes == {"ward-a": 90, "ward-b": 12}


def test_damaged_evidence_and_changed_weights_are_not_signed(
    directory: CoordinatorDirectory, finished: SignedWorld
) -> None:
    folder = run_directory(directory, RUN)
    (folder / EVIDENCE).mkdir()
    for content in ("", "[]", '{"ward-a": "x"}', json.dumps({"ward-a": base64.b64encode(b"x").decode()})):
        (folder / EVIDENCE / "train-1-1.json").write_text(content)
        with pytest.raises(RunError, match="evidence of a round"):
            release_study(directory, "deterioration", clock=now)
    (folder / EVIDENCE / "train-1-1.json").unlink()
    (folder / RELEASE / MODEL).write_bytes(b"another model")
    with pytest.raises(RunError, match="the model of the run's last state"):
        release_study(directory, "deterioration", clock=now)
    assert not directory.releases.exists()


def test_what_is_not_finished_is_not_released(
    directory: CoordinatorDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_run(directory, sign_short_study(directory).signed, run=RUN)
    for name in ("deterioration", "unknown", "../deterioration"):
        with pytest.raises(SystemExit) as ended:
            main(["server", "release", str(directory.root), name])
        assert ended.value.code == 2
        assert "a study whose run is finished" in capsys.readouterr().err


def test_the_command_says_the_guarantee_in_words(
    directory: CoordinatorDirectory, finished: SignedWorld, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["server", "release", str(directory.root), finished.signed.study.name])
    assert ended.value.code in (0, None)
    shown = capsys.readouterr().out
    assert "differentially private" in shown
    assert "proved by the ledgers of 0 of 2 hospitals" in shown
