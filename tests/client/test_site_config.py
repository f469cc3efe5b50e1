"""hospital.toml: what `init` writes is read back, and whatever is wrong is named in one message."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from fedtwin_client.config import (
    CONFIG_FILE,
    HospitalDirectory,
    PerformanceTable,
    SiteConfig,
    read_directory,
)
from fedtwin_client.directory import Answers, render_config
from fedtwin_client.policy import SitePolicy
from fedtwin_shared.errors import ConfigurationError

DAY = date(2030, 12, 31)
KEY = "ed25519:qxUgM8trzSi80x+hf8Pdo5rbhlgtEI01dffdrkvTkKU="
ANSWERS = Answers(name="north", superlink="fl.example.org:9092", coordinator_key=KEY, valid_until=DAY)


def write(folder: Path, text: str) -> Path:
    (folder / CONFIG_FILE).write_text(text)
    return folder


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    directory = read_directory(write(tmp_path, render_config(ANSWERS)))
    assert directory.config.name == "north"
    assert directory.config.coordinator.public_key == KEY
    assert directory.data == tmp_path / "data"
    assert directory.config.policy.allowed_bundles == ()


def test_answers_with_quotes_and_backslashes_survive() -> None:
    answers = Answers(name="north", superlink="a:1", coordinator_key=KEY, valid_until=DAY, data='/data/"odd"\\$name #1')
    assert tomllib.loads(render_config(answers))["data"]["folder"] == answers.data


def test_every_key_is_explained() -> None:
    lines = render_config(ANSWERS).splitlines()
    keys = [number for number, line in enumerate(lines) if "=" in line and not line.startswith("#")]
    assert len(keys) == 27
    for number in keys:
        above = number - 1
        while "=" in lines[above] and not lines[above].startswith("#"):
            above -= 1  # one comment may explain a pair
        assert lines[above].startswith("#"), lines[number]


def remove(line: str) -> Callable[[str], str]:
    return lambda text: "\n".join(kept for kept in text.splitlines() if not kept.startswith(line))


def change(old: str, new: str) -> Callable[[str], str]:
    return lambda text: text.replace(old, new)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (remove("name"), "hospital.toml: name: expected this field, found none"),
        (change('name = "north"', 'name = "North Hospital"'), "hospital.toml: name: expected"),
        (change("fl.example.org:9092", "https://fl.example.org"), "coordinator.superlink: expected"),
        (change(KEY, "ed25519:AAAA"), "coordinator.public_key: expected"),
        (change("maximum_epsilon = 3.0", "maximum_epsilon = nan"), "policy.maximum_epsilon: expected"),
        (change("maximum_epsilon = 3.0", "maximum_epsilon = 0"), "policy.maximum_epsilon: expected"),
        (change("maximum_delta = 0.0001", "maximum_delta = 1.0"), "policy.maximum_delta: expected"),
        (change("maximum_delta = 0.0001", "maximum_delta = nan"), "policy.maximum_delta: expected"),
        (change("minimum_patients = 20", "minimum_patients = 0"), "policy.minimum_patients: expected"),
        (change("allowed_bundles = []", 'allowed_bundles = ["ff"]'), "policy.allowed_bundles.0: expected"),
        (change("health = 8181", "health = 9094"), "ports.health: expected another port than runtime"),
        (change("poll_seconds = 0.05", "poll_seconds = 0"), "performance.poll_seconds: expected"),
        (change("[performance]", "[performance]\nepsilon = 3"), "performance.epsilon: expected no field of this name"),
        (change("[data]", "[data"), "hospital.toml: expected TOML"),
    ],
)
def test_a_malformed_file_is_one_message_with_file_field_expected_and_found(
    tmp_path: Path, edit: Callable[[str], str], words: str
) -> None:
    text = edit(render_config(ANSWERS))
    assert text != render_config(ANSWERS)
    with pytest.raises(ConfigurationError) as raised:
        read_directory(write(tmp_path, text))
    assert words in str(raised.value)
    assert "found" in str(raised.value)
    assert "\n" not in str(raised.value).rstrip()


def test_a_missing_directory_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere: expected a hospital's directory"):
        read_directory(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match=r"hospital.toml: expected a readable file"):
        read_directory(tmp_path)


def test_privacy_knobs_and_performance_knobs_are_different_types() -> None:
    assert not set(SitePolicy.model_fields) & set(PerformanceTable.model_fields)
    assert not issubclass(SitePolicy, PerformanceTable)


def test_the_configuration_is_frozen(tmp_path: Path) -> None:
    config = read_directory(write(tmp_path, render_config(ANSWERS))).config
    with pytest.raises(ValueError, match="frozen"):
        config.policy.maximum_epsilon = 99.0  # type: ignore[misc]  # the point of the test


def test_files_are_relative_to_the_directory_unless_absolute(tmp_path: Path) -> None:
    config = SiteConfig.model_validate(tomllib.loads(render_config(ANSWERS)))
    other = config.model_copy(update={"data": config.data.model_copy(update={"folder": "/srv/records"})})
    assert HospitalDirectory(root=tmp_path, config=config).signing_key == tmp_path / "signing.key"
    assert HospitalDirectory(root=tmp_path, config=other).data == Path("/srv/records")
