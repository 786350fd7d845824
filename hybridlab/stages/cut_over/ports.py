"""Ports that the Docker host published, as Services of type LoadBalancer: the same ports on the nodes."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from hybridlab.compose.names import label
from hybridlab.models import Json
from hybridlab.stages.migrate.project import Move
from hybridlab.stages.migrate.transfers import workloads
from hybridlab.stages.objects import MANAGED, Obj

SWITCHED = "hybridlab.io/cut-over-port"


def published(move: Move) -> dict[str, list[Mapping[str, Json]]]:
    """The ports of each service that others than the Docker host itself could reach; of two with one port the first."""
    found: dict[str, list[Mapping[str, Json]]] = {}
    for owners in _by_port(move).values():
        service, port = owners[0]
        found.setdefault(service, []).append(port)
    return found


def clashes(move: Move) -> dict[str, list[str]]:
    """Ports that several services publish, such as ``80/tcp``: a node has each once, on all its addresses."""
    found = {key: [service for service, _ in owners] for key, owners in _by_port(move).items()}
    return {key: services for key, services in found.items() if len(services) > 1}


def _by_port(move: Move) -> dict[str, list[tuple[str, Mapping[str, Json]]]]:
    found: dict[str, list[tuple[str, Mapping[str, Json]]]] = {}
    for service in workloads(move):
        for port in move.project.services[service].get("ports") or ():
            public = str(port.get("published") or "")
            if public.isdigit() and not _only_here(str(port.get("host_ip") or "")):
                key = f"{public}/{port.get('protocol') or 'tcp'}"
                found.setdefault(key, []).append((service, port))
    return found


def _only_here(address: str) -> bool:
    try:
        return bool(address) and ipaddress.ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return False


def port_service(namespace: str, service: str, ports: list[Mapping[str, Json]], workload: Obj) -> dict[str, Json]:
    """A Service of its own, so that 070 and this stage never want different things of one object."""
    rows = []
    for port in ports:
        protocol = str(port.get("protocol") or "tcp").upper()
        public = int(port["published"])
        name = f"p{public}-{protocol.lower()}"
        rows.append({"name": name, "port": public, "targetPort": int(port["target"]), "protocol": protocol})
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": label(f"{service}-published"), "namespace": namespace,
                     "labels": {**MANAGED, SWITCHED: "true"}},
        "spec": {"type": "LoadBalancer", "selector": dict(_selector(workload)), "ports": rows},
    }  # fmt: skip


def _selector(workload: Obj) -> Mapping[str, Json]:
    selector: Mapping[str, Json] = workload["spec"]["selector"]["matchLabels"]
    return selector
