"""All controllers of the cluster, started and stopped together, and what the API server asks of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from hybridlab.lab.kube.controllers import bundled, helm
from hybridlab.lab.kube.controllers.bundled import Namespaces
from hybridlab.lab.kube.controllers.daemonsets import DaemonSets
from hybridlab.lab.kube.controllers.deployments import Deployments
from hybridlab.lab.kube.controllers.disruption import Disruptions
from hybridlab.lab.kube.controllers.endpoints import EndpointsController
from hybridlab.lab.kube.controllers.garbage import Garbage, NamespaceDeleter
from hybridlab.lab.kube.controllers.helm import HelmCharts
from hybridlab.lab.kube.controllers.jiva import Jiva, JivaVolumes, mount_check
from hybridlab.lab.kube.controllers.jobs import CronJobs, Jobs
from hybridlab.lab.kube.controllers.kubelet import Kubelets
from hybridlab.lab.kube.controllers.nodes import NodePasswordRejected, Nodes, words
from hybridlab.lab.kube.controllers.objects import CRD, HELM_CHART
from hybridlab.lab.kube.controllers.process import Write
from hybridlab.lab.kube.controllers.provisioners import LocalPath, OpenEbsLocal
from hybridlab.lab.kube.controllers.replicasets import ReplicaSets
from hybridlab.lab.kube.controllers.scheduler import Scheduler
from hybridlab.lab.kube.controllers.servicelb import ServiceLb
from hybridlab.lab.kube.controllers.statefulsets import StatefulSets
from hybridlab.lab.kube.controllers.storage import Storage
from hybridlab.lab.kube.controllers.velero import Velero, restore_wait
from hybridlab.lab.kube.controllers.velero_restore import WAIT_CONTAINER
from hybridlab.lab.kube.controllers.work import Context, Runner
from hybridlab.lab.kube.store import Store
from hybridlab.lab.world import K3sService, Machine, World

REJOIN_S = 5.0  # how often a refused agent tries again


class Controllers:
    """The controllers half of K3s. ``root_ca`` (PEM) goes into every namespace's kube-root-ca.crt.

    Everything they know is in the store and in folders of the lab's directory (``volumes``, ``pods``), so that they go
    on where they were when the lab is started again.
    """

    def __init__(self, world: World, store: Store, root_ca: str = "") -> None:
        self.root_ca = root_ca
        self._context = context = Context(world, store)
        self._nodes = Nodes(context)
        self._scheduler = Scheduler(context)
        self._kubelets = Kubelets(context, self._nodes, self._scheduler)
        self._kubelets.mounts.checks.append(mount_check(context, self._nodes))
        self._kubelets.programs["docker.io/rancher/klipper-helm", "helm"] = helm.program(context)
        self._kubelets.programs["docker.io/velero/velero", WAIT_CONTAINER] = restore_wait(context)
        self._service_lb = ServiceLb(context)
        self._runner = Runner(
            context,
            [
                self._nodes,
                self._scheduler,
                self._kubelets,
                self._service_lb,
                EndpointsController(context),
                Namespaces(context, lambda: self.root_ca),
                Deployments(context),
                ReplicaSets(context),
                StatefulSets(context),
                DaemonSets(context),
                Jobs(context),
                CronJobs(context),
                Disruptions(context),
                Storage(context, self._kubelets.mounts, [LocalPath(context), OpenEbsLocal(context), Jiva(context)]),
                JivaVolumes(context, self._kubelets.poke),
                HelmCharts(context),
                Velero(context, self._kubelets),
                Garbage(context),
                NamespaceDeleter(context),
            ],
        )
        self._joining: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Look at all there is and follow changes."""
        for definition in bundled.definitions("helm.cattle.io"):
            self._context.create(definition)
        self._runner.start()

    async def stop(self) -> None:
        """Stop at once; processes that pods run end with it."""
        for task in self._joining.values():
            task.cancel()
        await asyncio.gather(*self._joining.values(), return_exceptions=True)
        await self._runner.stop()

    async def node_joined(self, machine: Machine, service: K3sService) -> None:
        """K3s runs on this machine and reaches its server: register its node, or find it again.

        Returns once the node is registered. A machine whose node password is refused is told so in its journal and
        tries again until ``node_lost``.
        """
        if service.role == "server":
            self._bring_along(machine, service)
        try:
            self._nodes.join(machine, service)
        except NodePasswordRejected as error:
            self._refused(machine, service, error)
            self._joining[machine.id] = asyncio.get_running_loop().create_task(self._rejoin(machine, service))

    def _refused(self, machine: Machine, service: K3sService, error: NodePasswordRejected) -> None:
        unit = "k3s" if service.role == "server" else "k3s-agent"
        line = f"Waiting to retrieve agent configuration; server is not ready: {error}"
        self._context.world.hosts.journal(machine.id, unit, line)

    async def _rejoin(self, machine: Machine, service: K3sService) -> None:
        while True:
            await self._context.takes(REJOIN_S)
            try:
                self._nodes.join(machine, service)
                return
            except NodePasswordRejected as error:
                self._refused(machine, service, error)

    def _bring_along(self, machine: Machine, service: K3sService) -> None:
        disabled = words(service.settings.get("disable"))
        self._service_lb.enabled = "servicelb" not in disabled
        given = words(service.settings.get("node-ip"))
        address = given[0] if given else machine.private_ip
        has_charts = self._context.defined(HELM_CHART) and self._context.defined(CRD)
        for obj in bundled.manifests(address, disabled, charts=has_charts):
            self._context.create(obj)

    async def node_lost(self, machine_id: str) -> None:
        """K3s stopped on this machine, or the machine is gone."""
        task = self._joining.pop(machine_id, None)
        if task is not None:
            task.cancel()
        self._nodes.lose(machine_id)

    def logs(
        self,
        namespace: str,
        pod: str,
        container: str | None = None,
        *,
        previous: bool = False,
        tail_lines: int | None = None,
        since_seconds: float | None = None,
        timestamps: bool = False,
        limit_bytes: int | None = None,
    ) -> str:
        """What a container printed. Raises ApiError (404, 400) as the API server and the kubelet would."""
        return self._kubelets.read_logs(
            namespace,
            pod,
            container,
            previous=previous,
            tail_lines=tail_lines,
            since_seconds=since_seconds,
            timestamps=timestamps,
            limit_bytes=limit_bytes,
        )

    async def exec(
        self,
        namespace: str,
        pod: str,
        container: str | None,
        argv: Sequence[str],
        stdin: AsyncIterator[bytes] | None,
        stdout: Write,
        stderr: Write,
    ) -> int:
        """Run a command in a running container; returns its exit status, 127 where the lab can't run it.

        ``stdin`` gives chunks until its end (None: empty), ``stdout`` and ``stderr`` are awaited with each chunk.
        Raises ApiError where there is no such running container.
        """
        return await self._kubelets.execute(namespace, pod, container, argv, stdin, stdout, stderr)
