"""The API key and the OCI config file that the lab hands to its user."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from hybridlab.lab.oracle.store import REGION


@dataclass(frozen=True)
class Credentials:
    """The one API key of the lab's tenancy. ``fingerprint`` is the MD5 of the public key's DER, as Oracle has it."""

    key: rsa.RSAPublicKey
    fingerprint: str
    config_file: Path


def prepare(folder: Path, *, tenancy_id: str, user_id: str) -> Credentials:
    """Make the key on first use, and write the config file; both 0600 in a folder of 0700."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    key_file = folder / "api_key.pem"
    if key_file.exists():
        private = serialization.load_pem_private_key(key_file.read_bytes(), None)
        if not isinstance(private, rsa.RSAPrivateKey):
            raise ValueError(f"{key_file} is not an RSA key")
    else:
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        _write_private(
            key_file,
            private.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
            )
            + b"OCI_API_KEY\n",  # the label that oci-cli warns about when it is missing
        )
    public = private.public_key()
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    fingerprint = hashlib.md5(der, usedforsecurity=False).hexdigest()
    fingerprint = ":".join(fingerprint[i : i + 2] for i in range(0, 32, 2))
    config_file = folder / "config"
    _write_private(
        config_file,
        (
            f"[DEFAULT]\nuser={user_id}\nfingerprint={fingerprint}\ntenancy={tenancy_id}\n"
            f"region={REGION}\nkey_file={key_file}\n"
        ).encode(),
    )
    return Credentials(public, fingerprint, config_file)


def _write_private(path: Path, content: bytes) -> None:
    scratch = path.with_suffix(".new")
    scratch.unlink(missing_ok=True)
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    scratch.replace(path)
