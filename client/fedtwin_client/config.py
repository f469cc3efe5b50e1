"""What a hospital configures: one file, `hospital.toml`, in the hospital's own directory.

Design note: what protects patients (`policy`) and what only costs time (`performance`) are different tables of
different types, so that no function can take one for the other. Secrets are files of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedtwin_client.policy import SitePolicy
from fedtwin_shared.documents import read_toml
from fedtwin_shared.errors import ConfigurationError
from fedtwin_shared.fields import require
from fedtwin_shared.roster import Name, PublicKey

CONFIG_FILE: Final = "hospital.toml"
DIRECTORY_VARIABLE: Final = "FEDTWIN_HOSPITAL"  # tells the executor its directory; a message never does

File = Annotated[str, Field(min_length=1)]
Address = Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+:[0-9]{1,5}$")]
Port = Annotated[int, Field(ge=1, le=65535)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class DataTable(_Table):
    """Where the hospital's own files lie."""

    folder: File


class CoordinatorTable(_Table):
    """Whom the hospital dials, and whose signature it obeys."""

    superlink: Address
    public_key: PublicKey
    ca_file: File


class KeysTable(_Table):
    """Names of the files that hold the hospital's private keys."""

    signing_file: File
    node_file: File


class PortsTable(_Table):
    """Loopback ports."""

    runtime: Port
    health: Port

    @model_validator(mode="after")
    def _check(self) -> PortsTable:
        require(self.runtime != self.health, field="health", expected="another port than runtime", found=self.health)
        return self


class PerformanceTable(_Table):
    """The performance knobs: they change how long a task takes, and nothing else."""

    poll_seconds: Annotated[float, Field(ge=0.01, le=3.0)]


class GatewayTable(_Table):
    """Where devices and feeds come in; what has no address is not opened.

    mllp, fhir, grpc: host and port to listen on. mllp_feed: the device that everybody is who reaches an MLLP port
    without TLS, which must be on loopback. broker: host and port of the MQTT broker to subscribe at. tls: folder of
    certificates. keep_days, keep_aside_days: how long observations, and readings that were set aside, are kept.
    """

    tls: File
    mllp: Address | None = None
    mllp_feed: Annotated[str, Field(min_length=1)] | None = None
    fhir: Address | None = None
    grpc: Address | None = None
    broker: Address | None = None
    keep_days: Annotated[int, Field(ge=1)]
    keep_aside_days: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _check(self) -> GatewayTable:
        host = (self.mllp or "").rpartition(":")[0]
        require(
            self.mllp_feed is None or host in ("127.0.0.1", "localhost"),
            field="mllp",
            expected="a loopback address, as mllp_feed trusts whoever reaches it",
            found=repr(self.mllp),
        )
        return self


class StoreTable(_Table):
    """Where observations are kept: `postgresql` is libpq's own form, without a password; else a file of the node."""

    postgresql: Annotated[str, Field(min_length=1)] | None = None


class SiteConfig(_Table):
    """The whole of `hospital.toml`. Unknown keys are refused; `gateway` and `store` may be absent, nothing else."""

    name: Name
    data: DataTable
    coordinator: CoordinatorTable
    keys: KeysTable
    policy: SitePolicy
    ports: PortsTable
    performance: PerformanceTable
    gateway: GatewayTable | None = None
    store: StoreTable = StoreTable()


@dataclass(frozen=True, slots=True, kw_only=True)
class HospitalDirectory:
    """A hospital's directory: its configuration, and where everything lies in it."""

    root: Path
    config: SiteConfig

    @property
    def config_file(self) -> Path:
        """The file that `config` was read from."""
        return self.root / CONFIG_FILE

    @property
    def data(self) -> Path:
        """The hospital's own files."""
        return self.root / self.config.data.folder

    @property
    def ca_file(self) -> Path:
        """The authority behind the coordinator's front."""
        return self.root / self.config.coordinator.ca_file

    @property
    def signing_key(self) -> Path:
        """The private key that signs answers."""
        return self.root / self.config.keys.signing_file

    @property
    def node_key(self) -> Path:
        """The private key of the transport."""
        return self.root / self.config.keys.node_file

    @property
    def policy_signature(self) -> Path:
        """The hospital's own signature over the policy; without it every study is refused."""
        return self.root / "policy.signed.json"

    @property
    def studies(self) -> Path:
        """Approved studies, one folder each."""
        return self.root / "studies"

    @property
    def journal(self) -> Path:
        """What was spent."""
        return self.root / "journal"

    @property
    def ledger(self) -> Path:
        """What was spent, of a hospital that began a ledger: then `journal` stays empty."""
        return self.root / "ledger"

    @property
    def quarantine(self) -> Path:
        """Rows of the hospital's own files that were not accepted; for the hospital's eyes only."""
        return self.root / "quarantine.csv"

    @property
    def store(self) -> Path:
        """Observations that ingest took in, encrypted, and their keys."""
        return self.root / "store"

    @property
    def gateway_state(self) -> Path:
        """What the running gateway says of itself, once a second."""
        return self.node / "gateway.json"

    @property
    def consent(self) -> Path:
        """What patients agreed to, and which releases they may have taken part in, encrypted, and its keys."""
        return self.root / "consent"

    @property
    def logs(self) -> Path:
        """One log for each process."""
        return self.root / "log"

    @property
    def node(self) -> Path:
        """What the running processes keep between them."""
        return self.root / "node"


def read_directory(root: Path) -> HospitalDirectory:
    """Return the hospital's directory with its configuration, checked. Raises `ConfigurationError`."""
    root = root.resolve()
    if not root.is_dir():
        raise ConfigurationError(file=root, expected="a hospital's directory", found="none")
    return HospitalDirectory(root=root, config=read_toml(root / CONFIG_FILE, SiteConfig))
