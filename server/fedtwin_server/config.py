"""What a consortium configures: one file, `coordinator.toml`, in the coordinator's own directory.

Design note: no privacy knob is here, because none belongs to the coordinator alone: they are all in the signed study.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field

from fedtwin_server.control import Control
from fedtwin_server.superlink import SuperLinkSettings
from fedtwin_shared.certificates import Identity
from fedtwin_shared.documents import read_toml
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.fields import Address, split_address
from fedtwin_shared.roster import Name

CONFIG_FILE: Final = "coordinator.toml"
DIRECTORY_VARIABLE: Final = "FEDTWIN_COORDINATOR"  # where the ServerApp's process finds the directory


File = Annotated[str, Field(min_length=1)]
Port = Annotated[int, Field(ge=1, le=65535)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class FrontTable(_Table):
    """The public door."""

    address: Address
    listen: Address
    enabled: bool


class LinkTable(_Table):
    """Flower's SuperLink, on loopback."""

    port: Port


class FilesTable(_Table):
    """Names of the files that hold keys and certificates."""

    signing_key: File
    certificate: File
    private_key: File
    authority: File
    authority_key: File


class CoordinatorConfig(_Table):
    """The whole of `coordinator.toml`. Unknown keys are refused, none has a default."""

    name: Name
    front: FrontTable
    link: LinkTable
    files: FilesTable


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorDirectory:
    """A coordinator's directory: its configuration, and where everything lies in it."""

    root: Path
    config: CoordinatorConfig

    @property
    def signing_key(self) -> Path:
        """The private key that signs studies and rounds."""
        return self.root / self.config.files.signing_key

    @property
    def server(self) -> Identity:
        """Certificate and key of front and link."""
        return Identity(
            certificate=self.root / self.config.files.certificate, private_key=self.root / self.config.files.private_key
        )

    @property
    def authority(self) -> Identity:
        """Certificate and key of the consortium's authority."""
        return Identity(
            certificate=self.root / self.config.files.authority, private_key=self.root / self.config.files.authority_key
        )

    @property
    def certificate_names(self) -> tuple[str, ...]:
        """The names that the server's certificate must carry: the dialled host, and loopback for our own processes."""
        host, _ = split_address(self.config.front.address)
        return tuple(dict.fromkeys((host, "localhost", "127.0.0.1")))

    @property
    def roster(self) -> Path:
        """The roster of this consortium."""
        return self.root / "roster.toml"

    @property
    def nodes(self) -> Path:
        """Public keys of the hospitals' nodes, one file each."""
        return self.root / "nodes"

    @property
    def studies(self) -> Path:
        """Drafted and signed studies, one folder each."""
        return self.root / "studies"

    @property
    def runs(self) -> Path:
        """Runs, one folder each, named by fedtwin's own id."""
        return self.root / "runs"

    @property
    def releases(self) -> Path:
        """What was released, one folder each, named by the digest of the study."""
        return self.root / "releases"

    @property
    def superlink(self) -> SuperLinkSettings:
        """How Flower's processes run."""
        return SuperLinkSettings(
            directory=self.root / "link",
            port=self.config.link.port,
            certificate=self.server.certificate,
            private_key=self.server.private_key,
            certificate_authority=self.authority.certificate,
            secret_file=self.root / "keys" / "executor.secret",
            server_app_environment={DIRECTORY_VARIABLE: str(self.root)},
        )

    @property
    def control(self) -> Control:
        """How to speak to the SuperLink."""
        return Control(
            address=self.superlink.address,
            certificate_authority=self.authority.certificate,
            home=self.root / "link" / "control",
        )


def read_directory(root: Path) -> CoordinatorDirectory:
    """Return the coordinator's directory with its configuration, checked. Raises `ConfigurationError`."""
    root = root.resolve()
    if not root.is_dir():
        raise ConfigurationError(file=root, expected="a coordinator's directory", found="none")
    return CoordinatorDirectory(root=root, config=read_toml(root / CONFIG_FILE, CoordinatorConfig))
