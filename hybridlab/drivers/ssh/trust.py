"""Which host keys and which own key: pinned host keys in a known_hosts file of the cluster's own."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncssh

from hybridlab.errors import BadInput
from hybridlab.ledger import write_atomic
from hybridlab.models import HostAddress

log = logging.getLogger(__name__)


class KnownHosts:
    """Pinned host keys by logical address, in OpenSSH's format, so that ``ssh -o UserKnownHostsFile`` reads it too."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def pattern(address: str, port: int) -> str:
        return address if port == 22 else f"[{address}]:{port}"

    def keys(self, address: str, port: int) -> list[asyncssh.SSHKey]:
        pattern = self.pattern(address, port)
        return [
            asyncssh.import_public_key(rest)
            for name, _, rest in (line.partition(" ") for line in self._lines())
            if name == pattern
        ]

    def add(self, address: str, port: int, key: asyncssh.SSHKey) -> None:
        line = f"{self.pattern(address, port)} ".encode() + key.export_public_key().strip() + b"\n"
        with self._alone(), os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as file:
            file.write(line)

    def forget(self, address: str, port: int) -> None:
        pattern = self.pattern(address, port)
        with self._alone():
            lines = self._lines()
            kept = [line for line in lines if line.partition(" ")[0] != pattern]
            if kept != lines:
                write_atomic(self.path, "".join(line + "\n" for line in kept).encode(), mode=0o600)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One change at a time, among threads and processes: several machines are met, or forgotten, at once."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _lines(self) -> list[str]:
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#")]


class Trust(asyncssh.SSHClient):
    """Accepts the pinned key, pins the key of a host never seen before, refuses any other."""

    def __init__(
        self, known: KnownHosts, host: HostAddress, on_first_contact: Callable[[HostAddress, str], None] | None
    ) -> None:
        self._known = known
        self._host = host
        self._on_first_contact = on_first_contact
        self._pinned = known.keys(host.address, host.port)
        self.mismatch = ""

    @property
    def algorithms(self) -> list[str]:
        """Signature algorithms of the pinned keys, so that the host shows the key we know; empty when none is."""
        names: list[str] = []
        for key in self._pinned:
            name = key.get_algorithm()
            names += ["rsa-sha2-512", "rsa-sha2-256"] if name == "ssh-rsa" else [name]
        return names

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        fingerprint = key.get_fingerprint()
        if key in self._pinned:
            return True
        if self._pinned:
            self.mismatch = f"it shows {fingerprint}, we know {', '.join(k.get_fingerprint() for k in self._pinned)}"
            return False
        self._known.add(self._host.address, self._host.port, key)
        log.info("%s: first contact, host key %s pinned", self._host.address, fingerprint)
        if self._on_first_contact is not None:
            self._on_first_contact(self._host, fingerprint)
        return True


Key = Path | str | None | Callable[[HostAddress], Path | str | None]
"""A private key's path, its PEM text, None for the agent and the user's default keys; or which of these a host has."""


def load_key(key: Path | str | None) -> asyncssh.SSHKey | None:
    """Read a private key from a path or PEM text. Raises BadInput: missing, unreadable, or with a passphrase."""
    if key is None:
        return None
    where = str(key) if isinstance(key, Path) else "the secret store's SSH key"
    try:
        if isinstance(key, Path):
            return asyncssh.read_private_key(key)
        return asyncssh.import_private_key(key)
    except FileNotFoundError as error:
        raise BadInput(
            "the SSH key is not there", where=where, next_move="run 020-provision-vms, or name the key's file"
        ) from error
    except OSError as error:
        raise BadInput("the SSH key can't be read", where=where, why=error.strerror or str(error)) from error
    except (asyncssh.KeyImportError, asyncssh.KeyEncryptionError) as error:
        locked = "passphrase" in str(error).lower() or "encrypt" in str(error).lower()
        raise BadInput(
            "the SSH key has a passphrase" if locked else "this is no SSH private key",
            where=where,
            why=str(error),
            next_move="load it into ssh-agent and leave the key out of the params, or use a key without passphrase"
            if locked
            else "give a private key as ssh-keygen writes it",
        ) from error
