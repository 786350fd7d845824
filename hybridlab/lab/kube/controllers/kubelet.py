"""The kubelets of all nodes: which pods run where, their addresses, logs, exec, and their graceful end."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator, Iterable, Sequence

from hybridlab.lab.kube.controllers import commands, predicates, process
from hybridlab.lab.kube.controllers.images import Images
from hybridlab.lab.kube.controllers.mounts import ConfigMissing, MountFailed, Mounts
from hybridlab.lab.kube.controllers.nodes import Nodes
from hybridlab.lab.kube.controllers.objects import (
    CLAIM,
    CONFIG_MAP,
    NODE,
    POD,
    SECRET,
    Obj,
    is_deleting,
    is_finished,
    key_of,
    name_of,
    namespace_of,
    spec_of,
    status_of,
    timestamp,
    uid_of,
)
from hybridlab.lab.kube.controllers.podlogs import PodLogs
from hybridlab.lab.kube.controllers.podnet import PodNet
from hybridlab.lab.kube.controllers.podworker import PodWorker, Program
from hybridlab.lab.kube.controllers.process import Write
from hybridlab.lab.kube.controllers.scheduler import Scheduler
from hybridlab.lab.kube.controllers.standins import StandIns
from hybridlab.lab.kube.controllers.work import Context, Controller, Key, on
from hybridlab.lab.kube.errors import ApiError, bad_request, not_found

STOP_S = 0.2  # how long a container takes to stop, at most its grace period
CANNOT_RUN = 127


class Kubelets(Controller):
    """Starts a PodWorker for each pod that has a living node, and stops it when the pod is deleted."""

    name = "kubelet"

    def __init__(self, context: Context, nodes: Nodes, scheduler: Scheduler) -> None:
        super().__init__(context)
        self.nodes = nodes
        self.images = Images(context)
        self.mounts = Mounts(context)
        self.stand_ins = StandIns(context)
        self.pod_net = PodNet(context)
        self.logs = PodLogs(context)
        self.programs: dict[tuple[str, str], Program] = {}  # by image without tag, and container name
        self._scheduler = scheduler
        self._workers: dict[Key, PodWorker] = {}
        self._addresses: dict[str, str] = {}  # given and perhaps not yet in a status, by pod uid
        nodes.on_change.append(self._node_changed)

    def _node_changed(self, node: str) -> None:
        for pod in self.context.peek(POD):
            if spec_of(pod).get("nodeName") == node:
                self.again(key_of(pod), 0.0)

    # -- reconciling -------------------------------------------------------------------------------------------------
    def keys(self, event: str, kind: tuple[str, str], obj: Obj) -> Iterable[Key]:
        if on(POD, kind):
            if event == "DELETED":
                self.poke(namespace_of(obj))  # it may have held a volume another one waits for
            return [key_of(obj)] if spec_of(obj).get("nodeName") or key_of(obj) in self._workers else []
        if any(on(k, kind) for k in (CONFIG_MAP, SECRET, CLAIM)):
            self.poke(namespace_of(obj))
        return []

    def poke(self, namespace: str = "") -> None:
        """Tell the pods of a namespace (all without one) that something they may wait for has changed."""
        for (home, _), worker in self._workers.items():
            if not namespace or home == namespace:
                worker.poke()

    async def reconcile(self, key: Key) -> float | None:
        pod = self.context.get(POD, key[1], key[0])
        worker = self._workers.get(key)
        if worker is not None and (pod is None or uid_of(pod) != uid_of(worker.pod)):
            await self._drop(key)
            self._forget(uid_of(worker.pod))
            worker = None
        if pod is None:
            return None
        node = str(spec_of(pod).get("nodeName") or "")
        if not self.nodes.is_alive(node):
            if worker is not None:
                await self._drop(key)
            return None
        if is_deleting(pod):
            await self._finish(key, pod)
            return None
        if is_finished(pod) or worker is not None:
            return None
        if status_of(pod).get("startTime") is None and not self._admit(pod, node):
            return None
        self._workers[key] = PodWorker(self, pod, node)
        return None

    async def _drop(self, key: Key) -> None:
        worker = self._workers.pop(key, None)
        if worker is not None:
            await worker.stop()

    async def _finish(self, key: Key, pod: Obj) -> None:
        """The end of a deleted pod: its containers stop, then the object goes."""
        if not is_finished(pod):
            for container in spec_of(pod).get("containers") or []:
                self.context.event(pod, "Normal", "Killing", f"Stopping container {container['name']}", "kubelet")
        grace = float(pod["metadata"].get("deletionGracePeriodSeconds") or 0)
        await self._drop(key)
        if not is_finished(pod):
            await self.context.takes(min(STOP_S, grace))
        self.context.delete(POD, pod, force=True)
        self._forget(uid_of(pod))

    def _forget(self, uid: str) -> None:
        self._addresses.pop(uid, None)
        self.logs.forget(uid)

    def _admit(self, pod: Obj, node: str) -> bool:
        """What the kubelet checks itself before a pod that came without the scheduler may start."""
        found = self.context.get(NODE, node)
        if found is None:
            return False
        snapshot = self._scheduler.snapshot()
        others = [p for p in snapshot.pods.get(node, ()) if uid_of(p) != uid_of(pod)]
        snapshot = predicates.Snapshot(nodes=snapshot.nodes, pods={**snapshot.pods, node: others})
        failure = None
        if predicates.node_affinity(pod, found, snapshot):
            failure = (
                "NodeAffinity",
                "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
            )
        lacking = predicates.resources(pod, found, snapshot)
        if lacking:
            resource = lacking[0].text.rpartition(" ")[2]
            failure = (f"OutOf{resource}", f"Node didn't have enough resource: {resource}")
        if failure is None:
            return True
        status = status_of(pod)
        status.update(phase="Failed", reason=failure[0], message=f"Pod was rejected: {failure[1]}")
        status["startTime"] = timestamp(self.context.now())
        self.context.set_status(POD, pod, status)
        self.context.event(pod, "Warning", failure[0], failure[1], "kubelet")
        return False

    def address_for(self, pod: Obj, node: str, host_ip: str) -> str:
        """A free address of the node's pod range (the node's own with hostNetwork)."""
        if spec_of(pod).get("hostNetwork"):
            return host_ip
        found = self.context.get(NODE, node)
        cidr = spec_of(found or {}).get("podCIDR") or "10.42.0.0/24"
        taken = set(self._addresses.values())
        taken |= {str(status_of(p).get("podIP")) for p in self.context.peek(POD) if not is_finished(p)}
        hosts = list(ipaddress.ip_network(cidr).hosts())[1:]  # the first one is the bridge's
        address = next(str(h) for h in hosts if str(h) not in taken)
        self._addresses[uid_of(pod)] = address
        return address

    async def stop(self) -> None:
        for key in list(self._workers):
            await self._drop(key)

    # -- logs and exec -----------------------------------------------------------------------------------------------
    def read_logs(
        self,
        namespace: str,
        name: str,
        container: str | None = None,
        *,
        previous: bool = False,
        tail_lines: int | None = None,
        since_seconds: float | None = None,
        timestamps: bool = False,
        limit_bytes: int | None = None,
    ) -> str:
        """What a container printed. Raises ApiError 404 and 400 as the API server and the kubelet do."""
        pod = self._pod(namespace, name)
        spec = self._container(pod, container)
        status = self._status(pod, spec["name"])
        if status is None or (not status["containerID"] and not status["lastState"]):
            reason = (status or {}).get("state", {}).get("waiting", {}).get("reason", "ContainerCreating")
            what = (
                "trying and failing to pull image"
                if reason in ("ErrImagePull", "ImagePullBackOff")
                else f"waiting to start: {reason}"
            )
            raise bad_request(f'container "{spec["name"]}" in pod "{name}" is {what}')
        restart = int(status["restartCount"])
        if previous:
            if not status["lastState"].get("terminated"):
                raise bad_request(f'previous terminated container "{spec["name"]}" in pod "{name}" not found')
            restart -= 0 if "waiting" in status["state"] else 1
        since = self.context.now() - since_seconds if since_seconds else 0.0
        return self.logs.read(
            uid_of(pod),
            spec["name"],
            restart,
            tail_lines=tail_lines,
            since=since,
            timestamps=timestamps,
            limit_bytes=limit_bytes,
        )

    async def execute(
        self,
        namespace: str,
        name: str,
        container: str | None,
        argv: Sequence[str],
        stdin: AsyncIterator[bytes] | None,
        stdout: Write,
        stderr: Write,
    ) -> int:
        """Run a command in a container that runs; 127 with one line on stderr where the lab can't run it."""
        pod = self._pod(namespace, name)
        spec = self._container(pod, container)
        status = self._status(pod, spec["name"])
        worker = self._workers.get(key_of(pod))
        if worker is None or status is None or "running" not in status["state"]:
            if is_finished(pod):
                why = f"cannot exec into a container in a completed pod; current phase is {status_of(pod)['phase']}"
                raise bad_request(why)
            raise bad_request(f'unable to upgrade connection: container not found ("{spec["name"]}")')
        try:
            mounts = self.mounts.of_container(pod, spec, worker.volumes)
            environment = self.mounts.environment(pod, spec)
            answered = await self.pod_net.answer(pod, argv, stdout)
            if answered is None:
                answered = await self.stand_ins.answer(pod, str(spec["image"]), argv, mounts, stdin, stdout, stderr)
            if answered is not None:
                return answered
            scratch = self.context.folder("pods", uid_of(pod), "scratch")
            command = commands.prepare(argv, mounts, environment, scratch, str(spec.get("workingDir") or "/"))
        except (commands.CannotRun, ConfigMissing, MountFailed) as error:
            await stderr(f"{error}\n".encode())
            return CANNOT_RUN
        return await process.run(command, stdin, stdout, stderr)

    def _pod(self, namespace: str, name: str) -> Obj:
        pod = self.context.get(POD, name, namespace)
        if pod is None:
            raise not_found("pods", "", name)
        node = str(spec_of(pod).get("nodeName") or "")
        if not node:
            raise bad_request(f"pod {name} does not have a host assigned")
        if not self.nodes.is_alive(node):
            address = status_of(pod).get("hostIP") or node
            message = f"error dialing backend: dial tcp {address}:10250: connect: connection refused"
            raise ApiError(502, "", message)
        return pod

    def _container(self, pod: Obj, wanted: str | None) -> Obj:
        spec = spec_of(pod)
        every: list[Obj] = [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]
        if not wanted:
            if len(spec["containers"]) == 1:
                only: Obj = spec["containers"][0]
                return only
            preferred = pod["metadata"].get("annotations", {}).get("kubectl.kubernetes.io/default-container")
            if not preferred:
                names = " ".join(c["name"] for c in spec["containers"])
                inits = " ".join(c["name"] for c in spec.get("initContainers") or [])
                more = f" or one of the init containers: [{inits}]" if inits else ""
                raise bad_request(
                    f"a container name must be specified for pod {name_of(pod)}, choose one of: [{names}]{more}"
                )
            wanted = str(preferred)
        for container in every:
            if container["name"] == wanted:
                return container
        raise bad_request(f"container {wanted} is not valid for pod {name_of(pod)}")

    def _status(self, pod: Obj, container: str) -> Obj | None:
        status = status_of(pod)
        for entry in [*(status.get("containerStatuses") or []), *(status.get("initContainerStatuses") or [])]:
            if entry["name"] == container:
                found: Obj = entry
                return found
        return None
