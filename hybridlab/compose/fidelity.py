"""The fidelity record: every key of every service mapped, approximated (how) or refused (why).

Nothing is dropped in silence: whatever no module spoke for when the conversion ends is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable

from hybridlab.compose.model import Finding, Project, Verdict
from hybridlab.models import Json

# Keys with the same answer for everybody. Those that depend on their value are judged where they are mapped.
FIXED: dict[str, tuple[Verdict, str]] = {
    "attach": ("mapped", "kubelet always collects output; `kubectl logs` chooses what to follow"),
    "blkio_config": ("refused", "Kubernetes has no block I/O weights or rates per container"),
    "cgroup_parent": ("refused", "kubelet owns the cgroup tree"),
    "container_name": ("mapped", "a Service of this name, where it differs from the service's"),
    "cpu_count": ("refused", "Windows only"),
    "cpu_percent": ("refused", "Windows only"),
    "cpu_period": ("approximated", "with cpu_quota: a CPU limit of quota / period"),
    "cpu_quota": ("approximated", "a CPU limit of quota / period"),
    "cpu_rt_period": ("refused", "Kubernetes has no real-time scheduling"),
    "cpu_rt_runtime": ("refused", "Kubernetes has no real-time scheduling"),
    "cpuset": ("refused", "pinning needs kubelet's static CPU manager, which counts CPUs and does not name them"),
    "credential_spec": ("refused", "Windows only"),
    "develop": ("refused", "a development loop; the cluster runs built images"),
    "device_cgroup_rules": ("refused", "device access in Kubernetes goes by device plugin or privileged containers"),
    "domainname": ("refused", "a pod's domain is the cluster's; the application's own setting is the place for it"),
    "external_links": ("mapped", "other names of services of this project"),
    "isolation": ("mapped", "Windows only; without effect on Linux in Docker, too"),
    "env_file": ("mapped", "Compose read it into environment"),
    "extends": ("mapped", "Compose resolved it when reading"),
    "label_file": ("mapped", "Compose read its labels into `labels`"),
    "links": ("mapped", "other names of services of this project"),
    "logging": ("approximated", "kubelet keeps and rotates the logs; drivers and their options are Docker's"),
    "mac_address": ("refused", "the pod network gives out addresses"),
    "memswap_limit": ("refused", "kubelet decides about swap per node, not per container"),
    "mem_swappiness": ("refused", "kubelet decides about swap per node, not per container"),
    "models": ("refused", "Docker Model Runner is part of Docker; give the service its model's URL as environment"),
    "name": ("mapped", "as in Compose"),
    "oom_kill_disable": ("refused", "the kernel's OOM killer is how Kubernetes enforces memory limits"),
    "oom_score_adj": ("refused", "kubelet sets it from requests and limits"),
    "pids_limit": ("refused", "a process limit is kubelet's setting per node (podPidsLimit)"),
    "profiles": ("mapped", "the profiles chosen when reading decided which services are here"),
    "provider": ("refused", "a provider is a program on the Docker host; use what it provides by its address"),
    "storage_opt": ("refused", "size of the writable layer; ephemeral-storage limits are the nearest thing"),
    "ulimits": (
        "refused",
        "containers get the container runtime's limits; raise them on the node (LimitNOFILE of k3s)",
    ),
    "use_api_socket": ("refused", "there is no Docker engine on the nodes"),
    "volumes_from": ("mapped", "the other service's volumes are mounted here, too"),
}
# Sections with their own lines per entry.
TOP_SECTIONS = ("services", "volumes", "networks", "configs", "secrets")


class Record:
    """Collects findings and the reasons that go into annotations while one project is converted."""

    def __init__(self) -> None:
        self._findings: dict[tuple[str, str], Finding] = {}
        self._why: dict[str, list[str]] = {}

    def add(self, service: str, key: str, verdict: Verdict, note: str = "") -> None:
        """One line; a second one for the same key joins the first, and the worse verdict stands."""
        rank = ("mapped", "approximated", "refused")
        before = self._findings.get((service, key))
        if before is not None:
            verdict = max(verdict, before.verdict, key=rank.index)
            note = "; ".join(dict.fromkeys(part for part in (before.note, note) if part))
        self._findings[(service, key)] = Finding(service, key, verdict, note)

    def mapped(self, service: str, key: str, note: str = "") -> None:
        self.add(service, key, "mapped", note)

    def approximated(self, service: str, key: str, note: str) -> None:
        self.add(service, key, "approximated", note)

    def refused(self, service: str, key: str, note: str) -> None:
        self.add(service, key, "refused", note)

    def why(self, service: str, reason: str) -> None:
        reasons = self._why.setdefault(service, [])
        if reason not in reasons:
            reasons.append(reason)

    def reasons(self, service: str) -> tuple[str, ...]:
        return tuple(self._why.get(service, ()))

    def covers(self, service: str, key: str) -> bool:
        return any(s == service and covers(k, key) for s, k in self._findings)

    def close(self, project: Project) -> tuple[Finding, ...]:
        """All lines in the project's own order, after giving every key nobody spoke for its fixed or refused line."""
        for service, spec in project.services.items():
            for key in spec:
                if not self.covers(service, key):
                    self._close_key(service, key, spec[key])
        for section in TOP_SECTIONS:
            if section != "services":
                for name in getattr(project, section):
                    if not self.covers("", f"{section}.{name}"):
                        self.mapped("", f"{section}.{name}", "no service uses it")
        self.mapped("", "name", "the label app.kubernetes.io/part-of, and the namespace unless another is chosen")
        self.mapped("", "services", f"{len(project.services)} services")
        for key in project.other:
            self._close_top(key)
        order = {name: index for index, name in enumerate(["", *project.services])}
        return tuple(sorted(self._findings.values(), key=lambda f: (order.get(f.service, len(order)), f.key)))

    def _close_key(self, service: str, key: str, value: Json) -> None:
        if key.startswith("x-"):
            self.mapped(service, key, "an extension: Compose ignores it, too")
        elif key in FIXED:
            self.add(service, key, *FIXED[key])
        elif value in (None, [], {}, "", False):
            self.mapped(service, key, "empty: the default")
        else:
            self.refused(service, key, "hybridlab does not know this key of Compose")

    def _close_top(self, key: str) -> None:
        if key.startswith("x-"):
            self.mapped("", key, "an extension: Compose ignores it, too")
        elif key == "models":
            self.refused("", key, FIXED["models"][1])
        elif key in ("version", "include"):
            self.mapped("", key, "Compose resolved it when reading")
        else:
            self.refused("", key, "hybridlab does not know this key of Compose")


def covers(finding_key: str, key: str) -> bool:
    """Whether a line speaks for a key: itself, or something inside it."""
    return finding_key == key or finding_key.startswith(f"{key}.")


def missing_lines(project: Project, findings: Iterable[Finding]) -> list[str]:
    """Keys of the project without a line, as ``service.key``: must be empty after a conversion."""
    lines = [(finding.service, finding.key) for finding in findings]
    wanted = [(service, key) for service, spec in project.services.items() for key in spec]
    for section in TOP_SECTIONS[1:]:
        wanted += [("", f"{section}.{name}") for name in getattr(project, section)]
    wanted += [("", key) for key in ("name", "services", *project.other)]
    return [f"{service}.{key}" for service, key in wanted if not any(s == service and covers(k, key) for s, k in lines)]
