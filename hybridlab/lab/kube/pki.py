"""The cluster's certificates: a CA, the server's certificate and the administrator's, kept in the lab's folder."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey
_YEARS = timedelta(days=365)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: Key) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )


def _name(common: str, organisation: str | None = None) -> x509.Name:
    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation)] if organisation else []
    return x509.Name([*parts, x509.NameAttribute(NameOID.COMMON_NAME, common)])


class Pki:
    """Certificates in ``folder``; made when first asked for and the same from then on, also after a restart."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _authority(self) -> tuple[Key, x509.Certificate]:
        key_file, file = self._folder / "server-ca.key", self._folder / "server-ca.crt"
        if key_file.exists() and file.exists():
            key = serialization.load_pem_private_key(key_file.read_bytes(), None)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise TypeError(f"{key_file} holds no elliptic curve key")
            return key, x509.load_pem_x509_certificate(file.read_bytes())
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"k3s-server-ca@{int(datetime.now(UTC).timestamp())}")
        builder = self._builder(name, name, key, 10).add_extension(x509.BasicConstraints(True, None), critical=True)
        usage = x509.KeyUsage(True, False, True, False, False, True, False, False, False)
        certificate = builder.add_extension(usage, critical=True).sign(key, hashes.SHA256())
        _write(key_file, _key_pem(key))
        _write(file, _pem(certificate))
        return key, certificate

    @staticmethod
    def _builder(subject: x509.Name, issuer: x509.Name, key: Key, years: int) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + years * _YEARS)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )

    def _issue(self, subject: x509.Name, usage: x509.ObjectIdentifier, names: Iterable[str]) -> tuple[bytes, bytes]:
        authority_key, authority = self._authority()
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(subject, authority.subject, key, 1)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
        builder = builder.add_extension(issuer, critical=False)
        alternatives = [_alternative(name) for name in names]
        if alternatives:
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        return _key_pem(key), _pem(builder.sign(authority_key, hashes.SHA256()))

    @property
    def ca_pem(self) -> bytes:
        self._authority()
        return (self._folder / "server-ca.crt").read_bytes()

    @property
    def ca_file(self) -> Path:
        self._authority()
        return self._folder / "server-ca.crt"

    def ca_hash(self) -> str:
        """SHA-256 of the CA file, as in K10 tokens (K3s hashes the PEM bundle)."""
        return hashlib.sha256(self.ca_pem).hexdigest()

    def server_files(self, names: Iterable[str]) -> Path:
        """A file with the server's key and certificate for these names and addresses; made anew each time."""
        key, certificate = self._issue(_name("k3s", "k3s"), ExtendedKeyUsageOID.SERVER_AUTH, names)
        path = self._folder / "serving.pem"
        _write(path, key + certificate + self.ca_pem)
        return path

    def admin(self) -> tuple[bytes, bytes]:
        """(key, certificate) of system:admin in system:masters."""
        key_file, file = self._folder / "client-admin.key", self._folder / "client-admin.crt"
        if not (key_file.exists() and file.exists()):
            key, certificate = self._issue(_name("system:admin", "system:masters"), ExtendedKeyUsageOID.CLIENT_AUTH, ())
            _write(key_file, key)
            _write(file, certificate)
        return key_file.read_bytes(), file.read_bytes()

    def secret(self, name: str, given: str | None = None) -> str:
        """A secret of the cluster (node token, key for service account tokens): as given first, or random."""
        path = self._folder / name
        if not path.exists():
            _write(path, (given or secrets.token_hex(16)).encode())
        return path.read_text(encoding="utf-8")


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
