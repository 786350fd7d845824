"""The charts the lab knows, and what they render to: a table of repository, name and version, nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from hybridlab.lab.kube.controllers import bundled
from hybridlab.lab.kube.controllers.objects import Obj

_CLUSTER_SCOPED = ("ClusterRole", "ClusterRoleBinding", "PriorityClass", "StorageClass", "CSIDriver", "IngressClass")
_HELM_ORDER = (  # helm's InstallOrder, as far as the known charts go
    "Namespace",
    "NetworkPolicy",
    "PriorityClass",
    "ServiceAccount",
    "Secret",
    "ConfigMap",
    "StorageClass",
    "CustomResourceDefinition",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "Service",
    "DaemonSet",
    "Deployment",
    "StatefulSet",
    "Job",
    "CSIDriver",
    "IngressClass",
)


class ChartError(Exception):
    """What helm prints when it can't go on, without the leading ``Error: ``."""


@dataclass(frozen=True)
class Chart:
    """One chart at one version; ``rows`` are its objects, names not yet filled in."""

    name: str
    version: str
    repo: str
    crd_group: str
    bare_crds: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Release:
    """What a chart is rendered for."""

    name: str
    namespace: str
    values: Mapping[str, Any]

    def value(self, path: str, default: Any = None) -> Any:
        """The value at a dotted path; ``default`` where it isn't set (null unsets, as in helm)."""
        found: Any = self.values
        for part in path.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
        return default if found is None else found

    def full(self, chart: str) -> str:
        """Helm's usual fullname."""
        return self.name if chart in self.name else f"{self.name}-{chart}"


@cache
def _known() -> tuple[Chart, ...]:
    folder = resources.files("hybridlab.data") / "charts"
    charts = []
    for file in sorted(folder.iterdir(), key=lambda f: f.name):
        if file.name.endswith(".json"):
            data = json.loads(file.read_text(encoding="utf-8"))
            rows = tuple(row for row in data["objects"] if not row.get("hook"))
            bare = tuple(data.get("bare_crds", ()))
            charts.append(Chart(data["chart"], data["version"], data["repo"], data["crds"], bare, rows))
    return tuple(charts)


def find(name: str, repo: str, version: str) -> Chart:
    """The chart of that name, repository and version ("" is the newest). Raises ChartError in helm's words."""
    if "://" in name and name.endswith(".tgz"):  # what K3s serves itself
        for chart in _known():
            if not chart.repo and name.endswith(f"/{chart.name}-{chart.version}.tgz"):
                return chart
        raise ChartError(f"failed to fetch {name} : 404 Not Found")
    if not repo:
        raise ChartError(f"repo {name.partition('/')[0]} not found" if "/" in name else f'path "{name}" not found')
    here = [chart for chart in _known() if chart.repo and chart.repo == repo.rstrip("/")]
    if not here:
        raise ChartError(f'looks like "{repo}" is not a valid chart repository or cannot be reached')
    for chart in here:
        if chart.name == name and version.removeprefix("v") in ("", chart.version):
            return chart
    wanted = f'chart "{name}" version "{version}"' if version else f'chart "{name}"'
    raise ChartError(f"{wanted} not found in {repo} repository")


def known(name: str) -> Chart:
    """A chart by its name alone (a dependency of another one)."""
    return next(chart for chart in _known() if chart.name == name)


def definitions(chart: Chart) -> list[Obj]:
    """The CustomResourceDefinitions in a chart's crds folder; those the lab has no schema of accept anything."""
    if chart.crd_group:
        return bundled.definitions(chart.crd_group)
    return [_bare(name) for name in chart.bare_crds]


def _bare(name: str) -> Obj:
    plural, _, group = name.partition(".")
    singular = plural[:-3] + "y" if plural.endswith("ies") else plural.removesuffix("s")
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"plural": plural, "singular": singular, "kind": singular.capitalize()},
            "versions": [{"name": "v1beta2", "served": True, "storage": True, "schema": schema}],
        },
    }


def render(chart: Chart, release: Release) -> list[Obj]:
    """The chart's objects for a release, in helm's order. Raises ChartError."""
    from hybridlab.lab.kube.controllers import chart_templates  # it builds on this module

    full = release.full(chart.name)
    objects: list[Obj] = []
    for row in chart.rows:
        name = str(row["name"]).format(full=full, release=release.name)
        obj = {"apiVersion": row["apiVersion"], "kind": row["kind"], "metadata": {"name": name}}
        if row["kind"] not in _CLUSTER_SCOPED:
            obj["metadata"]["namespace"] = release.namespace
        objects += chart_templates.fill(chart, release, obj, list(row.get("images", ())))
    objects += chart_templates.more(chart, release)
    objects.sort(key=lambda o: _HELM_ORDER.index(o["kind"]) if o["kind"] in _HELM_ORDER else len(_HELM_ORDER))
    for obj in objects:
        meta = obj["metadata"]
        meta.setdefault("labels", {}).update(
            {
                "app.kubernetes.io/managed-by": "Helm",
                "app.kubernetes.io/instance": release.name,
                "helm.sh/chart": f"{chart.name}-{chart.version}".replace("+", "_"),
            }
        )
        meta.setdefault("annotations", {}).update(
            {"meta.helm.sh/release-name": release.name, "meta.helm.sh/release-namespace": release.namespace}
        )
    return objects


def merge(base: Any, over: Any) -> Any:
    """Helm's merge of values: maps are merged, anything else is replaced, null removes."""
    if not isinstance(base, Mapping) or not isinstance(over, Mapping):
        return over
    merged = dict(base)
    for key, value in over.items():
        if value is None:
            merged[key] = None
        else:
            merged[key] = merge(merged[key], value) if key in merged else value
    return merged
