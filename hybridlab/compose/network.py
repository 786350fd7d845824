"""Services: one for every name that others use, one more for what Compose publishes to the outside.

Ports come from, in this order: ports, expose, the image's ExposedPorts, what other services say (``db:5432``), what the
own healthcheck asks on localhost. With none of these the Service is headless: every port is reachable by its name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hybridlab.compose.fidelity import Record
from hybridlab.compose.mentions import own_ports
from hybridlab.compose.model import LABEL_NAME, LABEL_PART_OF, Obj
from hybridlab.compose.names import is_annotation_key, label_value, port_name
from hybridlab.models import ImageInfo, Json

_LOCAL = ("127.", "::1", "localhost", "[::1]")


@dataclass(frozen=True)
class Port:
    """``application``: what is spoken there, as a Service's appProtocol."""

    number: int
    protocol: str
    reason: str
    application: str = ""


@dataclass(frozen=True)
class Published:
    """A port offered to the outside: ``outer`` → ``inner``; ``local``: on the host's loopback only."""

    outer: int
    inner: int
    protocol: str
    local: bool


def ports_of(
    service: str, spec: Mapping[str, Json], image: ImageInfo | None, said: Mapping[int, str], record: Record
) -> tuple[Port, ...]:
    """Every port the Service should have, with where it is known from."""
    found: dict[tuple[int, str], Port] = {}

    def add(number: int, protocol: str, reason: str, application: str = "") -> None:
        if 0 < number < 65536:
            found.setdefault((number, protocol), Port(number, protocol, reason, application))

    for entry in spec.get("ports") or []:
        spoken = str(entry.get("app_protocol") or "")
        add(
            int(entry["target"]), _protocol(entry.get("protocol")), "ports", spoken if is_annotation_key(spoken) else ""
        )
    for text in spec.get("expose") or []:
        for number, protocol in expand(str(text)):
            add(number, protocol, "expose")
    if "expose" in spec:
        record.mapped(service, "expose", "ports of the Service")
    if image is not None and image.known:
        for text in image.config.exposed_ports:
            for number, protocol in expand(text):
                add(number, protocol, "the image exposes it")
    for number, reason in said.items():
        if (number, "UDP") not in found:
            add(number, "TCP", reason)
    if not found:
        for number in own_ports(spec):
            add(number, "TCP", "its own healthcheck asks there")
    for port in found.values():
        record.why(service, f"port {port.number}/{port.protocol.lower()}: {port.reason}")
    return tuple(found.values())


def expand(text: str) -> list[tuple[int, str]]:
    """``100-102/udp`` → three ports; what is not a port is nothing."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?(?:/(\w+))?", text.strip())
    if not match:
        return []
    first, last = int(match[1]), int(match[2] or match[1])
    return [(number, _protocol(match[3])) for number in range(first, min(last, first + 2000) + 1)]


def _protocol(text: Json) -> str:
    word = str(text or "tcp").upper()
    return word if word in ("TCP", "UDP", "SCTP") else "TCP"


def published(service: str, spec: Mapping[str, Json], record: Record, *, balanced: bool) -> tuple[Published, ...]:
    """The ports section's outside half, with its lines in the record."""
    out: dict[tuple[int, str], Published] = {}
    for entry in spec.get("ports") or []:
        inner, protocol = int(entry["target"]), _protocol(entry.get("protocol"))
        outer_text = str(entry.get("published") or "").split("-")[0]
        key = f"ports.{outer_text or 'random'}:{inner}/{protocol.lower()}"
        host_ip = str(entry.get("host_ip") or "")
        local = host_ip.startswith(_LOCAL)
        if not outer_text.isdigit() or int(outer_text) == 0:
            record.approximated(service, key, "Docker would choose an outer port at random: inside the cluster only")
            continue
        if spec.get("network_mode") == "host":
            record.mapped(service, key, "the host network has it already")
            continue
        if "-" in str(entry.get("published") or ""):
            record.approximated(service, key, f"the first of {entry['published']}: Docker would choose one of them")
        elif local:
            record.mapped(service, key, f"ClusterIP only: Docker bound it to {host_ip}")
        elif host_ip and host_ip not in ("0.0.0.0", "::"):
            record.approximated(service, key, f"on every node, not on {host_ip} only")
        elif balanced:
            record.mapped(
                service, key, "LoadBalancer Service" + ("" if int(outer_text) == inner else ", targetPort differs")
            )
        else:
            record.approximated(service, key, "inside the cluster only, as chosen (publish: cluster-ip)")
        out.setdefault((int(outer_text), protocol), Published(int(outer_text), inner, protocol, local))
    if "ports" in spec and not spec["ports"]:
        record.mapped(service, "ports", "none")
    return tuple(out.values())


def conflicts(all_published: Mapping[str, Sequence[Published]]) -> dict[tuple[int, str], tuple[str, ...]]:
    """Outer ports that several services want: only one can have them on a node."""
    wanted: dict[tuple[int, str], list[str]] = {}
    for service, ports in all_published.items():
        for port in ports:
            if not port.local:
                wanted.setdefault((port.outer, port.protocol), []).append(service)
    return {key: tuple(services) for key, services in wanted.items() if len(services) > 1}


def selector(project: str, service: str) -> dict[str, str]:
    return {LABEL_NAME: label_value(service), LABEL_PART_OF: label_value(project)}


def service_object(
    meta: Obj,
    selects: Mapping[str, str],
    ports: Iterable[Port],
    outer: Iterable[Published] = (),
) -> Obj:
    """A ClusterIP Service, or a headless one where no port is known.

    ``outer``: published ports that differ from every inner one; they are offered inside, too.
    """
    rows: dict[tuple[int, str], Obj] = {}
    for port in ports:
        row = _row(port.number, port.number, port.protocol)
        rows[(port.number, port.protocol)] = {**row, "appProtocol": port.application} if port.application else row
    for extra in outer:
        rows.setdefault((extra.outer, extra.protocol), _row(extra.outer, extra.inner, extra.protocol))
    spec: Obj = {"type": "ClusterIP"}
    if not rows:
        spec["clusterIP"] = "None"
    spec["selector"] = dict(selects)
    if rows:
        spec["ports"] = list(rows.values())
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}


def balanced_object(meta: Obj, selects: Mapping[str, str], ports: Iterable[Published]) -> Obj:
    """The LoadBalancer Service for what Compose publishes: outer port → inner port."""
    rows = [_row(port.outer, port.inner, port.protocol) for port in ports]
    spec: Obj = {"type": "LoadBalancer", "selector": dict(selects), "ports": rows}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}


def _row(port: int, target: int, protocol: str) -> Obj:
    return {"name": port_name(protocol, port), "port": port, "targetPort": target, "protocol": protocol}
