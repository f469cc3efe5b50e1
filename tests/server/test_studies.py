"""Drafting and signing: every packaged template is a valid study, and what is wrong is said in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fedtwin_server.config import CoordinatorDirectory
from fedtwin_server.studies import TEMPLATE_NAMES, collect_signatures, draft_study, read_signed, sign_file
from fedtwin_shared.cli import main
from fedtwin_shared.countersigning import read_document, sign_document
from fedtwin_shared.documents import STUDY_TYPE, countersign_study
from fedtwin_shared.errors import ConfigurationError, VerificationError
from tests.server.directories import add_site, make_directory, sign_short_study


@pytest.fixture
def directory(tmp_path: Path) -> CoordinatorDirectory:
    return make_directory(tmp_path / "consortium", "ward-a", "ward-b", "ward-c")


@pytest.mark.parametrize("template", TEMPLATE_NAMES)
def test_every_packaged_template_can_be_signed_as_it_is(directory: CoordinatorDirectory, template: str) -> None:
    result = sign_file(directory, draft_study(directory, name="deterioration", template=template))
    study = result.signed.study
    assert [part.site for part in study.participants] == ["ward-a", "ward-b", "ward-c"]
    assert study.training.minimum_sites == 2
    assert 0.9 * study.privacy.epsilon < study.price() <= study.privacy.epsilon  # the budget is used, not wasted
    assert read_signed(directory, result.file) == result.signed


def test_every_line_of_a_draft_that_sets_something_is_near_an_explanation(directory: CoordinatorDirectory) -> None:
    lines = draft_study(directory, name="deterioration", template="first-day").read_text().splitlines()
    assert sum(line.startswith("#") for line in lines) > 15


def test_a_draft_is_never_overwritten(directory: CoordinatorDirectory) -> None:
    draft_study(directory, name="deterioration", template="first-day")
    with pytest.raises(ConfigurationError, match="a draft of that name"):
        draft_study(directory, name="deterioration", template="first-day")


def test_a_template_can_be_a_path(directory: CoordinatorDirectory, tmp_path: Path) -> None:
    text = draft_study(directory, name="one", template="first-day").read_text()
    (tmp_path / "own.toml").write_text(text[text.index("question =") :])
    assert draft_study(directory, name="two", template=str(tmp_path / "own.toml")).exists()


def test_a_wrong_draft_leaves_nothing(directory: CoordinatorDirectory, tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('question = "Who?"')
    for name, template, message in [
        ("two", str(tmp_path / "own.toml"), "outcome"),
        ("two", "no-such-template", "course, first-day"),
        ("Two", "first-day", "name"),
        ("../two", "first-day", "name"),
    ]:
        with pytest.raises(ConfigurationError, match=message):
            draft_study(directory, name=name, template=template)
    assert list(directory.studies.iterdir()) == []
    assert not (directory.root / "two").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rounds = 30", "rounds = 0", "training.rounds: expected"),
        ("rounds = 30", "rounds = 30\nepochs = 3", "training.epochs: expected"),
        (
            "noise_multiplier = 7.9",
            "noise_multiplier = 1.0",
            "privacy.epsilon: expected at least the price of the plan",
        ),
        ('site = "ward-a"', 'site = "ward-z"', "participants: expected enrolled hospitals, found ward-z"),
        ('signal = "heart_rate"', 'signal = "heart_beat"', "features.series.0: expected a signal"),
        ('roster = "', 'roster = "0', "roster: expected"),
    ],
)
def test_a_malformed_study_is_one_line_that_names_it(
    directory: CoordinatorDirectory, old: str, new: str, message: str
) -> None:
    file = draft_study(directory, name="deterioration", template="first-day")
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigurationError) as caught:
        sign_file(directory, file)
    assert "study.toml" in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not file.with_suffix(".signed.json").exists()


def test_a_study_is_for_the_roster_it_was_drafted_for(directory: CoordinatorDirectory) -> None:
    file = draft_study(directory, name="deterioration", template="first-day")
    add_site(directory, "ward-d")
    with pytest.raises(ConfigurationError, match="roster: expected"):
        sign_file(directory, file)


def test_a_changed_study_needs_a_higher_version(directory: CoordinatorDirectory) -> None:
    file = draft_study(directory, name="deterioration", template="first-day")
    first = sign_file(directory, file)
    assert sign_file(directory, file) == first
    file.write_text(file.read_text().replace("rounds = 30", "rounds = 29"))
    with pytest.raises(ConfigurationError, match="version: expected above 1, found 1"):
        sign_file(directory, file)
    file.write_text(file.read_text().replace("version = 1", "version = 2"))
    assert sign_file(directory, file).signed.study.version == 2


def test_a_study_that_another_coordinator_signed_is_refused(directory: CoordinatorDirectory, tmp_path: Path) -> None:
    file = sign_file(directory, draft_study(directory, name="deterioration", template="first-day")).file
    other = make_directory(tmp_path / "other", "ward-a")
    with pytest.raises(VerificationError, match="trusted signer"):
        read_signed(other, file)


@pytest.mark.parametrize(("sites", "minimum"), [(1, 1), (2, 2), (3, 2), (4, 3)])
def test_a_draft_lets_one_hospital_be_away(tmp_path: Path, sites: int, minimum: int) -> None:
    directory = make_directory(tmp_path / "c", *(f"ward-{number}" for number in range(sites)))
    file = draft_study(directory, name="deterioration", template="first-day")
    assert sign_file(directory, file).signed.study.training.minimum_sites == minimum


def test_hospitals_signatures_are_collected_and_the_study_stays_the_same(
    directory: CoordinatorDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = sign_short_study(directory)
    files = []
    for name, key in short.world.sites.items():
        files.append(tmp_path / f"{name}.json")
        files[-1].write_bytes(countersign_study(short.signed, key))
    with pytest.raises(SystemExit) as ended:
        main(["server", "study", "collect", str(directory.root), str(short.file), *map(str, files[:2])])
    assert ended.value.code == 0
    assert "signed by ward-a, ward-b; not yet by ward-c" in capsys.readouterr().out
    assert collect_signatures(directory, short.file, files[2:]).signers == {"ward-a", "ward-b", "ward-c"}
    found = read_signed(directory, short.file)
    assert found.study.digest == short.signed.study.digest
    assert found.signers == {"ward-a", "ward-b", "ward-c"}


def test_a_signature_of_another_study_or_of_a_stranger_is_not_collected(
    directory: CoordinatorDirectory, tmp_path: Path
) -> None:
    short, other = sign_short_study(directory), sign_short_study(directory, name="other")
    before = short.file.read_bytes()
    with pytest.raises(VerificationError, match="expected the same document"):
        collect_signatures(directory, short.file, [other.file])
    document = read_document(before, payload_type=STUDY_TYPE)
    forged = tmp_path / "forged.json"
    forged.write_bytes(sign_document(document, Ed25519PrivateKey.generate()).envelope())
    with pytest.raises(VerificationError, match="expected a trusted signer"):
        collect_signatures(directory, short.file, [forged])
    assert short.file.read_bytes() == before
