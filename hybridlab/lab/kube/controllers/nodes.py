"""Nodes: registration as the kubelet and K3s do it, heartbeats, and what happens when a machine goes silent.

Times are shortened against the real ones, at speed 1: a silent node is NotReady after 2 s instead of 40–50, and
tolerationSeconds pass 30 times faster (300 s become 10).
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import secrets
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hybridlab.lab.kube.controllers.objects import (
    LEASE,
    NODE,
    POD,
    SECRET,
    Obj,
    condition,
    condition_is,
    is_deleting,
    micro_timestamp,
    name_of,
    owner_reference,
    pod_phase,
    quantity,
    seconds_of,
    set_condition,
    spec_of,
    status_of,
    timestamp,
    tolerance_of,
)
from hybridlab.lab.kube.controllers.work import Context, Controller, Key, on
from hybridlab.lab.world import K3sService, Machine

SILENT_AFTER_S = 2.0
TOLERATION_SCALE = 30.0
REJOIN_GRACE_S = 10.0
"""Real seconds that agents have to be back after the server (or the whole lab, which was frozen) started again."""
HEARTBEAT_S = 10.0
STATUS_REPORT_S = 300.0
REJECTED = (
    "Node password rejected, duplicate hostname or contents of '/etc/rancher/node/password' may not match server "
    "node-passwd entry, try enabling a unique node name with the --with-node-id flag"
)

_UNREACHABLE = "node.kubernetes.io/unreachable"
_NOT_READY = "node.kubernetes.io/not-ready"
_UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
_PRESSURES = (
    ("MemoryPressure", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
    ("DiskPressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    ("PIDPressure", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
)


class NodePasswordRejected(Exception):
    """A machine joins under the name of a node whose recorded password is another one."""


@dataclass(frozen=True)
class Kubelet:
    """A machine whose K3s runs: a kubelet that answers."""

    machine: Machine
    service: K3sService


def node_name(machine: Machine, service: K3sService) -> str:
    return str(service.settings.get("node-name") or machine.name).lower()


def words(value: Any) -> list[str]:
    """A setting that may be a list or one string."""
    if value is None:
        return []
    return [str(v) for v in value] if isinstance(value, list | tuple) else [str(value)]


def cpus(machine: Machine) -> int:
    """vCPUs the guest sees: one a core on Ampere, two a core on AMD, and two on Oracle's 1/8-OCPU micro as well."""
    return max(1, math.ceil(machine.ocpus)) if machine.arch == "arm64" else max(2, math.ceil(machine.ocpus * 2))


def kubelet_args(settings: Mapping[str, Any]) -> dict[str, str]:
    pairs = (word.partition("=") for word in words(settings.get("kubelet-arg")))
    return {key.lstrip("-"): value for key, _, value in pairs}


def capacity(machine: Machine, settings: Mapping[str, Any]) -> tuple[Obj, Obj]:
    """Capacity and allocatable: memory is the shape's, what the kubelet's arguments reserve is taken off."""
    args = kubelet_args(settings)
    total: Obj = {
        "cpu": str(cpus(machine)),
        "memory": f"{int(machine.memory_gb * 2**20)}Ki",
        "ephemeral-storage": f"{machine.boot_volume_gb * 2**20}Ki",
        "pods": args.get("max-pods", "110"),
        "hugepages-2Mi": "0",
    }
    reserved: dict[str, float] = {}
    for flag in ("kube-reserved", "system-reserved"):
        for part in filter(None, args.get(flag, "").split(",")):
            resource, _, amount = part.partition("=")
            reserved[resource] = reserved.get(resource, 0.0) + quantity(amount)
    for part in args.get("eviction-hard", "").split(","):
        signal, _, amount = part.partition("<")
        if signal == "memory.available" and not amount.endswith("%"):
            reserved["memory"] = reserved.get("memory", 0.0) + quantity(amount)
    free = dict(total)
    free["cpu"] = (
        f"{int(cpus(machine) * 1000 - reserved.get('cpu', 0.0) * 1000)}m" if "cpu" in reserved else total["cpu"]
    )
    if "memory" in reserved:
        free["memory"] = f"{int((machine.memory_gb * 2**30 - reserved['memory']) / 1024)}Ki"
    return total, free


def parse_taint(text: str) -> Obj:
    """``key=value:Effect`` as K3s' node-taint has it."""
    head, _, effect = text.rpartition(":")
    key, _, value = head.partition("=")
    taint = {"key": key, "effect": effect}
    return {**taint, "value": value} if value else taint


class Nodes(Controller):
    """Keeps Node objects true to the machines whose K3s runs (``kubelets``, by node name)."""

    name = "node-controller"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.kubelets: dict[str, Kubelet] = {}
        self.on_change: list[Callable[[str], None]] = []  # told a node's name when its kubelet comes or goes
        self._silent_since: dict[str, float] = {}
        self._reported: dict[str, float] = {}
        self._began: float | None = None

    # -- coming and going --------------------------------------------------------------------------------------------
    def join(self, machine: Machine, service: K3sService) -> str:
        """Register a node, or find it again; returns its name. Raises NodePasswordRejected."""
        name = node_name(machine, service)
        self._check_password(name, machine)
        node = self.context.get(NODE, name)
        if node is None:
            node = self.context.create(self._new_node(name, machine, service))
            # what a kubelet's registration looks like in the log, so that joins can be counted
            self.context.world.log.add(
                "kube", "POST", "/api/v1/nodes", 201, mutating=True, actor=f"system:node:{name}", detail=f"{name} joins"
            )
        if node is not None:
            self.context.set_status(NODE, node, self._fresh_status(node, machine, service))
        self.kubelets[name] = Kubelet(machine, service)
        self._silent_since.pop(name, None)
        self._tell(name)  # a kubelet starts the pods it is given at once, whatever its Node says of it
        self.again(("", name), 0.3)
        return name

    def lose(self, machine_id: str) -> None:
        for name, kubelet in list(self.kubelets.items()):
            if kubelet.machine.id == machine_id:
                del self.kubelets[name]
                self._silent_since[name] = self.context.now()
                self._tell(name)
                self.again(("", name), 0.0)

    def is_alive(self, name: str) -> bool:
        """Whether this node's kubelet answers and its Node object is there."""
        return name in self.kubelets and self.context.get(NODE, name) is not None

    def _tell(self, name: str) -> None:
        for callback in self.on_change:
            callback(name)

    def _check_password(self, name: str, machine: Machine) -> None:
        path = self.context.world.hosts.folder(machine.id) / "etc/rancher/node/password"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(secrets.token_hex(16) + "\n", encoding="ascii")
            path.chmod(0o600)
        password = path.read_text(encoding="ascii").strip()
        secret_name = f"{name}.node-password.k3s"
        known = self.context.get(SECRET, secret_name, "kube-system")
        if known is None:
            salt = secrets.token_hex(8)
            self.context.create(
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {"name": secret_name, "namespace": "kube-system"},
                    "type": "Opaque",
                    "immutable": True,
                    "data": {"hash": base64.b64encode(_password_hash(salt, password).encode()).decode()},
                }
            )
            return
        recorded = base64.b64decode(known["data"]["hash"]).decode()
        if _password_hash(recorded.split(":")[1], password) != recorded:
            raise NodePasswordRejected(REJECTED)

    def _new_node(self, name: str, machine: Machine, service: K3sService) -> Obj:
        settings = service.settings
        labels = {
            "beta.kubernetes.io/arch": machine.arch,
            "beta.kubernetes.io/instance-type": "k3s",
            "beta.kubernetes.io/os": "linux",
            "kubernetes.io/arch": machine.arch,
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "node.kubernetes.io/instance-type": "k3s",
        }
        if service.role == "server":
            labels["node-role.kubernetes.io/control-plane"] = "true"
        for word in words(settings.get("node-label")):
            key, _, value = word.partition("=")
            labels[key] = value
        taken = {spec_of(n).get("podCIDR") for n in self.context.peek(NODE)}
        cidr = next(c for c in (f"10.42.{i}.0/24" for i in range(256)) if c not in taken)
        spec: Obj = {"podCIDR": cidr, "podCIDRs": [cidr], "providerID": f"k3s://{name}"}
        taints = [parse_taint(word) for word in words(settings.get("node-taint"))]
        spec["taints"] = [*taints, {"key": _NOT_READY, "effect": "NoSchedule"}]
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": name,
                "labels": labels,
                "annotations": {
                    "alpha.kubernetes.io/provided-node-ip": _internal_ip(machine, settings),
                    "flannel.alpha.coreos.com/backend-type": "vxlan",
                    "flannel.alpha.coreos.com/public-ip": _internal_ip(machine, settings),
                    "k3s.io/hostname": name,
                    "k3s.io/internal-ip": _internal_ip(machine, settings),
                    "k3s.io/node-args": json.dumps(_redacted(service)),
                    "node.alpha.kubernetes.io/ttl": "0",
                    "volumes.kubernetes.io/controller-managed-attach-detach": "true",
                },
            },
            "spec": spec,
        }

    def _fresh_status(self, node: Obj, machine: Machine, service: K3sService) -> Obj:
        total, free = capacity(machine, service.settings)
        addresses = [{"type": "InternalIP", "address": _internal_ip(machine, service.settings)}]
        for external in words(service.settings.get("node-external-ip")):
            addresses.append({"type": "ExternalIP", "address": external})
        addresses.append({"type": "Hostname", "address": name_of(node)})
        status: Obj = {
            "capacity": total,
            "allocatable": free,
            "addresses": addresses,
            "conditions": list(status_of(node).get("conditions") or []),
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "images": list(status_of(node).get("images") or []),
            "nodeInfo": {
                "architecture": machine.arch,
                "operatingSystem": "linux",
                "osImage": machine.image,
                "kernelVersion": "lab",
                "containerRuntimeVersion": "containerd://lab",
                "kubeletVersion": service.version,
                "kubeProxyVersion": service.version,
                "machineID": uuid.uuid5(uuid.NAMESPACE_URL, machine.id).hex,
                "systemUUID": str(uuid.uuid5(uuid.NAMESPACE_URL, machine.id)),
                "bootID": str(uuid.uuid4()),
            },
        }
        if condition(node, "Ready") is None:
            message = "container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady"
            set_condition(status, "Ready", False, self.context.now(), reason="KubeletNotReady", message=message)
        return status

    # -- reconciling -------------------------------------------------------------------------------------------------
    def keys(self, event: str, kind: tuple[str, str], obj: Obj) -> Iterable[Key]:
        if on(NODE, kind):
            return [("", name_of(obj))]
        if on(POD, kind) and event != "DELETED" and spec_of(obj).get("nodeName"):
            home = str(spec_of(obj)["nodeName"])
            if event == "ADDED" or home not in self.kubelets:
                return [("", home)]
        return []

    async def reconcile(self, key: Key) -> float | None:
        name = key[1]
        node = self.context.get(NODE, name)
        if node is None:
            return self._collect_pods(name)
        if name in self.kubelets:
            was_ready = condition_is(node, "Ready")
            self._report(node)
            self._renew_lease(node)
            self._fit_taints(node, silent=False)
            if not was_ready:
                self._tell(name)
            waiting = self._evict(name)
            beat = max(HEARTBEAT_S, self.context.world.clock.speed)
            return beat if waiting is None else min(beat, waiting)
        silent = self.context.now() - self._last_heard(name)
        left = SILENT_AFTER_S - silent * self.context.world.clock.speed
        if left > 0 and not condition_is(node, "Ready", "Unknown"):
            return left + 0.01
        self._mark_silent(node)
        self._fit_taints(node, silent=True)
        return self._evict(name)

    def _last_heard(self, name: str) -> float:
        """When a node went silent; for one that has not been heard of yet, the end of the time it has to come back."""
        now = self.context.now()
        self._began = now if self._began is None else self._began
        return self._silent_since.setdefault(name, max(now, self._began + REJOIN_GRACE_S))

    def _report(self, node: Obj) -> None:
        """The kubelet's node status: written when something changed, else every five minutes."""
        now = self.context.now()
        status = status_of(node)
        changed = set_condition(
            status, "Ready", True, now, reason="KubeletReady", message="kubelet is posting ready status"
        )
        for kind, reason, message in _PRESSURES:
            changed |= set_condition(status, kind, False, now, reason=reason, message=message)
        name = name_of(node)
        if not changed and now - self._reported.get(name, 0.0) < self.context.scaled(STATUS_REPORT_S):
            return
        self._reported[name] = now
        for entry in status["conditions"]:
            entry["lastHeartbeatTime"] = timestamp(now)
        self.context.set_status(NODE, node, status)
        if changed:
            self.context.event(node, "Normal", "NodeReady", f"Node {name} status is now: NodeReady", "kubelet")

    def _renew_lease(self, node: Obj) -> None:
        name, now = name_of(node), micro_timestamp(self.context.now())
        if self.context.get(LEASE, name, "kube-node-lease") is None:
            reference = owner_reference(node)
            del reference["controller"], reference["blockOwnerDeletion"]
            self.context.create(
                {
                    "apiVersion": LEASE.api_version,
                    "kind": "Lease",
                    "metadata": {"name": name, "namespace": "kube-node-lease", "ownerReferences": [reference]},
                    "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now},
                }
            )
            return

        def renew(lease: Obj) -> None:
            lease["spec"]["renewTime"] = now

        self.context.store.patch(LEASE.plural, name, "kube-node-lease", LEASE.group, renew)

    def _mark_silent(self, node: Obj) -> None:
        status, now, changed = status_of(node), self.context.now(), False
        for kind in ("MemoryPressure", "DiskPressure", "PIDPressure", "Ready"):
            message = "Kubelet stopped posting node status."
            changed |= set_condition(status, kind, "Unknown", now, reason="NodeStatusUnknown", message=message)
        if not changed:
            return
        self.context.set_status(NODE, node, status)
        name = name_of(node)
        self.context.event(
            node, "Normal", "NodeNotReady", f"Node {name} status is now: NodeNotReady", "node-controller"
        )
        for pod in self._pods_on(name):
            if not condition_is(pod, "Ready"):
                continue
            pod_status = status_of(self.context.current(POD, pod) or pod)
            set_condition(pod_status, "Ready", False, now, reason="NodeNotReady")
            self.context.set_status(POD, pod, pod_status)

    def _fit_taints(self, node: Obj, *, silent: bool) -> None:
        """Taints that follow from the node's state: unreachable, cordoned."""
        wanted = []
        if silent:
            wanted += [{"key": _UNREACHABLE, "effect": "NoSchedule"}, {"key": _UNREACHABLE, "effect": "NoExecute"}]
        if spec_of(node).get("unschedulable"):
            wanted.append({"key": _UNSCHEDULABLE, "effect": "NoSchedule"})
        ours = (_UNREACHABLE, _NOT_READY, _UNSCHEDULABLE)
        old = spec_of(node).get("taints") or []
        kept = [taint for taint in old if taint["key"] not in ours]
        have = {(t["key"], t["effect"]) for t in old if t["key"] in ours}
        if have == {(t["key"], t["effect"]) for t in wanted}:
            return
        stamp = timestamp(self.context.now())

        def put(found: Obj) -> None:
            taints = kept + [{**taint, "timeAdded": stamp} for taint in wanted]
            found["spec"].pop("taints", None)
            if taints:
                found["spec"]["taints"] = taints

        self.context.change(NODE, node, put)

    def _pods_on(self, name: str) -> list[Obj]:
        return [pod for pod in self.context.peek(POD) if spec_of(pod).get("nodeName") == name]

    def _evict(self, name: str) -> float | None:
        """Delete pods that don't (or no longer) tolerate NoExecute taints; seconds until the next one is due."""
        node = self.context.get(NODE, name)
        taints = [t for t in spec_of(node or {}).get("taints") or [] if t.get("effect") == "NoExecute"]
        if not taints:
            return None
        waits = []
        for pod in self._pods_on(name):
            if is_deleting(pod) or pod_phase(pod) in ("Succeeded", "Failed"):
                continue
            left = self._tolerated_for(pod, taints)
            if left is None:
                continue
            if left > 0:
                waits.append(left)
                continue
            self.context.event(
                pod,
                "Normal",
                "TaintManagerEviction",
                f"Marking for deletion Pod {name_of(pod)}",
                "taint-eviction-controller",
            )
            self.context.delete(POD, pod)
        return min(waits) + 0.01 if waits else None

    def _tolerated_for(self, pod: Obj, taints: Iterable[Obj]) -> float | None:
        """Lab seconds a pod may still stay; None for as long as it likes."""
        left: float | None = None
        for taint in taints:
            fitting = [t for t in spec_of(pod).get("tolerations") or [] if tolerance_of(t, taint)]
            if not fitting:
                return 0.0
            limits = [float(t["tolerationSeconds"]) for t in fitting if t.get("tolerationSeconds") is not None]
            if not limits:
                continue
            started = seconds_of(taint.get("timeAdded")) or self.context.now()
            passed = (self.context.now() - started) * self.context.world.clock.speed
            remaining = min(limits) / TOLERATION_SCALE - passed
            left = remaining if left is None else min(left, remaining)
        return left

    def _collect_pods(self, name: str) -> float | None:
        """Pods bound to a node that doesn't exist are removed after a while (the pod garbage collector)."""
        pods = self._pods_on(name)
        if not pods:
            self._silent_since.pop(name, None)
            return None
        since = self._silent_since.setdefault(name, self.context.now())
        left = SILENT_AFTER_S - (self.context.now() - since) * self.context.world.clock.speed
        if left > 0:
            return left + 0.01
        for pod in pods:
            self.context.delete(POD, pod, force=True)
        self._silent_since.pop(name, None)
        return None


def _internal_ip(machine: Machine, settings: Mapping[str, Any]) -> str:
    given = words(settings.get("node-ip"))
    return given[0] if given else machine.private_ip


def _redacted(service: K3sService) -> list[str]:
    """The command line K3s records on its node, secrets masked as it masks them."""
    args: list[str] = [service.role]
    for key, value in service.settings.items():
        secret = key in ("token", "agent-token", "datastore-endpoint")
        args += [part for word in words(value) for part in (f"--{key}", "********" if secret else word)]
    return args


def _password_hash(salt: str, password: str) -> str:
    digest = hashlib.scrypt(password.encode(), salt=bytes.fromhex(salt), n=1024, r=8, p=1).hex()
    return f"$1:{salt}:10:8:1:{digest}"
