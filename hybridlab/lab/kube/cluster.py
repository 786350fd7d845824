"""One running K3s server: its data, certificates, API listener and controllers."""

from __future__ import annotations

import base64
import logging
import os
import ssl
from pathlib import Path
from typing import Any

from aiohttp import web

from hybridlab.lab.kube.admission import Admission
from hybridlab.lab.kube.api import ApiServer
from hybridlab.lab.kube.controllers import Controllers
from hybridlab.lab.kube.node_join import Credentials, split_token
from hybridlab.lab.kube.pki import Pki
from hybridlab.lab.kube.store import Store
from hybridlab.lab.world import K3sService, Machine, World

log = logging.getLogger(__name__)

API_PORT = 6443
DATASTORE = "var/lib/rancher/k3s/server/db/state.db"
"""On the machine itself, as K3s has it, so that a snapshot is a copy of it and a restore puts the copy back."""


class CannotStart(Exception):
    """K3s refuses to start; the text is what its journal says."""


class Cluster:
    """K3s' server on one machine; its data live in ``folder`` and belong to that machine.

    ``port`` is the loopback port to listen on; 0 or one that is taken means another one.
    """

    def __init__(self, world: World, machine: Machine, service: K3sService, folder: Path, port: int) -> None:
        self.machine = machine
        self.service = service
        self.logical_port = int(service.settings.get("https-listen-port") or API_PORT)
        self.port = port
        self._world = world
        self._pki = Pki(folder / "tls")
        self.credentials = self._credentials(folder)
        datastore = world.hosts.folder(machine.id) / DATASTORE
        datastore.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._store = Store(datastore)
        admission = Admission(self._store)
        self.controllers = Controllers(world, self._store, root_ca=self._pki.ca_pem.decode())
        self._api = ApiServer(
            self._store,
            admission,
            self.controllers,
            world.log,
            version=service.version,
            ca_pem=self._pki.ca_pem,
            token_secret=self._pki.secret("service-account-key"),
        )
        self._runner: web.AppRunner | None = None

    def _credentials(self, folder: Path) -> Credentials:
        """The cluster's tokens; a token other than the first one can't decrypt the bootstrap data."""
        settings = self.service.settings
        given = split_token(str(settings.get("token") or ""))[1]
        secret = self._pki.secret("server-token", given or None)
        if given and given != secret:
            raise CannotStart(
                "starting kubernetes: preparing server: bootstrap data already found and encrypted with different token"
            )
        agent = split_token(str(settings.get("agent-token") or ""))[1]
        return Credentials(self._pki.ca_hash(), secret, agent)

    # -- life -------------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Bring the API up, write what K3s writes on its machine, then let the controllers work."""
        await self.controllers.start()
        await self._listen()
        self._write_files()
        for ip in (self.machine.private_ip, self.machine.public_ip):
            if ip:
                self._world.publish(ip, self.logical_port, self.port)
        await self.controllers.node_joined(self.machine, self.service)
        log.info("K3s %s answers on %s for %s", self.service.version, self.port, self.machine.name)

    async def stop(self) -> None:
        """Stop answering; the data stay."""
        for ip in (self.machine.private_ip, self.machine.public_ip):
            if ip:
                self._world.unpublish(ip, self.logical_port)
        self._api.stop_watches()
        if self._runner:
            await self._runner.cleanup()
        await self.controllers.stop()
        self._store.close()

    def _names(self) -> list[str]:
        sans = self.service.settings.get("tls-san") or []
        extra = [sans] if isinstance(sans, str) else [str(name) for name in sans]
        cluster = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
        own = [self.machine.name, self.machine.private_ip, self.machine.public_ip]
        return ["127.0.0.1", "localhost", "10.43.0.1", *cluster, *(name for name in own if name), *extra]

    async def _listen(self) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(self._pki.ca_file))
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_cert_chain(self._pki.server_files(dict.fromkeys(self._names())))
        self._runner = web.AppRunner(
            self._api.application(), handler_cancellation=True, shutdown_timeout=0.5, access_log=None
        )
        await self._runner.setup()
        try:
            site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=context)
            await site.start()
        except OSError:
            site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context)
            await site.start()
        self.port = int(self._runner.addresses[0][1])
        self._api.address = f"{self.machine.private_ip}:{self.logical_port}"

    # -- files on the machine ---------------------------------------------------------------------------------------
    def _write_files(self) -> None:
        root = self._world.hosts.folder(self.machine.id)
        token = f"K10{self.credentials.ca_hash}::server:{self.credentials.server_token}\n"
        server = root / "var/lib/rancher/k3s/server"
        for name in ("node-token", "token"):
            _write(server / name, token, 0o600)
        _write(server / "tls/server-ca.crt", self._pki.ca_pem.decode(), 0o644)
        mode = int(str(self.service.settings.get("write-kubeconfig-mode") or "600"), 8)
        _write(root / "etc/rancher/k3s/k3s.yaml", self.kubeconfig(f"https://127.0.0.1:{self.logical_port}"), mode)

    def kubeconfig(self, server: str) -> str:
        """The administrator's kubeconfig, as K3s writes it."""
        key, certificate = self._pki.admin()

        def encoded(data: bytes) -> str:
            return base64.b64encode(data).decode()

        return (
            "apiVersion: v1\n"
            "clusters:\n"
            "- cluster:\n"
            f"    certificate-authority-data: {encoded(self._pki.ca_pem)}\n"
            f"    server: {server}\n"
            "  name: default\n"
            "contexts:\n"
            "- context:\n"
            "    cluster: default\n"
            "    user: default\n"
            "  name: default\n"
            "current-context: default\n"
            "kind: Config\n"
            "preferences: {}\n"
            "users:\n"
            "- name: default\n"
            "  user:\n"
            f"    client-certificate-data: {encoded(certificate)}\n"
            f"    client-key-data: {encoded(key)}\n"
        )

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.service.settings)


def _write(path: Path, text: str, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.unlink()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    path.chmod(mode)
