"""K3s' Helm controller: a Job per HelmChart that installs, upgrades or deletes a release, and its conditions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable

from hybridlab.lab.kube.controllers.charts import ChartError
from hybridlab.lab.kube.controllers.jobs import is_done
from hybridlab.lab.kube.controllers.objects import (
    HELM_CHART,
    HELM_CHART_CONFIG,
    JOB,
    SECRET,
    SERVICE_ACCOUNT,
    Kind,
    Obj,
    annotations_of,
    condition_is,
    is_deleting,
    key_of,
    labels_of,
    name_of,
    namespace_of,
    owner_reference,
    spec_of,
    status_of,
)
from hybridlab.lab.kube.controllers.podworker import Program
from hybridlab.lab.kube.controllers.releases import Releases
from hybridlab.lab.kube.controllers.work import Context, Controller, Key, on

CHART_LABEL = "helmcharts.helm.cattle.io/chart"
CONFIG_HASH = "helmcharts.helm.cattle.io/configHash"
JOB_IMAGE = "rancher/klipper-helm:v0.9.10-build20251111"
CHART_S = 3.0
REFUSED_S = 0.5
_FINALIZER = "wrangler.cattle.io/on-helm-chart-remove"
_BINDING = Kind("clusterrolebindings", "rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", False)
_DEFAULT_BACKOFF_LIMIT = 1000


class HelmCharts(Controller):
    name = "helm"

    def keys(self, event: str, kind: tuple[str, str], obj: Obj) -> Iterable[Key]:
        if on(HELM_CHART, kind) or on(HELM_CHART_CONFIG, kind):
            return [key_of(obj)]
        if on(JOB, kind) and labels_of(obj).get(CHART_LABEL):
            return [(namespace_of(obj), labels_of(obj)[CHART_LABEL])]
        return []

    async def reconcile(self, key: Key) -> float | None:
        chart = self.context.get(HELM_CHART, key[1], key[0])
        if chart is None or not (spec_of(chart).get("chart") or spec_of(chart).get("chartContent")):
            return None
        if is_deleting(chart):
            self._uninstall(chart)
            return None
        if _FINALIZER not in (chart["metadata"].get("finalizers") or []):
            chart = self.context.change(HELM_CHART, chart, _take) or chart
        wanted = self._job(chart, "install")
        found = self.context.get(JOB, name_of(wanted), key[0])
        if found is not None and annotations_of(found).get(CONFIG_HASH) != annotations_of(wanted)[CONFIG_HASH]:
            if not is_deleting(found):
                self.context.delete(JOB, found, propagation="Foreground")
            return None  # made anew when it is gone
        if found is None:
            self._related(chart)
            self.context.create(wanted)
            message = f"Applying HelmChart using Job {key[0]}/{name_of(wanted)}"
            self.context.event(chart, "Normal", "ApplyJob", message, "helm-controller")
        self._report(chart, found or wanted)
        return None

    def _report(self, chart: Obj, job: Obj) -> None:
        created = {
            "type": "JobCreated",
            "status": "True",
            "reason": "Job created",
            "message": f"Applying HelmChart using Job {namespace_of(job)}/{name_of(job)}",
        }
        failed: Obj = {"type": "Failed", "status": "False"}
        if condition_is(job, "Failed"):
            text = "Job has reached configured number of retries without succeeding"
            failed = {"type": "Failed", "status": "True", "reason": "Job failed", "message": text}
            if not condition_is(chart, "Failed"):
                self.context.event(chart, "Warning", "JobFailed", text, "helm-controller")
        status = {**status_of(chart), "jobName": name_of(job), "conditions": [created, failed]}
        self.context.set_status(HELM_CHART, chart, status)

    def _uninstall(self, chart: Obj) -> None:
        """A deleted HelmChart goes once its helm-delete Job is complete."""
        if _FINALIZER not in (chart["metadata"].get("finalizers") or []):
            return
        install = self.context.get(JOB, f"helm-install-{name_of(chart)}", namespace_of(chart))
        if install is not None:
            if not is_deleting(install):
                self.context.delete(JOB, install, propagation="Foreground")
            return
        wanted = self._job(chart, "delete")
        found = self.context.get(JOB, name_of(wanted), namespace_of(chart))
        if found is None:
            self.context.create(wanted)
            self.context.set_status(HELM_CHART, chart, {**status_of(chart), "jobName": name_of(wanted)})
            return
        if not (is_done(found) and condition_is(found, "Complete")):
            return
        where = f"{namespace_of(found)}/{name_of(found)}"
        message = f"Uninstalled HelmChart using Job {where}, removing resources"
        self.context.event(chart, "Normal", "RemoveJob", message, "helm-controller")
        self.context.delete(JOB, found)
        binding = self.context.get(_BINDING, f"helm-{namespace_of(chart)}-{name_of(chart)}")
        if binding is not None:
            self.context.delete(_BINDING, binding)
        self.context.change(HELM_CHART, chart, _release)

    # -- what a HelmChart is turned into -----------------------------------------------------------------------------
    def _hash(self, chart: Obj) -> str:
        config = None
        if self.context.defined(HELM_CHART_CONFIG):
            config = self.context.get(HELM_CHART_CONFIG, name_of(chart), namespace_of(chart))
        seen = json.dumps([spec_of(chart), spec_of(config or {})], sort_keys=True)
        return "SHA256=" + hashlib.sha256(seen.encode()).hexdigest().upper()

    def _job(self, chart: Obj, action: str) -> Obj:
        name, namespace, spec = name_of(chart), namespace_of(chart), spec_of(chart)
        target = spec.get("targetNamespace") or namespace
        chart_name = f"{name}/{spec.get('chart')}" if spec.get("repo") else spec.get("chart")
        verb = "install" if action == "install" else "delete"
        args = [verb] if verb == "delete" else [verb, "--namespace", target]
        config = (
            self.context.get(HELM_CHART_CONFIG, name, namespace) if self.context.defined(HELM_CHART_CONFIG) else None
        )
        policy = spec_of(config or {}).get("failurePolicy") or spec.get("failurePolicy") or "reinstall"
        variables = {
            "NAME": name,
            "VERSION": spec.get("version") or "",
            "REPO": spec.get("repo") or "",
            "HELM_DRIVER": "secret",
            "CHART_NAMESPACE": namespace,
            "CHART": chart_name or "",
            "TARGET_NAMESPACE": target,
            "FAILURE_POLICY": policy,
        }
        labels = {CHART_LABEL: name}
        limit = spec.get("backOffLimit")
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {
                "name": f"helm-{action}-{name}",
                "namespace": namespace,
                "labels": labels,
                "annotations": {CONFIG_HASH: self._hash(chart)},
                "ownerReferences": [owner_reference(chart)],
            },
            "spec": {
                "backoffLimit": _DEFAULT_BACKOFF_LIMIT if limit is None else int(limit),
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "restartPolicy": "OnFailure",
                        "serviceAccountName": f"helm-{name}",
                        "nodeSelector": {"kubernetes.io/os": "linux"},
                        "containers": [
                            {
                                "name": "helm",
                                "image": str(spec.get("jobImage") or JOB_IMAGE),
                                "imagePullPolicy": "IfNotPresent",
                                "args": args,
                                "env": [{"name": k, "value": str(v)} for k, v in variables.items()],
                                "terminationMessagePolicy": "FallbackToLogsOnError",
                            }
                        ],
                    },
                },
            },
        }

    def _related(self, chart: Obj) -> None:
        """The account, its rights and the values that the Job uses."""
        name, namespace = name_of(chart), namespace_of(chart)
        reference = [owner_reference(chart)]
        account = {"name": f"helm-{name}", "namespace": namespace, "ownerReferences": reference}
        self.context.create({"apiVersion": "v1", "kind": SERVICE_ACCOUNT.kind, "metadata": account})
        self.context.create(
            {
                "apiVersion": _BINDING.api_version,
                "kind": _BINDING.kind,
                "metadata": {"name": f"helm-{namespace}-{name}"},
                "roleRef": {"apiGroup": _BINDING.group, "kind": "ClusterRole", "name": "cluster-admin"},
                "subjects": [{"kind": "ServiceAccount", "name": f"helm-{name}", "namespace": namespace}],
            }
        )
        values = {"values-1-000-HelmChart-ValuesContent.yaml": str(spec_of(chart).get("valuesContent") or "")}
        secret = self.context.get(SECRET, f"chart-values-{name}", namespace)
        if secret is None:
            meta = {"name": f"chart-values-{name}", "namespace": namespace, "ownerReferences": reference}
            self.context.create({"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": values})
        else:
            self.context.change(SECRET, secret, lambda found: found.update(stringData=values))


def program(context: Context) -> Program:
    """What stands in for the helm image: does the Job's work, exits 1 with helm's message where it can't."""
    releases = Releases(context)

    async def run(pod: Obj, container: Obj, log: Callable[[str], None]) -> tuple[int, str]:
        name = labels_of(pod).get(CHART_LABEL, "")
        action = (container.get("args") or [""])[0]
        chart = context.get(HELM_CHART, name, namespace_of(pod))
        if chart is None:
            log(f"Error: HelmChart {name} is gone")
            return 1, f"Error: HelmChart {name} is gone"
        try:
            if action == "delete":
                await context.takes(REFUSED_S)
                said = releases.remove(chart)
            else:
                releases.check(chart)
                await context.takes(CHART_S)
                said = releases.apply(context.current(HELM_CHART, chart) or chart)
        except ChartError as error:
            await context.takes(REFUSED_S)
            log(f"Error: {error}")
            return 1, f"Error: {error}"
        log(said)
        return 0, said

    return run


def _take(chart: Obj) -> None:
    chart["metadata"].setdefault("finalizers", []).append(_FINALIZER)
    chart["metadata"].setdefault("annotations", {})["helmcharts.cattle.io/managed-by"] = "helm-controller"


def _release(chart: Obj) -> None:
    chart["metadata"]["finalizers"] = [f for f in chart["metadata"].get("finalizers") or [] if f != _FINALIZER]
