"""A hospital takes over what was released: from a real front, and only what it approved, has, and saw cosigned."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fedtwin_client.config import HospitalDirectory
from fedtwin_client.gate import open_gate
from fedtwin_client.ledger_journal import LEDGER
from fedtwin_client.released_model import FetchError, KeptRelease, fetch_over_https, take_release
from fedtwin_client.studies import open_studies
from fedtwin_server.front import front_configuration
from fedtwin_shared.cli import main
from fedtwin_shared.documents import sign_study, verify_study
from fedtwin_shared.errors import ConfigurationError, VerificationError
from fedtwin_shared.ledger.note import COSIGNATURE, Checkpoint, format_note, make_verifier_key, sign_note
from fedtwin_shared.ledger.store import LogWriter, NewEntry
from fedtwin_shared.release import RELEASE_FILE, WEIGHTS_FILE, Release, release_path, sign_release, state_guarantee
from fedtwin_shared.signing import digest
from tests.authority import ServerIdentity, free_ports, make_server_identity
from tests.client.premises import make_premises
from tests.client.setting import SITE
from tests.server.test_front import serving, settings_for
from tests.world import World, make_world

PRIVACY = {"epsilon": 8.0, "delta": 1e-5, "noise_multiplier": 4.5, "sampling_rate": 0.1, "spare_rounds": 2}
WEIGHTS = b"the weights"


@dataclass(slots=True, kw_only=True)
class Setting:
    world: World
    directory: HospitalDirectory
    files: dict[str, bytes] = field(default_factory=dict)

    def publish(self, weights: bytes = WEIGHTS, **changes: Any) -> Release:
        study = self.world.study
        release = Release(
            study=study.digest,
            name=study.name,
            version=study.version,
            run="ab" * 16,
            weights=digest(WEIGHTS),
            model=digest(b"model"),
            time=1_800_000_000,
            sites=tuple(sorted(self.world.sites)),
            guarantee=state_guarantee(study, steps=3, histograms=1),
            checkpoints={},
        ).model_copy(update=changes)
        path = release_path(study.digest)
        self.files = {
            f"{path}/{RELEASE_FILE}": sign_release(release, self.world.coordinator),
            f"{path}/{WEIGHTS_FILE}": weights,
        }
        return release

    def take(self) -> KeptRelease:
        return take_release(self.directory, self.world.study.name, fetch=lambda path, most: self.files[path])

    def note(self, size: int, root: bytes) -> str:
        text = Checkpoint(origin=f"{SITE}/ledger", size=size, root=root).text
        return format_note(text, [sign_note(text, name=f"{SITE}/ledger", key=self.world.sites[SITE])]).decode()


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    world = make_world(privacy=PRIVACY)
    directory = make_premises(tmp_path / "hospital", world)
    envelope = sign_study(world.study, world.roster, world.coordinator)
    open_studies(directory, open_gate(directory)).add(verify_study(envelope, coordinator=world.coordinator_key))
    return Setting(world=world, directory=directory)


def test_a_release_is_verified_and_kept_with_its_weights(setting: Setting) -> None:
    release = setting.publish()
    kept = setting.take()
    assert kept.release == release
    assert kept.weights.read_bytes() == WEIGHTS
    assert kept.file.read_bytes() == setting.files[f"{release_path(release.study)}/{RELEASE_FILE}"]
    assert setting.take() == kept


def test_what_does_not_verify_changes_nothing(setting: Setting) -> None:
    setting.publish()
    kept = setting.take()
    before = {file: file.read_bytes() for file in kept.file.parent.iterdir()}
    setting.publish(weights=b"other weights")
    with pytest.raises(VerificationError, match="weights"):
        setting.take()
    setting.publish(weights=b"other weights", time=1)
    with pytest.raises(VerificationError, match="version"):  # another release of the version in force
        setting.take()
    assert {file: file.read_bytes() for file in kept.file.parent.iterdir()} == before


def test_an_older_release_is_refused_after_a_newer_one(setting: Setting) -> None:
    newer = setting.publish().model_copy(update={"version": 2})
    folder = setting.directory.root / "releases" / setting.world.study.name
    folder.mkdir(parents=True)
    (folder / RELEASE_FILE).write_bytes(sign_release(newer, setting.world.coordinator))
    with pytest.raises(VerificationError, match="version 2 or of a later one"):
        setting.take()


def test_a_study_that_was_not_approved_is_not_fetched(setting: Setting) -> None:
    with pytest.raises(ConfigurationError, match="approved"):
        take_release(setting.directory, "another", fetch=lambda path, most: b"")
    shutil.rmtree(setting.directory.studies / setting.world.study.digest)
    with pytest.raises(ConfigurationError, match="approved"):
        setting.take()


def test_the_checkpoint_of_the_hospitals_own_ledger_must_be_one_that_it_had(setting: Setting) -> None:
    setting.directory.ledger.mkdir()
    with LogWriter(setting.directory.ledger / LEDGER) as log:
        log.append([NewEntry(key=f"{number}", kind="entry", body=b"%d" % number) for number in range(5)])
        root = log.root(3)
    setting.publish(checkpoints={SITE: setting.note(3, root)})
    assert setting.take().release.checkpoints
    shutil.rmtree(setting.directory.root / "releases")
    for size, told in ((3, bytes(32)), (9, root)):
        setting.publish(checkpoints={SITE: setting.note(size, told)})
        with pytest.raises(VerificationError, match="own ledger"):
            setting.take()


def test_a_hospital_with_witnesses_demands_every_ledger(setting: Setting) -> None:
    key = make_verifier_key("w", setting.world.sites[SITE], algorithm=COSIGNATURE)
    (setting.directory.root / "witnesses.toml").write_text(
        f'faulty = 0\n[[witness]]\nkey = "{key}"\naddress = "https://localhost:1"\n'
    )
    setting.publish()
    with pytest.raises(VerificationError, match="one of every site"):
        setting.take()


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> ServerIdentity:
    return make_server_identity(tmp_path_factory.mktemp("front"))


@pytest.fixture(scope="module")
def front(identity: ServerIdentity) -> Iterator[str]:
    port, nobody = free_ports(2)
    with serving(front_configuration(settings_for(port, nobody, identity))):
        yield f"localhost:{port}"


def test_a_release_comes_from_a_real_front(setting: Setting, front: str, identity: ServerIdentity) -> None:
    fetch = fetch_over_https(front, identity.certificate_authority)
    releases = identity.certificate_authority.parent / "releases"
    release = setting.publish()
    with pytest.raises(FetchError, match="404"):
        take_release(setting.directory, release.name, fetch=fetch)
    (releases / release.study).mkdir(parents=True)
    for path, content in setting.files.items():
        (releases / release.study / Path(path).name).write_bytes(content)
    assert take_release(setting.directory, release.name, fetch=fetch).weights.read_bytes() == WEIGHTS
    with pytest.raises(FetchError, match="at most 3 bytes"):
        fetch(f"{release_path(release.study)}/{WEIGHTS_FILE}", 3)


def test_the_command_fetches_from_the_front_that_the_hospital_dials(
    setting: Setting, front: str, identity: ServerIdentity, capsys: pytest.CaptureFixture[str]
) -> None:
    root, release = setting.directory.root, setting.publish()
    config = (root / "hospital.toml").read_text()
    (root / "hospital.toml").write_text(config.replace('"localhost:1"', f'"{front}"'))
    setting.directory.ca_file.write_bytes(identity.certificate_authority.read_bytes())
    served = identity.certificate_authority.parent / "releases" / release.study

    def run() -> int:
        with pytest.raises(SystemExit) as ended:
            main(["client", "release", str(root), release.name])
        return int(ended.value.code or 0)

    assert run() == 2
    assert capsys.readouterr().err.count("\n") == 1
    served.mkdir(parents=True)
    for path, content in setting.files.items():
        (served / Path(path).name).write_bytes(content)
    assert run() == 0
    assert capsys.readouterr().out.startswith("This model and all else that the study deterioration")


def test_another_authority_is_not_believed(setting: Setting, front: str, tmp_path: Path) -> None:
    other = make_server_identity(tmp_path / "other").certificate_authority
    with pytest.raises(FetchError, match="certificate verify failed"):
        fetch_over_https(front, other)("/health", 10)
    with pytest.raises(ConfigurationError, match="PEM"):
        fetch_over_https(front, tmp_path / "absent")
