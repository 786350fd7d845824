"""Charts by K3s' built-in Helm controller: apply a HelmChart and wait until its install Job says how it went."""

from __future__ import annotations

import io
from collections.abc import Mapping

from ruamel.yaml import YAML

from hybridlab.errors import Refused
from hybridlab.models import Json
from hybridlab.plan import Step
from hybridlab.ports import Context
from hybridlab.wait import wait_until

CHART_NAMESPACE = "kube-system"
CHART_DEADLINE_S = 600.0


def helm_chart(name: str, chart: tuple[str, str, str], namespace: str, values: dict[str, Json]) -> dict[str, Json]:
    """A HelmChart for K3s' own controller.

    ``failurePolicy: abort``, because reinstall uninstalls, and with it the volumes; a back-off limit of 4, because
    the default of 1000 never tells that it failed.
    """
    out = io.StringIO()
    YAML().dump(values, out)
    repo, chart_name, version = chart
    return {
        "apiVersion": "helm.cattle.io/v1",
        "kind": "HelmChart",
        "metadata": {
            "name": name,
            "namespace": CHART_NAMESPACE,
            "labels": {"app.kubernetes.io/managed-by": "hybridlab"},
        },
        "spec": {
            "repo": repo,
            "chart": chart_name,
            "version": version,
            "targetNamespace": namespace,
            "createNamespace": True,
            "valuesContent": out.getvalue(),
            "failurePolicy": "abort",
            "backOffLimit": 4,
        },
    }


def apply_chart(ctx: Context, step: Step) -> Mapping[str, Json]:
    """Apply the step's HelmChart; success is the Job ``helm-install-<name>`` Complete for this very chart."""
    chart = step.args["object"]
    name, namespace = chart["metadata"]["name"], chart["metadata"]["namespace"]
    before = _job_uid(ctx, name, namespace)
    changed = bool(ctx.kube.differs(chart))
    made = ctx.kube.apply(chart)

    words = [""]

    def look() -> tuple[str, str]:
        job = ctx.kube.get("batch/v1", "Job", f"helm-install-{name}", namespace)
        live = ctx.kube.get("helm.cattle.io/v1", "HelmChart", name, namespace)
        words[:] = [_cause(ctx, name, namespace) or words[0]]  # the pods go away once the Job has failed
        failed = next(
            (c for c in (live or {}).get("status", {}).get("conditions", []) if c["type"] == "Failed"), {"status": ""}
        )
        if failed["status"] == "True":
            return "failed", str(failed.get("message", ""))
        if job is None or (changed and job["metadata"]["uid"] == before):
            return "waiting", "its Job has not started"
        done = any(
            c["type"] == "Complete" and c["status"] == "True" for c in job.get("status", {}).get("conditions", [])
        )
        return ("complete", "") if done else ("running", f"Job {job['metadata']['name']} is running")

    state, message = wait_until(
        look,
        lambda s: s[0] in ("failed", "complete"),
        what=f"chart {name} to be installed",
        deadline_s=CHART_DEADLINE_S,
        clock=ctx.clock,
        describe=lambda s: s[1] or s[0],
        next_move=f"look at: kubectl -n {namespace} logs job/helm-install-{name}",
    )
    if state == "failed":
        raise Refused(
            f"chart {chart['spec']['chart']} {chart['spec']['version']} could not be installed",
            where=f"HelmChart {namespace}/{name}",
            why=words[0] or message,
            next_move=f"look at: kubectl -n {namespace} logs job/helm-install-{name}",
        )
    return {"uid": made["metadata"]["uid"]}


def _job_uid(ctx: Context, name: str, namespace: str) -> str:
    job = ctx.kube.get("batch/v1", "Job", f"helm-install-{name}", namespace)
    return str(job["metadata"]["uid"]) if job else ""


def _cause(ctx: Context, name: str, namespace: str) -> str:
    """The termination message of the last install pod: Helm's own words."""
    pods = ctx.kube.list("v1", "Pod", namespace, labels=f"job-name=helm-install-{name}")
    for pod in reversed(pods):
        for container in pod.get("status", {}).get("containerStatuses", []):
            for when in ("state", "lastState"):
                message = container.get(when, {}).get("terminated", {}).get("message")
                if message:
                    return str(message).strip()
    return ""
