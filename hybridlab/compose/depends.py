"""``depends_on`` → init containers that wait.

- service_healthy: a TCP connect to the other's Service, which has endpoints only while the pod is ready; with no known
  port, until its headless name resolves (which it does only then, too).
- service_completed_successfully: ``kubectl wait`` for the Job, with a service account that may only read Jobs.
- service_started: no wait. Docker means "the process exists"; here everything starts at once and is restarted until
  what it needs is there.
Each wait gives up after a while and the kubelet starts it anew: a broken dependency shows as a failing init container.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hybridlab.compose.env import escape
from hybridlab.compose.fidelity import Record
from hybridlab.compose.files import Meta
from hybridlab.compose.model import Obj, Project
from hybridlab.compose.names import label
from hybridlab.compose.network import Port

WAIT_IMAGE = "docker.io/library/busybox:1.37"
KUBECTL_IMAGE = "registry.k8s.io/kubectl:v1.36.0"
WAIT_S = 600
JOB_READER = "hybridlab-job-reader"
_SMALL: Obj = {"requests": {"cpu": "5m", "memory": "8Mi"}}
_LOCKED: Obj = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


@dataclass(frozen=True)
class Waits:
    """Init containers in order; ``reads_jobs``: the pod needs the service account JOB_READER."""

    containers: tuple[Obj, ...] = ()
    reads_jobs: bool = False


def waits(
    service: str,
    project: Project,
    names: Mapping[str, str],
    ports: Mapping[str, Sequence[Port]],
    jobs: frozenset[str],
    checked: frozenset[str],
    record: Record,
) -> Waits:
    """Init containers of one service. ``checked``: services that have a health check of some kind."""
    containers: list[Obj] = []
    reads_jobs = False
    for target, how in (project.services[service].get("depends_on") or {}).items():
        key = f"depends_on.{target}"
        if target not in names:
            record.approximated(service, key, "not in this project (another profile, or not required): no wait")
            continue
        condition = (how or {}).get("condition", "service_started")
        if condition == "service_completed_successfully" and target in jobs:
            containers.append(_job_wait(names[target]))
            reads_jobs = True
            record.mapped(service, key, f"init container: kubectl wait for Job {names[target]}")
        elif condition == "service_healthy" and target not in jobs:
            containers.append(_healthy_wait(names[target], ports[target]))
            _healthy_line(service, key, target, target in checked, ports[target], record)
        elif condition == "service_started":
            record.approximated(service, key, "no wait: Kubernetes starts all at once and restarts until it works")
        else:
            record.approximated(service, key, f"{condition}: {target} has nothing to wait for here, so no wait")
        if (how or {}).get("restart"):
            record.approximated(service, key, "restart with it: not done, clients must reconnect")
    if "depends_on" in project.services[service] and not project.services[service]["depends_on"]:
        record.mapped(service, "depends_on", "none")
    return Waits(tuple(containers), reads_jobs)


def _healthy_line(service: str, key: str, target: str, checked: bool, ports: Sequence[Port], record: Record) -> None:
    if not checked:
        record.approximated(
            service, key, f"init container: waits until {target} runs; its image's own check is not known"
        )
    elif ports and all(port.protocol != "TCP" for port in ports):
        record.approximated(
            service, key, f"init container: waits for {target}'s name only, which has no TCP port to try"
        )
    else:
        record.mapped(service, key, "init container: waits until the Service answers, which means ready")


def _healthy_wait(name: str, ports: Sequence[Port]) -> Obj:
    tcp = [port.number for port in ports if port.protocol == "TCP"]
    if tcp:
        test = f"nc -z -w 2 {name} {tcp[0]}"
    else:
        test = f"! nc -z -w 2 {name} 1 2>&1 | grep -q 'bad address'"
    script = f"i=0; until {test}; do i=$((i+1)); [ $i -ge {WAIT_S // 2} ] && exit 1; sleep 2; done"
    return _container(f"wait-{name}", WAIT_IMAGE, ["/bin/sh", "-c", escape(script)])


def _job_wait(name: str) -> Obj:
    command = ["kubectl", "wait", "--for=condition=complete", f"job/{name}", f"--timeout={WAIT_S}s"]
    return _container(f"wait-{name}", KUBECTL_IMAGE, command)


def _container(name: str, image: str, command: list[str]) -> Obj:
    return {
        "name": label(name),
        "image": image,
        "command": command,
        "securityContext": dict(_LOCKED),
        "resources": dict(_SMALL),
    }


def job_reader(meta: Meta) -> list[Obj]:
    """The service account, role and binding that ``kubectl wait`` needs."""
    head = {"metadata": meta(JOB_READER, "", {})}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", **head, "automountServiceAccountToken": False},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            **head,
            "rules": [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list", "watch"]}],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            **head,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": JOB_READER},
            "subjects": [{"kind": "ServiceAccount", "name": JOB_READER}],
        },
    ]
