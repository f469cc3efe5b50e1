"""Certificates and node keys for tests: made anew in each test's own directory, valid for an hour."""

from __future__ import annotations

import datetime as dt
import ipaddress
import socket
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = dt.timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerIdentity:
    """Files of one server: its certificate, its key, and the authority that clients trust."""

    certificate: Path
    private_key: Path
    certificate_authority: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeIdentity:
    """Files of one SuperNode: OpenSSH private and public key, as ssh-keygen writes them."""

    private_key: Path
    public_key: Path


def make_server_identity(directory: Path, *, name: str = "localhost") -> ServerIdentity:
    """An authority and a certificate of it for `localhost` and 127.0.0.1."""
    directory.mkdir(parents=True, exist_ok=True)
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_name, server_name = _name(f"{name} test authority"), _name(name)
    authority = (
        _builder(authority_name, authority_name, authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        _builder(server_name, authority_name, server_key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(server_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    identity = ServerIdentity(
        certificate=directory / "server.pem",
        private_key=directory / "server.key",
        certificate_authority=directory / "authority.pem",
    )
    identity.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    identity.certificate_authority.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    write_private(identity.private_key, _pem(server_key, serialization.PrivateFormat.PKCS8))
    return identity


def make_node_identity(directory: Path) -> NodeIdentity:
    """A key pair on P-256 for one SuperNode."""
    directory.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    identity = NodeIdentity(private_key=directory / "node", public_key=directory / "node.pub")
    write_private(identity.private_key, _pem(key, serialization.PrivateFormat.OpenSSH))
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    identity.public_key.write_bytes(public + b"\n")
    return identity


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner reads."""
    path.touch(mode=0o600)
    path.write_bytes(content)


def free_ports(count: int) -> tuple[int, ...]:
    """Ports of 127.0.0.1 that nobody listens on now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return tuple(each.getsockname()[1] for each in sockets)
    finally:
        for each in sockets:
            each.close()


def _builder(subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(minutes=5))
        .not_valid_after(now + LIFETIME)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
