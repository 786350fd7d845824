"""The whole conversion: a project, what is known of its images, and the nodes → manifests, claims, fidelity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hybridlab.compose.depends import job_reader
from hybridlab.compose.fidelity import Record
from hybridlab.compose.manifests import service_objects
from hybridlab.compose.model import LABEL_MANAGED_BY, LABEL_NAME, LABEL_PART_OF, Manifests, Obj, Options, Project
from hybridlab.compose.names import is_label, label, label_value
from hybridlab.compose.network import Published, balanced_object, conflicts, selector, service_object
from hybridlab.compose.survey import Survey, survey
from hybridlab.errors import BadInput
from hybridlab.models import ImageInfo, Json, NodeCapacity

# K3s' CoreDNS imports *.override from this ConfigMap (K3s documentation, "CoreDNS custom configuration imports").
_REWRITE = "kube-system/coredns-custom, a key ending in .override: rewrite name {} {}.{}.svc.cluster.local"


def convert(
    project: Project,
    images: Mapping[str, ImageInfo],
    nodes: Sequence[NodeCapacity] = (),
    options: Options | None = None,
) -> Manifests:
    """Manifests of a project; pure, the same input gives the same bytes.

    ``images``: what the registries said, by the reference as compose gives it or in full. A missing or unknown one
    makes a placement ``unknown``, never an error. No ``nodes``: the images alone decide.
    """
    options = options or Options()
    if not project.services:
        raise BadInput("this project has no services", where=project.name, next_move="choose a profile that has some")
    namespace = options.namespace or label(project.name, fallback="project")
    record = Record()

    def meta(name: str, service: str, annotations: Mapping[str, str]) -> Obj:
        labels = {
            LABEL_NAME: label_value(service or name),
            LABEL_PART_OF: label_value(project.name),
            LABEL_MANAGED_BY: "hybridlab",
        }
        out: Obj = {"name": name, "namespace": namespace, "labels": labels}
        return {**out, "annotations": dict(annotations)} if annotations else out

    seen = survey(project, images, nodes, options, record, meta)
    _networks(seen)
    addresses = _fixed_addresses(project)
    per_service = {service: service_objects(seen, service, addresses) for service in seen.names}
    for service, objects in _service_objects(seen).items():
        per_service[service] += objects
    owned: list[tuple[str, Obj]] = [("", _namespace(project, namespace))]
    owned += [*_claims(seen), *_files(seen)]
    if any(
        obj.get("spec", {}).get("template", {}).get("spec", {}).get("serviceAccountName")
        for objects in per_service.values()
        for obj in objects
    ):
        owned += [("", obj) for obj in job_reader(meta)]
    owned += [(service, obj) for service, objects in per_service.items() for obj in objects]
    for service in seen.names:
        if project.services[service].get("network_mode") == "none":
            owned.append((service, _isolated(seen, service)))
    findings = record.close(project)
    return Manifests(
        project.name,
        namespace,
        tuple(obj for _, obj in owned),
        seen.volumes.claims,
        findings,
        seen.placements,
        seen.references,
        {name: words for name, words in seen.commands.items() if words},
        tuple(owner for owner, _ in owned),
    )


def _namespace(project: Project, namespace: str) -> Obj:
    labels = {LABEL_PART_OF: label_value(project.name), LABEL_MANAGED_BY: "hybridlab"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": labels}}


def _claims(seen: Survey) -> list[tuple[str, Obj]]:
    out = []
    options = seen.options
    for claim in seen.volumes.claims:
        owner = claim.services[0] if len(claim.services) == 1 and claim.services[0] in seen.names else ""
        storage_class = options.shared_storage_class if claim.access_mode == "ReadWriteMany" else options.storage_class
        spec: Obj = {"accessModes": [claim.access_mode]}
        if storage_class:
            spec["storageClassName"] = storage_class
        spec["resources"] = {"requests": {"storage": claim.size}}
        notes = {"hybridlab.io/source": f"{claim.kind} {claim.source}", "hybridlab.io/why": claim.reason}
        out.append(
            (
                owner,
                {
                    "apiVersion": "v1",
                    "kind": "PersistentVolumeClaim",
                    "metadata": seen.meta(claim.name, owner, notes),
                    "spec": spec,
                },
            )
        )
    return out


def _files(seen: Survey) -> list[tuple[str, Obj]]:
    return [
        (users[0] if len(users) == 1 and users[0] in seen.names else "", seen.files.objects[name])
        for name, users in seen.files.users.items()
    ]


def _service_objects(seen: Survey) -> dict[str, list[Obj]]:
    """Services for the own name, every other name, and what is published."""
    out: dict[str, list[Obj]] = {service: [] for service in seen.names}
    taken = dict.fromkeys(seen.names.values(), "")
    clashes = conflicts(seen.published)
    for (outer, protocol), services in clashes.items():
        for late in services[1:]:
            key = f"ports.{outer}:{_inner(seen.published[late], outer, protocol)}/{protocol.lower()}"
            seen.record.approximated(
                late, key, f"{services[0]} publishes the same port: inside the cluster only; choose another"
            )
    for service, name in seen.names.items():
        used = any(alias in seen.used for alias in (service, *seen.aliases[service]))
        kind = seen.decisions[service].kind
        if not (seen.ports[service] or used or kind == "StatefulSet"):
            for alias, key in seen.aliases[service].items():
                seen.record.mapped(service, key, f"{alias}: nobody calls it, and it has no ports: no Service")
            continue
        why = "ports known" if seen.ports[service] else "headless: no port is known, every port works by name"
        notes = {"hybridlab.io/why": why}
        selects = selector(seen.project.name, service)
        inner = {port.number for port in seen.ports[service]}
        extra = [port for port in seen.published[service] if port.outer not in inner]
        out[service].append(service_object(seen.meta(name, service, notes), selects, seen.ports[service], extra))
        out[service] += _aliases(seen, service, taken)
        public = [
            port
            for port in seen.published[service]
            if not port.local and clashes.get((port.outer, port.protocol), (service,))[0] == service
        ]
        if public and seen.options.publish == "load-balancer":
            balanced = _free(f"{name}-public", taken)
            note = {"hybridlab.io/why": "published by compose: " + ", ".join(f"{p.outer}:{p.inner}" for p in public)}
            out[service].append(balanced_object(seen.meta(balanced, service, note), selects, public))
    return out


def _inner(ports: Sequence[Published], outer: int, protocol: str) -> int:
    return next(port.inner for port in ports if (port.outer, port.protocol) == (outer, protocol))


def _aliases(seen: Survey, service: str, taken: dict[str, str]) -> list[Obj]:
    out: list[Obj] = []
    for alias, key in seen.aliases[service].items():
        name, record_key = alias.lower(), "networks.aliases" if key == "networks" else key
        if "." in alias:
            if key != "hostname" or alias in seen.used:
                seen.record.refused(
                    service,
                    record_key,
                    f"{alias}: a Service's name has no dots; let CoreDNS rewrite it "
                    f"({_REWRITE.format(alias, seen.names[service], _space(seen))})",
                )
            continue
        if not is_label(name):
            seen.record.approximated(
                service,
                record_key,
                f"{alias}: not a DNS name, rewritten to {seen.names[service]} in commands and environment",
            )
            continue
        sharers = [other for other in seen.names if alias in seen.aliases[other]]
        if taken.get(name) == alias and sharers[0] != service:
            seen.record.mapped(service, record_key, f"Service {name}, shared with {', '.join(sharers)}")
            continue
        if name in taken:
            if name != seen.names[service]:
                seen.record.approximated(service, record_key, f"{alias}: the name is another service's already")
            continue
        taken[name] = alias
        selects: dict[str, str] = selector(seen.project.name, service)
        if len(sharers) > 1:
            selects = {f"alias.hybridlab.io/{label(alias)}": "true", LABEL_PART_OF: label_value(seen.project.name)}
        notes = {"hybridlab.io/why": f"another name of {service} ({key})"}
        out.append(service_object(seen.meta(name, service, notes), selects, seen.ports[service]))
        seen.record.mapped(service, record_key, f"Service {name}")
    return out


def _space(seen: Survey) -> str:
    return seen.options.namespace or label(seen.project.name, fallback="project")


def _free(wanted: str, taken: dict[str, str]) -> str:
    name = label(wanted)
    while name in taken:
        name = label(f"{name}-{len(taken)}")
    taken[name] = ""
    return name


def _isolated(seen: Survey, service: str) -> Obj:
    """``network_mode: none``: no traffic at all (K3s enforces network policies itself)."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": seen.meta(seen.names[service], service, {"hybridlab.io/why": "network_mode none"}),
        "spec": {
            "podSelector": {"matchLabels": selector(seen.project.name, service)},
            "policyTypes": ["Ingress", "Egress"],
        },
    }


def _fixed_addresses(project: Project) -> dict[str, str]:
    return {
        str(network[key]): service
        for service, spec in project.services.items()
        for network in (spec.get("networks") or {}).values()
        if network
        for key in ("ipv4_address", "ipv6_address")
        if network.get(key)
    }


def _networks(seen: Survey) -> None:
    """Lines for networks: one flat pod network replaces them all."""
    record = seen.record
    for service, spec in seen.project.services.items():
        if "networks" not in spec:
            continue
        joined = ", ".join(spec["networks"] or {}) or "none"
        record.mapped(service, "networks", f"the pod network ({joined})")
        for network in (spec["networks"] or {}).values():
            for key in network or {}:
                if key in ("ipv4_address", "ipv6_address", "link_local_ips", "mac_address", "interface_name"):
                    record.approximated(
                        service, f"networks.{key}", "pods get their addresses from the cluster; use the name"
                    )
                elif key not in ("aliases",):
                    record.approximated(service, f"networks.{key}", "a matter of Docker's bridge: one interface here")
    many = len(seen.project.networks) > 1
    for name, spec in seen.project.networks.items():
        notes = _network_notes(spec)
        if many:
            notes.append("services of different networks reach each other here, unless a NetworkPolicy forbids it")
        record.add("", f"networks.{name}", "approximated" if notes else "mapped", "; ".join(notes) or "the pod network")


def _network_notes(spec: Mapping[str, Json]) -> list[str]:
    notes = []
    if spec.get("internal"):
        notes.append("internal: its services can reach the outside here")
    if spec.get("external"):
        notes.append("external: other projects are reached as NAME.NAMESPACE")
    if spec.get("ipam"):
        notes.append("addresses are the cluster's")
    if spec.get("driver") not in (None, "bridge", "overlay", "default"):
        notes.append(f"driver {spec['driver']}: the pod network instead")
    if spec.get("driver_opts"):
        notes.append("driver options do not apply")
    return notes
