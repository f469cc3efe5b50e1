"""The gateway's certificates, as files in a folder of their own."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """The gateway's certificates, in PEM: whom it believes, what it shows to senders, and what it shows to a broker."""

    folder: Path

    @property
    def authority(self) -> Path:
        """The hospital's own authority for devices."""
        return self.folder / "ca.pem"

    @property
    def server(self) -> tuple[Path, Path]:
        """Certificate and key that senders see."""
        return self.folder / "server.pem", self.folder / "server.key"

    @property
    def client(self) -> tuple[Path, Path]:
        """Certificate and key that a broker sees."""
        return self.folder / "gateway.pem", self.folder / "gateway.key"

    @property
    def revoked(self) -> Path:
        """The authority's list of revoked certificates."""
        return self.folder / "revoked.pem"

    def listening(self) -> ssl.SSLContext:
        """Return a server's context that demands a certificate."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self.authority))
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(*self.server)
        return context

    def dialling(self) -> ssl.SSLContext:
        """Return a client's context for the broker."""
        context = ssl.create_default_context(cafile=str(self.authority))
        context.load_cert_chain(*self.client)
        return context
