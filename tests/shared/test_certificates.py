"""Certificates: what OpenSSL and a real TLS handshake make of them."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fedtwin_shared.certificates import Identity, create_authority, expires_at, issue_server_certificate
from fedtwin_shared.errors import ConfigurationError

NOW = dt.datetime.now(dt.UTC).replace(microsecond=0)


@pytest.fixture
def authority(tmp_path: Path) -> Identity:
    identity = Identity(certificate=tmp_path / "authority.pem", private_key=tmp_path / "authority.key")
    create_authority(identity, name="consortium", now=NOW)
    return identity


@pytest.fixture
def server(tmp_path: Path, authority: Identity) -> Identity:
    identity = Identity(certificate=tmp_path / "server.pem", private_key=tmp_path / "server.key")
    issue_server_certificate(identity, authority, names=["fl.example.org", "localhost", "127.0.0.1"], now=NOW)
    return identity


def shake_hands(server: Identity, authority: Path, name: str) -> bytes | None:
    """Return the certificate that a client which verifies `name` accepted over a socket pair; raises what it raises."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(server.certificate, server.private_key)
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            with context.wrap_socket(theirs, server_side=True):
                pass
        except (OSError, ssl.SSLError):
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        ours.settimeout(10)
        with ssl.create_default_context(cafile=str(authority)).wrap_socket(ours, server_hostname=name) as secured:
            return secured.getpeercert(binary_form=True)
    finally:
        ours.close()
        thread.join(timeout=10)


@pytest.mark.parametrize("name", ["fl.example.org", "localhost", "127.0.0.1"])
def test_a_client_that_trusts_the_authority_accepts_the_server_under_its_names(
    server: Identity, authority: Identity, name: str
) -> None:
    certificate = x509.load_pem_x509_certificate(server.certificate.read_bytes())
    assert shake_hands(server, authority.certificate, name) == certificate.public_bytes(Encoding.DER)


def test_it_is_valid_for_its_names_only(server: Identity, authority: Identity) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(server, authority.certificate, "other.example.org")


def test_another_authority_is_not_trusted(server: Identity, tmp_path: Path) -> None:
    other = Identity(certificate=tmp_path / "other.pem", private_key=tmp_path / "other.key")
    create_authority(other, name="consortium", now=NOW)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(server, other.certificate, "localhost")


def test_openssl_accepts_the_chain_for_serving_only(server: Identity, authority: Identity) -> None:
    for purpose, accepted in (("sslserver", True), ("sslclient", False)):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", str(authority.certificate)]
        done = subprocess.run([*command, str(server.certificate)], capture_output=True, text=True, check=False)
        assert (done.returncode == 0) is accepted, done.stdout + done.stderr


def test_a_server_cannot_sign_certificates(server: Identity, authority: Identity, tmp_path: Path) -> None:
    leaf = Identity(certificate=tmp_path / "leaf.pem", private_key=tmp_path / "leaf.key")
    days = (expires_at(server.certificate) - NOW).days - 1
    forger = Identity(certificate=server.certificate, private_key=server.private_key)
    issue_server_certificate(leaf, forger, names=["fl.example.org"], now=NOW, days=days)
    command = ["openssl", "verify", "-CAfile", str(authority.certificate), "-untrusted", str(server.certificate)]
    done = subprocess.run([*command, str(leaf.certificate)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "invalid CA" in done.stderr


def test_keys_are_readable_by_their_owner_only(server: Identity, authority: Identity) -> None:
    for identity in (server, authority):
        assert identity.private_key.stat().st_mode & 0o777 == 0o600


def test_an_authority_is_never_overwritten(authority: Identity) -> None:
    before = authority.private_key.read_bytes()
    with pytest.raises(FileExistsError):
        create_authority(authority, name="consortium", now=NOW)
    assert authority.private_key.read_bytes() == before


def test_a_renewed_certificate_replaces_the_old_one(server: Identity, authority: Identity) -> None:
    old = server.certificate.read_bytes()
    issue_server_certificate(server, authority, names=["localhost"], now=NOW + dt.timedelta(days=300))
    assert server.certificate.read_bytes() != old
    assert expires_at(server.certificate) == NOW + dt.timedelta(days=697)


def test_it_never_outlives_its_authority(server: Identity, authority: Identity) -> None:
    with pytest.raises(ConfigurationError, match="valid for 397 days more"):
        issue_server_certificate(server, authority, names=["localhost"], now=NOW + dt.timedelta(days=3600))


def test_an_authority_that_others_may_read_is_refused(server: Identity, authority: Identity) -> None:
    authority.private_key.chmod(0o640)
    with pytest.raises(ConfigurationError, match="expected 0600, found 0640"):
        issue_server_certificate(server, authority, names=["localhost"], now=NOW)


def test_another_key_than_the_authoritys_is_refused(server: Identity, authority: Identity) -> None:
    mixed = Identity(certificate=authority.certificate, private_key=server.private_key)
    with pytest.raises(ConfigurationError, match="the authority's own key"):
        issue_server_certificate(server, mixed, names=["localhost"], now=NOW)


def test_what_is_not_a_certificate_is_our_own_error(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no")
    with pytest.raises(ConfigurationError, match="a certificate in PEM"):
        expires_at(tmp_path / "no.pem")
    with pytest.raises(ConfigurationError, match="a certificate"):
        expires_at(tmp_path / "missing.pem")


def test_the_authority_signs_server_certificates_and_nothing_else(authority: Identity) -> None:
    certificate = x509.load_pem_x509_certificate(authority.certificate.read_bytes())
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    assert (usage.critical, usage.value.key_cert_sign, usage.value.digital_signature) == (True, True, False)
