"""The coordinator's configuration: what is wrong is named with file, field, expected and found."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest

from fedtwin_server.config import CoordinatorDirectory, read_directory
from fedtwin_server.installation import create_coordinator
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.fields import split_address


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> CoordinatorDirectory:
    return create_coordinator(
        tmp_path_factory.mktemp("config") / "consortium",
        name="consortium",
        address="fl.example.org:9443",
        listen="0.0.0.0:9443",
        link_port=9092,
        now=dt.datetime.now(dt.UTC),
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "consortium"', 'name = "The Consortium"', "name: expected"),
        ("port = 9092", "port = 0", "link.port: expected"),
        ("port = 9092", 'port = "9092"', "link.port: expected"),
        ("enabled = true", "enabled = 1", "front.enabled: expected"),
        ('address = "fl.example.org:9443"', 'address = "fl.example.org"', "front.address: expected host:port"),
        ("[link]", "[link]\nhost = 1", "link.host: expected"),
        ("[files]", "[file]", "files: expected"),
        ("[files]", "[files", "expected TOML"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(
    directory: CoordinatorDirectory, tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = (directory.root / "coordinator.toml").read_text()
    assert text.count(old) == 1
    (tmp_path / "coordinator.toml").write_text(text.replace(old, new))
    with pytest.raises(ConfigurationError) as caught:
        read_directory(tmp_path)
    assert f"coordinator.toml: {message}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="nowhere: expected a coordinator's directory, found none"):
        read_directory(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("address", "parts"),
    [("fl.example.org:443", ("fl.example.org", 443)), ("[::1]:9443", ("::1", 9443)), ("127.0.0.1:1", ("127.0.0.1", 1))],
)
def test_an_address_is_host_and_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize(
    "address", ["", ":9443", "host:", "host:0", "host:65536", "host:x", "::1:9443", "[host]:1", "h:٣"]
)
def test_anything_else_is_not_an_address(address: str) -> None:
    with pytest.raises(ValueError, match="expected host:port"):
        split_address(address)


def test_the_certificate_names_the_dialled_host_and_loopback(directory: CoordinatorDirectory) -> None:
    assert directory.certificate_names == ("fl.example.org", "localhost", "127.0.0.1")
