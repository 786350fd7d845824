"""What helm does inside K3s' helm Jobs: install, upgrade and uninstall releases of the charts the lab knows.

A release is remembered as helm does, in a Secret ``sh.helm.release.v1.<name>.v<revision>`` of its namespace.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from hybridlab.lab.kube.controllers import charts
from hybridlab.lab.kube.controllers.charts import Chart, ChartError, Release
from hybridlab.lab.kube.controllers.objects import (
    CRD,
    HELM_CHART_CONFIG,
    NAMESPACE,
    SECRET,
    Kind,
    Obj,
    annotations_of,
    labels_of,
    name_of,
    namespace_of,
    spec_of,
)
from hybridlab.lab.kube.controllers.work import Context
from hybridlab.lab.kube.errors import ApiError

_NAME, _SPACE = "meta.helm.sh/release-name", "meta.helm.sh/release-namespace"


@dataclass(frozen=True)
class Recorded:
    """A release as recorded: its revision and the objects it made."""

    revision: int
    objects: Sequence[Mapping[str, Any]]


def values_of(chart: Obj, config: Obj | None) -> dict[str, Any]:
    """The values of a HelmChart: valuesContent, then values, then those of its HelmChartConfig, then ``set``."""
    merged: Any = {}
    for spec in (spec_of(chart), spec_of(config or {})):
        for key in ("valuesContent", "values"):
            value = spec.get(key)
            if isinstance(value, str):
                merged = charts.merge(merged, _parsed(value))
            elif isinstance(value, Mapping):
                merged = charts.merge(merged, value)
    for path, value in (spec_of(chart).get("set") or {}).items():
        nested: Any = value
        for part in reversed(str(path).split(".")):
            nested = {part: nested}
        merged = charts.merge(merged, nested)
    return dict(merged)


def _parsed(text: str) -> Any:
    try:
        found = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        where = str(error).replace("\n", " ")
        raise ChartError(f"failed to parse /config/values-1-000-HelmChart-ValuesContent.yaml: {where}") from error
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ChartError("failed to parse /config/values-1-000-HelmChart-ValuesContent.yaml: values are not a map")
    return found


class Releases:
    """Does to the store what ``helm upgrade --install`` and ``helm uninstall`` do to a cluster."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def check(self, helm_chart: Obj) -> Chart:
        """The chart that a HelmChart names. Raises ChartError."""
        spec = spec_of(helm_chart)
        return charts.find(str(spec.get("chart") or ""), str(spec.get("repo") or ""), str(spec.get("version") or ""))

    def apply(self, helm_chart: Obj) -> str:
        """Install or upgrade; returns what helm prints. Raises ChartError."""
        spec = spec_of(helm_chart)
        chart = self.check(helm_chart)
        config = None
        if self._context.defined(HELM_CHART_CONFIG):
            config = self._context.get(HELM_CHART_CONFIG, name_of(helm_chart), namespace_of(helm_chart))
        values = values_of(helm_chart, config)
        namespace = str(spec.get("targetNamespace") or namespace_of(helm_chart))
        old = self.recorded(name_of(helm_chart), namespace)
        verb = "UPGRADE" if old else "INSTALLATION"
        try:
            if spec.get("createNamespace"):
                self._context.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
            if self._context.get(NAMESPACE, namespace) is None:
                raise ChartError(f'create: failed to create: namespaces "{namespace}" not found')
            for definition in charts.definitions(chart):
                self._context.create(definition)
            objects = charts.render(chart, Release(name_of(helm_chart), namespace, values))
            for obj in objects:
                self._check_owner(obj)
            for obj in objects:
                self._put(obj)
        except ApiError as error:
            raise ChartError(f"{verb} FAILED: {error.message}") from error
        except ChartError as error:
            raise ChartError(f"{verb} FAILED: {error}") from error
        self._drop(old.objects if old else (), keep=objects)
        revision = old.revision + 1 if old else 1
        self._record(name_of(helm_chart), namespace, revision, objects)
        return f'Release "{name_of(helm_chart)}" has been upgraded. Happy Helming! REVISION: {revision}'

    def remove(self, helm_chart: Obj) -> str:
        """Uninstall; a release that isn't there is no error. CustomResourceDefinitions stay, as helm leaves them."""
        namespace = str(spec_of(helm_chart).get("targetNamespace") or namespace_of(helm_chart))
        old = self.recorded(name_of(helm_chart), namespace)
        if old is None:
            return f"release {name_of(helm_chart)}: not found"
        self._drop(old.objects, keep=())
        for secret in self._records(name_of(helm_chart), namespace):
            self._context.delete(SECRET, secret)
        return f'release "{name_of(helm_chart)}" uninstalled'

    # -- objects -----------------------------------------------------------------------------------------------------
    def _kind(self, obj: Mapping[str, Any]) -> Kind | None:
        try:
            resource = self._context.store.resource(obj["apiVersion"], obj["kind"])
        except ApiError:
            return None
        return Kind(resource.plural, resource.group, resource.version, resource.kind, resource.namespaced)

    def _found(self, obj: Mapping[str, Any]) -> tuple[Kind | None, Obj | None]:
        kind = self._kind(obj)
        if kind is None:
            return None, None
        return kind, self._context.get(kind, obj["metadata"]["name"], obj["metadata"].get("namespace") or "")

    def _check_owner(self, obj: Obj) -> None:
        """helm refuses to take over what another release, or nobody, made."""
        found = self._found(obj)[1]
        if found is None or found["kind"] == CRD.kind:
            return
        wanted = annotations_of(obj)
        has = annotations_of(found)
        if labels_of(found).get("app.kubernetes.io/managed-by") == "Helm" and all(
            has.get(key) == wanted[key] for key in (_NAME, _SPACE)
        ):
            return
        where = f' in namespace "{namespace_of(obj)}"' if namespace_of(obj) else ""
        raise ChartError(
            f'Unable to continue with install: {obj["kind"]} "{name_of(obj)}"{where} exists and cannot be imported '
            "into the current release: invalid ownership metadata"
        )

    def _put(self, obj: Obj) -> None:
        kind, found = self._found(obj)
        if kind is None:
            version, name = obj["apiVersion"], obj["kind"]
            raise ChartError(f'unable to build kubernetes objects: no matches for kind "{name}" in version "{version}"')
        stored = {**obj, "apiVersion": kind.api_version}
        if found is None:
            self._context.store.create(stored)
            return

        def change(live: Obj) -> None:
            for key, value in stored.items():
                if key == "metadata":
                    live["metadata"].setdefault("labels", {}).update(value.get("labels") or {})
                    live["metadata"].setdefault("annotations", {}).update(value.get("annotations") or {})
                elif key == "spec" and isinstance(live.get("spec"), dict):
                    live["spec"] = _overlaid(live["spec"], value)
                else:
                    live[key] = value

        self._context.change(kind, found, change)

    def _drop(self, objects: Sequence[Mapping[str, Any]], keep: Sequence[Mapping[str, Any]]) -> None:
        kept = {(o["kind"], o["metadata"]["name"], o["metadata"].get("namespace")) for o in keep}
        for obj in reversed(list(objects)):
            if (obj["kind"], obj["metadata"]["name"], obj["metadata"].get("namespace")) in kept:
                continue
            kind, found = self._found(obj)
            if kind is not None and found is not None:
                self._context.delete(kind, found)

    # -- records -----------------------------------------------------------------------------------------------------
    def _records(self, name: str, namespace: str) -> list[Obj]:
        secrets = self._context.peek(SECRET, namespace)
        mine = [s for s in secrets if labels_of(s).get("owner") == "helm" and labels_of(s).get("name") == name]
        return sorted(mine, key=lambda s: int(labels_of(s)["version"]))

    def recorded(self, name: str, namespace: str) -> Recorded | None:
        """The newest revision of a release, or None."""
        records = self._records(name, namespace)
        if not records:
            return None
        inner = base64.b64decode(base64.b64decode(records[-1]["data"]["release"]))
        body = json.loads(gzip.decompress(inner))
        return Recorded(int(labels_of(records[-1])["version"]), body["objects"])

    def _record(self, name: str, namespace: str, revision: int, objects: Sequence[Obj]) -> None:
        for old in self._records(name, namespace):
            self._context.change(SECRET, old, lambda found: found["metadata"]["labels"].update(status="superseded"))
        slim = [
            {
                "apiVersion": o["apiVersion"],
                "kind": o["kind"],
                "metadata": {k: o["metadata"][k] for k in ("name", "namespace") if k in o["metadata"]},
            }
            for o in objects
        ]
        body = {
            "name": name,
            "namespace": namespace,
            "version": revision,
            "info": {"status": "deployed"},
            "objects": slim,
        }
        packed = base64.b64encode(gzip.compress(json.dumps(body).encode()))
        self._context.create(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {
                    "name": f"sh.helm.release.v1.{name}.v{revision}",
                    "namespace": namespace,
                    "labels": {"name": name, "owner": "helm", "status": "deployed", "version": str(revision)},
                },
                "type": "helm.sh/release.v1",
                "data": {"release": base64.b64encode(packed).decode()},
            }
        )


def _overlaid(live: Obj, wanted: Obj) -> Obj:
    """A rendered spec over the live one: what the chart says wins, what only the API server filled in stays."""
    result = dict(live)
    for key, value in wanted.items():
        both_maps = isinstance(value, dict) and isinstance(live.get(key), dict) and key not in ("template",)
        result[key] = _overlaid(live[key], value) if both_maps else value
    return result
