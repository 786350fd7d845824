"""The lab's Oracle Cloud: one tenancy in one region, served to the real SDK and command line."""

from __future__ import annotations

from aiohttp import web

from hybridlab.lab.oracle.blockstorage import BlockStorage
from hybridlab.lab.oracle.compute import Catalogue
from hybridlab.lab.oracle.credentials import prepare
from hybridlab.lab.oracle.http import Server
from hybridlab.lab.oracle.identity import Identity
from hybridlab.lab.oracle.instances import FAULTS, Instances
from hybridlab.lab.oracle.limits import Limits, allowance
from hybridlab.lab.oracle.network import Network
from hybridlab.lab.oracle.nsg import SecurityGroups
from hybridlab.lab.oracle.quotas import Quotas
from hybridlab.lab.oracle.search import Search
from hybridlab.lab.oracle.store import REGION, Store
from hybridlab.lab.oracle.vnics import Vnics
from hybridlab.lab.oracle.workrequests import WorkRequests
from hybridlab.lab.world import Protocol_, World


class OraclePart:
    """Start it after the hosts: it powers on what was running. It is the world's ``Network``.

    ``allowance`` names an entry of data/allowances.json; the tenancy's limits are derived from it.
    """

    def __init__(self, allowance: str = "until-2026-06") -> None:
        self._allowance = allowance
        self._runner: web.AppRunner | None = None
        self._store: Store | None = None
        self._vnics: Vnics | None = None

    async def start(self, world: World) -> None:
        """Listen on an ephemeral loopback port; ``world.endpoints["oracle"]`` says where and with which config file."""
        allowed = allowance(self._allowance)
        for name, description in FAULTS.items():
            world.faults.register(name, description)
        world.faults.register("too-many-requests", 'a request is answered 429 (subject: "METHOD path")')
        store = self._store = Store(world)
        identity = Identity(world, store)
        quotas = Quotas(store)
        limits = Limits(store, quotas, allowed)
        network = Network(world, store, limits)
        vnics = self._vnics = Vnics(store)
        volumes = BlockStorage(world, store, limits)
        work = WorkRequests(store)
        instances = Instances(world, store, limits, vnics, volumes, work)
        parts = (identity, quotas, limits, network, vnics, volumes, work, instances, SecurityGroups(store, network))
        routes = [route for part in (*parts, Catalogue(world, store), Search(store)) for route in part.routes()]
        store.flush()
        credentials = prepare(world.directory / "oci", tenancy_id=store.tenancy_id, user_id=store.user_id)
        world.network = self
        runner = self._runner = web.AppRunner(
            Server(world, store, credentials, routes).application(), access_log=None, shutdown_timeout=1.0
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        world.endpoints["oracle"] = {
            "endpoint": f"http://127.0.0.1:{port}",
            "config_file": str(credentials.config_file),
            "profile": "DEFAULT",
            "compartment_id": store.tenancy_id,
            "region": REGION,
            "allowance": self._allowance,
        }
        instances.resume()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._store is not None:
            self._store.flush()

    def allows(self, source_ip: str, dest_ip: str, protocol: Protocol_, port: int) -> bool:
        """Whether the cloud's network lets a packet from one address reach another (see ``Vnics.allows``)."""
        return self._vnics is None or self._vnics.allows(source_ip, dest_ip, protocol, port)
