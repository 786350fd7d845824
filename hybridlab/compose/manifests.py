"""Manifests of one service at a time, from the survey: workload, Services, ConfigMap and Secret of its environment."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

from hybridlab.compose import pod as pods
from hybridlab.compose.constraints import with_expressions
from hybridlab.compose.depends import JOB_READER, Waits, waits
from hybridlab.compose.env import Environment, encode, split
from hybridlab.compose.images import architecture_in_name
from hybridlab.compose.mentions import rewrite_value
from hybridlab.compose.model import (
    ANNOTATION_PLACEMENT,
    ANNOTATION_PLACEMENT_WHY,
    ANNOTATION_WHY,
    LABEL_COLOCATE,
    LABEL_MANAGED_BY,
    Obj,
)
from hybridlab.compose.mounts import Mount
from hybridlab.compose.names import is_annotation_key, label
from hybridlab.compose.network import selector
from hybridlab.compose.probes import probes
from hybridlab.compose.security import Security, security
from hybridlab.compose.survey import Survey
from hybridlab.compose.workload import update_strategy, workload
from hybridlab.models import Json

_PULL = {
    "always": "Always",
    "never": "Never",
    "missing": "IfNotPresent",
    "if_not_present": "IfNotPresent",
    "build": "IfNotPresent",
    "refresh": "Always",
    "daily": "Always",
    "weekly": "Always",
}
_IMAGE_WITH_TAG = re.compile(r"[a-z0-9.-]+(?::\d+)?(?:/[a-z0-9._-]+)+:[\w.-]+")
# Who reads a label in Docker, and what takes its place.
_LABEL_READERS = {
    "traefik.": "Traefik in Kubernetes reads Ingress and IngressRoute objects",
    "caddy": "caddy-docker-proxy reads Docker; write an Ingress",
    "ofelia.": "ofelia reads Docker; each job wants a CronJob",
    "com.centurylinklabs.watchtower.": "watchtower reads Docker; nothing here updates images by itself",
    "com.github.": "its reader watches Docker's labels",
    "diun.": "diun's Kubernetes provider reads pod annotations",
    "homepage.": "homepage reads annotations of Ingresses",
    "autoheal": "autoheal reads Docker; ask for liveness probes",
}


def service_objects(seen: Survey, service: str, addresses: Mapping[str, str]) -> list[Obj]:
    """ConfigMap, Secret and workload of one service, in this order."""
    spec, name, record = seen.project.services[service], seen.names[service], seen.record
    environment = split(pods.rewritten(spec.get("environment") or {}, seen.renamed))
    _environment_line(seen, service, environment)
    settings = _environment_objects(seen, service, environment)
    wait = waits(service, seen.project, seen.names, seen.ports, seen.jobs, seen.checked, record)
    volumes = pods.Volumes()
    mounts = [*seen.volumes.mounts[service], *pods.extra_mounts(service, spec, record), *_file_mounts(seen, service)]
    secure = security(service, spec, seen.images[service], record, needs_privilege=pods.opens_devices(mounts))
    seeds = _mount_all(seen, service, volumes, mounts)
    container = _container(seen, service, environment, secure, volumes)
    inits = [*wait.containers, *seeds, *_pre_start(seen, service, container)]
    pod = _pod(seen, service, container, inits, volumes, secure, wait, addresses)
    digest = _digest(settings, seen, mounts)
    has_claims = any(mount.claim for mount in mounts)
    decision = seen.decisions[service]
    update = update_strategy(service, spec, record)
    meta = seen.meta(name, service, _annotations(seen, service))
    made = workload(
        decision,
        name,
        meta,
        selector(seen.project.name, service),
        _pod_meta(seen, service, digest),
        pod,
        has_claims=has_claims,
        update=update,
    )
    return [*settings, made]


def _environment_line(seen: Survey, service: str, environment: Environment) -> None:
    spec, record = seen.project.services[service], seen.record
    if "environment" in spec:
        record.mapped(
            service, "environment", f"{len(environment.plain)} in a ConfigMap, {len(environment.secret)} in a Secret"
        )
    if environment.secret:
        record.why(service, f"Secret: {', '.join(environment.secret)}")
    if environment.unset:
        record.approximated(
            service,
            "environment",
            f"{', '.join(environment.unset)}: to be taken from the shell and not set there, so not set here",
        )
    for key in environment.impossible:
        record.refused(service, f"environment.{key}", "Kubernetes takes printable ASCII only in a variable's name")
    changed = [
        key
        for key, value in (spec.get("environment") or {}).items()
        if value is not None and rewrite_value(key, str(value), seen.renamed) != str(value)
    ]
    if changed:
        record.approximated(
            service, "environment", f"host names in {', '.join(changed)} rewritten to ones DNS can carry"
        )
    for key, value in environment.plain.items():
        named = architecture_in_name(value) if _IMAGE_WITH_TAG.fullmatch(value) else None
        if named is not None:
            record.approximated(
                service, "environment", f"{key} names an image for {named.spelled} only: {named.remedy}"
            )


def _environment_objects(seen: Survey, service: str, environment: Environment) -> list[Obj]:
    name = f"{seen.names[service]}-env"
    out: list[Obj] = []
    if environment.plain:
        out.append(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": seen.meta(name, service, {}),
                "data": dict(environment.plain),
            }
        )
    if environment.secret:
        out.append(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": seen.meta(name, service, {}),
                "type": "Opaque",
                "data": {key: encode(value) for key, value in environment.secret.items()},
            }
        )
    return out


def _file_mounts(seen: Survey, service: str) -> list[Mount]:
    spec, used = seen.project.services[service], []
    for kind, default in (("configs", "/"), ("secrets", "/run/secrets/")):
        for entry in spec.get(kind) or []:
            entry = entry if isinstance(entry, Mapping) else {"source": str(entry)}
            key = f"{kind}.{entry.get('source')}"
            volume = seen.files.top_level(service, kind, entry)
            if volume is None:
                seen.record.refused(service, key, "not defined in this project")
                continue
            target = str(entry.get("target") or entry.get("source"))
            used.append((target if target.startswith("/") else f"{default}{target}", volume))
            owner = [word for word in ("uid", "gid") if entry.get(word)]
            seen.record.add(
                service,
                key,
                "approximated" if owner else "mapped",
                "a file by subPath" + (f"; {' and '.join(owner)}: files of a volume belong to root" if owner else ""),
            )
        if kind in spec and not spec[kind]:
            seen.record.mapped(service, kind, "none")
    return pods.file_mounts(used)


def _mount_all(seen: Survey, service: str, volumes: pods.Volumes, mounts: list[Mount]) -> list[Obj]:
    """Mount everything; returns the init containers that seed claims from the image."""
    spec, image, seeds = seen.project.services[service], seen.images[service], []
    seeded: set[str] = set()
    evidence = seen.options.seed and pods.has_shell(spec, image)
    for mount in mounts:
        name = volumes.add(mount)
        if not name or not mount.seed:
            continue
        if seen.decisions[service].kind == "StatefulSet" or name in seeded:
            continue  # a database's data folder is empty in its image
        seeded.add(name)
        seed = pods.seed_container(_image_text(seen, service), name, mount, evidence)
        if seed is not None:
            seeds.append(seed)
            seen.record.why(service, f"{mount.target}: seeded from the image while the volume is empty, as Docker does")
    return seeds


def _image_text(seen: Survey, service: str) -> str:
    info, reference = seen.images[service], seen.references[service]
    if seen.options.pin_digests and info is not None and info.known and info.digest and "@" not in reference:
        return f"{reference}@{info.digest}"
    return reference


def _container(seen: Survey, service: str, environment: Environment, secure: Security, volumes: pods.Volumes) -> Obj:
    spec, record, image = seen.project.services[service], seen.record, seen.images[service]
    out: Obj = {"name": label(service), "image": _image_text(seen, service)}
    _image_line(seen, service)
    if spec.get("pull_policy"):
        policy = (
            str(spec["pull_policy"]).split("_")[0]
            if str(spec["pull_policy"]).startswith("every")
            else str(spec["pull_policy"])
        )
        out["imagePullPolicy"] = _PULL.get(policy, "Always")
        record.mapped(service, "pull_policy", f"imagePullPolicy {out['imagePullPolicy']}")
    out.update(pods.command_and_args(service, spec, image, seen.renamed, record))
    if spec.get("working_dir"):
        out["workingDir"] = str(spec["working_dir"])
        record.mapped(service, "working_dir", "workingDir")
    out.update(pods.environment_fields(seen.names[service], environment))
    declared = pods.container_ports(seen.ports[service], host_network=spec.get("network_mode") == "host")
    if declared:
        out["ports"] = declared
    if seen.resources[service].spec:
        out["resources"] = dict(seen.resources[service].spec)
    if volumes.mounts:
        out["volumeMounts"] = volumes.mounts
    if seen.decisions[service].kind == "Job":
        if "healthcheck" in spec:
            record.approximated(service, "healthcheck", "a Job is done when it ends: not probed")
    else:
        out.update(probes(service, spec, image, record, liveness=seen.options.liveness))
    hooks = pods.lifecycle(service, spec, record)
    if hooks:
        out["lifecycle"] = hooks
    if secure.container:
        out["securityContext"] = dict(secure.container)
    for key, field in (("stdin_open", "stdin"), ("tty", "tty")):
        if spec.get(key):
            out[field] = True
            record.mapped(service, key, field)
    return out


def _image_line(seen: Survey, service: str) -> None:
    spec, info, record = seen.project.services[service], seen.images[service], seen.record
    placement = seen.placements[service]
    if spec.get("image"):
        note = f"{placement.kind}: {placement.reason}"
        record.add(service, "image", "mapped" if placement.kind in ("any", "prefer", "only") else "approximated", note)
        for warning in placement.warnings:
            record.approximated(service, "image", warning)
    if info is not None and info.known:
        mounted = {mount.target for mount in seen.volumes.mounts[service]}
        loose = [path for path in info.config.volumes if path.rstrip("/") not in mounted]
        if loose and spec.get("image"):
            record.mapped(
                service,
                "image",
                f"the image keeps data in {', '.join(loose)}, which compose does not mount: "
                "gone with the container, as an anonymous volume would be with `down -v`",
            )
    if "build" in spec:
        command = "; ".join(seen.commands[service]) or "the image is known, no build is needed"
        record.approximated(service, "build", f"clusters run images: {command}")
    if "platform" in spec:
        verdict = "mapped" if placement.kind in ("any", "prefer", "only") or placement.node_selector else "approximated"
        record.add(service, "platform", "mapped" if verdict == "mapped" else "approximated", placement.reason)


def _pre_start(seen: Survey, service: str, container: Obj) -> list[Obj]:
    shared: Obj = {
        key: container[key]
        for key in ("workingDir", "envFrom", "env", "volumeMounts", "securityContext")
        if key in container
    }
    steps = pods.pre_start(service, seen.project.services[service], container["image"], seen.record)
    return [{**step, **shared} for step in steps]


def _pod(
    seen: Survey,
    service: str,
    container: Obj,
    inits: list[Obj],
    volumes: pods.Volumes,
    secure: Security,
    wait: Waits,
    addresses: Mapping[str, str],
) -> Obj:
    spec, placement, limits = seen.project.services[service], seen.placements[service], seen.constraints[service]
    pod: Obj = {"enableServiceLinks": False, "automountServiceAccountToken": wait.reads_jobs}
    if wait.reads_jobs:
        pod["serviceAccountName"] = JOB_READER
    pod.update(pods.pod_fields(service, spec, addresses, seen.record))
    pod.update(secure.fields)
    if pod.get("hostNetwork") and "hostname" in pod:
        del pod["hostname"]
        seen.record.approximated(service, "hostname", "on the host network the node's own name")
    if container.get("lifecycle", {}).get("stopSignal"):
        pod["os"] = {"name": "linux"}  # stopSignal is refused without it
    if secure.pod:
        pod["securityContext"] = dict(secure.pod)
    chosen = {**limits.selector, **placement.node_selector}
    if chosen:
        pod["nodeSelector"] = chosen
    affinity = with_expressions(placement.affinity, limits.expressions)
    group = seen.volumes.groups.get(service)
    if group:
        affinity["podAffinity"] = {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"labelSelector": {"matchLabels": {LABEL_COLOCATE: group}}, "topologyKey": "kubernetes.io/hostname"}
            ]
        }
    if affinity:
        pod["affinity"] = affinity
    if placement.tolerations:
        pod["tolerations"] = [dict(toleration) for toleration in placement.tolerations]
    if inits:
        for init in inits:
            if init["name"] == container["name"]:
                init["name"] = label(f"init-{init['name']}")
        pod["initContainers"] = inits
    pod["containers"] = [container]
    if volumes.volumes:
        pod["volumes"] = volumes.volumes
    return pod


def _annotations(seen: Survey, service: str) -> dict[str, str]:
    """Compose's labels that are valid keys, and hybridlab's reasons."""
    spec, record, placement = seen.project.services[service], seen.record, seen.placements[service]
    out: dict[str, str] = {}
    odd: dict[str, str] = {}
    for key in ("labels", "deploy.labels"):
        given = spec.get("labels") if key == "labels" else (spec.get("deploy") or {}).get("labels")
        for name, value in (given or {}).items():
            (out if is_annotation_key(str(name)) else odd)[str(name)] = str(value)
            for prefix, note in _LABEL_READERS.items():
                if str(name).startswith(prefix):
                    record.approximated(service, key, f"annotations; {note}")
        if given is not None:
            record.mapped(service, key, "annotations")
    if odd:
        out["hybridlab.io/compose-labels"] = json.dumps(odd, sort_keys=True)
        record.approximated(service, "labels", "keys that Kubernetes refuses, together in hybridlab.io/compose-labels")
    info = seen.images[service]
    if info is not None and info.digest:
        out["hybridlab.io/image-digest"] = info.digest
    out[ANNOTATION_PLACEMENT] = placement.kind
    out[ANNOTATION_PLACEMENT_WHY] = "; ".join((placement.reason, *placement.warnings))
    if record.reasons(service):
        out[ANNOTATION_WHY] = "\n".join(record.reasons(service))
    return out


def _pod_meta(seen: Survey, service: str, digest: str) -> Obj:
    spec = seen.project.services[service]
    labels = {**selector(seen.project.name, service), LABEL_MANAGED_BY: "hybridlab"}
    if service in seen.volumes.groups:
        labels[LABEL_COLOCATE] = seen.volumes.groups[service]
    for alias in seen.aliases[service]:
        if sum(alias in others for others in seen.aliases.values()) > 1:
            labels[f"alias.hybridlab.io/{label(alias)}"] = "true"
    meta: Obj = {"labels": labels}
    annotations: dict[str, Json] = {}
    if digest and seen.decisions[service].kind != "Job":
        annotations["hybridlab.io/config"] = digest
    for name, value in (spec.get("annotations") or {}).items():
        if is_annotation_key(str(name)):
            annotations[str(name)] = str(value)
            seen.record.mapped(service, "annotations", "annotations of the pod")
        else:
            seen.record.refused(service, "annotations", f"{name} is not a key that Kubernetes allows")
    if annotations:
        meta["annotations"] = annotations
    return meta


def _digest(settings: list[Obj], seen: Survey, mounts: list[Mount]) -> str:
    """A hash of what the pod is configured with, so that a change of it rolls out."""
    used = [seen.files.objects[mount.volume] for mount in mounts if mount.volume in seen.files.objects]
    parts = [{key: obj.get(key) for key in ("data", "binaryData")} for obj in (*settings, *used)]
    if not parts:
        return ""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
