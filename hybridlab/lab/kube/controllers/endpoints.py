"""Endpoints and EndpointSlices of Services, by the readiness of the pods they select."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hybridlab.lab.kube.controllers.objects import (
    ENDPOINT_SLICE,
    ENDPOINTS,
    POD,
    SERVICE,
    Kind,
    Obj,
    containers_of,
    hash_of,
    is_deleting,
    is_finished,
    is_ready,
    key_of,
    labels_of,
    matches,
    name_of,
    namespace_of,
    owner_reference,
    spec_of,
    status_of,
    uid_of,
)
from hybridlab.lab.kube.controllers.work import Controller, Key, on

MANAGED_BY = "endpointslice-controller.k8s.io"


class EndpointsController(Controller):
    name = "endpoints"

    def keys(self, event: str, kind: tuple[str, str], obj: Obj) -> Iterable[Key]:
        if on(SERVICE, kind):
            return [key_of(obj)]
        if on(POD, kind):
            return [
                key_of(service) for service in self.context.peek(SERVICE, namespace_of(obj)) if _selects(service, obj)
            ]
        return []

    async def reconcile(self, key: Key) -> float | None:
        service = self.context.get(SERVICE, key[1], key[0])
        if service is None:
            for kind in (ENDPOINTS, ENDPOINT_SLICE):
                for obj in self.context.peek(kind, key[0]):
                    if labels_of(obj).get("kubernetes.io/service-name") == key[1] or (
                        kind is ENDPOINTS and name_of(obj) == key[1]
                    ):
                        self.context.delete(kind, obj)
            return None
        if is_deleting(service):
            return None
        if not spec_of(service).get("selector") or spec_of(service).get("type") == "ExternalName":
            return None
        pods = [
            pod
            for pod in self.context.peek(POD, key[0])
            if _selects(service, pod) and status_of(pod).get("podIP") and not is_finished(pod) and not is_deleting(pod)
        ]
        pods.sort(key=lambda pod: str(status_of(pod)["podIP"]))
        self._put(ENDPOINTS, self._endpoints(service, pods))
        self._put(ENDPOINT_SLICE, self._slice(service, pods))
        return None

    def _put(self, kind: Kind, wanted: Obj) -> None:
        if self.context.create(wanted) is not None:
            return
        old = self.context.get(kind, name_of(wanted), namespace_of(wanted))
        fields = ("subsets",) if kind is ENDPOINTS else ("endpoints", "ports")
        if old is None or all((old.get(f) or []) == (wanted.get(f) or []) for f in fields):
            return

        def change(found: Obj) -> None:
            for field in fields:
                found.pop(field, None)
                if wanted.get(field):
                    found[field] = wanted[field]

        self.context.change(kind, old, change)

    def _endpoints(self, service: Obj, pods: Sequence[Obj]) -> Obj:
        wanted: Obj = {
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": {
                "name": name_of(service),
                "namespace": namespace_of(service),
                "labels": {**labels_of(service), "endpoints.kubernetes.io/managed-by": "endpoint-controller"},
            },
        }
        early = bool(spec_of(service).get("publishNotReadyAddresses"))
        by_ports: dict[str, tuple[list[Obj], list[Obj], list[Obj]]] = {}
        for pod in pods:
            ports = _ports(service, pod)
            ready, unready, _ = by_ports.setdefault(repr(ports), ([], [], ports))
            address = {
                "ip": status_of(pod)["podIP"],
                "nodeName": spec_of(pod).get("nodeName"),
                "targetRef": {
                    "kind": "Pod",
                    "name": name_of(pod),
                    "namespace": namespace_of(pod),
                    "uid": uid_of(pod),
                },
            }
            (ready if is_ready(pod) or early else unready).append(address)
        subsets = []
        for ready, unready, ports in by_ports.values():
            subset: Obj = {}
            if ready:
                subset["addresses"] = ready
            if unready:
                subset["notReadyAddresses"] = unready
            if ports:
                subset["ports"] = ports
            subsets.append(subset)
        if subsets:
            wanted["subsets"] = subsets
        return wanted

    def _slice(self, service: Obj, pods: Sequence[Obj]) -> Obj:
        early = bool(spec_of(service).get("publishNotReadyAddresses"))
        endpoints = [
            {
                "addresses": [status_of(pod)["podIP"]],
                "conditions": {"ready": is_ready(pod) or early, "serving": is_ready(pod), "terminating": False},
                "nodeName": spec_of(pod).get("nodeName"),
                "targetRef": {
                    "kind": "Pod",
                    "name": name_of(pod),
                    "namespace": namespace_of(pod),
                    "uid": uid_of(pod),
                },
            }
            for pod in pods
        ]
        ports = _ports(service, pods[0]) if pods else []
        return {
            "apiVersion": ENDPOINT_SLICE.api_version,
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name_of(service)}-{hash_of(uid_of(service), 5)}",
                "namespace": namespace_of(service),
                "labels": {
                    **labels_of(service),
                    "kubernetes.io/service-name": name_of(service),
                    "endpointslice.kubernetes.io/managed-by": MANAGED_BY,
                },
                "ownerReferences": [owner_reference(service)],
            },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{"name": "", **port} for port in ports],
        }


def _selects(service: Obj, pod: Obj) -> bool:
    selector = spec_of(service).get("selector")
    return bool(selector) and matches({"matchLabels": selector}, labels_of(pod))


def _ports(service: Obj, pod: Obj) -> list[Obj]:
    result = []
    for port in spec_of(service).get("ports") or []:
        number = _target(port.get("targetPort", port["port"]), pod, port.get("protocol", "TCP"))
        if number is None:
            continue
        entry = {"port": number, "protocol": port.get("protocol", "TCP")}
        if port.get("name"):
            entry["name"] = port["name"]
        result.append(entry)
    return result


def _target(target: Any, pod: Obj, protocol: str) -> int | None:
    if isinstance(target, int):
        return target
    for container in containers_of(spec_of(pod)):
        for port in container.get("ports") or []:
            if port.get("name") == target and port.get("protocol", "TCP") == protocol:
                return int(port["containerPort"])
    return int(target) if str(target).isdigit() else None
