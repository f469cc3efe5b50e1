"""A consortium's own certificate authority, and server certificates from it; offline, without a public authority.

Design note: hospitals trust exactly one authority, the one whose certificate the coordinator handed them, so no public
authority can vouch for a false coordinator. The authority may sign server certificates only (path length 0, key usage
certificate signing); a server certificate may serve only. Keys are on NIST P-256, which every TLS stack has.
The clock is passed in.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedtwin_shared.durable import create_file, replace_file
from fedtwin_shared.errors import ConfigurationError

AUTHORITY_DAYS: Final = 3650
CRL_DAYS: Final = 3650  # a list is written at each revocation; a broker refuses everybody once its list has run out
SERVER_DAYS: Final = 397  # just above a year, the longest that browsers take, so that renewal is a yearly habit
BACKDATED: Final = dt.timedelta(hours=1)  # a hospital's clock may be behind


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Two PEM files: a certificate, and its private key (0600)."""

    certificate: Path
    private_key: Path


def create_authority(identity: Identity, *, name: str, now: dt.datetime) -> None:
    """Write a new authority, valid for `AUTHORITY_DAYS`. Raises `FileExistsError` rather than overwrite a key.

    - the private key is readable by its owner only before its first byte is written
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(f"{name} certificate authority")
    certificate = (
        _builder(subject, subject, key.public_key(), now=now, days=AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_key(identity.private_key, key)
    identity.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def issue_server_certificate(
    identity: Identity, authority: Identity, *, names: Sequence[str], now: dt.datetime, days: int = SERVER_DAYS
) -> None:
    """Write a server's key and a certificate of it for host names and IP addresses, the first one its common name.

    Replaces an earlier certificate and its key: that is how one is renewed. Raises `ConfigurationError` for an
    authority that cannot be read, that others may read, or that does not live as long.

    - it is valid for its names only, for serving only, and never longer than its authority
    """
    _issue(identity, authority, names=names, now=now, days=days, usage=ExtendedKeyUsageOID.SERVER_AUTH)


def issue_client_certificate(
    identity: Identity, authority: Identity, *, name: str, now: dt.datetime, days: int = SERVER_DAYS
) -> None:
    """Write the key and certificate of whoever dials a server: `name` is its common name. Raises as for a server.

    - it is valid for dialling only, and never longer than its authority
    """
    _issue(identity, authority, names=(name,), now=now, days=days, usage=ExtendedKeyUsageOID.CLIENT_AUTH)


def write_revocations(path: Path, authority: Identity, *, serials: Iterable[int], now: dt.datetime) -> None:
    """Write the authority's list of revoked certificates (RFC 5280 §5), PEM, whole or not at all."""
    key, certificate = _load_authority(authority)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(certificate.subject)
        .last_update(now - BACKDATED)
        .next_update(now + dt.timedelta(days=CRL_DAYS))
    )
    for serial in serials:
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(revoked)
    replace_file(path, builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def expires_at(certificate: Path) -> dt.datetime:
    """Return when a PEM certificate ends, in UTC. Raises `ConfigurationError`."""
    return _load_certificate(certificate).not_valid_after_utc


def _issue(
    identity: Identity,
    authority: Identity,
    *,
    names: Sequence[str],
    now: dt.datetime,
    days: int,
    usage: x509.ObjectIdentifier,
) -> None:
    authority_key, authority_certificate = _load_authority(authority)
    if not now + dt.timedelta(days=days) <= authority_certificate.not_valid_after_utc:
        ends = authority_certificate.not_valid_after_utc.date().isoformat()
        raise ConfigurationError(file=authority.certificate, expected=f"valid for {days} days more", found=ends)
    key = ec.generate_private_key(ec.SECP256R1())
    issuer_identifier = authority_certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(_name(names[0]), authority_certificate.subject, key.public_key(), now=now, days=days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_identifier), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    identity.private_key.unlink(missing_ok=True)
    _write_key(identity.private_key, key)
    identity.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, *, now: dt.datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    # RFC 5280 §4.2.1.3; an EC key signs the TLS handshake and never enciphers a key.
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])  # RFC 5280: at most 64 characters


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    create_file(path, pem)


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as err:
        raise ConfigurationError(file=path, expected="a certificate", found=err.strerror or "none") from err
    except ValueError as err:
        raise ConfigurationError(file=path, expected="a certificate in PEM", found="something else") from err


def _load_authority(authority: Identity) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    certificate = _load_certificate(authority.certificate)
    try:
        mode = authority.private_key.stat().st_mode & 0o777
        key = serialization.load_pem_private_key(authority.private_key.read_bytes(), password=None)
    except OSError as err:
        raise ConfigurationError(file=authority.private_key, expected="a key", found=err.strerror or "none") from err
    except (ValueError, TypeError) as err:
        raise ConfigurationError(file=authority.private_key, expected="a key in PEM", found="something else") from err
    if mode & 0o077:
        raise ConfigurationError(file=authority.private_key, field="mode", expected="0600", found=f"{mode:04o}")
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigurationError(file=authority.private_key, expected="the authority's own key", found="another")
    return key, certificate
