"""K3s' ServiceLB: a DaemonSet of small proxies per LoadBalancer Service; its nodes' addresses are the Service's."""

from __future__ import annotations

from collections.abc import Iterable

from hybridlab.lab.kube.controllers.objects import (
    DAEMON_SET,
    NODE,
    POD,
    SERVICE,
    Obj,
    is_deleting,
    is_ready,
    key_of,
    labels_of,
    name_of,
    namespace_of,
    spec_of,
    status_of,
    uid_of,
)
from hybridlab.lab.kube.controllers.work import Context, Controller, Key, on

IMAGE = "rancher/klipper-lb:v0.4.13"
_SYSTEM = "kube-system"
_NAME, _SPACE = "svccontroller.k3s.cattle.io/svcname", "svccontroller.k3s.cattle.io/svcnamespace"
_ENABLED = "svccontroller.k3s.cattle.io/enablelb"
_TOLERATIONS = (
    {"key": "node-role.kubernetes.io/control-plane", "operator": "Exists", "effect": "NoSchedule"},
    {"key": "CriticalAddonsOnly", "operator": "Exists"},
)


class ServiceLb(Controller):
    """Off where K3s was started with ``disable: [servicelb]``: such Services then stay pending."""

    name = "service-lb"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.enabled = True

    def keys(self, event: str, kind: tuple[str, str], obj: Obj) -> Iterable[Key]:
        if on(SERVICE, kind):
            return [key_of(obj)]
        if on(POD, kind) and _NAME in labels_of(obj):
            return [(labels_of(obj)[_SPACE], labels_of(obj)[_NAME])]
        if on(NODE, kind):
            return [key_of(s) for s in self.context.peek(SERVICE) if spec_of(s).get("type") == "LoadBalancer"]
        return []

    async def reconcile(self, key: Key) -> float | None:
        service = self.context.get(SERVICE, key[1], key[0])
        wanted = ""
        if service is not None and not is_deleting(service) and spec_of(service).get("type") == "LoadBalancer":
            wanted = f"svclb-{name_of(service)}-{uid_of(service)[:8]}"[:63]
        for old in self.context.peek(DAEMON_SET, _SYSTEM):
            mine = (labels_of(old).get(_SPACE), labels_of(old).get(_NAME)) == key
            if mine and (name_of(old) != wanted or not self.enabled):
                self.context.delete(DAEMON_SET, old)
        if service is None or not wanted or not self.enabled:
            return None
        self.context.create(self._daemon_set(service, wanted))
        self._report(service)
        return None

    def _report(self, service: Obj) -> None:
        homes = {
            spec_of(pod).get("nodeName")
            for pod in self.context.peek(POD, _SYSTEM)
            if (labels_of(pod).get(_SPACE), labels_of(pod).get(_NAME)) == key_of(service) and is_ready(pod)
        }
        addresses = []
        for node in self.context.peek(NODE):
            if name_of(node) in homes:
                known = {a["type"]: a["address"] for a in status_of(node).get("addresses") or []}
                addresses.append(str(known.get("ExternalIP") or known.get("InternalIP") or ""))
        ingress = [{"ip": address, "ipMode": "VIP"} for address in sorted(filter(None, addresses))]
        status = {**status_of(service), "loadBalancer": {"ingress": ingress} if ingress else {}}
        self.context.set_status(SERVICE, service, status)

    def _daemon_set(self, service: Obj, name: str) -> Obj:
        labels = {_NAME: name_of(service), _SPACE: namespace_of(service)}
        app = {"app": name, **labels}
        containers = []
        for port in spec_of(service).get("ports") or []:
            number, protocol = int(port["port"]), str(port.get("protocol", "TCP"))
            short = f"lb-{protocol.lower()}-{number}"
            exposed = {"name": short, "containerPort": number, "hostPort": number, "protocol": protocol}
            containers.append({"name": short, "image": IMAGE, "imagePullPolicy": "IfNotPresent", "ports": [exposed]})
        pods: Obj = {
            "containers": containers,
            "tolerations": [dict(t) for t in _TOLERATIONS],
            "automountServiceAccountToken": False,
        }
        if any(_ENABLED in labels_of(node) for node in self.context.peek(NODE)):
            pods["nodeSelector"] = {_ENABLED: "true"}
        return {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": name, "namespace": _SYSTEM, "labels": labels},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": app}, "spec": pods},
            },
        }
